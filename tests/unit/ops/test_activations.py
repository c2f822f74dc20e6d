import pytest
import torch
from torch.nn import functional as F

from flame.ops import activations as ops
from tests.unit.ops.agreement import worst_error


def gelu(x):
    return 0.5 * x * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (x + 0.044715 * x**3)))


UNARY = {
    "sigmoid": lambda x: 1 / (1 + torch.exp(-x)),
    "swish": lambda x: x / (1 + torch.exp(-x)),
    "logsigmoid": lambda x: -torch.log1p(torch.exp(-x)),
    "elu_p1": lambda x: F.elu(x) + 1,
    "sqrelu": lambda x: x.clamp_min(0) ** 2,
    "fast_gelu": gelu,
}


@pytest.mark.parametrize("name", UNARY)
def test_an_activation_follows_its_formula(name):
    found = {"x": torch.randn(3, 40) * 3}
    assert worst_error(getattr(ops, name), UNARY[name], found) < 1e-6
    assert worst_error(getattr(ops, name), UNARY[name], found, torch.bfloat16) < 1e-2


def power(x, m=3.0):
    return torch.where(x > 0, x.clamp_min(1e-30) ** (m / (x.clamp_min(1e-30).sqrt() + 1)), x) * torch.sigmoid(x)


@pytest.mark.parametrize(("name", "gate"), [("swiglu", F.silu), ("sigmoidglu", torch.sigmoid), ("powglu", power)])
def test_a_gated_unit_and_its_projection_follow_their_formula(name, gate):
    found = {"x": torch.randn(3, 40), "y": torch.randn(3, 40)}
    assert worst_error(getattr(ops, name), lambda x, y: gate(x) * y, found) < 1e-6
    found |= {"weight": torch.randn(5, 40), "bias": torch.randn(5)}
    project = getattr(ops, f"{name}_linear")
    assert worst_error(project, lambda x, y, weight, bias: (gate(x) * y) @ weight.mT + bias, found) < 1e-6


def test_the_power_unit_has_a_finite_gradient_everywhere():
    x = torch.tensor([-1e4, -1.0, -1e-30, 0.0, 1e-38, 1e-30, 1e-6, 1.0, 1e4], requires_grad=True)
    y = ops.powglu(x, torch.ones_like(x))
    y.sum().backward()
    assert x.grad is not None and bool(x.grad.isfinite().all()) and bool(y.isfinite().all())


def test_large_magnitudes_stay_finite():
    x = torch.tensor([-1e4, 1e4], requires_grad=True)
    y = ops.logsigmoid(x) + ops.swish(x) + ops.elu_p1(x) + ops.sigmoid(x)
    y.sum().backward()
    assert x.grad is not None and bool(x.grad.isfinite().all()) and bool(y.isfinite().all())


def test_the_temperature_divides_the_log_sigmoid():
    x = torch.randn(20)
    torch.testing.assert_close(ops.logsigmoid(x, 16.0), F.logsigmoid(x) / 16)


def test_the_bias_is_added_before_the_gelu():
    found = {"x": torch.randn(3, 8), "bias": torch.randn(8)}
    assert worst_error(ops.bias_gelu, lambda x, bias: gelu(x + bias), found) < 1e-6
