"""A family that lives outside the repository is trained, exported and loaded without an edit inside it."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from tests.e2e.test_life_of_a_model import logits_of_a_stranger
from tests.runs import FAMILIES, Materials, Run, launch, write_job

EMA = {"model_type": "ema_lm", "vocab_size": 320, "hidden_size": 32, "num_hidden_layers": 2}
CHANGES = {"training.steps": 6, "optimizer.lr": 5e-3, "training.varlen": True, "export.enable": True}


def assert_trained_and_exported(run: Run, tmp_path: Path) -> None:
    assert run.code == 0, run.output
    losses = run.series("loss")
    assert losses[-1] < losses[0]
    latest = run.folder / "hf" / "latest"
    assert {path.name for path in latest.glob("*.py")} == {"configuration_ema_lm.py", "modeling_ema_lm.py"}
    seen = logits_of_a_stranger(latest, tmp_path / "out.pt", trust=True)

    from transformers import AutoConfig, AutoModelForCausalLM

    from flame.plugin import load_plugin

    load_plugin("ema_lm", str(FAMILIES))
    values = json.loads((latest / "config.json").read_text())
    assert values.pop("auto_map")
    config = AutoConfig.for_model(**values)
    model = AutoModelForCausalLM.from_config(config).eval()
    weights = run.weights(CHANGES["training.steps"])
    model.load_state_dict(weights)
    with torch.no_grad():
        assert torch.equal(seen["logits"], model(input_ids=torch.arange(24).reshape(2, 12)).logits)
    start = torch.log(torch.linspace(1.0, 8.0, EMA["hidden_size"]))
    moved = (weights["model.layers.0.A_log"] - start).abs().max()
    assert 0 < moved < 0.1, "a weight set in __init__ was not there at the start, or was not trained"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "model" / "ema.json"
    path.parent.mkdir()
    path.write_text(json.dumps(EMA))
    return path


def test_a_family_in_a_folder(materials: Materials, tmp_path: Path, model: Path) -> None:
    changes = {**CHANGES, "model.config": str(model)}
    job = write_job(materials, tmp_path / "run", changes)
    run = launch(job, tmp_path / "run", "--model.plugin_path", str(FAMILIES))
    assert_trained_and_exported(run, tmp_path)


@pytest.mark.slow
def test_a_family_of_an_installed_package(materials: Materials, tmp_path: Path, model: Path) -> None:
    packages = tmp_path / "packages"
    shutil.copytree(FAMILIES / "ema_lm", packages / "stranger_models")
    info = packages / "stranger_models-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: stranger-models\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[flame.plugins]\nema_lm = stranger_models:PLUGIN\n")
    job = write_job(materials, tmp_path / "run", {**CHANGES, "model.config": str(model)})
    run = launch(job, tmp_path / "run", extra={"PYTHONPATH": str(packages)})
    assert_trained_and_exported(run, tmp_path)


def test_a_folder_without_the_family_is_one_line(materials: Materials, pool, tmp_path: Path, model: Path) -> None:
    (tmp_path / "empty").mkdir()
    job = write_job(materials, tmp_path / "run", {"model.config": str(model)})
    run = pool.run(job, tmp_path / "run", "--model.plugin_path", str(tmp_path / "empty"))
    assert run.output.startswith("ConfigError: model_type 'ema_lm' is no family flame can find, nor is it in")
