"""How many tokens documents have, whatever rows make of them."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from flame.data.encoder import Encoder
from flame.data.rows import RowPlan
from flame.data.sources.records import TEXT, DocumentSource

_MOST = 5_000  # documents of a source: enough for quantiles
_AT_ONCE = 64


def document_lengths(plan: RowPlan, encoder: Encoder, documents: Sequence[Sequence[int]]) -> list[list[int]]:
    """Reads and encodes documents for themselves.

    Rows tell the length of a document only when all of it has come by, and long ones come to an end last.

    Args:
        plan: of the job.
        encoder: of its task.
        documents: [sources of the job], numbers of documents; of many, only the first are taken.

    Returns:
        [sources of the job], tokens of every document that has any.
    """
    lengths = []
    for number, chosen in enumerate(documents):
        source = source_of(plan, number)
        found: list[int] = []
        for start in range(0, min(len(chosen), _MOST), _AT_ONCE):
            records = source.read(list(chosen[start : min(start + _AT_ONCE, _MOST)]))
            found += _lengths([record for record in records if isinstance(record, dict)], source, encoder, plan)
        lengths.append([length for length in found if length])
    return lengths


def source_of(plan: RowPlan, number: int) -> DocumentSource:
    """A source of the job; in the plan, several may be one collection."""
    if plan.mix == "documents" and hasattr(plan.sources[0], "sources"):
        return plan.sources[0].sources[number]  # type: ignore[attr-defined]
    return plan.sources[number]


def _lengths(records: list[dict[str, Any]], source: DocumentSource, encoder: Encoder, plan: RowPlan) -> list[int]:
    if source.tokenized:
        return [len(record["input_ids"]) for record in records]
    short = [record for record in records if len(str(record.get(TEXT, ""))) <= plan.max_document_bytes]
    return [_size(encoded) for encoded in encoder.encode(short)]


def _size(encoded: Any) -> int:
    """Tokens of what an encoder makes of a record: ids, several documents of them, or nothing usable."""
    if isinstance(encoded, np.ndarray):
        return len(encoded)
    return sum(map(len, encoded)) if isinstance(encoded, (list, tuple)) else 0
