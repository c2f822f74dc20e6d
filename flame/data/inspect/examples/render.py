"""An example for people to read: where it comes from, what is to be said of it, and a sketch of its values."""

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from flame.data.examples.batches import BatchPlan
from flame.data.inspect.examples.placed import PlacedBatch, PlacedExample
from flame.data.inspect.examples.sketch import sketch
from flame.data.inspect.styles import Styles


class ExampleRenderer:
    """Turns examples into lines.

    Args:
        plan: Which examples batches consist of.
        names: Of the sources.
        told: What labels say, for people.
        styles: How lines are set apart.
        tokens: Whether to list labels one by one.
    """

    def __init__(
        self,
        plan: BatchPlan,
        names: Sequence[str],
        told: Callable[[Sequence[float]], str],
        styles: Styles,
        tokens: bool = False,
    ):
        self._plan, self._names, self._told = plan, names, told
        self._styles, self._tokens = styles, tokens

    def lines(self, batch: PlacedBatch, row: int) -> Iterator[str]:
        """The lines of an example of a micro-batch."""
        example = batch.examples[row]
        steps, padding = len(example.values), batch.longest - len(example.values)
        figures = [f"{steps:,} steps", *([f"{padding:,} padding"] if padding else [])]
        place = f"step {batch.step}, micro-batch {batch.number}, row {row}"
        yield self._styles.bold(f"━━ {place}: {', '.join(figures)}")
        source, document = example.chosen.source, example.chosen.document
        opened = self._plan.sources[source]
        length = float(opened.lengths(np.array([document]))[0])
        said = f"{length:,.2f}".rstrip("0").rstrip(".")
        yield self._styles.bold(f"── example {document} of {self._names[source]}, {said} {self._plan.encoder.unit}")
        yield self._styles.dim(f"   {opened.where(document)}")
        yield from self._labels(example)
        yield from (f"   {line}" for line in sketch(example.values))
        low, high, width = example.values.min(), example.values.max(), example.values.shape[1]
        yield self._styles.dim(f"   {width} channel{'s' * (width != 1)}, values from {low:.4g} to {high:.4g}")

    def _labels(self, example: PlacedExample) -> Iterator[str]:
        labels = example.labels.tolist()
        yield (
            f"   label: {self._told(labels)}" if len(labels) == 1 else f"   {len(labels)} labels: {self._told(labels)}"
        )
        if self._tokens:
            yield "   " + "  ".join(f"{label:g} {self._told([label])!r}" for label in labels)
