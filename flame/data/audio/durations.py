"""How long audio files are, by their headers; remembered in flame's cache for as long as they do not change."""

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from tqdm import tqdm

from flame.data.audio.decoding import AudioError, read_header
from flame.errors import DataError
from flame.files import atomic
from flame.tokenizer.cache import cache_folder

_WORTH_TELLING = 5000  # files; the headers of fewer are read within seconds
_THREADS = 8  # most of the time is the disk's


def file_seconds(name: str, paths: Iterable[str]) -> dict[str, float]:
    """Reads how long files are.

    Args:
        name: What the source is called: what was found out about it is remembered together.
        paths: The files; one named twice is read once.

    Returns:
        Seconds by path; those that cannot be used are not in it.

    Raises:
        DataError: The cache cannot be written.
    """
    wanted = dict.fromkeys(paths)
    record = cache_folder() / "durations" / f"{hashlib.blake2b(name.encode(), digest_size=16).hexdigest()}.json"
    known = _remembered(record)
    now = dict(zip(wanted, _each("looking for recordings", _stamp, list(wanted)), strict=True))
    new = [path for path, stamp in now.items() if stamp and known.get(path, [])[:2] != stamp]
    for path, seconds in zip(new, _each("reading lengths of recordings", _seconds, new), strict=True):
        known[path] = [*(now[path] or []), seconds]
    if new:
        _remember(record, known)
    return {path: known[path][2] for path, stamp in now.items() if stamp and known[path][2] is not None}


def _each(what: str, function: Callable[[str], Any], paths: Sequence[str]) -> list[Any]:
    with ThreadPoolExecutor(_THREADS) as pool:
        found = pool.map(function, paths)
        return list(tqdm(found, what, total=len(paths), unit="file", disable=len(paths) < _WORTH_TELLING))


def _stamp(path: str) -> list[int] | None:
    """Size and time of the last change of a file; None if it is not there."""
    try:
        stat = os.stat(path)
    except OSError:
        return None
    return [stat.st_size, stat.st_mtime_ns]


def _seconds(path: str) -> float | None:
    try:
        return read_header(path, path).seconds
    except AudioError:
        return None  # what is wrong with it is said when it is read


def _remembered(record: os.PathLike) -> dict[str, list]:
    try:
        with open(record, "rb") as file:
            known = json.load(file)
    except (OSError, ValueError):  # not there yet; and a cache may be damaged at any time
        return {}
    return {path: entry for path, entry in known.items() if len(entry) == 3} if isinstance(known, dict) else {}


def _remember(record: Any, known: dict[str, list]) -> None:
    try:
        with atomic(record) as draft:
            draft.write_text(json.dumps(known))
    except OSError as error:
        raise DataError(f"cannot write {record} ({error}): name a writable folder in FLAME_CACHE") from error
