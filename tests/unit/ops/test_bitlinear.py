import pytest
import torch
from fla.modules.fused_bitlinear import activation_quant, weight_quant
from torch.nn import functional as F

from flame.ops.bitlinear import bit_linear, layer_norm_linear_quant, rms_norm_linear_quant
from tests.unit.ops.test_norms import definition


def expected(x, norm, weight, bias, is_rms_norm, eps):
    """Norm, rounding that gradients do not see, projection."""
    y = definition(x, norm, is_rms_norm=is_rms_norm, eps=eps)[0]
    y = y + (activation_quant(y) - y).detach()
    w = weight + (weight_quant(weight) - weight).detach()
    return F.linear(y, w, bias)


def gradients(function, tensors):
    leaves = [tensor.clone().requires_grad_() for tensor in tensors]
    y = function(*leaves)
    (y * torch.linspace(-1, 1, y.numel()).view_as(y)).sum().backward()
    return y, [leaf.grad for leaf in leaves]


@pytest.mark.parametrize("is_rms_norm", [True, False])
def test_rounding_passes_gradients_straight_through(is_rms_norm):
    tensors = torch.randn(2, 5, 24), torch.rand(24) + 0.5, torch.randn(7, 24), torch.randn(7)

    def ours(x, norm, weight, bias):
        return layer_norm_linear_quant(x, norm, None, weight, bias, eps=1e-6, is_rms_norm=is_rms_norm)

    def theirs(x, norm, weight, bias):
        return expected(x, norm, weight, bias, is_rms_norm, 1e-6)

    torch.testing.assert_close(gradients(ours, tensors), gradients(theirs, tensors), rtol=1e-4, atol=1e-5)


def test_the_short_names_are_rms_norms_of_their_own_eps():
    x, norm, weight = torch.randn(3, 24), torch.rand(24), torch.randn(7, 24)
    torch.testing.assert_close(bit_linear(x, weight, None, norm), expected(x, norm, weight, None, True, 1e-8))
    y, stream = rms_norm_linear_quant(x, norm, None, weight, None, x, prenorm=True)
    torch.testing.assert_close(y, expected(2 * x, norm, weight, None, True, 1e-5))
    torch.testing.assert_close(stream, 2 * x)


def test_a_token_has_at_most_256_levels_and_keeps_its_dtype():
    x, weight = torch.randn(1, 512), torch.eye(512)
    assert len(bit_linear(x, weight).unique()) <= 256
    assert bit_linear(x.bfloat16(), weight).dtype == torch.bfloat16
