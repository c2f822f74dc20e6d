"""Fixtures shared by all rooms."""

import flame.compat  # noqa: F401  # isort: skip  before any test imports torch or torchtitan

import os
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch._C._distributed_c10d import HashStore

# Ranks and workers share two cores; a thread pool each would only fight.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
warnings.filterwarnings("ignore", message="Triton is not supported")

FAMILIES = Path(__file__).parent / "fixtures" / "families"


@pytest.fixture(scope="session")
def process_group() -> Iterator[None]:
    """A world of one process, as every training process has one."""
    if not dist.is_initialized():
        dist.init_process_group("gloo", store=HashStore(), rank=0, world_size=1)
    torch.set_num_threads(2)
    yield
    dist.destroy_process_group()
