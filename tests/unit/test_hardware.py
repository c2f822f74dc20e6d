"""What is asked of the machine."""

import subprocess
import sys

import pytest

from flame.hardware import keep_freed_memory

FAULTS = """
import resource, sys
import torch
from flame.hardware import keep_freed_memory
if sys.argv[1] == "keep":
    keep_freed_memory()
def step():
    return sum(torch.ones(size, 1 << 20).sum() for size in (3, 40, 17))
for _ in range(4):
    step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(mode: str) -> int:
    """Page faults of five steps after the first ones."""
    environment = {"THP_MEM_ALLOC_ENABLE": "0", "PATH": ""}
    return int(
        subprocess.run([sys.executable, "-c", FAULTS, mode], env=environment, capture_output=True, check=True).stdout
    )


@pytest.mark.skipif(sys.platform != "linux", reason="other C libraries have no such settings")
def test_memory_that_was_freed_is_used_again_without_page_faults() -> None:
    if subprocess.run(
        [sys.executable, "-c", "from flame.hardware import *; import sys; sys.exit(not keep_freed_memory())"]
    ).returncode:
        pytest.skip("no glibc")
    assert faults("keep") < 0.4 * faults("give back")


def test_another_c_library_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flame.hardware.ctypes.CDLL", lambda _: object())
    assert not keep_freed_memory()
