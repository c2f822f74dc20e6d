"""A source and an encoder whose examples say which they are and what was drawn for them."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from flame.data.examples.example import IGNORE, Example, Key
from flame.data.sources.records import BadRow, NearDocuments

if TYPE_CHECKING:
    from flame.config import Source


class CountingSource(NearDocuments):
    """Examples 0 ... n - 1; number i has 1 + (7 i) % spread steps. Those that ``bad`` divides cannot be read."""

    def __init__(self, name: str, size: int, spread: int = 20, bad: int = 0):
        self.name, self.size, self.spread, self.bad = name, size, spread, bad

    def __len__(self) -> int:
        return self.size

    def lengths(self, indices: np.ndarray) -> np.ndarray:
        return 1.0 + (7 * indices) % self.spread

    def read(self, indices: Sequence[int]) -> list[Any]:
        return [
            BadRow("bad on purpose", self.where(index))
            if self.bad and index % self.bad == 0
            else {"number": index, "steps": int(self.lengths(np.array([index]))[0])}
            for index in indices
        ]

    def where(self, index: int) -> str:
        return f"{self.name}:{index}"


class CountingEncoder:
    """``path`` of a source is ``name:size`` or ``name:size:bad``."""

    inputs_name = "input_values"
    unit = "steps"
    fingerprint = "counting"

    def __init__(self, spread: int = 20):
        self.spread = spread

    def open(self, source: "Source") -> CountingSource:
        name, size, *bad = source.path.split(":")
        return CountingSource(name, int(size), self.spread, int(bad[0]) if bad else 0)

    def steps(self, lengths: np.ndarray, keys: Sequence[Key] | None) -> np.ndarray:
        return lengths.astype(np.int64)

    def encode(self, record: dict[str, Any], key: Key | None, where: str) -> Example | BadRow:
        drawn = 0.0 if key is None else np.random.default_rng(key).random()
        values = np.full((record["steps"], 2), drawn, np.float32)
        values[:, 0] = record["number"]
        return Example(values, np.array([record["number"], ord(where[0])], np.int64))

    def blank(self) -> Example:
        return Example(np.zeros((1, 2), np.float32), np.full(1, IGNORE, np.int64))
