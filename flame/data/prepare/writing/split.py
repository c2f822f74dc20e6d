"""Which documents are held out: those whose text hashes below a threshold, so equal texts are on one side."""

from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from datatrove.pipeline.base import PipelineStep

from flame.data.prepare.dedup.drop_list import save_array
from flame.data.prepare.dedup.text_hash import text_hash
from flame.data.prepare.options import Split
from flame.errors import DataError

_ALL = 1 << 64
_SEED_BITS = (1 << 64) - 1
_BLOCK = 1 << 16


def held_out_hash(text: str, seed: int) -> int:
    """A number below 2^64 that decides whether a text is held out; case and white space make no difference."""
    return xxhash.xxh3_64_intdigest(text_hash(text), seed=(seed + 1) & _SEED_BITS)


@dataclass(frozen=True)
class HeldOut:
    """What is held out: texts with a ``held_out_hash`` below a threshold.

    Args:
        share: The share of the documents.
        file: The file of ``SplitThreshold``, which then decides instead; None for a share.
    """

    share: float
    file: Path | None = None

    def threshold(self) -> int:
        """Hashes below it are held out."""
        if self.file is not None:
            return int(np.load(self.file)[0]) + 1
        return round(self.share * _ALL)


class SplitHashes(PipelineStep):
    """Writes the hashes of a rank's documents: uint64, in order, the number of documents first.

    Args:
        folder: Where to write ``<rank>.npy``.
        most: How many hashes are needed, the smallest; 0 for all.
        seed: The job's seed.
    """

    type = "SPLIT"
    name = "hashes of texts"

    def __init__(self, folder: Path, most: int, seed: int) -> None:
        super().__init__()
        self.folder = folder
        self.most = most
        self.seed = seed

    def run(self, data: Any, rank: int = 0, world_size: int = 1) -> None:
        """Hashes the documents; yields none."""
        smallest, waiting, count = np.empty(0, np.uint64), array("Q"), 0
        for document in data:
            waiting.append(held_out_hash(document.text, self.seed))
            count += 1
            if len(waiting) == _BLOCK:
                smallest, waiting = _smallest([smallest, waiting], self.most), array("Q")
        save_array(
            self.folder / f"{rank:05d}.npy", np.append(np.uint64(count), _smallest([smallest, waiting], self.most))
        )


class SplitThreshold(PipelineStep):
    """Finds the hash of the last document to be held out; a single task.

    Args:
        folder: Where ``SplitHashes`` wrote.
        tasks: How many ranks did.
        split: How many documents to hold out; of a share, at least one.
        target: File to write.
    """

    type = "SPLIT"
    name = "threshold"

    def __init__(self, folder: Path, tasks: int, split: Split, target: Path) -> None:
        super().__init__()
        self.folder = folder
        self.tasks = tasks
        self.split = split
        self.target = target

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> None:
        """Merges the hashes of all ranks.

        Raises:
            DataError: There are no more documents than are to be held out.
        """
        smallest, total = np.empty(0, np.uint64), 0
        for number in range(self.tasks):
            hashes = np.load(self.folder / f"{number:05d}.npy")
            total += int(hashes[0])
            smallest = _smallest([smallest, hashes[1:]], self.split.validation_documents)
        count = self.split.validation_documents or max(1, round(self.split.validation * total))
        if count >= total > 0:
            raise DataError(
                f"holding out {count} of the {total} documents that are left leaves none to train on: "
                "set split.validation_documents smaller, or split.validation = 0"
            )
        # Without any document, the plan of shards says so.
        save_array(self.target, smallest[count - 1 : count] if total else np.zeros(1, np.uint64))


def _smallest(hashes: Sequence[Sequence[int] | np.ndarray], most: int) -> np.ndarray:
    merged = np.sort(np.concatenate([np.asarray(part, np.uint64) for part in hashes]))
    return merged[:most] if most else merged
