"""Word n-gram language models from ARPA files, as KenLM, SRILM and others write them."""

import gzip
import math
from pathlib import Path

from flame.errors import DataError

_TO_NATURAL = math.log(10)
_UNKNOWN = -100.0  # natural logarithm, for a word that neither the model nor its <unk> knows


class NgramModel:
    """Back-off probabilities of words.

    Args:
        order: Words of the longest n-gram.
        scores: (natural logarithm of the probability, of the back-off weight) by n-gram.
    """

    def __init__(self, order: int, scores: dict[tuple[str, ...], tuple[float, float]]):
        self.order, self.scores = order, scores
        self._floor = scores.get(("<unk>",), (_UNKNOWN, 0.0))[0]

    def score(self, history: tuple[str, ...], word: str) -> float:
        """Natural logarithm of the probability of a word after others, of which the last ``order - 1`` count."""
        if (word,) not in self.scores:
            return self._floor
        context = history[len(history) - self.order + 1 :] if self.order > 1 else ()
        total = 0.0
        while True:
            found = self.scores.get((*context, word))
            if found is not None:
                return total + found[0]
            total += self.scores.get(context, (0.0, 0.0))[1]
            context = context[1:]


def read_arpa(path: str) -> NgramModel:
    """Reads an ARPA file, gzipped or not.

    Raises:
        DataError: There is none, or a line of it is no n-gram.
    """
    file = Path(path).expanduser()
    if not file.is_file():
        raise DataError(f"there is no language model '{path}': name an ARPA file")
    opener = gzip.open if file.suffix == ".gz" else open
    scores: dict[tuple[str, ...], tuple[float, float]] = {}
    order = 0
    with opener(file, "rt", encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            line = line.strip()
            if line.startswith("\\") and line.endswith("-grams:"):
                order = int(line[1 : -len("-grams:")])
            elif line and order and not line.startswith("\\"):
                parts = line.split()
                try:
                    back_off = float(parts[order + 1]) if len(parts) == order + 2 else 0.0
                    scores[tuple(parts[1 : order + 1])] = float(parts[0]) * _TO_NATURAL, back_off * _TO_NATURAL
                except (ValueError, IndexError):
                    raise DataError(f"{path}:{number}: '{line[:60]}' is no {order}-gram: give an ARPA file") from None
    if not scores:
        raise DataError(f"'{path}' holds no n-grams: give an ARPA file, not a binary one")
    return NgramModel(max(map(len, scores)), scores)
