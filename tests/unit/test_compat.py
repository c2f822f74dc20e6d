import math
import subprocess
import sys
from datetime import timedelta
from typing import Any

import pytest
import torch
import torch._utils
import torch.distributed as dist
from torchtitan.distributed import ParallelDims
from torchtitan.distributed import utils as titan_distributed
from torchtitan.tools import utils as titan_utils

from flame import compat

CPU_ONLY = pytest.mark.skipif(torch.accelerator.is_available(), reason="this machine has an accelerator")


@CPU_ONLY
def test_torchtitan_runs_on_the_cpu_when_there_is_nothing_else() -> None:
    assert (titan_utils.device_type, titan_utils.device_module) == ("cpu", compat.CPU_MODULE)
    assert compat.CPU_MODULE.memory_stats()["reserved_bytes.all.peak"] > 50 * 2**20
    assert compat.CPU_MODULE.get_device_properties().total_memory > 2**30


@CPU_ONLY
def test_torch_itself_is_left_as_it_was() -> None:
    assert torch._utils._get_available_device_type() is None
    assert not torch.cuda.is_available()


@pytest.mark.parametrize("name, known", [("NVIDIA H100 80GB HBM3", True), ("NVIDIA A100-SXM4-80GB", True)])
def test_known_hardware_has_its_peak(name: str, known: bool) -> None:
    assert titan_utils.get_peak_flops is compat.peak_flops
    assert compat.peak_flops(name) > 1e14


@pytest.mark.parametrize("name", ["", "x86_64", "NVIDIA GeForce GTX 970", "Some Future GPU"])
def test_unknown_hardware_has_no_peak(name: str) -> None:
    assert math.isnan(compat.peak_flops(name))


def test_timeouts_are_set_on_every_group(process_group: None) -> None:
    assert titan_distributed.set_pg_timeouts is compat.set_pg_timeouts
    dims = ParallelDims(1, 1, 1, 1, 1, 1, 1, world_size=1)
    compat.set_pg_timeouts(timedelta(seconds=123), dims)
    options = dist.distributed_c10d._get_default_group()._get_backend(torch.device("cpu")).options
    assert options._timeout == timedelta(seconds=123)


def test_nothing_is_cast_behind_the_trainers_back() -> None:
    autocast: Any = titan_distributed.maybe_enable_amp
    with autocast():
        assert not torch.is_autocast_enabled("cpu")


@CPU_ONLY
def test_torchtitan_imported_too_early_is_said_at_once() -> None:
    program = "import torchtitan.tools.utils, flame.compat"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "import flame.compat first" in done.stderr


@CPU_ONLY
def test_a_profile_can_be_taken_without_an_accelerator() -> None:
    activities = [torch.profiler.ProfilerActivity.CPU, None]
    with compat.profile(activities=activities) as seen:
        torch.ones(3).sum()
    assert any("sum" in event.key for event in seen.key_averages())
