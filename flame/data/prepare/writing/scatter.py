"""Sharing documents out to partitions, the first half of an external sort.

In random order, a document's place is a hash of its id: the order of all documents by it is the same for any number of
tasks, and a range of hashes is a partition that a task sorts in memory. Without, documents stay in corpus order.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import xxhash
from datatrove.data import Document
from datatrove.pipeline.base import PipelineStep

from flame.data.prepare.dedup.drop_list import number_of, save_array
from flame.data.prepare.documents import write_json
from flame.data.prepare.reporting.tally import utf8_bytes
from flame.data.prepare.writing.split import HeldOut, held_out_hash
from flame.files import atomic

SCHEMA = pa.schema(
    [
        ("place", pa.uint64()),
        ("number", pa.uint64()),
        ("text", pa.large_string()),
        ("metadata", pa.string()),
    ]
)
PARTS = b"parts"
_RUN_BYTES = 64 << 20  # of text in memory before it is sorted and written: twice that while it is
_SEED_BITS = (1 << 64) - 1


class Scatter(PipelineStep):
    """Writes a rank's documents as runs: Arrow files with one record batch per partition.

    Beside them goes what the plan of shards needs: ``sizes/<rank>.npy``, and which types of values columns have. Sizes
    are uint64 [2, partitions, 2], documents and bytes by split and partition; or in corpus order, uint64
    [2, documents]: whether held out, and bytes.

    Args:
        folder: Where to write.
        seed: The job's seed.
        partitions: Number of partitions in random order; 0 for corpus order.
        held_out: What goes to ``val``.
        columns: Metadata to carry along.
    """

    type = "SHUFFLE"
    name = "scatter"

    def __init__(self, folder: Path, seed: int, partitions: int, held_out: HeldOut, columns: list[str]) -> None:
        super().__init__()
        self.folder = folder
        self.seed = seed
        self.partitions = partitions
        self.held_out = held_out
        self.columns = columns

    def run(self, data: Any, rank: int = 0, world_size: int = 1) -> None:
        """Writes all documents; yields none."""
        self._rank, self._runs, self._position = rank, 0, 0
        self._threshold = self.held_out.threshold()
        self._sizes = np.zeros((2, self.partitions, 2), np.uint64)
        self._in_order: list[np.ndarray] = [np.empty((2, 0), np.uint64)]
        self._kinds: dict[str, set[str]] = {}
        waiting: list[Document] = []
        size = 0
        for document in data:
            waiting.append(document)
            size += len(document.text)
            if size >= _RUN_BYTES:
                self._write_run(waiting)
                waiting, size = [], 0
        if waiting:
            self._write_run(waiting)
        sizes = self._sizes if self.partitions else np.concatenate(self._in_order, axis=1)
        save_array(self.folder / "sizes" / f"{rank:05d}.npy", sizes)
        kinds = {column: sorted(names) for column, names in sorted(self._kinds.items())}
        write_json(self.folder / "kinds" / f"{rank:05d}.json", kinds)

    def _write_run(self, documents: list[Document]) -> None:
        numbers = number_of(self._rank, self._position) + np.arange(len(documents), dtype=np.uint64)
        self._position += len(documents)
        places = np.array([self._place(document) for document in documents], np.uint64)
        held = np.array([held_out_hash(d.text, self.seed) < self._threshold for d in documents], bool)
        sizes = np.array([utf8_bytes(document.text) for document in documents], np.uint64)
        parts = held * max(1, self.partitions)
        if self.partitions:
            # The upper halves of the places, so that the product stays below 2^64.
            partition = (places >> np.uint64(32)) * np.uint64(self.partitions) >> np.uint64(32)
            parts = parts + partition.astype(np.int64)
            flat = self._sizes.reshape(-1, 2)
            np.add.at(flat, parts, np.stack([np.ones_like(sizes), sizes], axis=1))
        else:
            self._in_order.append(np.stack([held.astype(np.uint64), sizes]))
        batch = pa.RecordBatch.from_arrays(
            [
                pa.array(places),
                pa.array(numbers),
                pa.array([document.text for document in documents], pa.large_string()),
                pa.array([self._metadata(document) for document in documents], pa.string()),
            ],
            schema=SCHEMA,
        )
        order = np.lexsort((numbers, parts))
        self._write(batch.take(pa.array(order)), parts[order])

    def _place(self, document: Document) -> int:
        return xxhash.xxh3_64_intdigest(document.id.encode("utf-8", "surrogatepass"), seed=self.seed & _SEED_BITS)

    def _metadata(self, document: Document) -> str:
        carried = {"source": document.metadata.get("source", "")}
        for column, value in document.metadata.items():
            if value is not None:
                self._kinds.setdefault(column, set()).add(type(value).__name__)
            if column in self.columns:
                carried[column] = value
        return json.dumps(carried, ensure_ascii=False)

    def _write(self, batch: pa.RecordBatch, parts: np.ndarray) -> None:
        found, starts = np.unique(parts, return_index=True)
        bounds = [*starts.tolist(), len(parts)]
        schema = SCHEMA.with_metadata({PARTS: json.dumps(found.tolist()).encode()})
        options = pa.ipc.IpcWriteOptions(compression="zstd")
        path = self.folder / "runs" / f"{self._rank:05d}_{self._runs:05d}.arrow"
        with atomic(path) as temporary, pa.ipc.new_file(str(temporary), schema, options=options) as writer:
            for start, stop in zip(bounds, bounds[1:], strict=False):
                writer.write_batch(batch.slice(start, stop - start))
        self._runs += 1


class Runs:
    """Reads runs of all ranks by partition.

    Args:
        folder: Where ``Scatter`` wrote.
    """

    def __init__(self, folder: Path) -> None:
        self._paths = sorted((folder / "runs").glob("*.arrow"))

    def batches(self, part: int, rank: int | None = None) -> list[pa.RecordBatch]:
        """Returns what the runs, or those of one rank, hold of a partition, in corpus order."""
        mine = [path for path in self._paths if rank is None or path.name.startswith(f"{rank:05d}_")]
        return [batch for path in mine for batch in _read(path, part)]


def _read(path: Path, part: int) -> list[pa.RecordBatch]:
    with pa.memory_map(str(path)) as source, pa.ipc.open_file(source) as file:
        parts: list[int] = json.loads(file.schema.metadata[PARTS])
        return [file.get_batch(parts.index(part))] if part in parts else []
