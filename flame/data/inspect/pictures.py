"""Pictures of a job's data; needs matplotlib (extra ``plots``)."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

matplotlib.use("Agg")
from matplotlib import pyplot as plt  # noqa: E402 (after the choice of what draws)

from flame.data.inspect.measure import Measurement  # noqa: E402

_LONGEST_NAME = 40


def draw(folder: Path, figures: dict[str, Any], measurement: Measurement) -> list[tuple[str, str]]:
    """Draws shares, lengths and the filling of rows.

    Returns:
        The files in ``folder``, each with what it shows.
    """
    names = short_names(figures)
    pictures = [("shares.png", "Shares of tokens")]
    draw_shares(folder / "shares.png", names, figures["sources"], "share of tokens")
    if any(measurement.lengths):
        pictures.append(("lengths.png", "Lengths of documents"))
        draw_lengths(folder / "lengths.png", names, measurement.lengths, "tokens of a document", "share of documents")
    if min(measurement.fill, default=figures["seq_len"]) < figures["seq_len"]:
        pictures.append(("fill.png", "How full rows are"))
        _draw_fill(folder / "fill.png", measurement.fill, figures["seq_len"])
    return pictures


def draw_shares(path: Path, names: list[str], sources: list[dict[str, Any]], what: str) -> None:
    """Draws the shares of sources as bars, and those wanted as marks, where all are known."""
    figure, axes = plt.subplots(figsize=(7, 1.2 + 0.5 * len(names)), layout="constrained")
    places = np.arange(len(names))
    shares = [source["share"] for source in sources]
    wanted = [source["wanted"] for source in sources]
    axes.barh(places, shares, 0.6, label="is")
    if None not in wanted:
        axes.plot(wanted, places, "|", markersize=22, markeredgewidth=2, color="black", label="wanted")
    axes.set_yticks(places, names)
    axes.invert_yaxis()
    axes.set_xlabel(what)
    axes.legend(loc="lower right")
    save(figure, path)


def draw_lengths(path: Path, names: list[str], lengths: Sequence[Sequence[float]], what: str, share: str) -> None:
    """Draws how lengths are spread in every source, on a logarithmic scale from 1 or the shortest on."""
    figure, axes = plt.subplots(figsize=(7, 3.5), layout="constrained")
    longest = max(max(each, default=1) for each in lengths)
    shortest = min(1, *(min(each, default=1) for each in lengths))
    bins = np.geomspace(max(shortest, 1e-2), longest + 1, 50)
    # Whole numbers have no bins between them.
    bins = (np.unique(bins.astype(int)) if shortest == 1 else bins).tolist()
    for name, each in zip(names, lengths, strict=True):
        if each:
            axes.hist(each, bins=bins, weights=np.full(len(each), 1 / len(each)), histtype="step", label=name)
    axes.set_xscale("log")
    axes.set_xlabel(what)
    axes.set_ylabel(share)
    axes.legend()
    save(figure, path)


def _draw_fill(path: Path, fill: list[int], seq_len: int) -> None:
    figure, axes = plt.subplots(figsize=(7, 3), layout="constrained")
    axes.hist(np.array(fill) / seq_len, bins=np.linspace(0, 1, 41).tolist())
    axes.set_yscale("log")
    axes.set_xlabel("filled share of a row")
    axes.set_ylabel("rows")
    save(figure, path)


def save(figure: Any, path: Path) -> None:
    """Writes a figure and forgets it."""
    figure.savefig(path, dpi=120)
    plt.close(figure)


def short_names(figures: dict[str, Any]) -> list[str]:
    """The sources by names that fit beside a picture."""
    return [_short(source["name"]) for source in figures["sources"]]


def _short(name: str) -> str:
    return name if len(name) <= _LONGEST_NAME else "…" + name[1 - _LONGEST_NAME :]
