"""Encoding text in batches: byte-level BPE by ``tiktoken``, the ids of ``tokenizers`` in less than half the time.

Text is text here: what looks like a special token in it is encoded as the characters that it consists of.
"""

import importlib.util
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

import numpy as np
from tokenizers import Tokenizer

from flame.tokenizer.byte_level import Ranks, ranks_and_pattern

# Characters are tried in a context in which a letter, a digit, a mark, a blank or anything else splits differently.
_CONTEXT = "a{0}B 1{0}2 '{0}!{0}{0}\n{0} s'l{0}"
_PROBED = [*range(0x400), *range(0x400, 0x3400, 7), *range(0xFF00, 0x10000, 3), *range(0x1F300, 0x1F400, 7)]
_CHARACTERS_PER_TEXT = 512


class BatchEncoding(Protocol):
    """Encodes texts; picklable, so that worker processes can do it."""

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Returns the ids of every text, int32, without separators."""
        ...


class TokenizersEncoding:
    """Any tokenizer, by ``tokenizers``.

    Args:
        tokenizer: Is copied; truncation and padding saved with it do not apply.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = Tokenizer.from_str(tokenizer.to_str())
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._tokenizer.encode_special_tokens = True

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Returns the ids of every text, int32."""
        encodings = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        return [np.fromiter(ids, np.int32, len(ids)) for ids in (encoding.ids for encoding in encodings)]

    def __getstate__(self) -> dict[str, Any]:
        return {"tokenizer": self._tokenizer}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # a tokenizer's own pickle forgets that special tokens are not to be looked for


class TiktokenEncoding:
    """Byte-level BPE, by ``tiktoken``.

    Args:
        ranks: Token -> id, with all 256 bytes among the tokens.
        pattern: Regular expression that splits text.
    """

    def __init__(self, ranks: Ranks, pattern: str) -> None:
        self._ranks, self._pattern = ranks, pattern
        self._encoding = _build(ranks, pattern)

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Returns the ids of every text, int32, on as many cores as ``tokenizers`` would take."""
        count = threads()
        if count == 1 or len(texts) == 1:
            return [self._encode(text) for text in texts]
        with ThreadPoolExecutor(min(count, len(texts))) as pool:
            # The longest first, or one core would end up with the last of them while the others have nothing to do.
            by_length = sorted(range(len(texts)), key=lambda number: -len(texts[number]))
            futures = {number: pool.submit(self._encode, texts[number]) for number in by_length}
            return [futures[number].result() for number in range(len(texts))]

    def _encode(self, text: str) -> np.ndarray:
        # Unlike `encode_ordinary`, this makes no Python object of every id, one thread at a time.
        return self._encoding.encode_to_numpy(text, disallowed_special=()).view(np.int32)

    def __getstate__(self) -> dict[str, Any]:
        return {"ranks": self._ranks, "pattern": self._pattern}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)


def text_encoding(tokenizer: Tokenizer) -> BatchEncoding:
    """Returns the fastest encoding with the ids of ``tokenizer``."""
    return tiktoken_encoding(tokenizer) or TokenizersEncoding(tokenizer)


def tiktoken_encoding(tokenizer: Tokenizer) -> TiktokenEncoding | None:
    """Returns an encoding with the ids of ``tokenizer`` (with ``encode_special_tokens``), if there can be one.

    None without tiktoken, for tokenizers that do more than byte-level BPE behind one regular expression, and if ids
    differ for any of some 3,000 characters that are tried: the two libraries compile patterns with different engines,
    which may know different versions of Unicode.
    """
    if importlib.util.find_spec("tiktoken") is None:
        return None
    found = ranks_and_pattern(tokenizer)
    if found is None:
        return None
    try:
        encoding = TiktokenEncoding(*found)
    except ValueError:  # a pattern that only the other engine reads
        return None
    return encoding if _agree(encoding, tokenizer) else None


def _build(ranks: Ranks, pattern: str) -> Any:
    import tiktoken

    # Without any special token, the search for them finds nothing at every character. None is allowed in texts.
    special = {"<|special|>": max(ranks.values()) + 1}
    return tiktoken.Encoding("flame", pat_str=pattern, mergeable_ranks=ranks, special_tokens=special)


def _agree(encoding: TiktokenEncoding, tokenizer: Tokenizer) -> bool:
    texts = [
        "".join(_CONTEXT.format(chr(code)) for code in _PROBED[start : start + _CHARACTERS_PER_TEXT])
        for start in range(0, len(_PROBED), _CHARACTERS_PER_TEXT)
    ]
    pairs = zip(TokenizersEncoding(tokenizer).encode_batch(texts), encoding.encode_batch(texts), strict=True)
    return all(np.array_equal(expected, found) for expected, found in pairs)


def threads() -> int:
    """How many threads encode in this process; one in a worker process."""
    if os.environ.get("TOKENIZERS_PARALLELISM", "").lower() in ("0", "false", "off", "no", "n", "f"):
        return 1
    limit = os.environ.get("RAYON_NUM_THREADS", "")
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return int(limit) if limit.isdigit() and int(limit) else available
