"""Our functions against fla's own Triton kernels, which Triton's interpreter runs on a CPU."""

import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from flame.ops.table import ENTRY_POINTS
from tests.unit.ops.kernel_cases import CASES, UNCOMPARED

QUICK = (
    "chunk_gla",
    "chunk_gated_delta_rule",
    "parallel_forgetting_attn",
    "causal_conv1d",
    "rms_norm",
    "rotary_embedding",
)
TIGHT, HALF = 2e-5, 3e-3
"""The greatest relative errors of norms: in float32, and where fla's kernel computes in half precision."""


@cache
def compared(names: tuple[str, ...]) -> list[dict[str, Any]]:
    """Runs all of ``names`` in one process, which costs seconds to start."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.unit.ops.interpreter", *names],
        cwd=Path(__file__).parents[3],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


def check(name: str, names: tuple[str, ...]) -> None:
    case = CASES[name]
    bound = case.loose * (HALF if case.half_only or case.rounds else TIGHT)
    found = [entry for entry in compared(names) if entry["name"] == name]
    assert [entry["packed"] for entry in found] == case.layouts()
    for entry in found:
        assert "failure" not in entry, entry["failure"]
        wrong = {place: error for place, error in entry["errors"].items() if not error < bound}
        assert not wrong, f"{name}, {'packed' if entry['packed'] else 'dense'}: {wrong}"


@pytest.mark.parametrize("name", QUICK)
def test_ours_equal_flas_kernels(name: str) -> None:
    check(name, QUICK)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in CASES if name not in QUICK])
def test_all_others_equal_flas_kernels(name: str) -> None:
    check(name, tuple(name for name in CASES if name not in QUICK))


def test_every_entry_point_is_compared() -> None:
    # What is in the layers and models themselves is PyTorch's.
    operators = {path for path in ENTRY_POINTS if path.startswith(("fla.ops.", "fla.modules."))}
    assert operators - {case.path for case in CASES.values()} == set(UNCOMPARED)
