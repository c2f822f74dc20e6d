import pytest
import torch
from fla.modules.norm.layernorm import group_norm_ref, layer_norm_ref, rms_norm_ref
from torch.nn import functional as F

from flame.ops.norms import (
    group_norm,
    group_norm_linear,
    l2norm,
    layer_norm,
    layer_norm_linear,
    rms_norm,
    rms_norm_linear,
)
from tests.unit.ops.agreement import worst_error


def definition(x, weight=None, bias=None, residual=None, is_rms_norm=False, num_groups=1, eps=1e-5):
    total = x if residual is None else x + residual
    parts = total.unflatten(-1, (num_groups, -1))
    centred = parts if is_rms_norm else parts - parts.mean(-1, keepdim=True)
    y = (centred / (centred.square().mean(-1, keepdim=True) + eps).sqrt()).flatten(-2)
    y = y if weight is None else y * weight
    return (y if bias is None else y + bias), total


def tensors(*names):
    shapes = {"x": (2, 7, 24), "residual": (2, 7, 24), "weight": (24,), "bias": (24,)}
    return {name: torch.randn(shapes[name]) for name in names}


@pytest.mark.parametrize("names", [("x",), ("x", "weight"), ("x", "weight", "bias"), ("x", "weight", "residual")])
@pytest.mark.parametrize("is_rms_norm", [False, True])
@pytest.mark.parametrize("num_groups", [1, 3])
def test_a_norm_and_its_residual_stream_follow_their_definition(names, is_rms_norm, num_groups):
    def ours(x, weight=None, bias=None, residual=None):
        return group_norm(x, weight, bias, residual, 1e-5, True, False, is_rms_norm, num_groups)

    def theirs(**found):
        return definition(**found, is_rms_norm=is_rms_norm, num_groups=num_groups)

    assert worst_error(ours, theirs, tensors(*names)) < 1e-6
    assert worst_error(ours, theirs, tensors(*names), torch.float64) < 1e-12
    assert worst_error(ours, theirs, tensors(*names), torch.bfloat16) < 2e-2


def test_layer_rms_and_group_norm_are_those_of_fla():
    x, w, b, r = (tensors("x", "weight", "bias", "residual")[name] for name in ("x", "weight", "bias", "residual"))
    torch.testing.assert_close(layer_norm(x, w, b, r), layer_norm_ref(x, w, b, r))
    torch.testing.assert_close(rms_norm(x, w, b, r), rms_norm_ref(x, w, b, r))
    expected = group_norm_ref(x, w, b, 4, residual=r, is_rms_norm=True)
    torch.testing.assert_close(group_norm(x, w, b, r, is_rms_norm=True, num_groups=4), expected)


@pytest.mark.parametrize("is_rms_norm", [False, True])
def test_a_norm_keeps_half_precision_for_its_result_and_may_keep_the_stream_wide(is_rms_norm):
    x = torch.randn(3, 24, dtype=torch.bfloat16)
    y, stream = layer_norm(x, torch.ones(24), torch.zeros(24), None, 1e-5, True, True, is_rms_norm)
    assert (y.dtype, stream.dtype) == (torch.bfloat16, torch.float32)
    _, stream = layer_norm(x, None, None, x.float(), 1e-5, True, False, is_rms_norm)
    assert stream.dtype == torch.float32
    assert layer_norm(x, None, None, None, 1e-5, True)[1] is x


def test_the_fused_projections_are_a_norm_and_a_projection():
    found = tensors("x", "weight", "bias") | {"matrix": torch.randn(5, 24), "shift": torch.randn(5)}

    def linear(function, **options):
        return lambda x, weight, bias, matrix, shift: function(x, weight, bias, matrix, shift, **options)

    def expected(**options):
        return lambda x, weight, bias, matrix, shift: F.linear(definition(x, weight, bias, **options)[0], matrix, shift)

    assert worst_error(linear(layer_norm_linear), expected(), found) < 1e-6
    assert worst_error(linear(rms_norm_linear), expected(is_rms_norm=True), found) < 1e-6
    assert worst_error(linear(group_norm_linear, num_groups=2), expected(num_groups=2), found) < 1e-6


def test_l2norm_divides_by_the_length_also_of_nothing():
    found = {"x": torch.randn(2, 5, 3, 16) * 3}
    assert worst_error(l2norm, lambda x: x / (x.square().sum(-1, keepdim=True) + 1e-6).sqrt(), found) < 1e-6
    zero = torch.zeros(2, 16, requires_grad=True)
    l2norm(zero).sum().backward()
    torch.testing.assert_close(zero.grad, torch.full((2, 16), 1e3))
    assert l2norm(torch.randn(2, 16, dtype=torch.bfloat16), output_dtype=torch.float32).dtype == torch.float32


def test_strided_inputs_give_the_same_as_contiguous_ones():
    x, w = torch.randn(4, 24, 6).mT, torch.randn(24)
    torch.testing.assert_close(rms_norm(x, w, None), rms_norm(x.contiguous(), w, None))
    torch.testing.assert_close(l2norm(x), l2norm(x.contiguous()))


def test_groups_that_do_not_divide_and_foreign_residuals_are_refused():
    with pytest.raises(ValueError, match="10 channels do not divide into 3 groups"):
        group_norm(torch.randn(2, 10), None, None, num_groups=3)
    with pytest.raises(ValueError, match="has not the shape of x"):
        rms_norm(torch.randn(2, 10), None, None, torch.randn(10))
