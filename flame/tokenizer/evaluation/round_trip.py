"""Whether decoding gives back what was encoded: all of Unicode, random texts, look-alikes of special tokens."""

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from tokenizers import Tokenizer
from tqdm import tqdm

CODE_POINTS = [code for code in range(0x110000) if not 0xD800 <= code < 0xE000]
"""Every code point that may appear in text: all but the halves of surrogate pairs."""

_CHUNK = 512  # characters tried together; only those of a chunk that fails are tried alone
_ALPHABETS = (
    "ab",
    " \t\n\r",
    "0123456789.,",
    "e\u0301\u0327\u200d\ufe0f\U0001f469",
    "'sSdDtTlLvVrReE\u017f ",
    "<|>_/bos",
    "<0xA1> \u00e9",
)


@dataclass
class RoundTrips:
    """How many texts of one kind came back, and what did not."""

    kind: str
    tried: int = 0
    failed: int = 0
    examples: tuple[str, ...] = ()
    """The first texts that did not come back."""
    miscounted: int = 0
    """Texts whose tokens' bytes do not sum to their length, so that bits per byte are off there."""

    def add(self, text: str, came_back: bool, counted: bool) -> None:
        """Counts one text."""
        self.tried += 1
        self.miscounted += not counted
        if not came_back:
            self.failed += 1
            self.examples = (*self.examples, text)[:10]


def round_trips(tokenizer: Tokenizer, token_bytes: np.ndarray, seed: int = 0, texts: int = 3000) -> list[RoundTrips]:
    """Encodes and decodes, with what looks like a special token taken for the characters that it consists of.

    Args:
        tokenizer: The tokenizer.
        token_bytes: Bytes that each id stands for, ``[vocabulary]``.
        seed: Draws the random texts.
        texts: How many random texts to try.

    Returns:
        Results for characters, random texts, and look-alikes.
    """
    plain = Tokenizer.from_str(tokenizer.to_str())
    plain.encode_special_tokens = True
    plain.no_truncation()
    plain.no_padding()
    tester = _Tester(plain, token_bytes)
    rng = random.Random(seed)
    special = [token.content for token in plain.get_added_tokens_decoder().values()]
    results = [_characters(tester), RoundTrips("random texts"), RoundTrips("look-alikes of special tokens")]
    tokens = plain.decode_batch([[index] for index in sorted(plain.get_vocab().values())], skip_special_tokens=False)
    tester.count(results[1], _random_texts(rng, tokens, texts))
    tester.count(results[2], [before + token + after for token in special for before in _EDGES for after in _EDGES])
    return results


_EDGES = ("", "a", " ", "\n", "<", "\u00e9")


class _Tester:
    def __init__(self, tokenizer: Tokenizer, token_bytes: np.ndarray) -> None:
        self._tokenizer, self._token_bytes = tokenizer, token_bytes

    def try_all(self, texts: Sequence[str]) -> list[tuple[bool, bool]]:
        """Whether each text comes back, and whether the bytes of its tokens sum to its length."""
        encodings = [encoding.ids for encoding in self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)]
        decoded = self._tokenizer.decode_batch(encodings, skip_special_tokens=False)
        sizes = [int(self._token_bytes[np.array(ids, np.int64)].sum()) for ids in encodings]
        return [
            (back == text, size == len(text.encode())) for text, back, size in zip(texts, decoded, sizes, strict=True)
        ]

    def count(self, result: RoundTrips, texts: Iterable[str]) -> None:
        texts = list(texts)
        for text, outcome in zip(texts, self.try_all(texts), strict=True):
            result.add(text, *outcome)


def _characters(tester: _Tester) -> RoundTrips:
    """Tries every character: many together, between other characters, and alone where that does not come back."""
    result = RoundTrips("characters of Unicode")
    for start in tqdm(range(0, len(CODE_POINTS), _CHUNK), desc="round trips", disable=None, leave=False):
        characters = [chr(code) for code in CODE_POINTS[start : start + _CHUNK]]
        together = ["".join(characters), "a" + " a".join(characters)]
        if all(back and counted for back, counted in tester.try_all(together)):
            result.tried += len(characters)
        else:
            tester.count(result, characters)
    return result


def _random_texts(rng: random.Random, tokens: Sequence[str], number: int) -> Iterable[str]:
    for turn in range(number):
        length = rng.randrange(1, 80)
        if turn % 3 == 0:
            yield "".join(chr(rng.choice(CODE_POINTS)) for _ in range(length))
        elif turn % 3 == 1:
            alphabet = rng.choice(_ALPHABETS)
            yield "".join(rng.choice(alphabet) for _ in range(length))
        else:
            yield "".join(rng.choice(tokens) for _ in range(length // 4 + 1))
