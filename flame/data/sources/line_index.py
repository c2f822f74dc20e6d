"""Line indexes: where every line of a file begins, found once and cached, so that lines can be read in any order.

Compressed files (.gz, .zst) allow no random access: they are decompressed into the cache first.
"""

import hashlib
import logging
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
from tqdm import tqdm

from flame.data.compressed import DAMAGE, decompressed
from flame.data.suffixes import is_compressed
from flame.errors import DataError
from flame.tokenizer.cache import build_once, cache_folder

_CHUNK = 1 << 24
_WORTH_TELLING = 1 << 30  # bytes; smaller files are indexed within a second

logger = logging.getLogger(__name__)


def index_lines(path: Path) -> tuple[Path, Path]:
    """Finds the lines of a file, unless that was done before.

    Args:
        path: A file of lines, plain, ``.gz`` or ``.zst``.

    Returns:
        The plain file, and the index: a ``.npy`` of the int64 offset of every line that is not blank, in order, and of
        the end of the file.

    Raises:
        DataError: If the file cannot be decompressed.
    """
    try:
        stat = path.stat()
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}): check the file") from error
    identity = f"{path.resolve()}/{stat.st_size}/{stat.st_mtime_ns}"
    stem = cache_folder() / "lines" / hashlib.blake2b(identity.encode(), digest_size=16).hexdigest()
    plain = path
    if is_compressed(path.name):
        plain = build_once(stem.with_suffix(".txt"), lambda draft: _decompress(path, draft))
    return plain, build_once(stem.with_suffix(".npy"), lambda draft: write_index(local_chunks(plain), draft))


def decompress(path: str, raw: BinaryIO, target: Path) -> None:
    """Decompresses a ``.gz`` or ``.zst`` file.

    Args:
        path: Its name.
        raw: Its content.
        target: Where to write.

    Raises:
        DataError: It is damaged.
    """
    try:
        with open(target, "wb") as plain:
            shutil.copyfileobj(decompressed(path, raw), plain, _CHUNK)
    except DAMAGE as error:
        raise DataError(
            f"{path} cannot be decompressed ({error}): it is damaged or incomplete, fetch it again"
        ) from error


def _decompress(path: Path, target: Path) -> None:
    logger.info("decompressing %s into the cache, once", path)
    with open(path, "rb") as raw:
        decompress(str(path), raw, target)


def write_index(chunks: Iterable[bytes | np.ndarray], target: Path) -> None:
    """Writes the index of a file whose bytes come in chunks."""
    with open(target, "wb") as file:  # np.save would append a suffix to a name of its own
        np.save(file, line_offsets(chunks))


def local_chunks(path: Path) -> Iterator[np.ndarray]:
    """The bytes of a file, chunk by chunk."""
    size = path.stat().st_size
    data = np.memmap(path, np.uint8, "r") if size else np.empty(0, np.uint8)
    for start in tqdm(range(0, size, _CHUNK), f"indexing {path.name}", unit="chunk", disable=size < _WORTH_TELLING):
        yield data[start : start + _CHUNK]


def line_offsets(chunks: Iterable[bytes | np.ndarray]) -> np.ndarray:
    """Returns the int64 offsets of the lines that are not blank, and the size of the file, given in chunks."""
    size = 0
    found: list[np.ndarray] = []  # of every chunk: starts of its lines that are not blank
    start, blank_so_far = 0, True  # of the line that is open at the end of a chunk
    for chunk in chunks:
        data = np.frombuffer(chunk, np.uint8)
        if not len(data):
            continue
        ends = np.flatnonzero(data == ord("\n"))
        starts = np.append(-1, ends) + 1  # [lines]: the first is the open one, the last stays open
        is_blank = _are_blank(data, starts, np.append(ends, len(data)))
        if size > start:  # the open line has begun in an earlier chunk
            is_blank[0] = blank_so_far and starts[0] == (ends[0] if len(ends) else len(data))
        offsets = starts + size
        offsets[0] = start
        found.append(offsets[:-1][~is_blank[:-1]])
        start, blank_so_far = int(offsets[-1]), bool(is_blank[-1])
        size += len(data)
    if not blank_so_far:
        found.append(np.array([start]))
    return np.concatenate([*found, [size]]).astype(np.int64)


def _are_blank(data: np.ndarray, starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """Which lines hold nothing, or only a carriage return."""
    lengths = ends - starts
    is_blank = lengths == 0
    single = np.flatnonzero(lengths == 1)
    is_blank[single] = data[starts[single]] == ord("\r")
    return is_blank
