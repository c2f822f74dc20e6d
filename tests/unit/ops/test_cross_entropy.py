import pytest
import torch
from torch import nn
from torch.nn import functional as F

from flame.ops import cross_entropy as losses
from flame.ops.cross_entropy import cross_entropy_loss
from tests.unit.ops.agreement import worst_error

TARGET = torch.tensor([3, -100, 0, 10, 5, 5, -100, 7, 1, 2])
OPTIONS: list[dict[str, float]] = [
    {},
    {"label_smoothing": 0.1},
    {"logit_scale": 0.5, "logit_softcapping": 2.0},
    {"lse_square_scale": 0.01, "label_smoothing": 0.2, "logit_scale": -1.5},
]


@pytest.fixture(autouse=True)
def several_blocks(monkeypatch):
    monkeypatch.setattr(losses, "BLOCK", 33)


def definition(logits, label_smoothing=0.0, logit_scale=1.0, lse_square_scale=0.0, logit_softcapping=None):
    z = logits * logit_scale
    z = z if logit_softcapping is None else logit_softcapping * torch.tanh(z / logit_softcapping)
    loss = F.cross_entropy(z, TARGET, reduction="none", label_smoothing=label_smoothing)
    return loss + lse_square_scale * z.logsumexp(-1).square() * (TARGET != -100)


@pytest.mark.parametrize("options", OPTIONS)
def test_the_loss_of_each_row_follows_its_definition(options):
    def ours(logits):
        return cross_entropy_loss(logits, TARGET, **options)[0]

    found = {"logits": torch.randn(10, 11) * 3}
    assert worst_error(ours, lambda logits: definition(logits, **options), found) < 1e-6
    assert worst_error(ours, lambda logits: definition(logits, **options), found, torch.float64) < 1e-12
    assert worst_error(ours, lambda logits: definition(logits, **options), found, torch.bfloat16) < 2e-2


def test_logits_of_any_size_keep_loss_and_gradient_finite():
    logits = torch.tensor([[1e4, -1e4, 0.0], [-3e4, -3e4, 2e4], [5.0, torch.finfo().min, 0.0]], requires_grad=True)
    loss, _ = cross_entropy_loss(logits, torch.tensor([1, 0, 0]))
    loss.sum().backward()
    torch.testing.assert_close(loss, F.cross_entropy(logits, torch.tensor([1, 0, 0]), reduction="none"))
    assert logits.grad is not None and bool(logits.grad.isfinite().all())


def test_the_gradient_may_take_the_place_of_the_logits():
    weight, x = nn.Parameter(torch.randn(11, 4)), torch.randn(10, 4)
    logits = x @ weight.mT
    cross_entropy_loss(logits, TARGET, inplace_backward=True)[0].sum().backward()
    inplace = weight.grad
    weight.grad = None
    F.cross_entropy(x @ weight.mT, TARGET, reduction="sum").backward()
    torch.testing.assert_close(inplace, weight.grad)
