"""Every change flame makes to code it does not own, each with the line it mends and when it can go.

Import this module before the first import of torchtitan: torchtitan binds its device when it is imported.
Checked against torchtitan 0.2.2, torch 2.11 to 2.13, transformers 5.23 and 5.24, flash-linear-attention 0.6.
"""

import os
import platform
import resource
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from datetime import timedelta
from functools import cache, wraps
from types import SimpleNamespace
from typing import Any

import torch
import torch._utils
import torch.distributed as dist
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, MetadataIndex, TensorProperties
from torch.distributed.checkpoint.planner import TensorWriteData, WriteItem, WriteItemType
from torch.distributed.tensor import DTensor, _redistribute
from torch.distributed.tensor.debug import _clear_sharding_prop_cache

from flame.pieces import boxes, is_strided


def _resident_bytes() -> int:
    """Peak resident memory of this process, in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _cpu_memory_stats(device: Any = None) -> dict[str, int]:
    return {"active_bytes.all.peak": _resident_bytes(), "reserved_bytes.all.peak": _resident_bytes()}


def _cpu_properties(device: Any = None) -> SimpleNamespace:
    return SimpleNamespace(total_memory=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))


# The functions of ``torch.cuda`` that torchtitan calls, for a machine without an accelerator.
CPU_MODULE = SimpleNamespace(
    __name__="flame.compat.CPU_MODULE",
    is_available=lambda: True,
    device_count=lambda: 1,
    set_device=lambda device: None,
    current_device=lambda: 0,
    get_device_name=lambda device=None: platform.processor() or platform.machine(),
    get_device_properties=_cpu_properties,
    memory_stats=_cpu_memory_stats,
    reset_peak_memory_stats=lambda device=None: None,
    empty_cache=lambda: None,
    synchronize=lambda device=None: None,
)


@contextmanager
def _cpu_when_no_accelerator() -> Iterator[None]:
    """torchtitan/tools/utils.py:37 falls back to "cuda" where there is no accelerator, so nothing runs on a CPU.

    Can go once torchtitan looks its device up when it is used.
    """
    find_type, find_module = torch._utils._get_available_device_type, torch._utils._get_device_module
    if find_type() is None:
        torch._utils._get_available_device_type = lambda: "cpu"
        torch._utils._get_device_module = lambda device_type: CPU_MODULE  # type: ignore[assignment]
    try:
        yield
    finally:
        torch._utils._get_available_device_type, torch._utils._get_device_module = find_type, find_module


with _cpu_when_no_accelerator():
    import torchtitan.distributed.utils as titan_distributed
    import torchtitan.tools.profiling as titan_profiling
    import torchtitan.tools.utils as titan_utils

if titan_utils.device_type == "cuda" and not torch.cuda.is_available():
    raise ImportError("torchtitan was imported before flame and found no device; import flame.compat first")

DEVICE_TYPE: str = titan_utils.device_type
DEVICE_MODULE: Any = titan_utils.device_module


def peak_flops(device_name: str) -> float:
    """bf16 FLOP/s of a known accelerator; NaN for unknown hardware, so that no utilisation is made up.

    Stands in for torchtitan/tools/utils.py:74, which calls every unknown device an A100.
    """
    known = ("A100", "H100", "H200", "H20", "B200", "MI355X", "MI300X", "MI325X", "MI250X", "l40s", "GPU Max 1550")
    return _titan_peak_flops(device_name) if any(name in device_name for name in known) else float("nan")


def set_pg_timeouts(timeout: timedelta, parallel_dims: Any) -> None:
    """Sets the timeout of every process group after a barrier.

    Stands in for torchtitan/distributed/utils.py:300, whose ``barrier(device_ids=...)`` gloo rejects.
    """
    if DEVICE_TYPE == "cpu":
        dist.barrier()
    else:
        dist.barrier(device_ids=[DEVICE_MODULE.current_device()])
        DEVICE_MODULE.synchronize()
    groups = [mesh.get_group() for mesh in parallel_dims.get_all_one_dimensional_meshes().values()]
    for group in [*groups, None]:
        if dist.get_backend(group) != "fake":  # torchtitan's stand-in for dimensions of size 1
            dist.distributed_c10d._set_pg_timeout(timeout, group)


def no_autocast(*_: Any) -> nullcontext[None]:
    """Stands in for torchtitan/distributed/utils.py:243, which autocasts on one device and under DDP, and does nothing
    under TP and PP alone: flame's ``fully_shard`` holds one precision for every layout."""
    return nullcontext()


def profile(*, activities: list[Any], **options: Any) -> torch.profiler.profile:
    """Stands in for ``torch.profiler.profile`` in torchtitan/tools/profiling.py:72, which lists None where there is no
    accelerator."""
    return torch.profiler.profile(activities=[activity for activity in activities if activity is not None], **options)


def _save_strided_tensors() -> None:
    """Makes DCP read and write what ranks hold of strided tensors: torch/distributed/tensor/_api.py:811 knows one box
    per rank and places it wrong where sizes do not divide, so that saving packed projections under tensor parallelism
    fails, and an odd vocabulary over FSDP x tensor parallelism too ("overlapping chunks").

    Can go once DTensor describes ``_StridedShard`` by its chunks.
    """
    write, chunks, shard = DTensor.__create_write_items__, DTensor.__create_chunk_list__, DTensor.__get_tensor_shard__

    def chunk_list(tensor: DTensor) -> list[Any]:
        if not is_strided(tensor):
            return chunks(tensor)
        return [ChunkStorageMetadata(torch.Size(at), torch.Size(sizes)) for at, sizes, _ in boxes(tensor)]

    def write_items(tensor: DTensor, name: str, value: Any) -> list[Any]:
        if not is_strided(tensor):
            return write(tensor, name, value)
        properties = TensorProperties.create_from_tensor(tensor.to_local())
        return [
            WriteItem(
                index=MetadataIndex(name, chunk.offsets),
                type=WriteItemType.SHARD,
                tensor_data=TensorWriteData(chunk=chunk, properties=properties, size=tensor.size()),
            )
            for chunk in chunk_list(tensor)
        ]

    def tensor_shard(tensor: DTensor, index: Any) -> torch.Tensor:
        if not is_strided(tensor):
            return shard(tensor, index)
        local = tensor.to_local()
        for offsets, sizes, inside in boxes(tensor):
            if torch.Size(offsets) == index.offset:
                for axis, (start, size) in enumerate(zip(inside, sizes, strict=True)):
                    local = local.narrow(axis, start, size)
                return local
        raise ValueError(f"{index.fqn} has no piece at {index.offset} on this rank")

    DTensor.__create_chunk_list__ = chunk_list  # type: ignore[method-assign]
    DTensor.__create_write_items__ = write_items  # type: ignore[method-assign]
    DTensor.__get_tensor_shard__ = tensor_shard  # type: ignore[method-assign]


def end_process_groups() -> None:
    """Ends all process groups, and what DTensor remembers of their meshes: it would lead the next job of this process
    to groups that are gone (torch/distributed/tensor/_redistribute.py keeps plans by mesh)."""
    dist.destroy_process_group()
    _clear_sharding_prop_cache()
    for remembered in vars(_redistribute).values():
        if hasattr(remembered, "cache_clear"):
            remembered.cache_clear()


@cache
def prefer_torch_without_triton() -> None:
    """Lets families of transformers keep their PyTorch code where fla's Triton kernels cannot run:
    transformers/integrations/hub_kernels.py:990 takes a kernel whenever fla can be imported, on a CPU too."""
    if DEVICE_TYPE == "cpu":
        # Late: transformers takes two seconds to import, and not every user of this module needs it.
        import transformers.integrations.hub_kernels as hub_kernels

        decorate = hub_kernels.use_kernel_func_from_hub_with_fallback
        hub_kernels.use_kernel_func_from_hub_with_fallback = lambda name, package, internal_path=None: decorate(
            name, f"{package}_needs_an_accelerator", internal_path
        )


def hand_over_cache(owner: Any) -> None:
    """Gives models of a class the cache that ``generate`` keeps under the name they know, ``past_key_values``:
    transformers/generation/utils.py:706 calls it ``cache`` since 5.24, which they take for an option of no meaning, so
    that every new token is read as if it were the first.

    Can go once no family is written for transformers 5.23.
    """
    prepare = owner.prepare_inputs_for_generation
    if hasattr(prepare, "hands_over"):
        return

    @wraps(prepare)
    def prepared(self: Any, *args: Any, cache: Any = None, **kwargs: Any) -> dict[str, Any]:
        if cache is not None:
            kwargs["past_key_values"] = cache
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="`past_key_values` is deprecated", category=FutureWarning)
            inputs = prepare(self, *args, **kwargs)
        if "cache" in inputs:
            inputs["past_key_values"] = inputs.pop("cache")
        return inputs

    prepared.hands_over = True  # type: ignore[attr-defined]
    owner.prepare_inputs_for_generation = prepared


def hand_fla_its_cache() -> None:
    """Does so for all of fla, whose 0.6 is written for 5.23 (fla/models/generation_utils.py:42)."""
    # Late: fla takes seconds to import.
    from fla.models import generation_utils, yoco

    hand_over_cache(generation_utils.FLAGenerationMixin)
    hand_over_cache(yoco.YOCOForCausalLM)


def use_checkpoint_manager(manager: type) -> None:
    """Makes torchtitan's Trainer build ``manager``: torchtitan/train.py:297 names its own class directly."""
    import torchtitan.train

    torchtitan.train.CheckpointManager = manager


_titan_peak_flops = titan_utils.get_peak_flops
titan_utils.get_peak_flops = peak_flops
titan_distributed.set_pg_timeouts = set_pg_timeouts
titan_distributed.maybe_enable_amp = no_autocast
titan_profiling.torch = SimpleNamespace(  # type: ignore[assignment]
    **{name: getattr(torch, name) for name in ("cuda", "xpu", "distributed", "OutOfMemoryError")},
    profiler=SimpleNamespace(**{**vars(torch.profiler), "profile": profile}),
)
_save_strided_tensors()
