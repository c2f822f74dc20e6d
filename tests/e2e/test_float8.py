"""Float8 training, emulated: it learns as bfloat16 does, and what it cannot convert is said before the first step."""

import json

import pytest

from flame.errors import ConfigError
from flame.train import prepare
from tests.runs import LLAMA, UNEVEN_LLAMA, write_job

EMULATED = {"model.converters": ["quantize.linear.float8"], "quantize.linear.float8.emulate": True}
BFLOAT16 = {"training.mixed_precision_param": "bfloat16", "training.steps": 12, "optimizer.lr": 3e-3}


def test_float8_learns_as_bfloat16_does(materials, pool, tmp_path):
    plain = pool.run(write_job(materials, tmp_path / "plain", BFLOAT16), tmp_path / "plain")
    float8 = pool.run(write_job(materials, tmp_path / "float8", {**BFLOAT16, **EMULATED}), tmp_path / "float8")
    assert float8.code == 0, float8.output
    losses, expected = float8.series("loss"), plain.series("loss")
    assert losses == pytest.approx(expected, rel=0.01)
    assert losses != expected, "nothing was converted"
    assert losses[-1] < losses[0] - 0.5
    assert float8.weights(12).keys() == plain.weights(12).keys(), "checkpoints know nothing of float8"


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"quantize.linear.float8.emulate": False}, "needs a GPU of compute capability 8.9"),
        ({"compile.enable": True}, "cannot be compiled"),
        ({"model": {**UNEVEN_LLAMA, "hidden_size": 72, "vocab_size": 327}}, "multiples of 16"),
        ({"quantize.linear.float8.filter_fqns": ["layers", "lm_head"]}, "not in filter_fqns"),
    ],
)
def test_float8_that_would_do_nothing_is_refused_in_one_line(materials, tmp_path, changes, said):
    if "model" in changes:
        config = tmp_path / "config.json"
        config.write_text(json.dumps(changes["model"]))
        changes = {"model.config": str(config)}
    job = write_job(materials, tmp_path / "run", {**EMULATED, **changes})
    with pytest.raises(ConfigError) as error:
        prepare(["--job.config_file", str(job)], world_size=1)
    assert said in str(error.value)


def test_layers_that_stay_as_they_are_are_said(materials, tmp_path, capsys):
    config = tmp_path / "config.json"
    config.write_text(json.dumps({**LLAMA, "intermediate_size": 100}))
    job = write_job(materials, tmp_path / "run", {**EMULATED, "model.config": str(config)})
    prepare(["--job.config_file", str(job)], world_size=1)
    assert "float8: 9 of 15 linear layers; 0 are named in filter_fqns, 6 have a size" in capsys.readouterr().out
