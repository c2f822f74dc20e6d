"""Files of token ids: which there are, and where their documents begin."""

import functools
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from flame.data.shards.manifest import (
    DTYPES,
    MANIFEST,
    OFFSETS,
    TokenizerIdentity,
    TokenManifest,
    check_offsets,
    check_size,
    expected_sizes,
    parse_manifest,
)
from flame.data.sources.storage import FileInfo, Storage
from flame.errors import DataError

# Files of llm.c and modded-nanogpt open with 256 int32: a magic number, a version, the number of tokens.
_HEADERS = {20240520: "uint16", 20240801: "uint32"}
_HEADER_BYTES = 1024
_LEAST_PIECE, _LARGEST_PIECE, _PIECES = 1 << 10, 1 << 16, 4096
_THREADS = 16  # files looked at at once: those of another machine answer slowly


@dataclass(frozen=True)
class TokenFile:
    """One file of token ids."""

    info: FileInfo
    dtype: str
    start: int
    """Bytes before the first token."""
    tokens: int
    index: Path | None
    """Local file of uint64 document offsets; None for a file that is one endless document."""
    longest: int
    """Longer documents fall into documents of this many tokens; an endless one does so from its beginning."""
    xxh64: str = ""
    """Checksum of the ids and the index; empty if there is none."""

    @property
    def type(self) -> np.dtype:
        """Of the ids in the file, little-endian."""
        return DTYPES[self.dtype]

    @functools.cached_property
    def offsets(self) -> np.ndarray:
        """Where documents begin, and where the last one ends, in tokens: int ``[documents + 1]``."""
        if self.index is None:
            return np.append(np.arange(0, self.tokens, self.longest), self.tokens)
        return cut_offsets(np.asarray(np.memmap(self.index, OFFSETS, "r")), self.longest)

    def byte(self, token: int) -> int:
        """Where a token begins in the file."""
        return self.start + token * self.type.itemsize

    def __getstate__(self) -> dict[str, Any]:
        # Worker processes map the index anew instead of being sent a copy.
        return {name: value for name, value in self.__dict__.items() if name != "offsets"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)


def open_token_files(
    storage: Storage, files: Sequence[FileInfo], token_dtype: str, longest: int
) -> tuple[list[TokenFile], TokenizerIdentity | None]:
    """Finds out what ``.bin`` files hold: those beside a ``tokens.json`` from there, others from their header or from
    ``token_dtype``.

    Args:
        storage: Where they lie.
        files: The files, at least one.
        token_dtype: Type of the ids of bare files; empty if the files say so themselves.
        longest: Documents of more tokens are cut.

    Returns:
        The files, and which tokenizer made them, None if that is not known.

    Raises:
        DataError: A file is damaged, of an unknown type, or made by another tokenizer than the others.
    """
    folders = dict.fromkeys(_folder(file) for file in files)
    manifests = {folder: found for folder in folders if (found := _manifest(storage, folder)) is not None}
    total = sum(file.size for file in files)

    def open_one(file: FileInfo) -> TokenFile:
        manifest = manifests.get(_folder(file))
        if manifest is None:
            return _bare(storage, file, token_dtype, total)
        if token_dtype not in ("", manifest.dtype):
            raise DataError(f"{_folder(file)}{MANIFEST} says {manifest.dtype}: take token_dtype out of the source")
        return _indexed(storage, file, manifest, longest)

    with ThreadPoolExecutor(_THREADS) as pool:
        opened = list(pool.map(open_one, files))
    return opened, _only_identity(manifests, len(folders))


def bad_id(file: TokenFile, token: int, value: int, vocab_size: int) -> DataError:
    """The error of an id outside the vocabulary, with its place."""
    hint = "it is damaged" if file.index else "check token_dtype and model.tokenizer_path"
    return DataError(
        f"{file.info.path}, token {token} (byte {file.byte(token)}): id {value} is outside the vocabulary of "
        f"{vocab_size:,} ids; {hint}"
    )


def cut_offsets(offsets: np.ndarray, longest: int) -> np.ndarray:
    """Adds offsets within documents of more than ``longest`` tokens, so that none is longer."""
    long = np.flatnonzero(np.diff(offsets) > longest)
    if not len(long):
        return offsets
    added = [
        np.arange(int(offsets[row]) + longest, int(offsets[row + 1]), longest).astype(offsets.dtype) for row in long
    ]
    return np.insert(offsets, np.repeat(long + 1, [len(part) for part in added]), np.concatenate(added))


def _folder(file: FileInfo) -> str:
    """Folder of a file, with the slash; empty for one that is named without a folder."""
    return file.path[: file.path.rfind("/") + 1]


def _manifest(storage: Storage, folder: str) -> TokenManifest | None:
    info = storage.info(folder + MANIFEST)
    return None if info is None else parse_manifest(storage.read(info, 0, info.size), info.path)


def _indexed(storage: Storage, file: FileInfo, manifest: TokenManifest, longest: int) -> TokenFile:
    name = file.path.removeprefix(_folder(file))
    entry = next((entry for entry in manifest.shards if entry.file == name), None)
    if entry is None:
        raise DataError(f"{file.path} is not in the {MANIFEST} beside it: move it to a folder of its own")
    sizes = expected_sizes(manifest)
    check_size(file.path, file.size, sizes[entry.file])
    index = storage.info(_folder(file) + entry.index)
    if index is None:
        raise DataError(f"{file.path} has no {entry.index} beside it: prepare the shards again")
    check_size(index.path, index.size, sizes[entry.index])
    local = storage.local_path(index)
    check_offsets(np.memmap(local, OFFSETS, "r"), entry.tokens, index.path)
    return TokenFile(file, manifest.dtype, 0, entry.tokens, local, longest, entry.xxh64)


def _bare(storage: Storage, file: FileInfo, token_dtype: str, total: int) -> TokenFile:
    header = np.frombuffer(storage.read(file, 0, min(file.size, 12)), "<i4", count=min(file.size, 12) // 4)
    start = 0
    if len(header) == 3 and int(header[0]) in _HEADERS and file.size >= _HEADER_BYTES:
        start, token_dtype = _HEADER_BYTES, _HEADERS[int(header[0])]
    if not token_dtype:
        raise DataError(
            f"{file.path} does not say what its tokens are (there is no {MANIFEST} beside it): set token_dtype to "
            '"uint16" or "uint32"'
        )
    width = DTYPES[token_dtype].itemsize
    tokens, rest = divmod(file.size - start, width)
    if rest:
        raise DataError(f"{file.path}: {file.size:,} bytes are no whole number of {token_dtype} tokens: fetch it again")
    if start and int(header[2]) != tokens:
        raise DataError(f"{file.path} holds {tokens:,} tokens, its header says {int(header[2]):,}: fetch it again")
    return TokenFile(file, token_dtype, start, tokens, None, _piece(total // width))


def _piece(tokens: int) -> int:
    """Tokens of a piece of an endless document: a power of two that leaves enough pieces to shuffle."""
    piece = _LARGEST_PIECE
    while piece > _LEAST_PIECE and tokens // piece < _PIECES:
        piece //= 2
    return piece


def _only_identity(manifests: dict[str, TokenManifest], folders: int) -> TokenizerIdentity | None:
    identities = {manifest.tokenizer.fingerprint: folder for folder, manifest in manifests.items()}
    if len(identities) > 1:
        raise DataError(
            f"the tokens in {' and '.join(list(identities.values())[:2])} are of different tokenizers: make two sources"
        )
    if not manifests or len(manifests) < folders:
        return None
    return next(iter(manifests.values())).tokenizer
