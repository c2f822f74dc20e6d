"""Best-fit packing: which documents go together into rows so that few are cut and little is padded.

Documents are taken in blocks of some tens of rows. A block ends where its tokens nearly fill whole rows; its documents
are dealt out longest first, each into the row that it fills best (best-fit decreasing; Johnson, 1974; for language
models Ding et al., 2024, arXiv 2404.10830), and the few that fit nowhere are cut to fill gaps.
"""

from bisect import bisect_left, insort
from typing import NamedTuple

import numpy as np

BLOCK_TOKENS = 1 << 16
"""Tokens of a block, unless rows are very long or short: 64K are about 100 web pages."""
_WHOLE_TOKENS = 1 << 14
"""The same where documents are not cut, since those are short, and many fit into a row."""
_LEAST_ROWS, _MOST_ROWS = 8, 128
_TRIALS = 32
_MOST_PADDING = 0.0075  # of a block; giving this much away is what saves most documents from being cut


class Fragment(NamedTuple):
    """A part of an item, or all of it."""

    item: int
    start: int
    stop: int


def block_rows(length: int, whole: bool = False) -> int:
    """The most rows of ``length`` tokens in a block; fewer if documents are to stay whole."""
    tokens = _WHOLE_TOKENS if whole else BLOCK_TOKENS
    return min(max(tokens // length, _LEAST_ROWS), _MOST_ROWS)


def choose_block(
    lengths: np.ndarray, length: int, most: int, *, is_all: bool = False, may_cut: bool = True
) -> tuple[int, int, int]:
    """Chooses how many of the items to come make up a block.

    Args:
        lengths: int64 [items], each from 1 to ``length``, enough of them for a block unless ``is_all``.
        length: Tokens per row.
        most: The most tokens in the block, a multiple of ``length``.
        is_all: Whether no items come after these.
        may_cut: Whether the rest of an item may be left to the next block; if not, a block may be padded more.

    Returns:
        The number of items, the number of rows, and tokens of the last item that are left to the next block.
    """
    sums = np.cumsum(lengths)
    if is_all and sums[-1] <= most:
        return len(lengths), -(-int(sums[-1]) // length), 0
    fitting = sums[: int(sums.searchsorted(most, side="right"))]
    rows = -(-fitting // length)
    padding = 1 - fitting / (rows * length)
    padding[(padding > _MOST_PADDING) | (fitting < most // 2)] = -1
    best = int(padding.argmax())
    if padding[best] >= 0:
        return best + 1, int(rows[best]), 0
    # No choice is good: the block is full, and its last item is cut.
    if not may_cut or sums[-1] < most:
        return len(fitting), int(rows[-1]), 0
    cut = int(sums.searchsorted(most))
    return cut + 1, most // length, int(sums[cut]) - most


def choose_uncut(lengths: np.ndarray, length: int, most: int) -> tuple[int, int, int]:
    """Chooses a block of items that are not to be cut: of many sizes, the one that leaves the least padding.

    Arguments and what is returned as for ``choose_block``; nothing is left to the next block.
    """
    fitting = np.cumsum(lengths)
    fitting = fitting[: int(fitting.searchsorted(most, side="right"))]
    rows = -(-fitting // length)
    hoped = np.where(fitting < min(most // 2, fitting[-1]), 1.0, 1 - fitting / (rows * length))
    chosen, least = len(fitting), 1.0
    for last in np.argsort(hoped, kind="stable")[:_TRIALS].tolist():
        used = len(best_fit(lengths[: last + 1], length, int(rows[last]), may_cut=False))
        padding = 1 - int(fitting[last]) / (used * length)
        if padding < least and hoped[last] < 1:
            chosen, least = last + 1, padding
        if used == rows[last]:
            break
    return chosen, int(rows[chosen - 1]), 0


def best_fit(lengths: np.ndarray, length: int, rows: int, may_cut: bool = True) -> list[list[Fragment]]:
    """Deals items out to rows.

    Args:
        lengths: int64 [items], each from 1 to ``length``, in total at most ``rows * length``.
        length: Tokens per row.
        rows: Number of rows.
        may_cut: Whether items that fit nowhere are cut to fill gaps; if not, they get further rows.

    Returns:
        For every row its fragments: whole items before parts of them.
    """
    packed: list[list[Fragment]] = [[] for _ in range(rows)]
    gaps = [(length, row) for row in range(rows)]  # ascending
    unplaced = []
    for item in np.argsort(-lengths, kind="stable").tolist():
        size = int(lengths[item])
        place = bisect_left(gaps, (size, -1))
        if place == len(gaps) and may_cut:
            unplaced.append(item)
            continue
        if place == len(gaps):
            gaps.append((length, len(packed)))
            packed.append([])
        gap, row = gaps.pop(place)
        packed[row].append(Fragment(item, 0, size))
        insort(gaps, (gap - size, row))
    for item in unplaced:
        start, stop = 0, int(lengths[item])
        while start < stop:
            gap, row = gaps.pop()
            taken = min(gap, stop - start)
            packed[row].append(Fragment(item, start, start + taken))
            insort(gaps, (gap - taken, row))
            start += taken
    return packed
