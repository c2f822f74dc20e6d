"""Evaluation sets: files of questions and answers, read once and written down as texts to look for."""

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from datatrove.pipeline.base import PipelineStep

from flame.config.corpora import Source
from flame.data.prepare.dedup.contamination import ContaminationIndex, EvaluationText
from flame.data.prepare.options import Decontaminate
from flame.data.sources.open import open_source
from flame.data.sources.records import BadRow
from flame.errors import DataError
from flame.files import atomic

_MAX_TEXT_BYTES = 1 << 24
_ITEMS_AT_ONCE = 256


class CollectTexts(PipelineStep):
    """Writes the texts of all evaluation sets to one file of JSON lines; a single task.

    Args:
        options: The sets and their columns.
        target: The file to write.
    """

    type = "DECONTAMINATION"
    name = "evaluation sets"

    def __init__(self, options: Decontaminate, target: Path) -> None:
        super().__init__()
        self.options = options
        self.target = target

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> None:
        """Reads the sets.

        Raises:
            DataError: A set has no text that is long enough to be looked for.
        """
        with atomic(self.target) as temporary, open(temporary, "w", encoding="utf-8") as file:
            for path in self.options.sources:
                texts = list(texts_of(path, self.options.columns))
                if not ContaminationIndex(texts, self.options.n_grams, self.options.shortest).looked_for:
                    raise DataError(
                        f"evaluation set '{path}' has no text of at least {self.options.shortest} words: "
                        "set decontaminate.columns, or a smaller decontaminate.shortest"
                    )
                file.writelines(json.dumps(text) + "\n" for text in texts)


def texts_of(path: str, columns: Sequence[str]) -> Iterator[EvaluationText]:
    """Yields the texts of a set's items, each once per item.

    Args:
        path: A file or whatever else a job may name as a source.
        columns: Those that hold the texts, as strings or lists and tables of them; empty for all.

    Raises:
        DataError: It cannot be read, lacks a column or has a bad row.
    """
    try:
        source = open_source(Source(path=path), list(columns) or None, _MAX_TEXT_BYTES)
    except DataError as error:
        # The hints are about [[data.sources]] of a training job.
        reason = re.sub(r"[:,] (check|set) .*", "", str(error))
        hint = "check decontaminate.columns" if columns else "name files or folders of texts"
        raise DataError(f"decontaminate.sources: {reason.rstrip('.')}; {hint}") from error
    name = Path(path).name
    for start in range(0, len(source), _ITEMS_AT_ONCE):
        records = source.read(range(start, min(start + _ITEMS_AT_ONCE, len(source))))
        for number, record in enumerate(records, start + 1):
            if isinstance(record, BadRow):
                raise DataError(f"evaluation set: {record}; mend the row, or contamination by it goes unseen")
            values = [record[column] for column in columns] if columns else list(record.values())
            for text in dict.fromkeys(_strings(values)):
                yield EvaluationText(name, number, text)


def _strings(value: Any) -> Iterator[str]:
    """All strings in a value, however deep."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        yield from _strings(list(value.values()))
    elif isinstance(value, (list, tuple)):
        for inner in value:
            yield from _strings(inner)
