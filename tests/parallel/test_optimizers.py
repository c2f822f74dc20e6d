"""Muon and ELLISAdam under every layout: the same run as on one device; exact resume, also on another layout."""

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.parallel.parity import EVEN_STAGES, Train, assert_equal_runs, assert_equal_weights, layout_keys
from tests.runs import Materials, Pool, Run, write_job

MUON: dict[str, Any] = {
    "optimizer.name": "Muon",
    "parallelism.preflight": "off",
    "optimizer.lr": "none",
    "optimizer.orthogonalization_dtype": "float32",
    "optimizer.embedding_lr": 0.01,
    "optimizer.momentum_warmup_steps": 3,
    "optimizer.weight_decay": 0.1,
}
# Shards that 2 does not divide, packed and whole experts under tensor parallelism, stages with a tied embedding, HSDP.
LAYOUTS = [("uneven", "dp2"), ("qwen3_moe", "tp2"), ("odd tied", "pp2")]
SELDOM = [pytest.param("plain", layout, marks=pytest.mark.slow) for layout in ("dp2 tp2", "rep2 dp2")]


@pytest.mark.parametrize(("model", "layout"), [*LAYOUTS, *SELDOM])
def test_muon_trains_as_on_one_device(model: str, layout: str, train: Train) -> None:
    extra = EVEN_STAGES if "pp" in layout else {}
    assert_equal_runs(train(model, layout=layout, **MUON, **extra), train(model, **MUON), 1e-5)


def test_muon_trains_whole_experts_as_on_one_device(train: Train) -> None:
    run, alone = train("qwen3_moe", layout="dp2 ep2", **MUON), train("qwen3_moe", **MUON)
    assert_equal_weights(run.weights(5), alone.weights(5), 2e-5)


ELLIS: dict[str, Any] = {
    "optimizer.name": "ELLISAdam",
    "parallelism.preflight": "off",
    "optimizer.update_clipping": True,
    "optimizer.tensor_wise_gradient_normalization": True,
    "optimizer.running_init": True,
    "optimizer.atan_adam": True,
    "optimizer.decouple_wd": True,
    "optimizer.weight_decay": 1e-3,
}


def test_ellis_adam_trains_as_on_one_device(train: Train) -> None:
    assert_equal_runs(train(layout="dp2 tp2", **ELLIS), train(**ELLIS), 1e-5)


def resumed(materials: Materials, pool: Pool, folder: Path, parts: list[tuple[str, int]], **keys: Any) -> Run:
    """Trains up to each number of steps in its layout, one after the other."""
    run = Run(folder)
    for layout, steps in parts:
        degrees, world = layout_keys(layout)
        values = {**keys, "training.steps": steps, "lr_scheduler.total_steps": 6, **degrees}
        run = pool.run(write_job(materials, folder, values), folder, world=world, timeout=300)
        assert run.code == 0, run.output
    return run


@pytest.mark.parametrize("keys", [pytest.param(MUON, marks=pytest.mark.slow), ELLIS], ids=["muon", "ellis"])
def test_a_run_in_parts_equals_one_without_a_stop(
    keys: dict[str, Any], materials: Materials, pool: Pool, tmp_path: Path
) -> None:
    """On one device to the last bit; Muon goes on in other layouts too."""
    whole = resumed(materials, pool, tmp_path / "whole", [("dp1", 6)], **keys)
    stopped = resumed(materials, pool, tmp_path / "stopped", [("dp1", 3), ("dp1", 6)], **keys)
    assert stopped.series("loss") == whole.series("loss")
    for name, weight in whole.weights(6).items():
        assert torch.equal(stopped.weights(6)[name], weight), name
    if keys is MUON:
        parts = [("tp2", 2), ("pp2", 4), ("dp2", 6)]
        moved = resumed(materials, pool, tmp_path / "moved", parts, **keys, **EVEN_STAGES)
        assert moved.series("loss") == pytest.approx(whole.series("loss"), rel=1e-5)
        assert_equal_weights(moved.weights(6), whole.weights(6), 1e-5)


@pytest.mark.slow
def test_an_extended_run_equals_a_long_one(materials: Materials, pool: Pool, tmp_path: Path) -> None:
    """The rate after the extension is that of the long curve, which the short one had not reached yet."""
    constant = {**MUON, "lr_scheduler.decay_ratio": 0.5}
    long = pool_run(materials, pool, tmp_path / "long", {**constant, "training.steps": 6})
    pool_run(materials, pool, tmp_path / "short", {**constant, "training.steps": 3, "lr_scheduler.total_steps": 12})
    extended = pool_run(materials, pool, tmp_path / "short", {**constant, "training.steps": 6})
    assert extended.series("lr") == long.series("lr")
    assert extended.series("loss") == long.series("loss")


def pool_run(materials: Materials, pool: Pool, folder: Path, values: dict[str, Any]) -> Run:
    run = pool.run(write_job(materials, folder, values), folder, timeout=300)
    assert run.code == 0, run.output
    return run
