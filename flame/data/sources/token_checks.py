"""Whether files of token ids are whole, and made with the job's tokenizer."""

import functools
import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import xxhash
from tqdm import tqdm

from flame.data.shards.manifest import MANIFEST, TokenizerIdentity
from flame.data.sources.storage import FileInfo, LocalStorage, Storage, once_per_version
from flame.data.sources.token_files import TokenFile, bad_id
from flame.errors import DataError

_CHUNK = 1 << 24
_CHECKED_BYTES = 1 << 36  # reading 64 GiB takes a minute or so
_WORTH_TELLING = 1 << 30
_SAMPLES, _REMOTE_SAMPLES = 64, 4
_SAMPLED_TOKENS = 1 << 12
_THREADS = 16

logger = logging.getLogger(__name__)


def check_tokens(
    name: str,
    storage: Storage,
    files: Sequence[TokenFile],
    made_by: TokenizerIdentity | None,
    own: TokenizerIdentity | None,
) -> None:
    """Refuses token ids that are damaged or of another tokenizer than the job's.

    Local shards are compared with their checksums, once per version of a file. Files that do not say which tokenizer
    made them are compared with the vocabulary, all over.

    Args:
        name: What messages call the source.
        storage: Where the files lie.
        files: The files.
        made_by: Which tokenizer made them; None if that is not known.
        own: The job's tokenizer; None if it does not matter.

    Raises:
        DataError: Something does not fit.
    """
    _check_tokenizer(name, made_by, own)
    is_local = isinstance(storage, LocalStorage)
    if is_local:
        _verify([file for file in files if file.xxh64])
    if own is None or not own.vocab_size or made_by is not None:
        return
    samples = _SAMPLES if is_local else _REMOTE_SAMPLES
    with ThreadPoolExecutor(_THREADS) as pool:
        list(pool.map(lambda file: _check_sample(storage, file, own.vocab_size, samples), files))


def _check_tokenizer(name: str, made_by: TokenizerIdentity | None, own: TokenizerIdentity | None) -> None:
    if own and made_by and own.fingerprint and made_by.fingerprint and own.fingerprint != made_by.fingerprint:
        raise DataError(
            f"'{name}' holds tokens of the tokenizer {made_by}, the job's is {own}: set model.tokenizer_path to the "
            "first, or prepare the data with the second"
        )


def _check_sample(storage: Storage, file: TokenFile, vocab_size: int, samples: int) -> None:
    for start in np.unique(np.linspace(0, max(0, file.tokens - _SAMPLED_TOKENS), samples).astype(np.int64)).tolist():
        stop = min(file.tokens, start + _SAMPLED_TOKENS)
        ids = np.frombuffer(storage.read(file.info, file.byte(start), file.byte(stop)), file.type)
        bad = np.flatnonzero(ids >= vocab_size)
        if len(bad):
            raise bad_id(file, start + int(bad[0]), int(ids[bad[0]]), vocab_size)


def _verify(files: Sequence[TokenFile]) -> None:
    total = sum(file.info.size for file in files)
    if total > _CHECKED_BYTES:
        gigabytes = total / 1e9
        logger.info("%d token shards: %.0f GB are not compared with their checksums", len(files), gigabytes)
        return
    for file in tqdm(files, "checking token shards", unit="file", disable=total < _WORTH_TELLING):
        index = LocalStorage().info(str(file.index))
        if index is not None:
            both = FileInfo(
                file.info.path, file.info.size + index.size, f"{file.info.stamp} {index.stamp} {file.xxh64}"
            )
            once_per_version("xxh64", both, functools.partial(_check_digest, file))


def _check_digest(file: TokenFile) -> None:
    digest = xxhash.xxh64()
    assert file.index is not None
    for part in (Path(file.info.path), file.index):
        try:
            with open(part, "rb") as data:
                while chunk := data.read(_CHUNK):
                    digest.update(chunk)
        except OSError as error:
            raise DataError(f"{part} cannot be read ({error.strerror}): check the file and its disk") from error
    if digest.hexdigest() != file.xxh64:
        raise DataError(
            f"{file.info.path} or its index is damaged: their bytes hash to {digest.hexdigest()}, {MANIFEST} says "
            f"{file.xxh64}; prepare them again"
        )
