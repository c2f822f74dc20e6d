"""What the guard decides from the numbers of steps."""

import math

import pytest

from flame.checkpoint.guard import Guard, TrainingDiverged, Verdict
from flame.config import Guard as GuardConfig
from flame.errors import FlameError

NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize("loss, norm", [(NAN, 1.0), (INF, 1.0), (1.0, NAN), (1.0, INF), (-INF, NAN)])
def test_a_number_that_is_not_finite_rejects_the_step(loss: float, norm: float) -> None:
    guard = Guard(GuardConfig())
    assert guard.judge(1, 2.0, 3.0) is Verdict.ACCEPT
    assert guard.judge(2, loss, norm) is Verdict.SKIP
    assert guard.judge(3, 1e38, 1e38) is Verdict.ACCEPT
    assert guard.skipped == 1


def test_only_steps_in_a_row_end_the_run() -> None:
    guard = Guard(GuardConfig(max_consecutive_skips=3))
    for _ in range(5):
        assert guard.judge(1, NAN, 1.0) is Verdict.SKIP
        assert guard.judge(2, NAN, 1.0) is Verdict.SKIP
        assert guard.judge(3, 1.0, 1.0) is Verdict.ACCEPT
    assert guard.skipped == 10
    guard.judge(4, NAN, 1.0)
    guard.judge(5, NAN, 1.0)
    with pytest.raises(TrainingDiverged, match="step 6: loss nan.* 3 such steps in a row"):
        guard.judge(6, NAN, 1.0)


def test_without_skipping_the_first_ends_the_run() -> None:
    with pytest.raises(FlameError, match="step 7: loss inf, gradient norm 1.0; .*guard.skip_nan_inf"):
        Guard(GuardConfig(skip_nan_inf=False)).judge(7, INF, 1.0)


def test_a_skipped_step_is_told(caplog: pytest.LogCaptureFixture) -> None:
    Guard(GuardConfig()).judge(7, INF, 1.0)
    assert "step 7: loss inf" in caplog.text and "skipped" in caplog.text


def judged(guard: Guard, losses: list[float], first: int = 1) -> list[Verdict]:
    return [guard.judge(step, loss, 1.0) for step, loss in enumerate(losses, start=first)]


def test_a_spike_is_measured_against_the_steps_before_it():
    guard = Guard(GuardConfig(spike_sigma=3, spike_window=8))
    steady = [2.0, 2.1, 1.9, 2.0]
    assert judged(guard, steady) == [Verdict.ACCEPT] * 4
    assert guard.judge(5, 2.2, 1.0) is Verdict.ACCEPT
    assert guard.judge(6, 5.0, 1.0) is Verdict.SKIP
    assert guard.judge(7, 2.0, 9.0) is Verdict.SKIP, "a gradient norm can be a spike as well"
    assert guard.judge(8, 1.0, 1.0) is Verdict.ACCEPT, "a loss far below is no reason to skip"


def test_nothing_is_a_spike_before_half_the_window_is_known_or_by_default():
    guard = Guard(GuardConfig(spike_sigma=3, spike_window=8))
    assert judged(guard, [2.0, 2.0, 2.0, 50.0]) == [Verdict.ACCEPT] * 4
    assert judged(Guard(GuardConfig()), [2.0] * 200 + [50.0])[-1] is Verdict.ACCEPT


def test_a_resumed_guard_decides_as_the_one_before():
    config = GuardConfig(spike_sigma=3, spike_window=8, rollback_after=2)
    guard, resumed = Guard(config), Guard(config)
    judged(guard, [2.0, 2.1, 1.9, 2.0, math.nan])
    resumed.load_state_dict(guard.state_dict())
    assert judged(guard, [6.0], first=6) == judged(resumed, [6.0], first=6) == [Verdict.ROLL_BACK]
    assert resumed.newest_usable() == 4


def test_a_return_that_helped_nothing_goes_further_back_and_returns_are_counted():
    guard = Guard(GuardConfig(rollback_after=1, max_rollbacks=2, max_consecutive_skips=3))
    assert judged(guard, [2.0] * 7) == [Verdict.ACCEPT] * 7
    assert guard.judge(8, math.inf, 1.0) is Verdict.ROLL_BACK
    guard.went_back(6)
    assert guard.judge(7, math.inf, 1.0) is Verdict.ROLL_BACK and guard.newest_usable() == 5
    guard.went_back(4)
    assert guard.rate_scale == 0.25
    resumed = Guard(guard.config)
    resumed.load_state_dict(guard.state_dict())
    assert resumed.newest_usable() == guard.newest_usable() == 3
    assert guard.judge(5, math.inf, 1.0) is Verdict.SKIP
    assert guard.judge(6, math.inf, 1.0) is Verdict.SKIP
    with pytest.raises(TrainingDiverged, match="3 such steps in a row"):
        guard.judge(7, math.inf, 1.0)
