"""Word n-gram models from ARPA files, with back-off as they say."""

import gzip
import math
from pathlib import Path

import pytest

from flame.ctc.ngram import NgramModel, read_arpa
from flame.errors import DataError

ARPA = """
\\data\\
ngram 1=5
ngram 2=3
ngram 3=1

\\1-grams:
-1.0\t<s>\t-0.5
-0.9\t</s>
-0.7\tone\t-0.4
-0.6\ttwo\t-0.3
-1.5\t<unk>

\\2-grams:
-0.2\t<s> one\t-0.1
-0.3\tone two\t-0.15
-0.25\ttwo </s>

\\3-grams:
-0.05\t<s> one two

\\end\\
"""


def written(folder: Path, text: str = ARPA, name: str = "words.arpa") -> NgramModel:
    path = folder / name
    path.write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
    return read_arpa(str(path))


@pytest.mark.parametrize("name", ["words.arpa", "words.arpa.gz"])
@pytest.mark.parametrize(
    "history, word, logarithm",
    [
        (("<s>",), "one", -0.2),
        (("<s>", "one"), "two", -0.05),
        (("two", "<s>", "one"), "two", -0.05),  # only the last two words count
        (("two", "one"), "two", -0.3),  # no back-off weight of a pair that is not there
        (("one", "two"), "one", -0.15 - 0.3 - 0.7),  # back-off of the pair, then of the word
        (("<s>",), "two", -0.5 - 0.6),
        (("two",), "</s>", -0.25),
        ((), "one", -0.7),
        (("<s>",), "three", -0.5 - 1.5),
        (("one", "two"), "three", -0.15 - 0.3 - 1.5),
        (("three",), "one", -0.7),
    ],
)
def test_probabilities_back_off(
    tmp_path: Path, name: str, history: tuple[str, ...], word: str, logarithm: float
) -> None:
    assert written(tmp_path, name=name).score(history, word) == pytest.approx(logarithm * math.log(10))


def test_a_short_history_counts_as_a_whole() -> None:
    scores = {(word,): (-1.0, 0.0) for word in "abc"} | {
        ("a", "b", "c"): (-0.5, 0.0),
        ("a", "a", "b", "c"): (-9.0, 0.0),
    }
    assert NgramModel(4, scores).score(("a", "b"), "c") == -0.5


def test_a_word_that_nothing_is_known_of_is_nearly_impossible(tmp_path: Path) -> None:
    closed = written(tmp_path, ARPA.replace("-1.5\t<unk>\n", ""))
    assert closed.score(("one",), "three") < -50
    assert math.isfinite(closed.score((), "three"))


def test_a_model_of_single_words_has_no_memory(tmp_path: Path) -> None:
    model = written(tmp_path, "\\data\\\nngram 1=2\n\n\\1-grams:\n-0.3\tone\n-0.4 </s>\n\\end\\\n")
    assert model.order == 1
    assert model.score(("one", "one"), "one") == pytest.approx(-0.3 * math.log(10))


@pytest.mark.parametrize("broken", ["-0.3", "often\tone two", "-0.3\tone"])
def test_a_line_that_is_no_ngram_is_named(tmp_path: Path, broken: str) -> None:
    text = ARPA.replace("-0.3\tone two\t-0.15", broken)
    number = text.splitlines().index(broken) + 1
    with pytest.raises(DataError, match=rf"words.arpa:{number}: .*2-gram") as caught:
        written(tmp_path, text)
    assert "\n" not in str(caught.value)


def test_what_is_no_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no language model"):
        read_arpa(str(tmp_path / "absent.arpa"))
    with pytest.raises(DataError, match="no language model"):
        read_arpa(str(tmp_path))
    with pytest.raises(DataError, match="no n-grams"):
        written(tmp_path, "hello\n")
    with pytest.raises(DataError, match="no n-grams"):
        written(tmp_path, "")


@pytest.mark.parametrize("name", ["words.bin", "words.arpa.gz"])
def test_bytes_that_are_no_text_are_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(b"mmap lm \xff\xfe\x00\x01" * 20)
    with pytest.raises(DataError, match="ARPA") as caught:
        read_arpa(str(path))
    assert "\n" not in str(caught.value)
