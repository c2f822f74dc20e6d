"""Documents between two stages: one parquet file per task, in corpus order."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from datatrove.data import Document
from datatrove.pipeline.base import PipelineStep

from flame.errors import DataError
from flame.files import atomic

SCHEMA = pa.schema([("id", pa.string()), ("text", pa.large_string()), ("metadata", pa.string())])
_GROUP_BYTES = 8 << 20  # of text in memory before a row group is written, and again when it is read
_GROUP_ROWS = 4096
_COMPRESSION = "lz4"  # every pass reads all of it: zstd takes two thirds of the space, and three times as long to read


def write_json(path: Path, value: Any) -> None:
    """Writes a JSON file that is whole or absent."""
    with atomic(path) as temporary:
        temporary.write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")


@dataclass(frozen=True)
class Documents:
    """What a stage left: ``folder/00000.parquet`` and so on, one file per task; corpus order is (file, row)."""

    folder: Path
    tasks: int

    def reader(self) -> PipelineStep:
        """Returns the step whose rank r yields the documents of file r, for a stage of as many tasks."""
        return DocumentReader(self.folder)


class DocumentReader(PipelineStep):
    """Yields the documents that the same rank of an earlier stage wrote."""

    type = "READER"
    name = "documents"

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        """Reads one file."""
        yield from read_documents(document_file(self.folder, rank))


class DocumentWriter(PipelineStep):
    """Writes documents to ``<folder>/<rank>.parquet``, which appears when it is complete, and passes them on."""

    type = "WRITER"
    name = "documents"

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder

    def run(self, data: Any, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        """Writes and yields every document."""
        with (
            atomic(document_file(self.folder, rank)) as temporary,
            pq.ParquetWriter(temporary, SCHEMA, compression=_COMPRESSION, use_dictionary=False) as writer,
        ):
            waiting: list[Document] = []
            size = 0
            for document in data:
                waiting.append(document)
                size += len(document.text)
                if size >= _GROUP_BYTES or len(waiting) >= _GROUP_ROWS:
                    with self.track_time("group"):
                        writer.write_table(_table(waiting))
                    waiting, size = [], 0
                yield document
            writer.write_table(_table(waiting))


def document_file(folder: Path, rank: int) -> Path:
    """The file of one task."""
    return folder / f"{rank:05d}.parquet"


def read_documents(path: Path) -> Iterator[Document]:
    """Yields the documents of a file; memory holds one row group, some 8 MiB of text or one longer document.

    Raises:
        DataError: The file is absent or damaged.
    """
    last, parsed = "", {}
    try:
        with pq.ParquetFile(path) as file:
            for group in range(file.num_row_groups):
                columns = [column.to_pylist() for column in file.read_row_group(group, SCHEMA.names).columns]
                for name, text, metadata in zip(*columns, strict=True):
                    if metadata != last:  # of documents in a row it is often the same, and parsing takes longest
                        last, parsed = metadata, json.loads(metadata)
                    yield Document(text, name, metadata=parsed.copy())
    except (pa.ArrowInvalid, FileNotFoundError) as error:
        raise DataError(f"{path}: an intermediate file is damaged ({error}), run again with --restart") from error


def _table(documents: list[Document]) -> pa.Table:
    columns = [
        [document.id for document in documents],
        [document.text for document in documents],
        [json.dumps(document.metadata, ensure_ascii=False) for document in documents],
    ]
    arrays = [pa.array(column, field.type) for column, field in zip(columns, SCHEMA, strict=True)]
    return pa.Table.from_arrays(arrays, schema=SCHEMA)
