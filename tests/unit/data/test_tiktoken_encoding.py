"""tiktoken gives the ids of `tokenizers`, for every character and every kind of text, or is not used."""

import pickle
import random
import re

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from flame.data import tiktoken_encoding as module
from flame.data.tiktoken_encoding import text_encoding, tiktoken_encoding
from flame.tokenizer.byte_bpe import BytePairTraining
from flame.tokenizer.byte_level import byte_level_tokenizer
from flame.tokenizer.corpus import corpus_files
from flame.tokenizer.patterns import PATTERNS, splitter

pytest.importorskip("tiktoken")
CONTEXT = "a{0}b A{0}B 1{0}2 '{0} !{0}!{0}{0}\n{0} s"


@pytest.fixture(scope="module")
def texts() -> list[str]:
    return [path.read_text(encoding="utf-8") for path in corpus_files("python-stdlib", "validation")]


def plain(tokenizer: Tokenizer) -> Tokenizer:
    copy = Tokenizer.from_str(tokenizer.to_str())
    copy.encode_special_tokens = True
    return copy


def same(tokenizer: Tokenizer, texts: list[str]) -> bool:
    encoding = tiktoken_encoding(tokenizer)
    assert encoding is not None
    expected = plain(tokenizer).encode_batch_fast(texts, add_special_tokens=False)
    return all(a.ids == b.tolist() for a, b in zip(expected, encoding.encode_batch(texts), strict=True))


def revealing(pattern: str) -> Tokenizer:
    """A tokenizer whose ids show nearly every place at which text is split: it has all pairs of bytes there."""
    ascii_bytes = [bytes([byte]) for byte in b"abAB12'\n s!"]
    every = [bytes([byte]) for byte in range(256)]
    pairs = [(a, b) for a in ascii_bytes for b in every] + [(a, b) for a in every for b in ascii_bytes]
    pairs += [(a, b) for a in every[0x80:0xC0] for b in every[0xC2:0xF5]]
    return byte_level_tokenizer(list(dict.fromkeys(pairs)), pattern)


def characters_that_differ(pattern: str, codes: list[int]) -> list[int]:
    tokenizer = revealing(pattern)
    found = module.ranks_and_pattern(tokenizer)
    assert found is not None
    encoding = module.TiktokenEncoding(found[0], found[1])
    differing = []
    for start in range(0, len(codes), 20_000):
        part = codes[start : start + 20_000]
        texts = [CONTEXT.format(chr(code)) for code in part]
        expected = tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        found = encoding.encode_batch(texts)
        differing += [code for code, a, b in zip(part, expected, found, strict=True) if a.ids != b.tolist()]
    return differing


@pytest.mark.parametrize("pattern", PATTERNS)
def test_both_engines_split_at_the_same_characters(pattern):
    assert characters_that_differ(PATTERNS[pattern], [*range(0x800), *range(0x800, 0x3400, 11), 0x1F600]) == []


@pytest.mark.slow
@pytest.mark.parametrize("pattern", PATTERNS)
def test_both_engines_split_at_the_same_characters_of_all_unicode(pattern):
    codes = [code for code in range(0x110000) if not 0xD800 <= code < 0xE000]
    assert characters_that_differ(PATTERNS[pattern], codes) == []


@pytest.mark.parametrize("pattern", PATTERNS)
def test_ids_are_the_same_for_texts_of_every_kind(pattern, texts):
    tokenizer = BytePairTraining(2000, pattern, ["<|bos|>"]).run(iter(texts))
    rng = random.Random(0)
    tokens = [tokenizer.decode([index]) for index in range(1999)]
    fuzz = ["".join(rng.choice(tokens) for _ in range(rng.randrange(30))) for _ in range(2000)]
    alphabets = ("ab", " \t\n\r", "e \n_=", "'sStTllVE\u017f ", "12,3", "<|bos>", "e\u0301\u200d\U0001f469")
    fuzz += [
        "".join(rng.choice(letters) for _ in range(rng.randrange(60))) for letters in alphabets for _ in range(300)
    ]
    fuzz += ["".join(chr(rng.randrange(0xD800)) for _ in range(40)) for _ in range(500)] + ["", "<|bos|>"]
    assert same(tokenizer, texts + fuzz)


@pytest.mark.parametrize("unit", ["a", "^", " ", "\n", "\ud55c", "1", " \n", "\u0301"])
def test_long_runs_neither_fail_nor_differ(unit, texts):
    tokenizer = BytePairTraining(500, "gpt4", []).run(iter(texts))
    assert same(tokenizer, [unit * (100_000 // len(unit.encode())), "x"])


def test_an_encoding_travels_to_worker_processes(texts):
    encoding = tiktoken_encoding(BytePairTraining(500, "gpt4", []).run(iter(texts)))
    assert encoding is not None
    copy = pickle.loads(pickle.dumps(encoding))
    assert [ids.tolist() for ids in copy.encode_batch(texts[:3])] == [
        ids.tolist() for ids in encoding.encode_batch(texts[:3])
    ]


@pytest.mark.parametrize("parallel", ["true", "false"])
def test_the_number_of_threads_changes_nothing(parallel, texts, monkeypatch):
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", parallel)
    assert same(BytePairTraining(500, "gpt4", []).run(iter(texts)), texts)


def test_special_tokens_may_come_first(texts):
    """As in the built-in tokenizers."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = splitter(PATTERNS["gpt4"])
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = ["<|bos|>", "<|eos|>"]
    tokenizer.train_from_iterator(
        texts,
        trainers.BpeTrainer(vocab_size=600, special_tokens=special, initial_alphabet=alphabet, show_progress=False),
    )
    assert tokenizer.token_to_id("<|bos|>") == 0
    assert same(tokenizer, [*texts, "<|bos|>"])


def changed(tokenizer: Tokenizer, how: str) -> Tokenizer:
    copy = Tokenizer.from_str(tokenizer.to_str())
    if how == "normaliser":
        copy.normalizer = normalizers.NFC()
    elif how == "added token":
        copy.add_tokens([AddedToken("hello world", normalized=False)])
    elif how == "split twice":
        copy.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(), copy.pre_tokenizer])
    elif how == "own byte pattern":
        copy.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    elif how == "merges without ranks":
        copy.model = models.BPE(
            vocab={**copy.get_vocab(with_added_tokens=False), "abc": 700, "ab": 701}, merges=[("a", "b"), ("ab", "c")]
        )
    elif how == "leaves text out":
        text = re.sub(r'"Regex":\s*"(?:[^"\\]|\\.)*"', '"Regex":"[a-z]+"', copy.to_str())
        return Tokenizer.from_str(text)
    return copy


@pytest.mark.parametrize(
    "how",
    ["normaliser", "added token", "split twice", "own byte pattern", "merges without ranks", "leaves text out"],
)
def test_tokenizers_that_do_more_are_not_encoded_so(how, texts):
    tokenizer = BytePairTraining(500, "gpt4", []).run(iter(texts))
    assert tiktoken_encoding(tokenizer) is not None
    assert tiktoken_encoding(changed(tokenizer, how)) is None


def test_sentencepiece_like_tokenizers_are_not_encoded_so():
    tokenizer = Tokenizer(models.BPE(vocab={"a": 0, "b": 1, "ab": 2}, merges=[("a", "b")]))
    tokenizer.decoder = decoders.Metaspace()
    assert tiktoken_encoding(tokenizer) is None
    assert tiktoken_encoding(Tokenizer(models.Unigram([("a", 0.0)]))) is None


def test_without_tiktoken_there_is_none(monkeypatch, texts):
    tokenizer = BytePairTraining(500, "gpt4", []).run(iter(texts))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert tiktoken_encoding(tokenizer) is None


@pytest.mark.parametrize("how", ["", "normaliser"])
def test_special_tokens_in_a_text_are_text_in_worker_processes_too(how, texts):
    tokenizer = changed(BytePairTraining(500, "gpt4", ["<|bos|>"]).run(iter(texts)), how)
    tokenizer.enable_truncation(1)
    encoding = text_encoding(tokenizer)
    assert isinstance(encoding, module.TokenizersEncoding if how else module.TiktokenEncoding)
    ids = encoding.encode_batch(["a<|bos|>"])[0].tolist()
    assert 499 not in ids and tokenizer.decode(ids) == "a<|bos|>"
    assert pickle.loads(pickle.dumps(encoding)).encode_batch(["a<|bos|>"])[0].tolist() == ids
