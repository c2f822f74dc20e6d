"""One job, started as a newcomer starts it: everything it promises to leave is there and right."""

import json
import math
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from flame.config import parse, resolve
from flame.train import task_options
from tests.runs import Materials, Run, environment, launch, write_job

STEPS = 40
CONFIG = {
    "training.steps": STEPS,
    "metrics.log_freq": 5,
    "metrics.enable_tensorboard": True,
    "metrics.enable_wandb": True,
    "optimizer.lr": 5e-3,
    "checkpoint.interval": 20,
    "checkpoint.keep_latest_k": 2,
    "export.enable": True,
    "export.interval": 20,
    "export.max_shard_size": "100KB",
    "validation.enable": True,
    "validation.freq": 20,
}

LOGITS = """
import sys
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
folder, out, trust = sys.argv[1:]
model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=trust == "trust").eval()
tokenizer = AutoTokenizer.from_pretrained(folder)
assert model.dtype == torch.float32
with torch.no_grad():
    ids = torch.arange(24).reshape(2, 12)
    torch.save({"logits": model(input_ids=ids).logits, "text": tokenizer("the cat sees")["input_ids"]}, out)
assert not [name for name in sys.modules if name.split(".")[0] in ("flame", "torchtitan")]
"""


def logits_of_a_stranger(folder: Path, out: Path, trust: bool = False) -> dict:
    """What an environment with only torch and transformers computes from a folder."""
    command = [sys.executable, "-c", LOGITS, str(folder), str(out), "trust" if trust else ""]
    without_flame = {**environment(), "PYTHONPATH": "", "HF_MODULES_CACHE": str(out.parent / "modules")}
    done = subprocess.run(command, capture_output=True, text=True, env=without_flame, cwd=out.parent, timeout=120)
    assert done.returncode == 0, done.stderr
    return torch.load(out)


@pytest.fixture(scope="module")
def run(materials: Materials, tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("life") / "run"
    held_out = {"validation.sources": [{"path": str(materials.held_out)}]}
    job = write_job(materials, folder, {**CONFIG, **held_out})
    run = launch(job, folder, extra={"WANDB_MODE": "offline", "WANDB_SILENT": "true"})
    assert run.code == 0, run.output
    return run


def test_every_logged_step_has_its_figures(run: Run) -> None:
    steps = [record for record in run.records if "loss" in record]
    assert [record["step"] for record in steps] == [1, *range(5, STEPS + 1, 5)]
    for record in steps:
        assert {"step", "loss", "grad_norm", "lr", "tokens", "tps", "bpb"} <= record.keys()
        assert all(math.isfinite(value) for value in record.values())
        assert record["tokens"] == record["step"] * 8 * 32
        assert "mfu" not in record, "the peak of this machine is not known"


def test_the_loss_goes_down(run: Run) -> None:
    losses = run.series("loss")
    assert losses[0] == pytest.approx(math.log(320), rel=0.05)
    assert losses[-1] < losses[0] - 1
    assert run.series("val_loss")[-1] < run.series("val_loss")[0]


def test_validation_is_the_mean_over_the_held_out_text(run: Run, materials: Materials) -> None:
    records = [record for record in run.records if "val_loss" in record]
    assert [record["step"] for record in records] == [20, 40]
    last = records[-1]
    assert last["val_bpb"] < run.series("val_bpb")[0]
    assert abs(last["val_loss"] - run.series("loss")[-1]) < 1
    # Bits per byte and loss per token differ by the bytes a token stands for.
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(materials.tokenizer)
    texts = [json.loads(line)["text"] for line in materials.held_out.read_text().splitlines()]
    tokens = sum(len(tokenizer(text)["input_ids"]) for text in texts)
    bytes_per_token = sum(map(len, texts)) / (tokens + len(texts))
    ratio = last["val_loss"] / math.log(2) / last["val_bpb"]
    assert ratio == pytest.approx(bytes_per_token, rel=0.05)


def test_the_console_shows_a_line_a_step(run: Run) -> None:
    lines = [line for line in run.output.splitlines() if f"/{STEPS}  loss" in line]
    assert len(lines) == len(run.series("loss"))
    assert all(word in lines[-1] for word in ("bpb", "grad", "lr", "tok/s", "GiB", "ETA"))
    assert "Traceback" not in run.output


def test_checkpoints_and_exports_are_kept_as_asked(run: Run) -> None:
    assert sorted(path.name for path in (run.folder / "checkpoint").iterdir()) == ["step-20", "step-40"]
    assert sorted(path.name for path in (run.folder / "hf").iterdir()) == ["latest", "step-20", "step-40"]
    assert (run.folder / "hf" / "latest").resolve().name == "step-40"
    assert not (run.folder / "hf" / "latest").readlink().is_absolute()


def test_exported_weights_are_the_checkpoints(run: Run) -> None:
    for step in (20, 40):
        folder = run.folder / "hf" / f"step-{step}"
        shards = sorted(folder.glob("*.safetensors"))
        assert len(shards) > 1, "max_shard_size is not heeded"
        stored = {name: value for shard in shards for name, value in load_file(shard).items()}
        expected = run.weights(step)
        assert stored.keys() == expected.keys()
        assert all(torch.equal(stored[name], expected[name]) for name in stored)


def test_a_stranger_gets_the_logits_of_the_trained_model(run: Run, tmp_path: Path, materials: Materials) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    seen = logits_of_a_stranger(run.folder / "hf" / "latest", tmp_path / "out.pt")
    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(run.folder / "model"))
    model.load_state_dict(run.weights(STEPS), strict=True)
    with torch.no_grad():
        expected = model.float().eval()(input_ids=torch.arange(24).reshape(2, 12)).logits
    assert torch.equal(seen["logits"], expected)
    assert seen["text"] == AutoTokenizer.from_pretrained(materials.tokenizer)("the cat sees")["input_ids"]


def test_the_resolved_job_is_kept_and_parses_back(run: Run, materials: Materials) -> None:
    again = parse(["--job.config_file", str(run.folder / "config.toml")], task_options)
    resolve(again, world_size=1)
    asked = parse(["--job.config_file", str(run.folder.with_name("run.toml"))], task_options)
    resolve(asked, world_size=1)
    again.job.config_file = asked.job.config_file
    assert again == asked


def test_the_card_tells_of_data_steps_and_losses(run: Run, materials: Materials) -> None:
    card = (run.folder / "hf" / "latest" / "README.md").read_text()
    last = run.records[-1]
    for fact in (str(materials.train), "| step | 40 |", f"| tokens | {STEPS * 256} |", str(last["val_loss"])):
        assert fact in card, fact


def test_the_printed_command_generates(run: Run) -> None:
    (line,) = [line for line in run.output.splitlines() if line.startswith("Try it:")]
    verb, *words = shlex.split(line.removeprefix("Try it:"))
    assert verb == "flame"
    command = [sys.executable, "-m", "flame.cli", *words, "--max_new_tokens", "12"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment(), timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("def ")
    assert len(done.stdout.strip()) > len("def ") + 4
    assert done.stderr == ""


def test_tensorboard_has_the_figures(run: Run) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (events,) = list((run.folder / "tb").rglob("events.out.tfevents.*"))
    reader = EventAccumulator(str(events))
    reader.Reload()
    shown = {event.step: event.value for event in reader.Scalars("loss")}
    assert list(shown) == [record["step"] for record in run.records if "loss" in record]
    assert list(shown.values()) == pytest.approx(run.series("loss"))
    assert {"grad_norm", "lr", "tps", "val_loss", "val_bpb"} <= set(reader.Tags()["scalars"])


def test_wandb_works_offline(run: Run) -> None:
    pytest.importorskip("wandb")
    assert list(run.folder.rglob("offline-run-*/*.wandb"))


def test_metrics_are_json_that_any_reader_takes(run: Run) -> None:
    def refuse(constant: str) -> None:
        raise ValueError(constant)

    for line in (run.folder / "metrics.jsonl").read_text().splitlines():
        json.loads(line, parse_constant=refuse)
