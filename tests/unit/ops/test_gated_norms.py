import pytest
import torch
from fla.modules.norm.layernorm_gated import rms_norm_ref
from torch.nn import functional as F

from flame.ops.gated_norms import (
    layer_norm_gated,
    layer_norm_swish_gate_linear,
    layernorm_fn,
    rms_norm_gated,
    rms_norm_swish_gate_linear,
    rmsnorm_fn,
)
from tests.unit.ops.agreement import worst_error
from tests.unit.ops.test_norms import definition

ACTIVATIONS = {"swish": F.silu, "silu": F.silu, "sigmoid": torch.sigmoid}


def tensors(*names):
    return {name: torch.randn((24,) if name in ("weight", "bias") else (2, 5, 24)) for name in names}


@pytest.mark.parametrize("activation", ["swish", "silu", "sigmoid"])
@pytest.mark.parametrize("names", [("x", "g"), ("x", "g", "weight"), ("x", "g", "weight", "bias", "residual")])
@pytest.mark.parametrize("function", [rms_norm_gated, layer_norm_gated])
def test_a_gated_norm_is_the_norm_times_the_activated_gate(function, activation, names):
    def ours(x, g, weight=None, bias=None, residual=None):
        return function(x, g, weight, bias, activation, residual, prenorm=True)

    def theirs(x, g, **rest):
        y, stream = definition(x, **rest, is_rms_norm=function is rms_norm_gated, eps=1e-6)
        return y * ACTIVATIONS[activation](g), stream

    assert worst_error(ours, theirs, tensors(*names)) < 2e-6
    assert worst_error(ours, theirs, tensors(*names), torch.float64) < 1e-12
    assert worst_error(ours, theirs, tensors(*names), torch.bfloat16) < 2e-2


@pytest.mark.parametrize("group_size", [None, 8])
@pytest.mark.parametrize("norm_before_gate", [True, False])
@pytest.mark.parametrize("gated", [True, False])
def test_the_norm_of_mamba_gates_before_or_after(group_size, norm_before_gate, gated):
    found = tensors("x", "weight", "z") if gated else tensors("x", "weight")

    def ours(x, weight, z=None):
        return rmsnorm_fn(x, weight, None, z, group_size=group_size, norm_before_gate=norm_before_gate)

    def theirs(x, weight, z=None):
        gate = 1 if z is None else F.silu(z)
        groups = 1 if group_size is None else 24 // group_size
        values = x if norm_before_gate else x * gate
        y = definition(values, weight, is_rms_norm=True, num_groups=groups, eps=1e-6)[0]
        return y * gate if norm_before_gate else y

    assert worst_error(ours, theirs, found) < 2e-6
    assert worst_error(ours, theirs, found, torch.bfloat16) < 2e-2
    expected = rms_norm_ref(
        found["x"], found["weight"], None, found.get("z"), group_size=group_size, norm_before_gate=norm_before_gate
    )
    torch.testing.assert_close(ours(**found), expected)


def test_the_layer_norm_of_mamba_has_a_mean_and_a_bias():
    def theirs(x, weight, bias, z):
        return definition(x, weight, bias, num_groups=3, eps=1e-6)[0] * F.silu(z)

    def ours(x, weight, bias, z):
        return layernorm_fn(x, weight, bias, z, group_size=8)

    assert worst_error(ours, theirs, tensors("x", "weight", "bias", "z")) < 2e-6


@pytest.mark.parametrize("function", [rms_norm_swish_gate_linear, layer_norm_swish_gate_linear])
def test_the_fused_projection_follows_the_gate(function):
    found = tensors("x", "g", "weight") | {"matrix": torch.randn(5, 24)}

    def theirs(x, g, weight, matrix):
        is_rms_norm = function is rms_norm_swish_gate_linear
        return F.linear(definition(x, weight, is_rms_norm=is_rms_norm, eps=1e-6)[0] * F.silu(g), matrix)

    def ours(x, g, weight, matrix):
        return function(x, g, weight, None, matrix, None)

    assert worst_error(ours, theirs, found) < 2e-6


def test_unknown_activations_and_odd_groups_are_refused():
    x = torch.randn(2, 10)
    with pytest.raises(ValueError, match="activation 'gelu'"):
        rms_norm_gated(x, x, None, None, "gelu")
    with pytest.raises(ValueError, match="groups of 3"):
        rmsnorm_fn(x, torch.ones(10), None, group_size=3)
