"""Figures of a job's rows: tokens by source, lengths of documents, how full rows are."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from flame.data.encoder import Encoder
from flame.data.inspect.lengths import document_lengths
from flame.data.inspect.rows import PlacedRow, Rows, is_scored
from flame.data.packers import STATE_SIZE
from flame.data.packing import IGNORE
from flame.data.rows import Row

QUANTILES = {"5%": 0.05, "25%": 0.25, "50%": 0.5, "75%": 0.75, "95%": 0.95, "longest": 1.0}


class Measurement:
    """What is counted while rows go by.

    Args:
        rows: where they come from.
        names: of the sources.
        encoder: of the task.
    """

    def __init__(self, rows: Rows, names: Sequence[str], encoder: Encoder):
        self._rows, self._names, self._encoder = rows, list(names), encoder
        self._tokens = [0] * len(names)
        self._scored = [0] * len(names)
        self._wanted = np.zeros(len(names))
        # [source]: numbers of documents, in the order in which they came
        self._seen: list[dict[int, None]] = [{} for _ in names]
        self.lengths: list[list[int]] = [[] for _ in names]
        """Of every source, tokens of the documents seen; there after ``figures``."""
        self.fill: list[int] = []
        """Of every row, tokens that are not padding."""
        self._totals: Counter[str] = Counter()

    def add(self, placed: PlacedRow) -> None:
        """Counts a row."""
        row, spans = placed.row, placed.row.spans or []
        scored = is_scored(row)
        self._totals["steps"] = max(self._totals["steps"], placed.step)
        self._totals.update(rows=1, blank=row.is_blank, spans=len(spans), cut=_cuts(row, scored, self._in_stream))
        self._totals["scored"] += int((row.values[1] != IGNORE).sum())
        for span in spans:
            self._tokens[span.source] += int(span.stop - span.start)
            self._scored[span.source] += int(scored[span.start : span.stop].sum())
            self._seen[span.source].setdefault(int(span.document))
        if not row.is_blank:
            self.fill.append(sum(int(span.stop - span.start) for span in spans))
        if (weights := self._weights(placed.step)) is not None:
            self._wanted += np.array(weights) / sum(weights)

    def figures(self) -> dict[str, Any]:
        """All that was counted, for JSON."""
        plan, totals = self._rows.plan, self._totals
        self.lengths = document_lengths(plan, self._encoder, [list(seen) for seen in self._seen])
        total, rows = sum(self._tokens), max(1, totals["rows"])
        places = rows * plan.shape.seq_len
        return {
            "steps": totals["steps"],
            "rows": totals["rows"],
            "blank_rows": totals["blank"],
            "seq_len": plan.shape.seq_len,
            "packing": plan.shape.packing,
            "mix": plan.mix,
            "tokens": total,
            "filled": total / places,
            "padding": 1 - total / places,
            "scored": totals["scored"] / places,
            "documents_per_row": totals["spans"] / rows,
            "cut_by_rows": totals["cut"],
            "sources": [self._source(number, total) for number in range(len(self._names))],
            "packed": self._rows.packed,
            "skipped": self._rows.skipped,
            "examples": self._rows.examples,
        }

    def _source(self, number: int, total: int) -> dict[str, Any]:
        tokens, lengths, wanted = self._tokens[number], self.lengths[number], float(self._wanted.sum())
        return {
            "name": self._names[number],
            "tokens": tokens,
            "share": tokens / max(1, total),
            "wanted": float(self._wanted[number]) / wanted if wanted else None,
            "scored": self._scored[number] / max(1, tokens),
            "documents": len(self._seen[number]),
            "documents_in_all": len(self._rows.source(number)),
            "mean_length": float(np.mean(lengths)) if lengths else None,
            "lengths": {name: float(np.quantile(lengths, at)) for name, at in QUANTILES.items()} if lengths else {},
        }

    def _weights(self, step: int) -> Sequence[float] | None:
        """The shares of tokens that are wanted in a step; None where shares follow from the documents."""
        return self._rows.plan.mixture.weights_at(step) if self._rows.plan.mix == "tokens" else None

    @property
    def _in_stream(self) -> bool:
        return self._rows.plan.shape.packing == "stream"


def _cuts(row: Row, scored: np.ndarray, in_stream: bool) -> int:
    """How many documents of a row go on elsewhere."""
    if row.is_blank:
        return 0
    if in_stream:  # only the last one can, and the state says how much of it is used
        return int(row.state[2 + STATE_SIZE * row.source] > 0)
    labels = row.values[1]
    follows = np.append(scored, False)
    return sum(bool(labels[span.stop - 1] != IGNORE and not follows[span.stop]) for span in row.spans or [])
