"""Word n-gram language models from ARPA files, as KenLM, SRILM and others write them."""

import gzip
import math
from collections.abc import Iterable
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

    def score(self, history: tuple[str, ...], word: str) -> float:
        """Natural logarithm of the probability of a word after others, of which the last ``order - 1`` count."""
        before = history[max(0, len(history) - self.order + 1) :] if self.order > 1 else ()
        *context, word = (known if (known,) in self.scores else "<unk>" for known in (*before, word))
        total = 0.0
        while True:
            found = self.scores.get((*context, word))
            if found is not None:
                return total + found[0]
            if not context:
                return total + _UNKNOWN
            total += self.scores.get(tuple(context), (0.0, 0.0))[1]
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
    try:
        with opener(file, "rt", encoding="utf-8") as lines:
            scores = _scores(lines, path)
    except (UnicodeDecodeError, OSError, EOFError) as error:
        raise DataError(f"'{path}' cannot be read ({error}): give an ARPA file, not a binary one") from error
    if not scores:
        raise DataError(f"'{path}' holds no n-grams: give an ARPA file, not a binary one")
    return NgramModel(max(map(len, scores)), scores)


def _scores(lines: Iterable[str], path: str) -> dict[tuple[str, ...], tuple[float, float]]:
    scores: dict[tuple[str, ...], tuple[float, float]] = {}
    order = 0
    for number, line in enumerate(lines, start=1):
        line = line.strip()
        try:
            if line.startswith("\\") and line.endswith("-grams:"):
                order = int(line[1 : -len("-grams:")])
            elif line and order and not line.startswith("\\"):
                probability, *words = line.split()
                back_off = float(words.pop()) if len(words) == order + 1 else 0.0
                if len(words) != order:
                    raise ValueError
                scores[tuple(words)] = float(probability) * _TO_NATURAL, back_off * _TO_NATURAL
        except ValueError:
            raise DataError(f"{path}:{number}: '{line[:60]}' is no {order}-gram: give an ARPA file") from None
    return scores
