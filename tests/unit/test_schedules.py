"""Learning rates by closed form, through the builder that a run uses. Step numbers count from 1."""

import math
from typing import Any

import pytest
import torch
from torchtitan.components.lr_scheduler import build_lr_schedulers

from flame.config import parse

STEPS, WARM_UP, FLOOR, PEAK = 100, 10, 0.1, 2e-3
SHAPES = {
    "linear": lambda progress: 1 - progress,
    "cosine": lambda progress: (1 + math.cos(math.pi * progress)) / 2,
    "sqrt": lambda progress: 1 - math.sqrt(progress),
}


def rates(*arguments: str) -> list[float]:
    config = parse(["--training.steps", str(STEPS), "--lr_scheduler.warmup_steps", str(WARM_UP), *arguments])
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=PEAK)
    optimizers: Any = [optimizer]
    schedule = build_lr_schedulers(optimizers, config.lr_scheduler, STEPS)
    seen = []
    for _ in range(STEPS):
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return seen


@pytest.mark.parametrize("shape", list(SHAPES))
def test_decay_after_warm_up_follows_its_curve_to_the_floor(shape: str) -> None:
    seen = rates("--lr_scheduler.decay_type", shape, "--lr_scheduler.min_lr_factor", str(FLOOR))
    assert seen[:WARM_UP] == pytest.approx([PEAK * step / WARM_UP for step in range(1, WARM_UP + 1)])
    for step in (11, 12, 30, 55, 99, 100):
        # The first step after warm-up is still at the peak; the floor would be reached one step after the last.
        progress = (step - WARM_UP - 1) / (STEPS - WARM_UP)
        assert seen[step - 1] == pytest.approx(PEAK * (FLOOR + (1 - FLOOR) * SHAPES[shape](progress))), step
    assert min(seen[WARM_UP:]) > PEAK * FLOOR


@pytest.mark.parametrize("shape", list(SHAPES))
def test_warm_up_stable_decay_holds_the_peak_until_the_decay(shape: str) -> None:
    seen = rates(
        *("--lr_scheduler.decay_type", shape, "--lr_scheduler.decay_ratio", "0.2"),
        *("--lr_scheduler.min_lr_factor", str(FLOOR)),
    )
    assert seen[WARM_UP - 1 : 81] == pytest.approx([PEAK] * 72)
    for step in (82, 90, 100):
        assert seen[step - 1] == pytest.approx(PEAK * (FLOOR + (1 - FLOOR) * SHAPES[shape]((step - 81) / 20))), step


def test_without_decay_the_peak_is_held() -> None:
    assert rates("--lr_scheduler.decay_ratio", "0")[WARM_UP - 1 :] == pytest.approx([PEAK] * 91)


def test_upstreams_name_of_the_floor_means_the_same() -> None:
    assert rates("--lr_scheduler.lr_min", "0.3") == rates("--lr_scheduler.min_lr_factor", "0.3")
