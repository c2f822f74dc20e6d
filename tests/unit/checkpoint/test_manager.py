"""Steps exist only once complete, and a run continues from the newest good one as if it had never stopped."""

import logging
import threading
from pathlib import Path

import pytest
import torch
from checkpoint_stand_ins import Run, SameNames, TinyModel, flip_byte, truncate
from safetensors.torch import load_file

from flame.checkpoint.layout import MANIFEST, check_step, find_steps
from flame.checkpoint.storage import StepWriter
from flame.errors import CheckpointError

pytestmark = pytest.mark.usefixtures("process_group")

DATA_FILE = "__0_0.distcp"


def _saved(folder: Path, steps: int, **options) -> Run:
    torch.manual_seed(0)
    run = Run(folder, **options)
    run.train(steps)
    run.manager.close()
    return run


@pytest.mark.parametrize("async_mode", ["disabled", "async"])
def test_a_resumed_run_repeats_the_losses_of_the_uninterrupted_one(tmp_path, async_mode):
    torch.manual_seed(0)
    whole = Run(tmp_path / "whole", async_mode=async_mode)
    losses = whole.train(4)
    whole.manager.close()
    _saved(tmp_path / "parts", 2, async_mode=async_mode)
    resumed = Run(tmp_path / "parts", async_mode=async_mode)
    assert resumed.manager.load()
    assert resumed.counter.step == 2
    assert resumed.train(2) == losses[2:]
    resumed.manager.close()


def test_saving_does_not_disturb_training(tmp_path):
    torch.manual_seed(0)
    silent = Run(tmp_path, enable=False)
    losses = silent.train(3)
    torch.manual_seed(0)
    saving = Run(tmp_path, async_mode="async")
    assert saving.train(3) == losses
    saving.manager.close()


def test_an_async_step_holds_the_weights_at_the_time_of_the_save(tmp_path, monkeypatch):
    may_write = threading.Event()
    write_data = StepWriter.write_data

    def wait_and_write(self, plan, planner):
        may_write.wait()
        return write_data(self, plan, planner)

    monkeypatch.setattr(StepWriter, "write_data", wait_and_write)
    run = Run(tmp_path, async_mode="async")
    expected = run.model.body.weight.detach().clone()
    run.manager.save(1)
    with torch.no_grad():
        run.model.body.weight.zero_()
    may_write.set()
    run.manager.close()
    reader = Run(tmp_path)
    assert reader.manager.load()
    assert torch.equal(reader.model.body.weight, expected)


@pytest.mark.parametrize(
    "damage",
    [
        lambda step: truncate(step / DATA_FILE),
        lambda step: (step / DATA_FILE).unlink(),
        lambda step: (step / DATA_FILE).write_bytes(b""),
        lambda step: flip_byte(step / DATA_FILE, 0.1),
        lambda step: flip_byte(step / DATA_FILE, 0.5),
        lambda step: flip_byte(step / DATA_FILE, 0.999),
        lambda step: (step / ".metadata").write_bytes(b""),
        lambda step: flip_byte(step / ".metadata"),
        lambda step: (step / ".metadata").unlink(),
        lambda step: (step / MANIFEST).unlink(),
        lambda step: truncate(step / MANIFEST),
    ],
)
def test_a_damaged_step_is_skipped_with_a_warning_that_names_it(tmp_path, caplog, damage):
    _saved(tmp_path, 2)
    damage(tmp_path / "checkpoint" / "step-2")
    run = Run(tmp_path)
    with caplog.at_level(logging.WARNING):
        assert run.manager.load()
    assert run.counter.step == 1
    assert "Skipping step-2" in caplog.text


def test_no_good_step_is_an_error_instead_of_a_fresh_start(tmp_path):
    _saved(tmp_path, 2)
    for step in (1, 2):
        truncate(tmp_path / "checkpoint" / f"step-{step}" / DATA_FILE)
    with pytest.raises(CheckpointError, match=r"\[1, 2\].*is good"):
        Run(tmp_path).manager.load()


def test_a_step_asked_for_is_loaded_or_an_error_names_the_others(tmp_path):
    _saved(tmp_path, 3)
    run = Run(tmp_path)
    assert run.manager.load(2)
    assert run.counter.step == 2
    with pytest.raises(CheckpointError, match=r"load_step = 7 .*available steps: \[1, 2, 3\]"):
        run.manager.load(7)
    flip_byte(tmp_path / "checkpoint" / "step-3" / DATA_FILE)
    with pytest.raises(CheckpointError, match=r"load_step = 3 is damaged.*available steps: \[1, 2, 3\]"):
        run.manager.load(3)


def test_a_run_that_went_back_sets_newer_steps_aside(tmp_path):
    _saved(tmp_path, 3)
    run = Run(tmp_path)
    run.manager.load(1)
    run.train(1)
    run.manager.close()
    assert find_steps(tmp_path / "checkpoint") == [1, 2]
    assert (tmp_path / "checkpoint" / "step-3.superseded").is_dir()


def test_a_damaged_step_is_replaced_when_the_run_reaches_it_again(tmp_path):
    _saved(tmp_path, 2)
    truncate(tmp_path / "checkpoint" / "step-2" / DATA_FILE)
    run = Run(tmp_path)
    run.manager.load()
    run.train(1)
    run.manager.close()
    check_step(tmp_path / "checkpoint" / "step-2")


@pytest.mark.parametrize("async_mode", ["disabled", "async"])
@pytest.mark.parametrize("keep", [1, 2])
def test_only_the_latest_steps_are_kept(tmp_path, keep, async_mode):
    run = Run(tmp_path, keep_latest_k=keep, async_mode=async_mode)
    run.train(3)
    run.counter.step = 4
    run.manager.save(4, last_step=True)
    run.manager.close()
    assert find_steps(tmp_path / "checkpoint") == [3, 4][-keep:]


def test_a_last_step_that_was_saved_at_the_interval_is_not_saved_again(tmp_path, monkeypatch):
    run = Run(tmp_path)
    run.train(2)
    monkeypatch.setattr(run.manager, "dcp_save", lambda *args, **options: pytest.fail("saved twice"))
    run.manager.save(2, last_step=True)
    run.manager.close()


def test_a_finished_run_can_be_extended(tmp_path):
    run = Run(tmp_path, interval=100)
    run.train(3)
    run.manager.save(3, last_step=True)
    run.manager.close()
    extended = Run(tmp_path)
    assert extended.manager.load()
    assert extended.counter.step == 3
    extended.train(1)
    extended.manager.close()


def test_a_last_step_of_the_model_alone_cannot_be_resumed_and_says_so(tmp_path):
    run = Run(tmp_path, last_save_model_only=True, interval=100)
    run.manager.save(1, last_step=True)
    run.manager.close()
    with pytest.raises(CheckpointError, match="holds only a model.*initial_load_path"):
        Run(tmp_path).manager.load()


def test_a_last_step_in_hf_format_is_passed_over_when_the_run_resumes(tmp_path, caplog):
    run = Run(tmp_path, last_save_model_only=True, last_save_in_hf=True, adapter=SameNames())
    run.train(1)
    run.manager.save(2, last_step=True)
    run.manager.close()
    weights = load_file(tmp_path / "checkpoint" / "step-2" / "model-00001-of-00001.safetensors")
    assert torch.equal(weights["body.weight"], run.model.body.weight)
    resumed = Run(tmp_path)
    assert resumed.manager.load()
    assert resumed.counter.step == 1
    assert "Skipping step-2" in caplog.text


def test_hooks_run_once_a_step_is_complete_and_before_it_can_be_removed(tmp_path):
    seen = []
    run = Run(tmp_path, keep_latest_k=1, async_mode="async")
    run.manager.on_complete.append(lambda step, folder: seen.append((step, check_step(folder))))
    run.train(3)
    run.manager.close()
    assert [step for step, _ in seen] == [1, 2, 3]


@pytest.mark.parametrize("async_mode", ["disabled", "async"])
def test_an_error_of_the_background_surfaces(tmp_path, async_mode):
    def fail(step, folder):
        raise CheckpointError("the export failed")

    run = Run(tmp_path, async_mode=async_mode)
    run.manager.on_complete.append(fail)
    run.manager.save(1)
    with pytest.raises(CheckpointError, match="the export failed"):
        run.manager.close()


@pytest.mark.parametrize("async_mode", ["disabled", "async"])
def test_a_failed_save_is_one_line_and_leaves_no_step(tmp_path, monkeypatch, async_mode):
    def full(self, plan, planner):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(StepWriter, "write_data", full)
    run = Run(tmp_path, async_mode=async_mode)
    with pytest.raises(CheckpointError, match="could not be saved.*No space left") as error:
        run.manager.save(1)
        run.manager.close()
    assert "\n" not in str(error.value)
    assert list((tmp_path / "checkpoint").iterdir()) == []


def test_what_killed_runs_left_is_removed_and_nothing_else(tmp_path):
    _saved(tmp_path, 1)
    folder = tmp_path / "checkpoint"
    (folder / ".step-2.partial").mkdir()
    (folder / "notes").mkdir()
    Run(tmp_path)
    assert sorted(path.name for path in folder.iterdir()) == ["notes", "step-1"]


def test_a_save_that_lacked_only_its_rename_is_finished(tmp_path):
    _saved(tmp_path, 2)
    folder = tmp_path / "checkpoint"
    (folder / "step-2").rename(folder / ".step-2.partial")
    run = Run(tmp_path)
    assert run.manager.load()
    assert run.counter.step == 2


def test_an_empty_checkpoint_folder_does_not_hide_the_initial_weights(tmp_path):
    source = _saved(tmp_path / "first", 2)
    (tmp_path / "second" / "checkpoint").mkdir(parents=True)
    run = Run(tmp_path / "second", initial_load_path=str(tmp_path / "first" / "checkpoint" / "step-2"))
    assert run.manager.load()
    assert torch.equal(run.model.body.weight, source.model.body.weight)
    assert run.counter.step == 0, "the model alone is loaded"


def test_an_initial_path_that_is_no_step_says_what_to_name(tmp_path):
    _saved(tmp_path / "first", 2)
    with pytest.raises(CheckpointError, match="step-2"):
        Run(tmp_path / "second", initial_load_path=str(tmp_path / "first")).manager.load()
    with pytest.raises(CheckpointError, match="is not a folder"):
        Run(tmp_path / "second", initial_load_path=str(tmp_path / "absent")).manager.load()


def test_a_step_of_another_model_is_an_error_and_not_skipped(tmp_path):
    _saved(tmp_path, 2)
    with pytest.raises(CheckpointError, match=r"does not fit the model.*body.bias \[8\] instead of \[4\]"):
        Run(tmp_path, TinyModel(width=4)).manager.load()
