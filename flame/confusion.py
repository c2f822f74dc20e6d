"""Confusion matrices: which classes are taken for which."""

import importlib.util
import logging
from collections.abc import Sequence
from pathlib import Path

import torch

log = logging.getLogger(__name__)

_MOST_NUMBERS = 20  # classes up to which cells say their counts


def macro_f1(confusion: torch.Tensor) -> float:
    """The mean over classes of the harmonic mean of precision and recall.

    Args:
        confusion: [classes, classes], counts by true and by predicted class. Classes that neither occur nor are
            predicted do not count.
    """
    right = confusion.diagonal().double()
    total = confusion.sum(0).double() + confusion.sum(1).double()
    present = total > 0
    return float((2 * right[present] / total[present]).mean()) if bool(present.any()) else 0.0


def draw_confusion(confusion: torch.Tensor, classes: Sequence[str], path: Path) -> None:
    """Draws a confusion matrix [classes, classes] into a PNG file; without matplotlib, says that once in the log."""
    if importlib.util.find_spec("matplotlib") is None:
        log.info('no picture of the confusion matrix: pip install "flame[plots]"')
        return
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    shares = confusion / confusion.sum(1, keepdim=True).clamp(min=1)
    side = max(3.5, min(14.0, 1.5 + 0.45 * len(classes)))
    figure, axes = plt.subplots(figsize=(side, side), layout="constrained")
    axes.imshow(shares.numpy(), cmap="Blues", vmin=0, vmax=1)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    if len(classes) <= _MOST_NUMBERS:
        axes.set_xticks(range(len(classes)), classes, rotation=90)
        axes.set_yticks(range(len(classes)), classes)
        for true, predicted in confusion.nonzero().tolist():
            color = "white" if shares[true, predicted] > 0.5 else "black"
            count = f"{int(confusion[true, predicted])}"
            axes.text(predicted, true, count, ha="center", va="center", color=color, fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)
