"""A step that is not finite changes nothing but a count, and all ranks agree about it."""

import pytest
import torch

from tests.runs import FAMILIES, launch, write_job

FAULTY = {
    "model.plugin_path": str(FAMILIES),
    "task.name": "faulty",
    "training.local_batch_size": 8,
    "training.steps": 6,
    "lr_scheduler.warmup_steps": 10,
    "lr_scheduler.total_steps": 10,
    "checkpoint.interval": 1,
}


def assert_same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> None:
    assert left and left.keys() == right.keys()
    assert all(torch.equal(left[name], right[name]) for name in left)


@pytest.mark.parametrize("kind", ["loss", "gradient"])
def test_a_step_that_is_not_finite_leaves_weights_moments_and_schedule(materials, pool, tmp_path, kind):
    job = write_job(materials, tmp_path / "run", {**FAULTY, "task.passes": [3], "task.kind": kind})
    run = pool.run(job, tmp_path / "run")
    assert run.code == 0, run.output
    skipped = run.records[2]  # what is not finite is null: JSON has no other word for it
    assert (skipped["loss"] is None) == (kind == "loss") and skipped["grad_norm"] is None
    assert_same(run.weights(3), run.weights(2))
    assert_same(run.moments(3), run.moments(2))
    assert not torch.equal(run.weights(4)["lm_head.weight"], run.weights(3)["lm_head.weight"])
    # A tenth of the peak is added by every step that counts.
    assert run.series("lr") == pytest.approx([1e-4, 2e-4, 3e-4, 3e-4, 4e-4, 5e-4])
    assert run.series("skipped_steps") == [1, 1, 1, 1]

    longer = pool.run(job, tmp_path / "run", "--training.steps", "7", "--task.passes", "99")
    assert longer.code == 0, longer.output
    assert longer.records[-1]["skipped_steps"] == 1, "the count is lost by a restart"
    assert longer.series("lr")[-1] == pytest.approx(6e-4)


def test_ranks_agree_about_a_step_that_only_one_found_not_finite(materials, pool, tmp_path):
    changes = {**FAULTY, "training.local_batch_size": 4, "task.passes": [3], "task.rank": 1}
    run = pool.run(write_job(materials, tmp_path / "run", changes), tmp_path / "run", world=2)
    assert run.code == 0, run.output
    assert_same(run.weights(3), run.weights(2))
    assert_same(run.moments(3), run.moments(2))
    assert run.series("skipped_steps") == [1, 1, 1, 1]
    everywhere = write_job(materials, tmp_path / "all", {**FAULTY, "task.passes": [3]})
    assert run.series("loss")[3:] == pytest.approx(pool.run(everywhere, tmp_path / "all").series("loss")[3:], rel=1e-5)


@pytest.mark.parametrize("passes, survives", [([2, 3], False), ([2, 4, 6], True)])
def test_too_many_such_steps_in_a_row_end_the_run(materials, pool, tmp_path, passes, survives):
    changes = {**FAULTY, "task.passes": passes, "guard.max_consecutive_skips": 2}
    run = pool.run(write_job(materials, tmp_path / "run", changes), tmp_path / "run")
    assert (run.code == 0) is survives
    assert survives or "2 such steps in a row" in run.output


@pytest.mark.parametrize("changes, world", [({}, 1), ({"training.local_batch_size": 4, "task.rank": 1}, 2)])
def test_after_three_such_steps_the_run_goes_back_and_the_data_go_on(materials, pool, tmp_path, changes, world):
    # Steps 4 to 6 fail, so step 3 is lost and batch 7 follows on the state of step 2 ...
    back = {"task.passes": [4, 5, 6], "guard.rollback_after": 3, "guard.rollback_lr_factor": 1.0}
    job = write_job(materials, tmp_path / "run", {**FAULTY, **changes, **back, "checkpoint.interval": 2})
    run = pool.run(job, tmp_path / "run", world=world)
    assert run.code == 0, run.output
    # ... as in a run that skipped batches 3 to 6.
    skipping = {"task.passes": [3, 4, 5, 6], "guard.rollback_after": 0, "training.steps": 10}
    oracle = pool.run(
        write_job(materials, tmp_path / "oracle", {**FAULTY, **changes, **skipping}), tmp_path / "oracle", world=world
    )
    assert_same(run.weights(6), oracle.weights(10))
    assert_same(run.moments(6), oracle.moments(10))
    assert run.series("loss")[2:] == oracle.series("loss")[6:]
    assert [record["step"] for record in run.records] == [1, 2, 3, 4, 5, 6]
    assert run.series("rollbacks") == [1, 1, 1, 1]


def test_a_run_that_went_back_trains_with_lower_rates_also_after_a_restart(materials, pool, tmp_path):
    changes = {"task.passes": [3, 4], "guard.rollback_after": 2, "checkpoint.interval": 2}
    job = write_job(materials, tmp_path / "run", {**FAULTY, **changes})
    run = pool.run(job, tmp_path / "run")
    assert run.code == 0, run.output
    assert run.series("lr") == pytest.approx([1e-4, 2e-4, 1.5e-4, 2e-4, 2.5e-4, 3e-4])
    longer = pool.run(job, tmp_path / "run", "--training.steps", "7", "--task.passes", "99")
    assert longer.series("lr")[-1] == pytest.approx(3.5e-4)
    assert longer.records[-1]["rollbacks"] == 1


def test_a_resumed_run_can_go_back_to_the_step_it_was_resumed_from(materials, pool, tmp_path):
    job = write_job(materials, tmp_path / "run", {**FAULTY, "task.passes": [99], "checkpoint.interval": 2})
    assert pool.run(job, tmp_path / "run", "--training.steps", "2").code == 0
    back = ["--task.passes", "2,3", "--guard.rollback_after", "2"]  # of this process: steps 4 and 5
    resumed = pool.run(job, tmp_path / "run", *back)
    assert resumed.code == 0, resumed.output
    assert [record["step"] for record in resumed.records] == [1, 2, 3, 4, 5, 6]
    assert resumed.records[-1]["rollbacks"] == 1


def test_without_a_checkpoint_to_go_back_to_the_run_skips_on(materials, pool, tmp_path):
    changes = {"task.passes": [2, 3], "guard.rollback_after": 2, "checkpoint.interval": 5}
    run = pool.run(write_job(materials, tmp_path / "run", {**FAULTY, **changes}), tmp_path / "run")
    assert run.code == 0, run.output
    assert run.records[-1]["skipped_steps"] == 2 and run.records[-1]["rollbacks"] == 0


def test_without_the_guard_the_run_ends_with_one_line(materials, tmp_path):
    changes = {**FAULTY, "task.passes": [3], "guard.skip_nan_inf": False}
    run = launch(write_job(materials, tmp_path / "run", changes), tmp_path / "run")
    assert run.code == 2
    assert "Traceback" not in run.output
    errors = [line for line in run.output.splitlines() if "flame: error:" in line]
    assert len(errors) == 1 and "step 3: loss inf" in errors[0] and "guard.skip_nan_inf" in errors[0]
    assert not (run.folder / "checkpoint" / "step-3").exists()
