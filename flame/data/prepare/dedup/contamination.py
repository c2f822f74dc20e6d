"""Which evaluation text a document contains: n-grams of words, found by hash and compared word by word."""

import functools
import re
import sys
import unicodedata
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import regex

from flame.data.prepare.cleaning.words import WORDS
from flame.data.prepare.dedup.n_grams import n_gram_hashes

_ASCII_WORDS = re.compile(r"\w+(?:'\w+)*", re.ASCII)
_MARKS = regex.compile(r"\P{Canonical_Combining_Class=0}+")
_SIEVE_BITS = 24


def words_of(text: str) -> list[str]:
    """Splits a text into lower-case words; neither punctuation nor the Unicode form counts.

    Evaluation sets are as their authors wrote them, documents as `[normalise]` left them: both are taken to NFKC here,
    and lose the marks that have no composed letter.
    """
    if not text.isascii():
        text = _MARKS.sub("", unicodedata.normalize("NFKC", text).lower())
    if text.isascii():
        return _ASCII_WORDS.findall(text.lower())
    return [word for word in WORDS.word_tokenize(text.replace("’", "'")) if word[0].isalnum() or word[0] == "_"]


class EvaluationText(NamedTuple):
    """A text that documents must not contain."""

    set_name: str
    """The evaluation set."""
    item: int
    """Its number there, from 1."""
    text: str


class Match(NamedTuple):
    """A place where a document and an evaluation text agree."""

    text: EvaluationText
    words: str
    """What they share, as words."""


class ContaminationIndex:
    """Evaluation texts by their n-grams.

    Every n-gram of a text counts; a text of fewer than ``n_grams`` words must occur as a whole, and one of fewer than
    ``shortest`` is left out. Memory: 16 MiB, and some 24 bytes per word of the texts.

    Args:
        texts: The texts.
        n_grams: Words that must agree in a row.
        shortest: Fewest words of a text that is looked for.
    """

    def __init__(self, texts: Sequence[EvaluationText], n_grams: int, shortest: int) -> None:
        self._texts = texts
        self._words = [list(map(sys.intern, words_of(text.text))) for text in texts]
        lengths: dict[int, list[int]] = {}
        for number, words in enumerate(self._words):
            if len(words) >= shortest:
                lengths.setdefault(min(n_grams, len(words)), []).append(number)
        sieve = np.zeros(1 << _SIEVE_BITS, bool)
        self._tables = [_Table(length, self._words, numbers, sieve) for length, numbers in sorted(lengths.items())]
        self.looked_for = sum(map(len, lengths.values()))
        """How many texts are long enough."""

    def find(self, document: str) -> Match | None:
        """Returns a match, the same one in every process, or None."""
        words = words_of(document)
        hashes = _word_hashes(words)
        for table in self._tables:
            for position, number in table.candidates(hashes):
                start = table.starts[number]
                text = int(table.texts[number])
                shared = words[position : position + table.length]
                if shared == self._words[text][start : start + table.length]:
                    return Match(self._texts[text], " ".join(shared))
        return None


class _Table:
    """The n-grams of one length, sorted by hash; tables of all lengths share a sieve of the hashes that occur."""

    def __init__(self, length: int, words: Sequence[Sequence[str]], texts: Sequence[int], sieve: np.ndarray) -> None:
        self.length = length
        hashes = [n_gram_hashes(_word_hashes(words[text]), length) for text in texts]
        counts = [len(part) for part in hashes]
        every = np.concatenate(hashes)
        owners = np.repeat(np.array(texts, np.int32), counts)
        starts = np.concatenate([np.arange(count, dtype=np.int32) for count in counts])
        order = np.lexsort((starts, owners, every))
        self.hashes, self.texts, self.starts = every[order], owners[order], starts[order]
        self._sieve = sieve
        self._sieve[self.hashes >> np.uint64(64 - _SIEVE_BITS)] = True

    def candidates(self, word_hashes: np.ndarray) -> Iterator[tuple[int, int]]:
        """Yields positions of n-grams in a document and numbers of equal hashes in the table."""
        hashes = n_gram_hashes(word_hashes, self.length)
        passed = np.flatnonzero(self._sieve[hashes >> np.uint64(64 - _SIEVE_BITS)])
        first = np.searchsorted(self.hashes, hashes[passed], side="left")
        last = np.searchsorted(self.hashes, hashes[passed], side="right")
        for position, start, stop in zip(passed.tolist(), first.tolist(), last.tolist(), strict=True):
            for number in range(start, stop):
                yield position, number


def _word_hashes(words: Sequence[str]) -> np.ndarray:
    # Python's own hash differs from process to process; all it decides is what is compared word by word.
    return np.fromiter(map(hash, words), np.int64, len(words)).view(np.uint64)


@functools.lru_cache(1)
def cached_index(texts: tuple[EvaluationText, ...], n_grams: int, shortest: int) -> ContaminationIndex:
    """The index of these texts, made once per process."""
    return ContaminationIndex(texts, n_grams, shortest)
