"""Watches a step that runs on fake tensors: what it holds in memory, and what it sends to other ranks."""

import weakref
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import _resolve_process_group
from torch._subclasses.fake_tensor import FakeTensor
from torch.autograd.graph import saved_tensors_hooks
from torch.distributed.fsdp._fully_shard._fsdp_param import FSDPParam
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

KINDS = ("parameters", "buffers", "gradients", "optimizer", "unsharded", "activations", "other")
"""What a tensor is held for: ``unsharded`` are gathered parameters, ``activations`` what waits for the backward pass,
``other`` all else: gradients under way, logits, what collectives read and write."""

_GATHER, _SCATTER, _REDUCE, _EXCHANGE, _SEND = "all-gather", "reduce-scatter", "all-reduce", "all-to-all", "send"
# By the start of an operator's name, in the spellings of c10d and of the functional collectives.
_OPERATIONS = {
    "allgather": _GATHER,
    "_allgather": _GATHER,
    "all_gather": _GATHER,
    "reduce_scatter": _SCATTER,
    "_reduce_scatter": _SCATTER,
    "allreduce": _REDUCE,
    "all_reduce": _REDUCE,
    "alltoall": _EXCHANGE,
    "all_to_all": _EXCHANGE,
    "send": _SEND,
}
_PLAIN = (torch.Tensor, torch.nn.Parameter, FakeTensor)


def sent_bytes(operation: str, largest: int, ranks: int) -> int:
    """Bytes a rank sends in one collective by the ring algorithms.

    Args:
        operation: a name such as ``all-gather``.
        largest: bytes of the larger of what goes in and what comes out.
        ranks: of the group.
    """
    if operation == _SEND:
        return largest
    passes = 2 if operation == _REDUCE else 1
    return passes * largest * (ranks - 1) // ranks


@dataclass(frozen=True, order=True)
class Traffic:
    """One kind of communication."""

    operation: str
    mesh: str
    """The dimension of the grid it runs over."""
    phase: str
    """``forward`` or ``backward``; empty where only one of them is possible, or both are the same."""


@dataclass
class _Held:
    """One storage."""

    size: int
    kind: str


@dataclass
class Meter(TorchDispatchMode):
    """Counts bytes by ``KINDS`` and communication by ``Traffic`` while it is entered, above a ``FakeTensorMode``.

    Args:
        meshes: name of a process group -> name of the dimension.
    """

    meshes: Mapping[str, str]
    held: dict[str, int] = field(default_factory=lambda: dict.fromkeys(KINDS, 0))
    peak: dict[str, int] = field(default_factory=lambda: dict.fromkeys(KINDS, 0))
    """``held`` at the moment at which most was held since ``restart``."""
    most_activations: int = 0
    calls: Counter[Traffic] = field(default_factory=Counter)
    sent: Counter[Traffic] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        super().__init__()
        self._storages: dict[int, _Held] = {}

    def restart(self) -> None:
        """Forgets peaks and communication, not what is held."""
        self.peak, self.most_activations = dict(self.held), self.held["activations"]
        self.calls.clear()
        self.sent.clear()

    def label(self, tensors: Iterable[torch.Tensor], kind: str) -> None:
        """Says what tensors are held for."""
        for tensor in tensors:
            held = self._known(_local(tensor))
            self._add(-held.size, held.kind)
            held.kind = kind
            self._add(held.size, kind)

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Enters the mode; sees storages that are resized in place and tensors kept for the backward pass too."""
        resize, gather = torch.UntypedStorage.resize_, FSDPParam.to_unsharded

        def resized(storage: torch.UntypedStorage, size: int) -> Any:
            result = resize(storage, size)
            self._resized(storage)
            return result

        def gathered(parameter: FSDPParam) -> None:
            gather(parameter)
            self._label_if_new(parameter._unsharded_param, "unsharded")

        with (
            mock.patch.object(torch.UntypedStorage, "resize_", resized),
            mock.patch.object(FSDPParam, "to_unsharded", gathered),
            saved_tensors_hooks(self._saved, lambda tensor: tensor),
            self,
        ):
            yield

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Runs an operator and notes what it made and sent."""
        if any(kind not in _PLAIN for kind in types):
            return NotImplemented  # DTensor and its like come back with plain tensors
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if func.namespace in ("c10d", "_c10d_functional", "_c10d_functional_autograd"):
            self._communicated(func, args, kwargs, result)
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor) and tensor.device.type != "meta":
                self._known(tensor)
        return result

    def _known(self, tensor: torch.Tensor) -> _Held:
        storage = tensor.untyped_storage()
        key = storage._cdata
        held = self._storages.get(key)
        if held is None:
            held = self._storages[key] = _Held(storage.nbytes(), "other")
            weakref.finalize(storage, self._freed, key)
            self._add(held.size, held.kind)
        return held

    def _freed(self, key: int) -> None:
        held = self._storages.pop(key)
        self._add(-held.size, held.kind)

    def _resized(self, storage: torch.UntypedStorage) -> None:
        held = self._storages.get(storage._cdata)
        if held is not None:
            self._add(storage.nbytes() - held.size, held.kind)
            held.size = storage.nbytes()

    def _saved(self, tensor: torch.Tensor) -> torch.Tensor:
        self._label_if_new(tensor, "activations")
        # Not the tensor itself: an operator's own output would keep itself alive.
        return tensor.detach()

    def _label_if_new(self, tensor: torch.Tensor, kind: str) -> None:
        if self._known(_local(tensor)).kind == "other":
            self.label([tensor], kind)

    def _add(self, size: int, kind: str) -> None:
        self.held[kind] += size
        if size > 0:
            self.most_activations = max(self.most_activations, self.held["activations"])
            if sum(self.held.values()) > sum(self.peak.values()):
                self.peak = dict(self.held)

    def _communicated(self, func: Any, args: Any, kwargs: Any, result: Any) -> None:
        name = func._overloadpacket.__name__
        operation = next((kind for start, kind in _OPERATIONS.items() if name.startswith(start)), None)
        if operation is None:
            return
        group = _group([*args, *kwargs.values()])
        if group.size() == 1:
            return
        given = [tensor for tensor in tree_leaves((args, kwargs)) if isinstance(tensor, torch.Tensor)]
        made = [tensor for tensor in tree_leaves(result) if isinstance(tensor, torch.Tensor)]
        largest = max((tensor.numel() * tensor.element_size() for tensor in [*given, *made]), default=0)
        mesh = self.meshes.get(group.group_name, "other")
        traffic = Traffic(operation, mesh, _phase(operation, mesh))
        self.calls[traffic] += 1
        self.sent[traffic] += sent_bytes(operation, largest, group.size())


def _local(tensor: torch.Tensor) -> torch.Tensor:
    """This rank's part."""
    return tensor._local_tensor if isinstance(tensor, DTensor) else tensor


def _phase(operation: str, mesh: str) -> str:
    # Pipelines reduce gradients after the backward pass.
    if mesh in ("pp", "dp_replicate") or (operation == _SCATTER and mesh in ("fsdp", "efsdp")):
        return ""
    return "forward" if torch._C._current_graph_task_id() == -1 else "backward"


def _group(values: list[Any]) -> dist.ProcessGroup:
    """The process group among a collective's arguments: an object of c10d, or its name."""
    for value in values:
        if isinstance(value, torch.ScriptObject) and "ProcessGroup" in str(value._type()):
            return dist.ProcessGroup.unbox(value)
    names: list[Any] = [value for value in values if isinstance(value, str)]
    return _resolve_process_group(names[-1])
