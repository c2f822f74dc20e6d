"""Writing shards from runs, the second half of an external sort; and what makes the result whole."""

import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from datatrove.pipeline.base import PipelineStep

from flame.data.prepare import progress
from flame.data.prepare.dedup.drop_list import DropList, shown_pairs
from flame.data.prepare.documents import write_json
from flame.data.prepare.options import Output
from flame.data.prepare.writing.scatter import Runs
from flame.data.prepare.writing.shard_plan import SPLITS, Shard, documents_before, load_shards
from flame.data.prepare.writing.text import write_text
from flame.data.prepare.writing.tokens import Tokens, token_dtype, write_packed, write_tokens
from flame.data.prepare.writing.written import Written
from flame.data.shards import ShardEntry, TokenizerIdentity, write_manifest
from flame.errors import DataError


class Gather(PipelineStep):
    """Writes a task's share of the shards.

    Memory: the text of one partition a few times over.

    Args:
        folder: Where ``Scatter`` and ``PlanShards`` wrote.
        tasks: How many ranks scattered.
        partitions: Number of partitions; 0 for corpus order.
        output: What is written.
        tokens: What makes ids; None for text.
        target: Folder for ``train`` and ``val``.
        notes: Folder of notes for the report.
    """

    type = "WRITER"
    name = "shards"

    def __init__(
        self,
        folder: Path,
        tasks: int,
        partitions: int,
        output: Output,
        tokens: Tokens | None,
        target: Path,
        notes: Path,
    ) -> None:
        super().__init__()
        self.tokens = tokens
        self.folder = folder
        self.tasks = tasks
        self.partitions = partitions
        self.output = output
        self.target = target
        self.notes = notes

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> None:
        """Writes every ``world_size``-th shard.

        Raises:
            DataError: The disk is full, or runs have gone missing.
        """
        shards, columns = load_shards(self.folder)
        written = Written()
        share = shards[rank::world_size]
        for done, shard in enumerate(share):
            progress.report(rank, done / len(share))
            with self.track_time("shard"):
                self._write(shard, columns, written)
        write_json(self.notes / f"{rank:05d}.json", written.as_json())

    def _write(self, shard: Shard, columns: dict[str, str], written: Written) -> None:
        before = written.splits[shard.split].documents
        folder, batches = self.target / shard.split, self._documents(shard)
        entries: list[ShardEntry] = []
        path = folder / f"shard_{shard.number:05d}.parquet"
        if self.tokens is None:
            write_text(path, batches, columns, self.output.row_group, shard.split, written)
        elif self.output.format == "packed":
            write_packed(path, batches, self.tokens, self.output, shard.split, written)
        else:
            entries = write_tokens(folder, shard.number, batches, self.tokens, shard.split, written)
        found = written.splits[shard.split].documents - before
        if found != shard.documents:
            raise DataError(
                f"{self.folder}: {found} documents instead of {shard.documents} for shard {shard.number} of "
                f"{shard.split}: intermediate files were removed, run again with --restart"
            )
        path = self.folder / "entries" / f"{shard.split}_{shard.number:05d}.json"
        write_json(path, [asdict(entry) for entry in entries])

    def _documents(self, shard: Shard) -> Iterator[pa.RecordBatch]:
        split = SPLITS.index(shard.split)
        runs = Runs(self.folder)
        if not self.partitions:
            yield from self._in_order(runs, shard, split)
            return
        for partition in range(shard.first, shard.last):
            batches = runs.batches(split * self.partitions + partition)
            if batches:
                table = pa.Table.from_batches(batches)
                # By hash of the id, and by corpus order should two be equal.
                yield from table.sort_by([("place", "ascending"), ("number", "ascending")]).to_batches()

    def _in_order(self, runs: Runs, shard: Shard, split: int) -> Iterator[pa.RecordBatch]:
        for rank, first, last in documents_before(self.folder, self.tasks, split):
            if first >= shard.last or last <= shard.first:
                continue
            for batch in runs.batches(split, rank):
                start, stop = max(shard.first - first, 0), min(shard.last - first, batch.num_rows)
                if start < stop:
                    yield batch.slice(start, stop - start)
                first += batch.num_rows


class Complete(PipelineStep):
    """Writes what makes the shards count, and the texts of duplicates for the report; a single task.

    Args:
        folder: Where ``Gather`` wrote its entries.
        output: What is written.
        tokens: What made ids; None for text.
        target: Folder of ``train`` and ``val``.
        pairs: For every kind of duplicates, the list, the folder of its texts, and the note to write.
    """

    type = "WRITER"
    name = "manifest"

    def __init__(
        self,
        folder: Path,
        output: Output,
        tokens: Tokens | None,
        target: Path,
        pairs: list[tuple[DropList, Path, Path]],
    ) -> None:
        super().__init__()
        self.tokens = tokens
        self.folder = folder
        self.output = output
        self.target = target
        self.pairs = pairs

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> None:
        """Writes manifests and notes.

        Raises:
            DataError: A split has no token, or fewer than a packed row.
        """
        shards, _ = load_shards(self.folder)
        for draft in self.target.rglob(".*"):
            draft.unlink()  # left by tasks that were killed
        for split in dict.fromkeys(shard.split for shard in shards):
            numbers = [shard.number for shard in shards if shard.split == split]
            if self.tokens is not None and self.output.format == "tokens":
                self._write_manifest(split, numbers, self.tokens.identity)
            elif self.output.format == "packed":
                self._check_rows(split, numbers)
        for drops, shown, note in self.pairs:
            write_json(note / "00000.json", shown_pairs(drops, shown))

    def _check_rows(self, split: str, numbers: list[int]) -> None:
        paths = [self.target / split / f"shard_{number:05d}.parquet" for number in numbers]
        if not any(pq.read_metadata(path).num_rows for path in paths):
            raise DataError(
                f"{split} has fewer tokens than a row of {self.output.row_length}: set output.row_length smaller"
                + (", or hold out more" if split == "val" else "")
            )

    def _write_manifest(self, split: str, numbers: list[int], identity: TokenizerIdentity) -> None:
        paths = [self.folder / "entries" / f"{split}_{number:05d}.json" for number in numbers]
        entries = [ShardEntry(**entry) for path in paths for entry in json.loads(path.read_text())]
        if not entries:
            raise DataError(
                f"{split} has no tokens: the tokenizer '{self.output.tokenizer}' makes none of its documents"
            )
        write_manifest(self.target / split, token_dtype(identity.vocab_size), identity, entries)
