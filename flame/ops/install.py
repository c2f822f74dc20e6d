"""Puts the functions of ``table`` in the place of fla's entry points, everywhere fla has bound them."""

import functools
import importlib
import logging
import os
import sys
import warnings
from collections.abc import Callable
from importlib.util import find_spec
from types import ModuleType
from typing import Any

import torch

from flame.errors import ConfigError
from flame.ops.table import ENTRY_POINTS, METHODS, PACKAGES

REQUEST = "FLAME_OPS"
"""``torch`` asks for the plain-PyTorch mixers although Triton has a device; ``auto`` (the default) leaves it to the
device."""

_TRITON_DEVICES = ("cuda", "xpu", "npu")
_NEEDS_FLASH_ATTENTION = ("fla.ops.moba.parallel:parallel_moba", "fla.ops.deltaformer.parallel:deltaformer_attn")

Function = Callable[..., Any]
_originals: dict[str, Function] = {}


def install() -> None:
    """Rebinds fla's entry points in all its modules; a second call changes nothing.

    A call with tensors on a CPU (or on meta, to count) then runs our function. One with tensors on an accelerator
    runs fla's, unless ``FLAME_OPS=torch`` asks for ours. The packages fla looks for beside Triton are stood in for
    where they are missing.

    Raises:
        ConfigError: ``FLAME_OPS`` is neither ``auto`` nor ``torch``.
    """
    choice = os.environ.get(REQUEST, "auto")
    if choice not in ("auto", "torch"):
        raise ConfigError(f"{REQUEST}='{choice}' is neither 'auto' nor 'torch'")
    if _originals:
        return
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Triton is not supported on current platform")  # we stand in for it
        importlib.import_module("fla.models")
        importlib.import_module("fla.layers")
    device = torch.accelerator.current_accelerator()
    always = choice == "torch" or device is None or device.type not in _TRITON_DEVICES
    originals = {theirs: resolve(theirs) for theirs in ENTRY_POINTS}
    without = set() if find_spec("flash_attn") else set(_NEEDS_FLASH_ATTENTION)
    swaps: dict[int, Function] = {}
    for theirs, ours in ENTRY_POINTS.items():
        stays = always or theirs in without
        swaps[id(originals[theirs])] = resolve(ours) if stays else _by_device(originals[theirs], resolve(ours))
    for module in _fla_modules():
        # Layers name only the first function of a missing package, and meet the others when they call them.
        if vars(module).get("flash_attn_func", ...) is None:
            vars(module).setdefault("flash_attn_varlen_func", None)
        for name, value in list(vars(module).items()):
            if id(value) in swaps:
                setattr(module, name, swaps[id(value)])
            elif name == "ACT2FN":
                value.update({key: swaps[id(entry)] for key, entry in value.items() if id(entry) in swaps})
            elif value is None and name in PACKAGES:
                setattr(module, name, resolve(PACKAGES[name]))
    for theirs, ours in METHODS.items():
        # The layer warns that it falls back to a slow method, which is no longer true.
        logging.getLogger(theirs.split(":")[0]).setLevel(logging.ERROR)
        path, _, method = theirs.rpartition(".")
        setattr(resolve(path), method, resolve(ours))
    _originals.update(originals)


def resolve(path: str) -> Any:
    """What stands at ``module:name``."""
    module, name = path.split(":")
    return getattr(importlib.import_module(module), name)


def original(path: str) -> Function:
    """fla's own function at ``module:name``, also after ``install``."""
    return _originals.get(path) or resolve(path)


def _by_device(theirs: Function, ours: Function) -> Function:
    @functools.wraps(theirs)
    def chosen(*args: Any, **kwargs: Any) -> Any:
        first = next((x for x in (*args, *kwargs.values()) if isinstance(x, torch.Tensor)), None)
        if first is not None and first.device.type not in _TRITON_DEVICES:
            return ours(*args, **kwargs)
        return theirs(*args, **kwargs)

    return chosen


def _fla_modules() -> list[ModuleType]:
    return [module for name, module in list(sys.modules.items()) if name.split(".")[0] == "fla"]
