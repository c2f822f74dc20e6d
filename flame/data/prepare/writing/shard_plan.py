"""Which documents go into which shard: decided once, when all sizes are known."""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from datatrove.pipeline.base import PipelineStep

from flame.data.prepare.documents import write_json
from flame.data.prepare.options import Output, Split
from flame.errors import DataError, closest

SPLITS = ("train", "val")


@dataclass(frozen=True)
class Shard:
    """One file of the result."""

    split: str
    number: int
    """Counted by split, from 0."""
    first: int
    """First partition; in corpus order, the first document of the split."""
    last: int
    """The one after the last."""
    documents: int


class PlanShards(PipelineStep):
    """Writes ``shards.json``: the shards, and the types of the columns; a single task.

    Args:
        folder: Where ``Scatter`` wrote.
        tasks: How many ranks did.
        in_order: Whether documents stay in corpus order.
        output: What is written.
        split: What is held out, for messages.
    """

    type = "SHUFFLE"
    name = "plan shards"

    def __init__(self, folder: Path, tasks: int, in_order: bool, output: Output, split: Split) -> None:
        super().__init__()
        self.folder = folder
        self.tasks = tasks
        self.in_order = in_order
        self.output = output
        self.split = split

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> None:
        """Makes the plan.

        Raises:
            DataError: Nothing is left to write in a split, or no document has a column that is to be written.
        """
        shards = [shard for number, split in enumerate(SPLITS) for shard in self._shards(number, split)]
        value = {"shards": [asdict(shard) for shard in shards], "columns": self._kinds()}
        write_json(self.folder / "shards.json", value)

    def _shards(self, number: int, split: str) -> list[Shard]:
        sizes = self._sizes(number)
        if not sizes[:, 0].sum():
            if split == "train":
                raise DataError("no documents are left to write: every one was dropped, or the inputs hold none")
            if self.split.validation or self.split.validation_documents:
                raise DataError(
                    f"split.validation = {self.split.validation} holds out none of the few documents that are left: "
                    "set it larger, set split.validation_documents, or set it to 0"
                )
            return []
        bounds = shard_bounds(sizes[:, 1], self.output.shard_bytes)
        documents = np.append(0, np.cumsum(sizes[:, 0]))
        return [
            Shard(split, place, first, last, int(documents[last] - documents[first]))
            for place, (first, last) in enumerate(zip(bounds, bounds[1:], strict=False))
        ]

    def _sizes(self, split: int) -> np.ndarray:
        """Documents and bytes of every partition, or of every document of the split; int64 [n, 2]."""
        files = (np.load(self.folder / "sizes" / f"{rank:05d}.npy") for rank in range(self.tasks))
        if not self.in_order:
            return sum(file[split].astype(np.int64) for file in files)  # pyright: ignore[reportReturnType]
        sizes = np.concatenate([file[1, file[0] == split] for file in files]).astype(np.int64)
        return np.stack([np.ones_like(sizes), sizes], axis=1)

    def _kinds(self) -> dict[str, str]:
        found: dict[str, set[str]] = {}
        for rank in range(self.tasks):
            for column, kinds in json.loads((self.folder / "kinds" / f"{rank:05d}.json").read_text()).items():
                found.setdefault(column, set()).update(kinds)
        for column in self.output.columns:
            if column not in found:
                raise DataError(
                    f"output.columns names '{column}', which no document has, only {', '.join(sorted(found))}: "
                    f"carry it along with inputs.columns.{closest(column, found)}"
                )
        return {column: _arrow_type(found[column]) for column in self.output.columns}


def load_shards(folder: Path) -> tuple[list[Shard], dict[str, str]]:
    """Returns the shards of the plan, and the Arrow type of every column."""
    value = json.loads((folder / "shards.json").read_text())
    return [Shard(**shard) for shard in value["shards"]], value["columns"]


def shard_bounds(sizes: np.ndarray, target: int) -> list[int]:
    """Cuts a sequence of sizes into shards of about equal size near ``target``, none of them empty.

    Args:
        sizes: Bytes, int64 [n], not all of them 0.
        target: Bytes of a shard.

    Returns:
        Indices ``[shards + 1]`` from 0 to n.
    """
    ends = np.cumsum(sizes)
    total = int(ends[-1])
    count = max(1, round(total / target))
    goals = [total * number // count for number in range(1, count)]
    cuts = np.searchsorted(ends, goals, side="left") + 1
    filled = [int(cut) for cut in np.unique(cuts) if 0 < ends[cut - 1] < total]
    return [0, *filled, len(sizes)]


def documents_before(folder: Path, tasks: int, split: int) -> Iterator[tuple[int, int, int]]:
    """Yields every rank with the numbers, within the split, of its first document and of the one after its last."""
    first = 0
    for rank in range(tasks):
        last = first + int((np.load(folder / "sizes" / f"{rank:05d}.npy")[0] == split).sum())
        yield rank, first, last
        first = last


def _arrow_type(kinds: set[str]) -> str:
    """The narrowest type that holds all values; text where there is none, with other values as JSON."""
    if kinds == {"bool"}:
        return "bool"
    if kinds == {"int"}:
        return "int64"
    return "double" if kinds <= {"int", "float"} else "string"
