"""The first step of a preparation: documents out of files of any format."""

import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from datatrove.data import Document
from datatrove.pipeline.base import PipelineStep

from flame.data.prepare import progress
from flame.data.prepare.job import Input, Read, input_name
from flame.data.prepare.reading.parquet import read_parquet
from flame.data.prepare.reading.plan import InputFile, read_share
from flame.data.prepare.reading.rows import TOO_LARGE, BadFile, Fault, Reading, Row, Rows
from flame.data.prepare.reading.streams import open_input, open_stream
from flame.data.prepare.reading.text import read_html, read_jsonl, read_lines, read_text
from flame.data.prepare.reading.warc import read_warc
from flame.data.prepare.reporting.tally import Counting, Tally
from flame.errors import DataError

_STREAMED: dict[str, Callable[[io.BufferedReader, Reading], Rows]] = {
    "jsonl": read_jsonl,
    "lines": read_lines,
    "txt": read_text,
    "html": read_html,
    "warc": read_warc,
}


class InputReader(PipelineStep):
    """Yields the documents of a task's share of the files, and counts what it has to leave out.

    Args:
        counting: Where the counts go.
        shares: Folder of the plan.
        inputs: The inputs of the job.
        options: How files are read.
    """

    type = "READER"
    name = "inputs"

    def __init__(self, counting: Counting, shares: Path, inputs: list[Input], options: Read) -> None:
        super().__init__()
        self.counting = counting
        self.shares = shares
        self.inputs = inputs
        self.options = options

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        """Reads the files in order.

        Raises:
            DataError: A file is damaged, has changed, or has no text, or a row is bad, where the job says so.
        """
        self.tally = Tally(self.counting)
        files = read_share(self.shares, rank)
        self._whole = max(1, sum(file.bytes for file in files))
        self._done = 0
        for file in files:
            for document in self._read(file, rank):
                self.tally.keep(document)
                yield document
            self._done += file.bytes
            progress.report(rank, self._done / self._whole)
        self.tally.save(rank, self.stats.time_stats.total)

    def _read(self, file: InputFile, rank: int) -> Iterator[Document]:
        given, options = self.inputs[file.source], self.options
        source = input_name(given)
        cut = options.on_large_document == "cut"
        reading = Reading(file.path, options.max_document_bytes, cut, given.text_column, given.columns)
        rows = iter(self._rows(file, reading, rank))
        taken, usable = 0, False
        fault: Fault | None = None
        while not given.limit or taken < given.limit:
            with self.track_time():
                try:
                    item = next(rows, None)
                except BadFile as error:
                    item = self._left_out(file, source, str(error))
            if item is None:
                break
            if isinstance(item, Fault):
                fault = item
                self._skip(file, source, item)
                continue
            usable, taken = True, taken + 1
            yield Document(
                item.text, f"{source}/{file.name}#{item.number}", metadata={"source": source, **item.metadata}
            )
        if fault is not None and fault.is_column and not usable:
            raise DataError(f"{file.path}: no row has text; row {fault.number:,}: {fault.reason}, {fault.detail}")

    def _rows(self, file: InputFile, reading: Reading, rank: int) -> Iterator[Row | Fault]:
        file.check_unchanged()
        if file.format == "parquet":
            with open_input(file.path) as stored:
                for item in read_parquet(stored, reading):
                    yield item
                    progress.report(rank, (self._done + min(stored.tell(), file.bytes)) / self._whole)
            return
        stream, reader = open_stream(file.path)
        with stream:
            for item in _STREAMED[file.format](reader, reading):
                yield item
                progress.report(rank, (self._done + stream.stored_bytes()) / self._whole)

    def _skip(self, file: InputFile, source: str, fault: Fault) -> None:
        policy, key = self.options.on_bad_row, "on_bad_row"
        if fault.reason == TOO_LARGE:
            policy, key = self.options.on_large_document, "on_large_document"
        detail = f"{file.path}, row {fault.number:,}: {fault.reason} ({fault.detail})"
        if policy == "error":
            raise DataError(f'{detail}: mend it, or set read.{key} = "skip"')
        document = Document(fault.beginning, f"{source}/{file.name}#{fault.number}", metadata={"source": source})
        self.tally.drop(document, fault.reason, detail)

    def _left_out(self, file: InputFile, source: str, what: str) -> None:
        if self.options.on_bad_file == "error":
            raise DataError(f'{what}: replace the file, or set read.on_bad_file = "skip" to lose the rest of it')
        document = Document("", f"{source}/{file.name}", metadata={"source": source})
        self.tally.drop(document, "damaged file", what)
