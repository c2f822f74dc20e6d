import io
import json
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from flame.errors import ConfigError, DataError
from flame.inference.engine import Engine
from flame.inference.prompts import Encoder, read_prompts
from flame.plugin import ModelPlugin


@pytest.fixture(scope="module")
def engine(materials) -> Engine:
    tokenizer = PreTrainedTokenizerFast.from_pretrained(materials.tokenizer)
    return Engine(torch.nn.Identity(), tokenizer, ModelPlugin("llama"))  # type: ignore[arg-type]


def test_prompts_come_from_words_and_lines_in_order(tmp_path: Path) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_text('"b"\n\n' + json.dumps({"prompt": "c é", "id": 7}) + "\n")
    found = list(read_prompts(["a"], str(file)))
    assert found == [{"prompt": "a"}, {"prompt": "b"}, {"prompt": "c é", "id": 7}]


def test_a_dash_is_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO('"one"\n"two"\n'))
    assert [record["prompt"] for record in read_prompts([], "-")] == ["one", "two"]


def test_standard_input_is_read_once() -> None:
    with pytest.raises(ConfigError, match="read once"):
        list(read_prompts(["-"], "-"))


@pytest.mark.parametrize("line", ["no json", "[" * 100000, "7", '{"text": "a"}', '{"prompt": 3}'])
def test_a_line_without_a_prompt_is_named(tmp_path: Path, line: str) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_text(f'"fine"\n{line}\n')
    with pytest.raises(DataError, match="line 2"):
        list(read_prompts([], str(file)))


def test_bytes_that_are_no_text_are_named_with_their_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "prompts.jsonl"
    for line in (b'"caf\xe9"', b'"\\ud800"', b'{"prompt": "a", "id": "\\udc00"}'):
        file.write_bytes(b'"fine"\n' + line + b"\n")
        with pytest.raises(DataError, match="prompts.jsonl', line 2.*is no Unicode"):
            list(read_prompts([], str(file)))
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(file.read_bytes())))
        with pytest.raises(DataError, match="'-', line 2"):
            list(read_prompts([], "-"))
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"caf\xe9")))
    with pytest.raises(DataError, match="--prompt number 2: character 4"):
        list(read_prompts(["a", "-"], ""))
    with pytest.raises(DataError, match="--prompt: character 1"):
        list(read_prompts(["\udce9"], ""))
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO("é 🙂".encode()), encoding="ascii"))
    assert list(read_prompts(["-"], "")) == [{"prompt": "é 🙂"}]


def test_keys_that_the_answer_has_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_text('"fine"\n{"prompt": "a", "id": 1, "tokens": 3}\n')
    assert len(list(read_prompts([], str(file)))) == 2
    with pytest.raises(DataError, match="line 2: --json writes 'tokens' itself"):
        list(read_prompts([], str(file), reserved={"text", "tokens"}))


def test_a_file_without_prompts_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").write_text("\n")
    with pytest.raises(DataError, match="no prompts"):
        list(read_prompts([], str(tmp_path / "empty")))
    with pytest.raises(ConfigError, match="is no file"):
        list(read_prompts([], str(tmp_path)))


def test_a_prompt_begins_with_the_token_that_begins_a_text(engine: Engine) -> None:
    prompt = Encoder(engine).encode({"prompt": "the cat", "id": 1})
    assert prompt.ids[0] == engine.tokenizer.bos_token_id
    assert engine.tokenizer.decode(prompt.ids[1:]) == "the cat"
    assert (prompt.spaces, prompt.values) == ("", {"id": 1})


def test_spaces_at_the_end_are_left_to_the_model(engine: Engine) -> None:
    encoder = Encoder(engine)
    prompt = encoder.encode({"prompt": "the "})
    assert (prompt.text, prompt.spaces) == ("the ", " ")
    assert prompt.ids == encoder.encode({"prompt": "the"}).ids
    kept = Encoder(engine, gives_spaces_back=False).encode({"prompt": "the "})
    assert kept.spaces == "" and len(kept.ids) == len(prompt.ids) + 1


def test_spaces_that_no_token_begins_with_stay_in_the_prompt(engine: Engine) -> None:
    prompt = Encoder(engine).encode({"prompt": "the" + " " * 40})
    assert prompt.spaces == ""
    assert engine.tokenizer.decode(prompt.ids, skip_special_tokens=True) == "the" + " " * 40


def test_nothing_to_begin_with_is_an_error(engine: Engine, materials) -> None:
    tokenizer = PreTrainedTokenizerFast.from_pretrained(materials.tokenizer)
    tokenizer.bos_token = tokenizer.eos_token = None
    with pytest.raises(ConfigError, match="prompt is empty"):
        Encoder(Engine(engine.model, tokenizer, engine.plugin)).encode({"prompt": ""})
