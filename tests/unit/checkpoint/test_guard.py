import pytest

from flame.checkpoint.guard import Guard, TrainingDiverged
from flame.config import Guard as GuardConfig
from flame.errors import FlameError

NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize("loss, norm", [(NAN, 1.0), (INF, 1.0), (1.0, NAN), (1.0, INF), (-INF, NAN)])
def test_a_number_that_is_not_finite_rejects_the_step(loss: float, norm: float) -> None:
    guard = Guard(GuardConfig())
    assert guard.accepts(1, 2.0, 3.0)
    assert not guard.accepts(2, loss, norm)
    assert guard.accepts(3, 1e38, 1e38)
    assert guard.skipped == 1


def test_only_steps_in_a_row_end_the_run() -> None:
    guard = Guard(GuardConfig(max_consecutive_skips=3))
    for _ in range(5):
        assert not guard.accepts(1, NAN, 1.0)
        assert not guard.accepts(2, NAN, 1.0)
        assert guard.accepts(3, 1.0, 1.0)
    assert guard.skipped == 10
    guard.accepts(4, NAN, 1.0)
    guard.accepts(5, NAN, 1.0)
    with pytest.raises(TrainingDiverged, match="step 6: loss nan.* 3 such steps in a row"):
        guard.accepts(6, NAN, 1.0)


def test_without_skipping_the_first_ends_the_run() -> None:
    with pytest.raises(FlameError, match="step 7: loss inf, gradient norm 1.0; .*guard.skip_nan_inf"):
        Guard(GuardConfig(skip_nan_inf=False)).accepts(7, INF, 1.0)


def test_a_skipped_step_is_told(caplog: pytest.LogCaptureFixture) -> None:
    Guard(GuardConfig()).accepts(7, INF, 1.0)
    assert "step 7: loss inf" in caplog.text and "skipped" in caplog.text
