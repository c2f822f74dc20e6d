"""``tokens.json``: what a folder of token shards holds and which tokenizer made it."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from flame.errors import DataError
from flame.files import Draft

MANIFEST = "tokens.json"
DTYPES = {"uint16": np.dtype("<u2"), "uint32": np.dtype("<u4")}
OFFSETS = np.dtype("<u8")
_FORMAT, _VERSION = "flame.tokens", 1


@dataclass(frozen=True)
class TokenizerIdentity:
    """Which tokenizer made (or is to read) token ids."""

    fingerprint: str
    """``flame.data.encoder.tokenizer_fingerprint``: equal ones give equal ids; empty if not known."""
    name: str
    """What people call it: a folder or a hub id."""
    vocab_size: int
    """All ids are below it; 0 if not known."""

    def __str__(self) -> str:
        return f"'{self.name}' ({self.fingerprint[:8] or 'no fingerprint'}, {self.vocab_size:,} ids)"


@dataclass(frozen=True)
class ShardEntry:
    """One pair of files of a folder of token shards."""

    file: str
    """Name of the file of ids; its index has the suffix ``.idx``."""
    tokens: int
    documents: int
    xxh64: str
    """Of the bytes of the file of ids and then those of its index, 16 hexadecimal digits."""

    @property
    def index(self) -> str:
        """Name of the file of offsets."""
        return str(Path(self.file).with_suffix(".idx"))


@dataclass(frozen=True)
class TokenManifest:
    """The content of ``tokens.json``."""

    dtype: str
    tokenizer: TokenizerIdentity
    shards: tuple[ShardEntry, ...]


def write_manifest(
    folder: Path | str, dtype: str, tokenizer: TokenizerIdentity, entries: Sequence[ShardEntry]
) -> TokenManifest:
    """Writes ``tokens.json``, which makes the shards of a folder count; atomically, and equal bytes for equal content.

    Raises:
        DataError: A shard is not there in the size that its entry says, or the file cannot be written.
    """
    folder = Path(folder)
    manifest = TokenManifest(dtype, tokenizer, tuple(entries))
    _check_sizes(folder, manifest)
    content = {"format": _FORMAT, "version": _VERSION, **asdict(manifest)}
    with Draft(folder / MANIFEST) as draft:
        draft.write((json.dumps(content, indent=1) + "\n").encode())
    return manifest


def read_manifest(folder: Path | str) -> TokenManifest:
    """Reads ``tokens.json`` of a local folder, and checks that the shards fit it.

    Raises:
        DataError: It is absent or damaged, a file has another size than it says, or offsets are not in order.
    """
    folder = Path(folder)
    path = folder / MANIFEST
    try:
        manifest = parse_manifest(path.read_bytes(), str(path))
    except OSError as error:
        raise DataError(
            f"{path} cannot be read ({error.strerror}): a folder of token shards without it is not finished, "
            "prepare it again"
        ) from error
    _check_sizes(folder, manifest)
    for entry in manifest.shards:
        check_offsets(np.fromfile(folder / entry.index, OFFSETS), entry.tokens, str(folder / entry.index))
    return manifest


def parse_manifest(content: bytes, where: str) -> TokenManifest:
    """Reads the text of a ``tokens.json``; ``where`` is its name in messages.

    Raises:
        DataError: It is damaged, or of a version that this flame does not know.
    """
    try:
        data = json.loads(content)
        if data["format"] != _FORMAT or data["version"] != _VERSION:
            raise DataError(
                f"{where} is {data['format']} {data['version']}, not {_FORMAT} {_VERSION}: prepare it again"
            )
        if data["dtype"] not in DTYPES:
            raise DataError(
                f"{where}: dtype '{data['dtype']}' is none of {', '.join(DTYPES)}: prepare the shards again"
            )
        tokenizer = TokenizerIdentity(**_typed(data["tokenizer"], TokenizerIdentity))
        shards = tuple(ShardEntry(**_typed(entry, ShardEntry)) for entry in data["shards"])
    except (UnicodeDecodeError, json.JSONDecodeError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DataError(f"{where} is damaged ({error!r}): prepare the shards again") from error
    for entry in shards:
        if entry.tokens < 0 or entry.documents < 0 or Path(entry.file).name != entry.file or entry.file == entry.index:
            raise DataError(f"{where} is damaged (shard {entry}): prepare the shards again")
    return TokenManifest(data["dtype"], tokenizer, shards)


def check_offsets(offsets: np.ndarray, tokens: int, where: str) -> None:
    """Checks that uint64 document offsets rise from 0 to the number of tokens; ``where`` is their file.

    Raises:
        DataError: They do not; the message names the first that is wrong.
    """
    falls = np.flatnonzero(offsets[1:] < offsets[:-1])
    if len(falls):
        row = int(falls[0]) + 1
        raise DataError(f"{where} is damaged: offset {row} is {offsets[row]}, below the one before; prepare it again")
    if not len(offsets) or offsets[0] != 0 or offsets[-1] != tokens:
        ends = f"{offsets[0]} to {offsets[-1]}" if len(offsets) else "nothing"
        raise DataError(f"{where} is damaged: its offsets go from {ends}, not from 0 to {tokens}; prepare it again")


def _check_sizes(folder: Path, manifest: TokenManifest) -> None:
    for name, expected in expected_sizes(manifest).items():
        try:
            size = (folder / name).stat().st_size
        except OSError as error:
            raise DataError(f"{folder / name} cannot be read ({error.strerror}): prepare the shards again") from error
        check_size(str(folder / name), size, expected)


def expected_sizes(manifest: TokenManifest) -> dict[str, int]:
    """Bytes of every file that a manifest speaks of."""
    width = DTYPES[manifest.dtype].itemsize
    sizes = {entry.file: entry.tokens * width for entry in manifest.shards}
    return sizes | {entry.index: (entry.documents + 1) * OFFSETS.itemsize for entry in manifest.shards}


def check_size(where: str, size: int, expected: int) -> None:
    """Compares the size of a file with what its manifest says.

    Raises:
        DataError: They differ.
    """
    if size != expected:
        raise DataError(f"{where} has {size:,} bytes, {MANIFEST} says {expected:,}: it is damaged, prepare it again")


def _typed(values: dict[str, Any], kind: type) -> dict[str, Any]:
    """The values of a dataclass's fields, each of its type; further keys are left to later versions."""
    fields = kind.__annotations__
    for name, wanted in fields.items():
        if type(values[name]) is not wanted:
            raise TypeError(f"{name} is {values[name]!r}")
    return {name: values[name] for name in fields}
