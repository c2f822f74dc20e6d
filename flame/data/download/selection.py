"""Which of a corpus's files a command asks for."""

import re
from collections.abc import Sequence

from flame.data.download.remote import RemoteFile, size_of
from flame.errors import ConfigError, DataError

_POWERS = {"": 0, "K": 1, "M": 2, "G": 3, "T": 4}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(I?)B?", re.IGNORECASE)
_SHARDS = re.compile(r"(\d+)(?:-(\d+))?")


def parse_size(text: str) -> int:
    """``1GB`` -> 1,000,000,000 bytes; ``1GiB`` -> 1,073,741,824.

    Raises:
        ConfigError: It is not a size.
    """
    found = _SIZE.fullmatch(text.strip())
    if not found or (found[3] and not found[2]):
        raise ConfigError(f"--max-bytes '{text}' is not a size such as 500MB or 1.5GiB")
    base = 1024 if found[3] else 1000
    size = int(float(found[1]) * base ** _POWERS[found[2].upper()])
    if not size:
        raise ConfigError("--max-bytes must be more than 0")
    return size


def parse_shards(text: str) -> range:
    """``3`` -> the first three files, ``5-9`` -> those with the numbers 5 to 9, counted from 0.

    Raises:
        ConfigError: It is neither.
    """
    found = _SHARDS.fullmatch(text.strip())
    if not found:
        raise ConfigError(f"--shards '{text}' is neither a number of files nor a range such as 5-9")
    shards = range(int(found[1]), int(found[2]) + 1) if found[2] else range(int(found[1]))
    if not shards:
        raise ConfigError(f"--shards '{text}' chooses no file")
    return shards


def choose(files: Sequence[RemoteFile], shards: range | None, max_bytes: int | None) -> list[RemoteFile]:
    """The files of one split that are asked for.

    Args:
        files: of one split, in order.
        shards: their numbers; None for all.
        max_bytes: Files are taken in order while all of them together are no larger.

    Raises:
        DataError: There is no file with such a number, or none small enough.
    """
    chosen = list(files)
    if shards is not None:
        chosen = [files[number] for number in shards if number < len(files)]
        if not chosen:
            raise DataError(f"--shards {shards.start}-{shards[-1]}: there are {len(files)} files, counted from 0")
    if max_bytes is None:
        return chosen
    total, count = 0, 0
    for file in chosen:
        size = size_of(file)
        if size is None:
            raise DataError(f"{file.url}: its server does not say how large it is; use --shards instead of --max-bytes")
        if total + size > max_bytes:
            break
        total, count = total + size, count + 1
    if not count:
        raise DataError(f"the first file, {file.name}, is larger than --max-bytes: it has {size:,} bytes")
    return chosen[:count]
