import pytest
import torch
from torch.nn import functional as F

from flame.ops.divergence import fused_kl_div_loss
from tests.unit.ops.agreement import worst_error

TEACHER, HEAD = torch.randn(13, 6, dtype=torch.float64), torch.randn(11, 6, dtype=torch.float64)


def ours(x, weight):
    return fused_kl_div_loss(x, TEACHER.to(x.dtype), weight, HEAD.to(x.dtype)) * 3


def definition(x, weight):
    student, teacher = F.linear(x, weight).log_softmax(-1), F.linear(TEACHER, HEAD).log_softmax(-1)
    return 3 * F.kl_div(student, teacher, log_target=True, reduction="batchmean")


def test_the_divergence_follows_its_definition():
    found = {"x": torch.randn(13, 4), "weight": torch.randn(11, 4)}
    assert worst_error(ours, definition, found) < 1e-6
    assert worst_error(ours, definition, found, torch.float64) < 1e-12
    assert worst_error(ours, definition, found, torch.bfloat16) < 3e-2


def test_the_same_distribution_has_no_divergence():
    assert abs(float(fused_kl_div_loss(TEACHER, TEACHER, HEAD, HEAD))) < 1e-12


def test_a_teacher_that_learns_and_other_reductions_are_refused():
    x, weight = torch.randn(3, 4), torch.randn(11, 4)
    with pytest.raises(ValueError, match="frozen"):
        fused_kl_div_loss(x, x, weight, weight.clone().requires_grad_())
    with pytest.raises(ValueError, match="reduction 'sum'"):
        fused_kl_div_loss(x, x, weight, weight, "sum")
