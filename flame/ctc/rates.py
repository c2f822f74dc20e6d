"""Word and character error rates."""

from collections.abc import Hashable, Sequence
from typing import NamedTuple

from flame.errors import need


class Errors(NamedTuple):
    """Edits that make hypotheses of references, and the lengths of these, in words and in characters."""

    word_edits: int
    words: int
    character_edits: int
    characters: int

    @property
    def wer(self) -> float:
        """Word error rate; 0 if there is no word."""
        return self.word_edits / max(self.words, 1)

    @property
    def cer(self) -> float:
        """Character error rate; 0 if there is no character."""
        return self.character_edits / max(self.characters, 1)


def edits(reference: Sequence[Hashable], hypothesis: Sequence[Hashable]) -> int:
    """Least insertions, deletions and substitutions that turn one sequence into the other."""
    need("audio", "rapidfuzz")
    from rapidfuzz.distance import Levenshtein

    return Levenshtein.distance(reference, hypothesis)


def count_errors(references: Sequence[str], hypotheses: Sequence[str]) -> Errors:
    """Counts errors over pairs of texts."""
    pairs = list(zip(references, hypotheses, strict=True))
    return Errors(
        sum(edits(reference.split(), hypothesis.split()) for reference, hypothesis in pairs),
        sum(len(reference.split()) for reference in references),
        sum(edits(reference, hypothesis) for reference, hypothesis in pairs),
        sum(map(len, references)),
    )
