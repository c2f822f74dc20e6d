"""Pictures of a job's examples; needs matplotlib (extra ``plots``)."""

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt  # noqa: E402 (after the choice of what draws)

from flame.data.inspect.examples.measure import ExampleMeasurement  # noqa: E402
from flame.data.inspect.pages import Pictures  # noqa: E402
from flame.data.inspect.pictures import draw_lengths, draw_shares, save, short_names  # noqa: E402

_MOST_CLASSES = 100  # bars of a picture


def draw(folder: Path, figures: dict[str, Any], measurement: ExampleMeasurement) -> Pictures:
    """Draws shares, lengths, padding, and the labels where each example has one.

    Returns:
        The files in ``folder``, each with what it shows.
    """
    names = short_names(figures)
    pictures = [("shares.png", "Shares of examples")]
    draw_shares(folder / "shares.png", names, figures["sources"], "share of examples")
    if any(measurement.lengths):
        pictures.append(("lengths.png", "Lengths of examples"))
        what = f"{figures['unit']} of an example"
        draw_lengths(folder / "lengths.png", names, measurement.lengths, what, "share of examples")
    if any(measurement.padding):
        pictures.append(("padding.png", "Padding of micro-batches"))
        _draw_counts(folder / "padding.png", measurement.padding, "share of padding", "micro-batches")
    if figures["classes"]:
        pictures.append(("classes.png", "Classes"))
        _draw_classes(folder / "classes.png", figures["classes"])
    if measurement.numbers:
        pictures.append(("labels.png", "Labels"))
        _draw_counts(folder / "labels.png", measurement.numbers, "label", "examples")
    return pictures


def _draw_counts(path: Path, values: list[float], what: str, counted: str) -> None:
    figure, axes = plt.subplots(figsize=(7, 3), layout="constrained")
    axes.hist(values, bins=40)
    axes.set_xlabel(what)
    axes.set_ylabel(counted)
    save(figure, path)


def _draw_classes(path: Path, classes: dict[str, int]) -> None:
    names = list(classes)[:_MOST_CLASSES]
    figure, axes = plt.subplots(figsize=(7, 1.2 + 0.2 * len(names)), layout="constrained")
    axes.barh(range(len(names)), [classes[name] for name in names])
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.set_xlabel("examples")
    save(figure, path)
