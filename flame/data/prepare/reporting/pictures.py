"""The picture of a preparation's report."""

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402  after the choice of a backend without a screen

_MOST_BARS = 12


def draw(found: dict[str, Any], path: Path) -> None:
    """Draws what the steps leave, the lengths of the documents, and the languages.

    Args:
        found: The figures, of ``collect``.
        path: Where the PNG goes.
    """
    panels = [("documents left after each step", _left(found)), ("lengths of documents written", _lengths(found))]
    if found["languages"]:
        bars = [(entry["language"], entry["documents"]) for entry in found["languages"][:_MOST_BARS]]
        panels.append(("documents by language", bars))
    if len(found["written_by_source"]) > 1:
        sources = [(name, amount["documents"]) for name, amount in found["written_by_source"].items()]
        panels.append(("documents written by input", sources[:_MOST_BARS]))
    figure, axes = plt.subplots(1, len(panels), figsize=(4.6 * len(panels), 3.8), layout="constrained")
    for axis, (title, bars) in zip(axes, panels, strict=True):
        places = range(len(bars))
        axis.barh(places, [number for _, number in bars], color="#4878a8")
        axis.set_yticks(places, [name for name, _ in bars], fontsize=8)
        axis.set_ylim(max(len(bars), _MOST_BARS) - 0.4, -0.6)  # bars of one width, the first on top
        axis.set_title(title, fontsize=10)
        axis.tick_params(axis="x", labelsize=8)
        axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=110, format="png", metadata={"Software": None})
    plt.close(figure)


def _left(found: dict[str, Any]) -> list[tuple[str, int]]:
    return [(step["name"], step["kept"]["documents"]) for step in found["steps"]]


def _lengths(found: dict[str, Any]) -> list[tuple[str, int]]:
    unit = "bytes" if found["job"]["output"]["format"] == "parquet" else "tokens"
    return [(f"{int(start):,}+ {unit}", number) for start, number in found["lengths"].items()]
