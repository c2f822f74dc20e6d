"""Equal documents: hashes of all texts, sorted; of equal ones, the first in corpus order stays.

datatrove has such stages too; they merge signatures one Python object at a time, and which copy they keep depends on
how files were shared out. Here a signature is 24 bytes in an array, and the first copy stays whatever the tasks.
"""

import json
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from datatrove.pipeline.base import PipelineStep

from flame.data.prepare import progress
from flame.data.prepare.dedup.drop_list import POSITION_BITS, DropList, cluster_sizes, save_array
from flame.data.prepare.dedup.text_hash import bytes_hash
from flame.data.prepare.documents import document_file, write_json

_SIGNATURES_IN_MEMORY = 1 << 24  # 24 bytes each, and about as much again to sort them


class ExactSignatures(PipelineStep):
    """Writes the hashes of a rank's documents: ``<rank>.npy``, uint64 [3, documents], by hash.

    The rows are the two halves of the hash and the document's position. Memory: 24 bytes per document of the rank.

    Args:
        documents: Folder of the documents. They are read by column, since all that is needed is their text.
        folder: Where to write.
        normalise: See ``bytes_hash``.
        spared: Sources whose documents are never dropped and drop no other.
    """

    type = "DEDUP"
    name = "exact signatures"

    def __init__(self, documents: Path, folder: Path, normalise: bool, spared: frozenset[str] = frozenset()) -> None:
        super().__init__()
        self.documents = documents
        self.folder = folder
        self.normalise = normalise
        self.spared = spared

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> None:
        """Hashes the documents."""
        digests, positions = bytearray(), array("Q")
        for first, total, batch in _numbered(document_file(self.documents, rank), bool(self.spared)):
            progress.report(rank, first / max(1, total))
            texts = batch["text"].cast(pa.large_binary()).to_pylist()
            chosen = range(len(texts))
            if self.spared:
                sources = [json.loads(metadata).get("source", "") for metadata in batch["metadata"].to_pylist()]
                chosen = [place for place in chosen if sources[place] not in self.spared]
            digests += b"".join([bytes_hash(texts[place], self.normalise) for place in chosen])
            positions.extend([first + place for place in chosen])
        halves = np.frombuffer(digests, np.uint64).reshape(-1, 2)
        order = np.argsort(halves[:, 0], kind="stable")
        signatures = np.stack([halves[order, 0], halves[order, 1], np.frombuffer(positions, np.uint64)[order]])
        save_array(self.folder / f"{rank:05d}.npy", signatures)


def _numbered(path: Path, has_metadata: bool) -> Iterator[tuple[int, int, pa.Table]]:
    """Yields the position of the first document of every row group, the number of all documents, and the group."""
    first = 0
    with pq.ParquetFile(path) as file:
        for group in range(file.num_row_groups):
            batch = file.read_row_group(group, columns=["text", *(["metadata"] if has_metadata else [])])
            yield first, file.metadata.num_rows, batch
            first += batch.num_rows


class ExactFind(PipelineStep):
    """Finds equal hashes among all ranks' signatures; every task has a range of hashes.

    Args:
        signatures: Where ``ExactSignatures`` wrote.
        drops: The list to write.
        clusters: Folder of notes: how many documents are equal, how often.
    """

    type = "DEDUP"
    name = "exact duplicates"

    def __init__(self, signatures: Path, drops: DropList, clusters: Path) -> None:
        super().__init__()
        self.signatures = signatures
        self.drops = drops
        self.clusters = clusters

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> None:
        """Writes the list of one range of hashes."""
        files = [np.load(path, mmap_mode="r") for path in sorted(self.signatures.glob("*.npy"))]
        ranks = [int(path.stem) for path in sorted(self.signatures.glob("*.npy"))]
        total = sum(file.shape[1] for file in files)
        slices = max(1, -(-total // (_SIGNATURES_IN_MEMORY * world_size)))
        bounds = [(rank * slices + i) * (1 << 64) // (world_size * slices) for i in range(slices + 1)]
        found = []
        for done, (low, high) in enumerate(zip(bounds, bounds[1:], strict=False)):
            progress.report(rank, done / slices)
            parts = [_between(file, number, low, high) for file, number in zip(files, ranks, strict=True)]
            found.append(equal_documents(np.concatenate([np.empty((3, 0), np.uint64), *parts], axis=1)))
        kept, dropped = (np.concatenate([part[i] for part in found]) for i in (0, 1))
        self.drops.save(rank, kept, dropped)
        _, copies = np.unique(kept, return_counts=True)
        write_json(self.clusters / f"{rank:05d}.json", cluster_sizes(copies + 1))


def _between(signatures: np.ndarray, rank: int, low: int, high: int) -> np.ndarray:
    """The signatures with hashes in [low, high), their positions made numbers."""
    first = np.searchsorted(signatures[0], np.uint64(low))
    last = signatures.shape[1] if high >= 1 << 64 else np.searchsorted(signatures[0], np.uint64(high))
    part = np.array(signatures[:, first:last])
    part[2] |= np.uint64(rank << POSITION_BITS)
    return part


def equal_documents(signatures: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Finds equal hashes.

    Args:
        signatures: uint64 [3, documents]: two halves of the hash, and the document's number.

    Returns:
        For every document to drop, the number of the one kept for it, and its own; uint64 both.
    """
    signatures = signatures[:, np.argsort(signatures[0], kind="stable")]
    same = signatures[0, 1:] == signatures[0, :-1]
    # Few are left: those whose first half occurs more than once are compared whole.
    repeated = np.zeros(signatures.shape[1], bool)
    repeated[1:] |= same
    repeated[:-1] |= same
    signatures = signatures[:, repeated]
    signatures = signatures[:, np.lexsort((signatures[2], signatures[1], signatures[0]))]
    copies = np.zeros(signatures.shape[1], bool)
    copies[1:] = (signatures[:2, 1:] == signatures[:2, :-1]).all(axis=0)
    firsts = np.maximum.accumulate(np.where(copies, 0, np.arange(len(copies))))
    return signatures[2, firsts[copies]], signatures[2, copies]
