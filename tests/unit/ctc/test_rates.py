"""Word and character error rates."""

import jiwer
import pytest

from flame.ctc.rates import count_errors, edits

PAIRS = [
    ("one two three", "one two three"),
    ("one two three", "one too three four"),
    ("seven", ""),
    ("a b", "ab"),
    ("nine nine", "nine"),
]


def test_edits_are_the_fewest_possible() -> None:
    assert edits("kitten", "sitting") == 3
    assert edits("", "abc") == 3 and edits("abc", "") == 3 and edits("", "") == 0
    assert edits(["one", "two"], ["two"]) == 1


@pytest.mark.parametrize(
    "reference, hypothesis, counts",
    [
        ("one two three", "one too three four", (2, 3, 6, 13)),
        ("seven", "", (1, 1, 5, 5)),
        ("a b", "ab", (2, 2, 1, 3)),
        ("", "noise", (1, 0, 5, 0)),
    ],
)
def test_errors_are_counted_in_words_and_characters(
    reference: str, hypothesis: str, counts: tuple[int, int, int, int]
) -> None:
    assert tuple(count_errors([reference], [hypothesis])) == counts


def test_rates_are_over_all_pairs_and_jiwers() -> None:
    references, hypotheses = map(list, zip(*PAIRS, strict=True))
    counted = count_errors(references, hypotheses)
    assert counted.wer == pytest.approx(jiwer.wer(references, hypotheses))
    assert counted.cer == pytest.approx(jiwer.cer(references, hypotheses))


def test_rates_of_nothing_are_nothing() -> None:
    nothing = count_errors([], [])
    assert nothing.wer == 0 and nothing.cer == 0
