"""`flame tokenizer eval`: figures are what they say, losses are found and named, references come from this machine."""

import base64
import hashlib
import json

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from flame.cli import main
from flame.errors import ConfigError, DataError
from flame.tokenizer.byte_bpe import BytePairTraining
from flame.tokenizer.byte_lengths import token_bytes
from flame.tokenizer.byte_level import CHARACTERS, ranks_and_pattern
from flame.tokenizer.evaluation import round_trip, speed
from flame.tokenizer.evaluation.compression import compress, vocabulary_use
from flame.tokenizer.evaluation.references import find_references
from flame.tokenizer.evaluation.round_trip import round_trips
from flame.tokenizer.load import load_tokenizer


@pytest.fixture(scope="module")
def byte_pairs(texts):
    return BytePairTraining(800, "gpt4", ["<|bos|>"]).run(iter(texts))


@pytest.fixture
def few_characters(monkeypatch):
    monkeypatch.setattr(round_trip, "CODE_POINTS", [*range(0x500), 0x2581, 0xFB01, 0x1F600])
    monkeypatch.setattr(speed, "LEAST_BYTES", 1)


def as_saved(tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def test_bytes_per_token_are_bytes_divided_by_tokens(byte_pairs, texts):
    seen = np.zeros(800, np.int64)
    found = compress({"own": byte_pairs, "other": byte_pairs}, texts, seen)["own"]
    tokens = [index for text in texts for index in byte_pairs.encode(text).ids]
    assert (found.bytes, found.tokens) == (sum(len(text.encode()) for text in texts), len(tokens))
    assert seen.tolist() == np.bincount(tokens, minlength=800).tolist()


def test_tokens_that_never_appear_are_counted(byte_pairs):
    seen = np.zeros(800, np.int64)
    compress({"own": byte_pairs}, ["aaa"], seen)
    use = vocabulary_use(byte_pairs, seen)
    assert use.size == 800 and use.special == 1
    assert use.never_used == 799 - np.count_nonzero(seen) and use.rare == np.count_nonzero(seen)
    assert len(use.longest[0]) == max(len(byte_pairs.decode([index])) for index in range(799))


@pytest.mark.slow
def test_all_of_unicode_survives_byte_level_bpe(byte_pairs):
    results = round_trips(byte_pairs, token_bytes(as_saved(byte_pairs)).numpy())
    assert results[0].tried == 0x110000 - 0x800
    assert all(result.failed == result.miscounted == 0 for result in results)


def test_byte_level_bpe_brings_everything_back(byte_pairs, few_characters):
    results = round_trips(byte_pairs, token_bytes(as_saved(byte_pairs)).numpy())
    assert [result.tried > 30 for result in results] == [True] * 3
    assert all(result.failed == result.miscounted == 0 for result in results)


def test_characters_that_a_normaliser_changes_are_named(byte_pairs, few_characters):
    tokenizer = Tokenizer.from_str(byte_pairs.to_str())
    tokenizer.normalizer = normalizers.NFKC()
    characters = round_trips(tokenizer, token_bytes(as_saved(tokenizer)).numpy())[0]
    assert characters.tried == 0x503 and 0 < characters.failed < 100
    assert "\xa0" in characters.examples  # becomes a plain blank
    assert characters.miscounted > 0


def test_a_tokenizer_without_bytes_loses_what_it_does_not_know(few_characters):
    tokenizer = Tokenizer(models.WordLevel(vocab={"<unk>": 0, "a": 1}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.decoder = decoders.Fuse()
    results = round_trips(tokenizer, np.array([0, 1]))
    assert results[0].failed > 1000 and len(results[0].examples) == 10


def test_the_blank_of_sentencepiece_is_the_one_character_it_loses(trained, few_characters):
    tokenizer = load_tokenizer(str(trained("--kind", "sp-unigram")))
    characters = round_trips(tokenizer.backend_tokenizer, token_bytes(tokenizer).numpy())[0]
    assert (characters.failed, characters.examples) == (1, ("\u2581",))


def test_the_command_prints_json_and_writes_a_report(trained, corpus, tmp_path, capsys, few_characters):
    folder = trained()
    capsys.readouterr()
    words = ["eval", str(folder), "--data", str(corpus), "--reference", str(folder), "gpt2", "--max_chars", "20000"]
    assert main(["tokenizer", *words, "--json", "--report", str(tmp_path / "report.md")]) == 0
    found = json.loads(capsys.readouterr().out)
    assert set(found["compression"]) == {"news", "code", "maths", "science", "Korean", "scripts", str(corpus)}
    assert found["compression"][str(corpus)][str(folder)]["bytes_per_token"] > 1
    assert found["missing"] == ["gpt2"] and {"tokenizers", "while training"} <= set(found["speeds"])
    page = (tmp_path / "report.md").read_text()
    assert page.startswith(f"# Tokenizer {folder}") and "| Korean |" in page and "all 1,283 characters" in page


def test_the_command_prints_one_screen(trained, capsys, few_characters):
    folder = trained()
    capsys.readouterr()
    assert main(["tokenizer", "eval", str(folder)]) == 0
    printed = capsys.readouterr().out
    assert "bits per byte  exact" in printed and len(printed.splitlines()) < 24
    assert max(map(len, printed.splitlines())) < 200


def test_gpt2_and_cl100k_are_found_in_the_cache_of_tiktoken(byte_pairs, tmp_path, monkeypatch, texts):
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))
    assert find_references(["gpt2", "cl100k"]) == ({}, ["gpt2", "cl100k"])
    found = ranks_and_pattern(byte_pairs)
    assert found is not None
    site = "https://openaipublic.blob.core.windows.net/"
    lines = [f"{base64.b64encode(token).decode()} {rank}" for token, rank in found[0].items()]
    name = hashlib.sha1(f"{site}encodings/cl100k_base.tiktoken".encode()).hexdigest()
    (tmp_path / name).write_text("\n".join(lines) + "\n")
    name = hashlib.sha1(f"{site}gpt-2/encodings/main/vocab.bpe".encode()).hexdigest()
    (tmp_path / name).write_text(f"#version: 0.2\n{CHARACTERS[32]} a\na b\n", encoding="utf-8")
    references, missing = find_references(["gpt2", "cl100k"])
    assert missing == []
    for text in texts[-6:]:
        assert references["cl100k"].encode(text).ids == byte_pairs.encode(text).ids
    assert references["gpt2"].get_vocab_size() == 258
    assert references["gpt2"].encode("ab a").ids == [257, 256]


def test_a_file_of_ranks_is_a_reference_and_a_damaged_one_is_named(tmp_path):
    path = tmp_path / "own.tiktoken"
    ranks = [f"{base64.b64encode(bytes([byte])).decode()} {byte}" for byte in range(256)]
    path.write_text("\n".join([*ranks, "YWI= 256"]))
    assert find_references([str(path)])[0][str(path)].encode("ab").ids == [256]
    path.write_text("\n".join([*ranks, "YWI="]))
    with pytest.raises(DataError, match="own.tiktoken, line 257 is no token with its rank"):
        find_references([str(path)])
    path.write_text("\n".join([*ranks, "YWJj 256"]))
    with pytest.raises(DataError, match="holds tokens that are not made of others"):
        find_references([str(path)])
    with pytest.raises(ConfigError, match="no file 'missing.tiktoken'"):
        find_references(["missing.tiktoken"])
