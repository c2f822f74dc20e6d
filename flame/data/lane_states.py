"""The states of lanes as one small object: lanes of a job are alike, so little more than differences is kept."""

import zlib
from collections.abc import Iterable, Mapping

import numpy as np

_HEADER = np.dtype([("lanes", "<i8"), ("width", "<i8")])


def pack_states(states: Mapping[int, np.ndarray]) -> bytes:
    """Packs the states of lanes, int64 ``[width]`` each; a byte or two per number that differs between lanes."""
    lanes = sorted(states)
    # [1 + width, lanes]
    table = np.stack([np.append(lane, states[lane]) for lane in lanes], axis=1).astype("<i8")
    table[0] -= np.arange(len(lanes))
    least = table.min(axis=1)
    # Byte by byte, the most significant ones being zero nearly everywhere.
    planes = np.ascontiguousarray(table - least[:, None]).view(np.uint8).reshape(*table.shape, 8).transpose(0, 2, 1)
    header = np.array([(len(lanes), len(table))], _HEADER)
    return header.tobytes() + least.tobytes() + zlib.compress(planes.tobytes(), 9)


def unpack_states(packed: bytes) -> dict[int, np.ndarray]:
    """Returns what ``pack_states`` was given."""
    lanes, rows = (int(value) for value in np.frombuffer(packed, _HEADER, 1)[0])
    begin = _HEADER.itemsize + 8 * rows
    least = np.frombuffer(packed[_HEADER.itemsize : begin], "<i8")
    planes = np.frombuffer(zlib.decompress(packed[begin:]), np.uint8).reshape(rows, 8, lanes)
    table = np.ascontiguousarray(planes.transpose(0, 2, 1)).view("<i8")[..., 0] + least[:, None]
    table[0] += np.arange(lanes)
    return {int(lane): state for lane, state in zip(table[0], table[1:].T.astype(np.int64), strict=True)}


def merge_states(parts: Iterable[bytes]) -> bytes:
    """Joins the packed states of several ranks."""
    merged: dict[int, np.ndarray] = {}
    for part in parts:
        merged |= unpack_states(part)
    return pack_states(merged)


def next_turn(states: list[np.ndarray]) -> int:
    """Returns which of several lanes is next: the first of those that have given the fewest rows."""
    return int(np.argmin([state[0] for state in states]))
