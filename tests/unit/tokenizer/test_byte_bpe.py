"""Byte-level BPE: both backends learn the same, ids are those of tiktoken, and what cannot be learned is refused."""

import random
import sys
from itertools import pairwise

import pytest
import tiktoken

from flame.errors import ConfigError
from flame.tokenizer.byte_bpe import BytePairTraining
from flame.tokenizer.byte_level import byte_level_tokenizer, merges_of, ranks_and_pattern, ranks_of
from flame.tokenizer.patterns import PATTERNS, split_pattern, splitter


def repetitive(seed: int, number: int = 200) -> list[str]:
    """Texts of few letters: merges overlap and tie in every way."""
    rng = random.Random(seed)
    alphabet = ["ab", "abc", "aab", "a b", "\u00e9 a", "()[]"][seed % 6]
    return ["".join(rng.choice(alphabet) for _ in range(rng.randrange(1, 60))) for _ in range(number)]


@pytest.mark.parametrize("pattern", PATTERNS)
def test_both_backends_learn_the_same_tokenizer(texts, pattern):
    trainings = [BytePairTraining(1500, pattern, ["<|bos|>"], backend) for backend in ("tokenizers", "rustbpe")]
    first, second = (training.run(iter(texts)).to_str() for training in trainings)
    assert first == second


@pytest.mark.parametrize("seed", range(6))
def test_ids_are_those_of_rustbpe_and_of_its_tiktoken_encoding(seed):
    rustbpe = pytest.importorskip("rustbpe")
    texts, others = repetitive(seed), repetitive(seed + 60)
    own = rustbpe.Tokenizer()
    own.train_from_iterator(iter(texts), 600, pattern=PATTERNS["gpt4"])
    ranks = {bytes(token): rank for token, rank in own.get_mergeable_ranks()}
    encoding = tiktoken.Encoding("x", pat_str=PATTERNS["gpt4"], mergeable_ranks=ranks, special_tokens={})
    tokenizer = BytePairTraining(600, "gpt4", [], "rustbpe").run(iter(texts))
    for text in texts + others:
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        assert ids == own.encode(text) == encoding.encode_ordinary(text)


def test_ids_are_bytes_then_merges_then_special_tokens(texts):
    tokenizer = BytePairTraining(500, "nanochat", ["<|a|>", "<|b|>"]).run(iter(texts))
    assert tokenizer.get_vocab_size() == 500
    assert [tokenizer.token_to_id(token) for token in ("<|a|>", "<|b|>")] == [498, 499]
    assert [tokenizer.decode([byte]) for byte in b"aZ\n"] == ["a", "Z", "\n"]


def test_merges_and_ranks_say_the_same(texts):
    tokenizer = BytePairTraining(700, "gpt4", ["<|bos|>"]).run(iter(texts))
    found = ranks_and_pattern(tokenizer)
    assert found is not None and found[1] == PATTERNS["gpt4"] and len(found[0]) == 699
    merges = merges_of(found[0])
    assert merges is not None and ranks_of(merges) == found[0]
    assert byte_level_tokenizer(merges, found[1], ["<|bos|>"]).to_str() == tokenizer.to_str()


def test_ranks_that_no_merges_make_are_recognised():
    assert merges_of({b"a": 0, b"b": 1, b"c": 2, b"abc": 3}) is None


def test_digits_are_grouped_as_the_pattern_says():
    def pieces(name: str) -> list[str]:
        return [piece for piece, _ in splitter(split_pattern(name)).pre_tokenize_str("12345")]

    assert {name: pieces(name) for name in PATTERNS} == {
        "gpt2": ["12345"],
        "gpt4": ["123", "45"],
        "nanochat": ["12", "34", "5"],
        "o200k": ["123", "45"],
    }


def test_o200k_splits_words_at_capitals_and_keeps_marks():
    pieces = [piece for piece, _ in splitter(PATTERNS["o200k"]).pre_tokenize_str("fooBar can't")]
    assert pieces == ["foo", "Bar", "\u0120can't"]


def test_no_piece_crosses_a_split_of_the_users_own_pattern(texts):
    tokenizer = BytePairTraining(400, r"\S+|\s+", []).run(iter(texts))
    tokens = [tokenizer.decode([index]) for index in range(256, 400)]
    assert any(len(token) > 2 for token in tokens)
    assert all(token.isspace() or not any(map(str.isspace, token)) for token in tokens)


def test_a_larger_vocabulary_begins_with_the_smaller_one(texts):
    sizes = [300, 400, 1000]
    vocabularies = [BytePairTraining(size, "gpt4", []).run(iter(texts)).get_vocab() for size in sizes]
    for small, large in pairwise(vocabularies):
        assert small.items() <= large.items()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            (256, "gpt4", ["<|bos|>"]),
            "--vocab_size 256 cannot hold 256 bytes and 1 special tokens: make it at least 257",
        ),
        ((300, "gpt5", []), "no split pattern 'gpt5': name one of gpt2"),
        ((300, "(a", []), "'\\(a' does not compile .*unmatched parenthesis"),
        ((300, "", []), "no split pattern ''"),
        ((300, "gpt4", ["the"]), "special token 'the' could be learned from text"),
        ((300, r"\w+", [], "rustbpe"), "rustbpe leaves out text"),
    ],
)
def test_what_cannot_be_learned_is_refused(options, message):
    with pytest.raises(ConfigError, match=message) as caught:
        BytePairTraining(*options)
    assert "\n" not in str(caught.value)


def test_without_rustbpe_tokenizers_trains_and_asking_for_it_says_how_to_get_it(monkeypatch):
    # A name without a module behind it is how Python marks what cannot be imported; find_spec needs it gone.
    monkeypatch.delitem(sys.modules, "rustbpe", raising=False)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert BytePairTraining(300, "gpt4", []).backend == "tokenizers"
    with pytest.raises(ConfigError, match=r'pip install "flame\[tokenizers\]"'):
        BytePairTraining(300, "gpt4", [], "rustbpe")
