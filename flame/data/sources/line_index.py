"""Line indexes: where every line of a file begins, found once and cached, so that lines can be read in any order.

Compressed files (.gz, .zst) allow no random access: they are decompressed into the cache first.
"""

import gzip
import hashlib
import logging
import shutil
import zlib
from pathlib import Path
from typing import BinaryIO

import numpy as np
import zstandard
from tqdm import tqdm

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
    stat = path.stat()
    identity = f"{path.resolve()}/{stat.st_size}/{stat.st_mtime_ns}"
    stem = cache_folder() / "lines" / hashlib.blake2b(identity.encode(), digest_size=16).hexdigest()
    plain = path
    if path.suffix in (".gz", ".zst"):
        plain = build_once(stem.with_suffix(".txt"), lambda draft: _decompress(path, draft))
    return plain, build_once(stem.with_suffix(".npy"), lambda draft: _write_index(plain, draft))


def _decompress(path: Path, target: Path) -> None:
    logger.info("decompressing %s into the cache, once", path)
    try:
        with open(path, "rb") as raw, open(target, "wb") as plain:
            if path.suffix == ".gz":
                shutil.copyfileobj(gzip.GzipFile(fileobj=raw), plain, _CHUNK)
            else:
                _copy_zstd(raw, plain)
    except (EOFError, zlib.error, gzip.BadGzipFile, zstandard.ZstdError) as error:
        raise DataError(
            f"{path} cannot be decompressed ({error}): it is damaged or incomplete, fetch it again"
        ) from error


def _copy_zstd(raw: BinaryIO, plain: BinaryIO) -> None:
    """Decompresses all frames of a file, and unlike ``copy_stream`` notices when the last one is incomplete."""
    decompressor = zstandard.ZstdDecompressor()
    frame = None
    while chunk := raw.read(_CHUNK):
        while chunk:
            frame = frame or decompressor.decompressobj()
            plain.write(frame.decompress(chunk))
            chunk = frame.unused_data
            if frame.eof:
                frame = None
    if frame is not None:
        raise EOFError("it ends within a frame")


def _write_index(path: Path, target: Path) -> None:
    with open(target, "wb") as file:  # np.save would append a suffix to a name of its own
        np.save(file, line_offsets(path))


def line_offsets(path: Path) -> np.ndarray:
    """Returns the int64 offsets of the lines that are not blank, and the size of the file."""
    size = path.stat().st_size
    if size == 0:
        return np.zeros(1, np.int64)
    data = np.memmap(path, np.uint8, "r")
    chunks = tqdm(range(0, size, _CHUNK), f"indexing {path.name}", unit="chunk", disable=size < _WORTH_TELLING)
    ends = np.concatenate([np.flatnonzero(data[start : start + _CHUNK] == ord("\n")) + start for start in chunks])
    if not len(ends) or ends[-1] != size - 1:
        ends = np.append(ends, size)
    starts = np.append(0, ends[:-1] + 1)
    lengths = ends - starts
    is_blank = lengths == 0
    single = np.flatnonzero(lengths == 1)
    is_blank[single] = data[starts[single]] == ord("\r")
    return np.append(starts[~is_blank], size).astype(np.int64)
