"""Writing token shards."""

from pathlib import Path
from types import TracebackType

import numpy as np
import xxhash

from flame.data.shards.manifest import DTYPES, OFFSETS, ShardEntry, TokenizerIdentity
from flame.errors import DataError
from flame.files import Draft


class TokenShardWriter:
    """Writes documents into shards ``{prefix}_00000.bin`` with their ``.idx``; a context manager.

    Documents are never divided between shards: one that does not fit begins the next shard, and one longer than a shard
    has a shard of its own. The same documents give the same bytes. Leaving the context by an error (or ``abort``)
    removes the shard that is not complete. The shards count once ``write_manifest`` was called with their entries.

    Args:
        folder: Where to write; it must exist.
        dtype: ``"uint16"`` or ``"uint32"``.
        tokenizer: Who made the ids; ids at or above its ``vocab_size`` are refused.
        tokens_per_shard: When a shard is full.
        prefix: Beginning of the files' names, so that several writers can share a folder.
        first: Number of the first shard.

    Raises:
        DataError: The vocabulary does not fit the type, or a file cannot be written.
    """

    def __init__(
        self,
        folder: Path | str,
        *,
        dtype: str,
        tokenizer: TokenizerIdentity,
        tokens_per_shard: int,
        prefix: str = "shard",
        first: int = 0,
    ):
        if dtype not in DTYPES:
            raise DataError(f"no token type '{dtype}': it is one of {', '.join(DTYPES)}")
        limit = np.iinfo(DTYPES[dtype]).max + 1
        if tokenizer.vocab_size > limit:
            raise DataError(f"{tokenizer.vocab_size:,} ids do not fit {dtype}: use uint32")
        if tokens_per_shard < 1:
            raise DataError(f"tokens_per_shard {tokens_per_shard} must be at least 1")
        self._folder = Path(folder)
        self._dtype = DTYPES[dtype]
        self._limit = tokenizer.vocab_size or limit
        self._tokens_per_shard = tokens_per_shard
        self._prefix = prefix
        self._first = first
        self._entries: list[ShardEntry] = []
        self._shard: _Shard | None = None
        self._documents = 0

    def add(self, ids: np.ndarray) -> None:
        """Appends a document, int ``[tokens]``, separators included; one without tokens is left out.

        Raises:
            DataError: An id is negative or outside the vocabulary, or the disk is full.
        """
        if not len(ids):
            return
        least, largest = int(ids.min()), int(ids.max())
        if least < 0 or largest >= self._limit:
            worst = least if least < 0 else largest
            raise DataError(f"document {self._documents} has the id {worst}, outside the vocabulary of {self._limit:,}")
        if self._shard is not None and self._shard.tokens + len(ids) > self._tokens_per_shard:
            self._finish_shard()
        if self._shard is None:
            self._shard = _Shard(self._folder / f"{self._prefix}_{self._first + len(self._entries):05d}.bin")
        self._documents += 1
        self._shard.add(ids.astype(self._dtype, copy=False))

    def close(self) -> list[ShardEntry]:
        """Finishes the last shard and returns the entries of all."""
        if self._shard is not None:
            self._finish_shard()
        return list(self._entries)

    def abort(self) -> None:
        """Removes the shard that is not complete; those before it stay."""
        if self._shard is not None:
            self._shard.discard()
            self._shard = None

    def __enter__(self) -> "TokenShardWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            self.abort()
        else:
            self.close()

    def _finish_shard(self) -> None:
        assert self._shard is not None
        try:
            self._entries.append(self._shard.finish())
        except DataError:
            self.abort()
            raise
        self._shard = None


class _Shard:
    """A shard in the making."""

    def __init__(self, target: Path):
        self.tokens = 0
        self._bin = Draft(target)
        self._offsets = [0]
        self._digest = xxhash.xxh64()

    def add(self, ids: np.ndarray) -> None:
        data = ids.tobytes()
        self._bin.write(data)
        self._digest.update(data)
        self.tokens += len(ids)
        self._offsets.append(self.tokens)

    def finish(self) -> ShardEntry:
        offsets = np.array(self._offsets, OFFSETS).tobytes()
        self._digest.update(offsets)
        entry = ShardEntry(self._bin.target.name, self.tokens, len(self._offsets) - 1, self._digest.hexdigest())
        with Draft(self._bin.target.with_name(entry.index)) as index:
            index.write(offsets)
        self._bin.commit()
        return entry

    def discard(self) -> None:
        self._bin.discard()
