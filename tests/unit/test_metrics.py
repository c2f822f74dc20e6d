import json
import logging
import math
from pathlib import Path

import pytest
from torchtitan.distributed import ParallelDims

from flame.config import JobConfig
from flame.metrics import History, Metrics

ALONE = (1, 1, 1, 1, 1, 1, 1)


@pytest.fixture
def metrics(tmp_path: Path, process_group: None) -> Metrics:
    config = JobConfig()
    config.job.dump_folder = str(tmp_path)
    config.metrics.enable_tensorboard = False
    config.training.steps = 100
    made = Metrics(config, ParallelDims(*ALONE, world_size=1))
    made.num_flops_per_token = 1_000_000
    return made


def report(metrics: Metrics, step: int = 10) -> None:
    metrics.ntokens_since_last_log = 1000
    metrics.log(step, 2.5, 2.5, 0.7, extra_metrics={"lr": 1e-3, "tokens": 5000, "bpb": 1.25})


def test_a_report_reaches_the_file_and_the_console(metrics: Metrics, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        report(metrics)
    (record,) = [json.loads(line) for line in metrics.history.path.read_text().splitlines()]
    expected = {"step": 10, "loss": 2.5, "grad_norm": 0.7, "lr": 1e-3, "tokens": 5000, "bpb": 1.25}
    assert record.items() >= expected.items()
    assert record["tps"] > 0
    for shown in ("step  10/100", "loss 2.5000", "bpb 1.2500", "grad 0.700", "lr 1.00e-03", "tok/s", "ETA -"):
        assert shown in caplog.text


def test_speed_counts_only_the_tokens_since_the_last_report(metrics: Metrics) -> None:
    metrics.time_last_log -= 2.0
    report(metrics)
    assert metrics.ntokens_since_last_log == 0
    tps = json.loads(metrics.history.path.read_text())["tps"]
    assert tps == pytest.approx(500, rel=0.2)


@pytest.mark.parametrize("peak, shown", [(float("nan"), False), (1e12, True)])
def test_utilisation_is_shown_only_where_the_peak_is_known(
    metrics: Metrics, caplog: pytest.LogCaptureFixture, peak: float, shown: bool
) -> None:
    metrics.gpu_peak_flops = peak
    with caplog.at_level(logging.INFO):
        report(metrics)
    record = json.loads(metrics.history.path.read_text())
    assert ("mfu" in record) == ("mfu" in caplog.text) == shown
    if shown:
        assert record["mfu"] == pytest.approx(record["tps"] * 1e6 / 1e12)


def test_this_machine_has_no_peak_made_up(metrics: Metrics) -> None:
    import torch

    if not torch.accelerator.is_available():
        assert math.isnan(metrics.gpu_peak_flops)


def test_validation_is_reported_under_its_own_names(metrics: Metrics, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        metrics.log_validation(2.0, 20, {"bpb": 1.5})
    assert json.loads(metrics.history.path.read_text()) == {"step": 20, "val_loss": 2.0, "val_bpb": 1.5}
    assert "validation  step 20  val_loss 2.0000  val_bpb 1.5000" in caplog.text


def test_time_left_is_that_of_the_pace_so_far(metrics: Metrics) -> None:
    assert metrics._eta(10) == "-"
    assert metrics._started is not None
    step, since = metrics._started
    metrics._started = (step, since - 90.0)
    assert metrics._eta(40) == "0:03:00"


def history(tmp_path: Path, lines: list[str]) -> History:
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(lines))
    return History(path, writes=True)


STEPS = [json.dumps({"step": step, "loss": step / 10}) + "\n" for step in range(1, 6)]


def test_what_a_lost_run_wrote_later_is_dropped(tmp_path: Path) -> None:
    found = history(tmp_path, [*STEPS, json.dumps({"step": 5, "val_loss": 1.0}) + "\n"])
    found.truncate(3)
    assert found.path.read_text() == "".join(STEPS[:3])
    found.write({"step": 4, "loss": 0.0})
    assert len(found.path.read_text().splitlines()) == 4


def test_a_line_cut_off_by_a_crash_is_dropped(tmp_path: Path) -> None:
    found = history(tmp_path, [*STEPS, '{"step": 6, "lo'])
    assert found.last() == {"step": 5, "loss": 0.5}
    found.truncate(100)
    assert found.path.read_text() == "".join(STEPS)


def test_nothing_is_lost_when_nothing_is_newer(tmp_path: Path) -> None:
    found = history(tmp_path, STEPS)
    found.truncate(5)
    assert found.path.read_text() == "".join(STEPS)


def test_a_run_from_the_start_forgets_an_earlier_one(tmp_path: Path) -> None:
    found = history(tmp_path, STEPS)
    found.truncate(0)
    assert found.path.read_text() == ""


def test_the_newest_of_each_figure_is_kept(tmp_path: Path) -> None:
    found = history(tmp_path, [json.dumps({"step": 1, "val_loss": 3.0}) + "\n", *STEPS])
    assert found.last() == {"step": 5, "loss": 0.5, "val_loss": 3.0}


def test_other_ranks_write_nothing(tmp_path: Path) -> None:
    found = History(tmp_path / "metrics.jsonl", writes=False)
    found.write({"step": 1})
    found.truncate(0)
    assert not found.path.exists()
