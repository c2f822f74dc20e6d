import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from flame import cli
from flame.errors import ConfigError, FlameError
from flame.inference import generate
from tests.runs import LLAMA


@pytest.fixture(scope="module")
def model(materials, tmp_path_factory: pytest.TempPathFactory) -> str:
    """An exported folder with random weights."""
    folder = tmp_path_factory.mktemp("model")
    tokenizer = PreTrainedTokenizerFast.from_pretrained(materials.tokenizer)
    torch.manual_seed(0)
    config = LlamaConfig(**{key: value for key, value in LLAMA.items() if key != "model_type"})
    config.bos_token_id, config.eos_token_id = tokenizer.bos_token_id, tokenizer.eos_token_id
    model: Any = LlamaForCausalLM(config)
    model.to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def text_of(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert generate.main(list(words)) == 0
    return capsys.readouterr().out


def test_the_same_seed_gives_the_same_text(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    options = ("--model", model, "--prompt", "the cat", "--max-new-tokens", "12")
    first = text_of(capsys, *options)
    assert first.startswith("the cat") and len(first) > len("the cat") + 3
    assert text_of(capsys, *options) == first
    assert text_of(capsys, *options, "--seed", "1") != first


def test_temperature_zero_takes_the_likeliest(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    options = ("--model", model, "--prompt", "the cat", "--max-new-tokens", "5", "--temperature", "0")
    first = text_of(capsys, *options)
    assert text_of(capsys, *options, "--seed", "9") == first
    loaded, tokenizer = generate.load(model)
    ids = [tokenizer.bos_token_id, *tokenizer("the cat", add_special_tokens=False).input_ids]
    with torch.no_grad():
        for _ in range(5):
            logits = loaded(input_ids=torch.tensor([ids], device=loaded.device)).logits[0, -1]
            ids.append(int(logits.argmax()))
            if ids[-1] == tokenizer.eos_token_id:
                break
    assert first.strip() == str(tokenizer.decode(ids, skip_special_tokens=True)).strip()


def test_several_samples_are_told_apart(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    shown = text_of(capsys, "--model", model, "--prompt", "a", "--max-new-tokens", "8", "--num-samples", "3")
    samples = shown.split("\n---\n")
    assert len(samples) == 3 and len(set(samples)) == 3


def test_a_dash_reads_the_prompt(
    model: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("old house"))
    assert text_of(capsys, "--model", model, "--prompt", "-", "--max-new-tokens", "2").startswith("old house")


def test_an_empty_prompt_begins_a_text(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert text_of(capsys, "--model", model, "--max-new-tokens", "4").strip()


def test_the_stored_type_is_kept(model: str) -> None:
    assert generate.load(model)[0].dtype == torch.bfloat16


@pytest.mark.parametrize(
    "words",
    [
        ["--max_new_tokens", "0"],
        ["--num_samples", "0"],
        ["--temperature", "-1"],
        ["--top_k", "-1"],
        ["--top_p", "0"],
        ["--top_p", "1.5"],
    ],
)
def test_numbers_out_of_range_are_refused(model: str, words: list[str]) -> None:
    with pytest.raises(ConfigError, match=words[0]):
        generate.main(["--model", model, *words])


def test_a_folder_without_a_model_says_what_to_give(tmp_path: Path) -> None:
    for name in (str(tmp_path), str(tmp_path / "absent"), "./absent"):
        with pytest.raises(ConfigError, match="holds no config.json"):
            generate.main(["--model", name])


def test_a_folder_of_an_unknown_family_says_so(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "unheard_of"}')
    with pytest.raises(ConfigError, match="unheard_of"):
        generate.main(["--model", str(tmp_path)])


def test_a_folder_without_weights_is_one_error(model: str, tmp_path: Path, materials) -> None:
    (tmp_path / "config.json").write_bytes((Path(model) / "config.json").read_bytes())
    with pytest.raises(ConfigError, match="cannot be loaded"):
        generate.main(["--model", str(tmp_path)])


def records_of(capsys: pytest.CaptureFixture[str], *words: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text_of(capsys, *words, "--json").splitlines()]


def test_json_has_an_object_per_sample_in_order(model: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_text('"a"\n' + json.dumps({"prompt": "one old house and then ", "id": "x"}) + "\n")
    options = ("--model", model, "--prompt", "the cat", "--prompt_file", str(file), "--max_new_tokens", "4")
    records = records_of(capsys, *options, "--num_samples", "2", "--batch_size", "4")
    prompts = [(record["prompt"], record["sample"]) for record in records]
    assert prompts == [(text, sample) for text in ("the cat", "a", "one old house and then ") for sample in (0, 1)]
    assert all(record["tokens"] == 4 and record["finish"] == "length" for record in records)
    assert [record.get("id") for record in records] == [None] * 4 + ["x"] * 2
    assert records == records_of(capsys, *options, "--num_samples", "2", "--batch_size", "4")


def test_json_and_the_stream_say_the_same(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    options = ("--model", model, "--prompt", "the old ", "--max_new_tokens", "6", "--temperature", "0")
    (record,) = records_of(capsys, *options)
    assert text_of(capsys, *options) == record["prompt"] + record["text"] + "\n"


def test_several_prompts_are_shown_whole(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("--model", model, "--prompt", "the cat", "--prompt", "a", "--max_new_tokens", "3")
    first, second = text_of(capsys, *words).split("\n---\n")
    assert first.startswith("the cat") and second.startswith("a")


def test_a_stop_is_not_shown(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    options = ("--model", model, "--prompt", "the cat", "--max_new_tokens", "12", "--temperature", "0")
    (whole,) = records_of(capsys, *options)
    stop = whole["text"][3:5]
    (record,) = records_of(capsys, *options, "--stop", "never seen", "--stop", stop)
    assert record["text"] == whole["text"].partition(stop)[0]
    assert (record["finish"], record["stop"]) == ("stop", stop)
    assert text_of(capsys, *options, "--stop", stop) == "the cat" + record["text"] + "\n"


@pytest.mark.parametrize(
    "words, message",
    [
        (["--stop", ""], "--stop is empty"),
        (["--num_steps", "4"], "--num_steps: family 'llama' .autoregressive. has no use for it"),
        (["--prompt_file", "absent.jsonl"], "'absent.jsonl' is no file"),
        (["--device", "abacus"], "--device 'abacus' is not there"),
        (["--batch_size", "0"], "--batch_size 0"),
        (["--seed", "-1"], "--seed -1"),
        (["--temperature", "0", "--top_k", "3"], "--top_k has no effect"),
        (["--min_new_tokens", "300"], "--min_new_tokens 300 exceeds"),
        (["--topk", "3"], "topk"),
        (["--temperature", "0", "--num_samples", "2"], "--num_samples 2 would be as many times the same text"),
        (["--stop", "\udce9"], "--stop: character 1 is no Unicode"),
    ],
)
def test_what_cannot_be_done_is_one_line(model: str, words: list[str], message: str) -> None:
    with pytest.raises(FlameError, match=message):
        generate.main(["--model", model, "--prompt", "a", *words])


@pytest.mark.parametrize("key", ["text", "tokens", "sample", "finish", "stop", "mean_steps"])
def test_json_does_not_overwrite_what_a_line_holds(tmp_path: Path, key: str) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_text(json.dumps({"prompt": "a", key: 1}) + "\n")
    with pytest.raises(FlameError, match=f"line 1: --json writes '{key}' itself"):
        generate.main(["--model", "never looked at", "--prompt_file", str(file), "--json"])


def test_spaces_given_back_are_no_stop(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    options = ("--model", model, "--prompt", "the ", "--max_new_tokens", "12", "--temperature", "0")
    (whole,) = records_of(capsys, *options)
    (record,) = records_of(capsys, *options, "--stop", " ")
    assert record["text"] == whole["text"].partition(" ")[0] != ""
    assert text_of(capsys, *options, "--stop", " ") == "the " + record["text"] + "\n"


def test_the_command_fails_with_code_two(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["generate", "--model", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("flame: error: ") and error.count("\n") == 1
