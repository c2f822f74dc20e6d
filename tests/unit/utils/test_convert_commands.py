"""The converter's command lines: what a run folder holds need not be said, what is wrong is said in one line."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.distributed.checkpoint.state_dict_saver import save

from flame.checkpoint.storage import StepWriter
from flame.cli import run
from flame.utils.convert import main, to_dcp, to_hf

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")


@pytest.fixture
def run_folder(tmp_path) -> Path:
    """A run with two steps, whose weight is the number of the step."""
    folder = tmp_path / "run"
    for step in (1, 2):
        writer = StepWriter(folder / "checkpoint" / f"step-{step}")
        save({"weight": torch.full((100,), float(step))}, storage_writer=writer, no_dist=True)
    (folder / "model").mkdir()
    (folder / "model" / "config.json").write_text(json.dumps({"model_type": "llama"}))
    (folder / "model" / "tokenizer.json").write_text("{}")
    return folder


def _weight(folder: Path) -> float:
    return load_file(folder / "model.safetensors")["weight"][0].item()


def test_the_latest_step_goes_to_the_runs_own_hf_folder(run_folder):
    assert run(to_hf, ["--path", str(run_folder)]) == 0
    assert _weight(run_folder / "hf" / "step-2") == 2
    assert (run_folder / "hf" / "step-2" / "tokenizer.json").is_file()


def test_a_damaged_latest_step_is_passed_over_unless_it_was_asked_for(run_folder, capsys):
    data = run_folder / "checkpoint" / "step-2" / "__0_0.distcp"
    content = bytearray(data.read_bytes())
    content[len(content) // 2] ^= 1
    data.write_bytes(content)
    assert run(to_hf, ["--path", str(run_folder)]) == 0
    assert _weight(run_folder / "hf" / "step-1") == 1
    assert run(to_hf, ["--path", str(run_folder), "--step", "2"]) == 2
    assert "is damaged" in capsys.readouterr().err
    assert not (run_folder / "hf" / "step-2").exists()


def test_step_output_type_config_and_tokenizer_can_be_named(run_folder, tmp_path):
    (tmp_path / "other.json").write_text(json.dumps({"model_type": "gla"}))
    (tmp_path / "tokenizer").mkdir()
    (tmp_path / "tokenizer" / "tokenizer.json").write_text('{"other": 1}')
    (tmp_path / "tokenizer" / "config.json").write_text("{}")
    out = tmp_path / "out"
    words = ["--path", run_folder, "--step", "1", "--output", out, "--dtype", "float16"]
    words += ["--config", tmp_path / "other.json", "--tokenizer", tmp_path / "tokenizer"]
    assert run(to_hf, [str(word) for word in words]) == 0
    assert load_file(out / "model.safetensors")["weight"].dtype == torch.float16
    assert json.loads((out / "config.json").read_text()) == {"model_type": "gla", "dtype": "float16"}
    assert json.loads((out / "tokenizer.json").read_text()) == {"other": 1}


def test_both_directions_are_verbs_of_convert(run_folder, tmp_path, capsys):
    save_file({"weight": torch.ones(3)}, tmp_path / "model.safetensors")
    assert run(main, ["to-dcp", "--model", str(tmp_path), "--checkpoint", str(tmp_path / "new")]) == 0
    assert (tmp_path / "new" / "step-0" / "manifest.json").is_file()
    assert run(main, ["to-hf", "--path", str(run_folder)]) == 0
    assert run(main, []) == 0
    assert "to-dcp" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("command", "words", "message"),
    [
        (main, ["to-fh"], "Did you mean 'to-hf'?"),
        (to_hf, [], "--path"),
        (to_hf, ["--path", "{tmp}/absent"], "holds no step"),
        (to_hf, ["--path", "{tmp}/run", "--step", "9"], "available steps: [1, 2]"),
        (to_hf, ["--path", "{tmp}/run", "--step", "x"], "--step"),
        (to_hf, ["--path", "{tmp}/run", "--dtype", "int32"], "choose float32"),
        (to_hf, ["--path", "{tmp}/run", "--dtype", "nonsense"], "choose float32"),
        (to_hf, ["--path", "{tmp}/run", "--max_shard_size", "huge"], "is not a size"),
        (to_hf, ["--path", "{tmp}/run", "--output", "{tmp}"], "is not a HuggingFace folder"),
        (to_hf, ["--path", "{tmp}/run", "--config", "{tmp}/no.json"], "neither a folder nor a model"),
        (to_hf, ["--path", "{tmp}/run", "--tokenizer", "no/such"], "neither a folder nor a model"),
        (to_dcp, ["--model", "no/such", "--checkpoint", "{tmp}/c"], "neither a folder nor a model"),
        (to_dcp, ["--model", "{tmp}", "--checkpoint", "{tmp}/c"], "no weights to load"),
        (to_dcp, ["--model", "{tmp}"], "--checkpoint"),
        (to_dcp, ["--model", "{tmp}", "--checkpoint", "{tmp}/c", "--nonsense"], "--nonsense"),
    ],
)
def test_what_cannot_be_used_is_one_line_and_code_2(run_folder, tmp_path, capsys, command, words, message):
    assert run(command, [word.format(tmp=tmp_path) for word in words]) == 2
    error = capsys.readouterr().err
    assert error.startswith("flame: error: ") and error.count("\n") == 1
    assert message in error


def test_a_run_without_a_config_says_how_to_name_one(run_folder, capsys):
    (run_folder / "model" / "config.json").unlink()
    assert run(to_hf, ["--path", str(run_folder)]) == 2
    assert "--config" in capsys.readouterr().err
