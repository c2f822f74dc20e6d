"""A picture of a preparation; needs matplotlib (extra ``plots``)."""

from collections.abc import Mapping
from pathlib import Path

import matplotlib
import numpy as np

matplotlib.use("Agg")
from matplotlib import pyplot as plt  # noqa: E402 (after the choice of what draws)


def draw_lengths(path: Path, parts: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> None:
    """Draws how long recordings are, and how many characters a second they have.

    Args:
        path: The picture.
        parts: Seconds ``[n]`` and rates ``[n]`` by name.
    """
    figure, panels = plt.subplots(1, 2, figsize=(10, 3.5), layout="constrained")
    for number, (axes, label) in enumerate(zip(panels, ("seconds", "characters per second"), strict=True)):
        bins = np.linspace(0, max(values[number].max() for values in parts.values()), 51).tolist()
        for name, values in parts.items():
            shares = np.full(len(values[number]), 1 / len(values[number]))
            axes.hist(values[number], bins=bins, weights=shares, histtype="step", label=name)
        axes.set_xlabel(label)
    panels[0].set_ylabel("share of recordings")
    panels[0].legend()
    figure.savefig(path, dpi=120)
    plt.close(figure)
