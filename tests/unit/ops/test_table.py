"""The table is complete and true: what it names exists, is called alike, and no layer of fla needs more."""

import importlib.util
import inspect
import sys
from types import FunctionType
from typing import Any

import pytest
from transformers import AutoConfig

from flame.ops.install import install, original, resolve
from flame.ops.table import ENTRY_POINTS, KERNELS_ONLY, METHODS, PACKAGES
from tests.unit.ops.reach import chains

ANONYMOUS = {
    f"fla.modules.activations.ops:{name}"
    for name in (
        *("sigmoid", "swish", "fast_gelu_impl", "bias_gelu_impl"),
        *("sqrelu", "swiglu", "sigmoidglu", "sigmoidglu_linear"),
    )
}
"""``autograd.Function.apply`` on fla's side, whose parameters have no names."""

UNREPLACED = {
    "fla.ops.log_linear_attn.chunk:chunk_log_linear_attn": "log_linear_mamba2",
    "fla.ops.cyfa.chunk:chunk_cyfa": "cyclic_flow_attention",
    "fla.ops.cyfa.fused_recurrent:fused_recurrent_cyfa": "cyclic_flow_attention",
}
"""Entry points that launch kernels and have no replacement -> the one family that needs them."""


@pytest.fixture(autouse=True, scope="module")
def installed():
    # Kept, as in a training process: fla's own functions cannot run here anyway.
    install()


def parameters(function: Any) -> list[tuple[str, Any, Any]]:
    found = inspect.signature(function).parameters.values()
    return [(parameter.name, parameter.kind, parameter.default) for parameter in found]


@pytest.mark.parametrize("theirs", ENTRY_POINTS)
def test_a_function_is_called_like_the_one_it_replaces(theirs: str) -> None:
    function, ours = original(theirs), resolve(ENTRY_POINTS[theirs])
    assert ours.__module__ == ENTRY_POINTS[theirs].split(":")[0]
    if theirs in ANONYMOUS:
        assert function.__module__ == "torch.autograd.function"
        # ctx is not passed.
        assert len(parameters(ours)) == len(parameters(function.__self__.forward)) - 1
    else:
        assert theirs.split(":")[0] == function.__module__, "the table names the module of the definition"
        assert parameters(ours) == parameters(function)


@pytest.mark.parametrize("theirs", METHODS)
def test_a_method_is_called_like_the_one_it_replaces(theirs: str) -> None:
    path, _, name = theirs.partition(":")
    owner, _, method = name.partition(".")
    # fla's own is gone from its class after install; a second copy of the module has it.
    spec = importlib.util.find_spec(path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    theirs_now = vars(getattr(sys.modules[path], owner))[method]
    assert theirs_now is resolve(METHODS[theirs])
    if [name for name, _, _ in parameters(theirs_now)] != ["self", "args", "kwargs"]:  # passes all on to fla's
        assert parameters(theirs_now) == parameters(vars(getattr(module, owner))[method])


def test_no_function_is_replaced_twice() -> None:
    seen: dict[int, str] = {}
    for theirs, ours in ENTRY_POINTS.items():
        first = seen.setdefault(id(original(theirs)), theirs)
        assert ENTRY_POINTS[first] == ours, f"{first} and {theirs} are one function with two replacements"


@pytest.mark.parametrize("name", PACKAGES)
def test_stand_ins_for_packages_exist(name: str) -> None:
    assert callable(resolve(PACKAGES[name]))


def test_no_layer_and_no_model_reaches_a_kernel() -> None:
    roots = [
        value
        for name, module in list(sys.modules.items())
        if name.startswith(("fla.layers.", "fla.models."))
        for value in vars(module).values()
        if isinstance(value, (type, FunctionType)) and value.__module__ == name
    ]
    assert len(roots) > 300
    found = {tuple(dict.fromkeys(chain)) for chain in chains(roots)}
    left = [chain for chain in found if not set(chain) & set(UNREPLACED)]
    assert not left, "no replacement for\n" + "\n".join(" > ".join(chain) for chain in sorted(left))
    stale = [path for path in UNREPLACED if not any(path in chain for chain in found)]
    assert not stale, f"{stale} have a replacement now"


def test_the_search_for_kernels_finds_them() -> None:
    for path in ("fla.ops.gla.chunk:chunk_gla", "fla.modules.activations.ops:swish", "fla.modules.norm.l2norm:l2norm"):
        assert any(chains([original(path)])), path
        assert not any(chains([resolve(ENTRY_POINTS[path])])), path


def test_families_that_need_a_gpu_exist() -> None:
    for family in {*KERNELS_ONLY, *UNREPLACED.values()}:
        assert type(AutoConfig.for_model(family)).__module__.startswith("fla.models."), family
    assert set(UNREPLACED.values()) <= set(KERNELS_ONLY)
