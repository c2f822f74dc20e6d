"""Multi-token prediction computes in every layout what one device does, and adds nothing to the loss shown."""

from typing import Any

import pytest

from tests.parallel.parity import RECOMPUTE, STEPS, Train, assert_equal_runs
from tests.parallel.test_experts_balance import DEEPSEEK, STEADY
from tests.runs import Materials, Pool, Run, write_job

ON = {**STEADY, "task.mtp_loss_weight": 0.5, "moe.bias_update_rate": 0.01}


def run(train: Train, materials: Materials, **options: Any) -> Run:
    values = {**DEEPSEEK, "num_hidden_layers": 2, "num_nextn_predict_layers": 2}
    return train(**{"model.config": str(materials.model(values)), **ON, **options})


@pytest.mark.parametrize("layout", ["dp2", "cp2", pytest.param("tp2", marks=pytest.mark.slow)])
def test_a_layout_trains_further_layers_as_one_device_does(train: Train, materials: Materials, layout: str) -> None:
    alone = run(train, materials)
    assert_equal_runs(run(train, materials, layout=layout), alone)
    assert any(".eh_proj." in name for name in alone.weights(STEPS))


def test_recomputed_and_unfused_further_layers_are_the_same(train: Train, materials: Materials) -> None:
    alone = run(train, materials)
    assert_equal_runs(run(train, materials, **{RECOMPUTE: "full"}), alone)
    assert_equal_runs(run(train, materials, **{"task.linear_cross_entropy": "off"}), alone)


def test_packed_documents_train_further_layers_alike_in_parts(train: Train, materials: Materials) -> None:
    alone = run(train, materials, **{"training.varlen": True})
    assert_equal_runs(run(train, materials, layout="cp2", **{"training.varlen": True}), alone)


def test_their_loss_is_reported_apart(train: Train, materials: Materials) -> None:
    with_them = run(train, materials)
    without = run(train, materials, **{"task.mtp_loss_weight": 0.0, "moe.bias_update_rate": 0.0})
    assert with_them.series("loss")[0] == pytest.approx(without.series("loss")[0], rel=1e-6)
    assert with_them.series("grad_norm")[0] != pytest.approx(without.series("grad_norm")[0], rel=1e-3)
    shown = with_them.series("mtp_loss")
    assert shown[-1] < shown[0]
    assert not without.series("mtp_loss")
    assert not [name for name in without.weights(STEPS) if ".eh_proj." in name]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"parallelism.pipeline_parallel_degree": 2}, "embedding and head on one rank"),
        ({"model.num_nextn_predict_layers": 0}, "asks for no further layers"),
    ],
)
def test_what_cannot_be_right_is_refused(
    materials: Materials, pool: Pool, tmp_path: Any, changes: dict[str, Any], reason: str
) -> None:
    values = DEEPSEEK | {key.removeprefix("model."): value for key, value in changes.items() if "model." in key}
    options = {key: value for key, value in changes.items() if "model." not in key}
    job = write_job(materials, tmp_path / "run", {**ON, **options, "model.config": str(materials.model(values))})
    refused = pool.run(job, tmp_path / "run", world=2 if options else 1)
    assert refused.output.startswith("ConfigError: task.mtp_loss_weight")
    assert reason in refused.output
