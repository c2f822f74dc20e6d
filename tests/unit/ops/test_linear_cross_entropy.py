import pytest
import torch
from torch.nn import functional as F

from flame.ops.linear_cross_entropy import fused_linear_cross_entropy_loss
from tests.unit.ops.agreement import worst_error
from tests.unit.ops.test_cross_entropy import OPTIONS, TARGET, definition, several_blocks  # noqa: F401


@pytest.mark.parametrize("options", [{key: x[key] for key in x if key != "lse_square_scale"} for x in OPTIONS])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_the_loss_of_hidden_states_is_that_of_their_logits(options, reduction):
    def ours(x, weight, bias):
        return fused_linear_cross_entropy_loss(x, TARGET, weight, bias, reduction=reduction, **options) * 2

    def theirs(x, weight, bias):
        loss = definition(F.linear(x, weight, bias), **options).sum()
        return 2 * loss / (8 if reduction == "mean" else 1)

    found = {"x": torch.randn(10, 4), "weight": torch.randn(11, 4), "bias": torch.randn(11)}
    assert worst_error(ours, theirs, found) < 1e-6
    assert worst_error(ours, theirs, found, torch.bfloat16) < 3e-2


def test_the_penalty_pulls_the_largest_logit_down():
    x, weight = torch.randn(10, 4), torch.randn(11, 4)

    def ours(x, weight):
        return fused_linear_cross_entropy_loss(x, TARGET, weight, use_l2warp=True, l2_penalty_factor=0.3)

    plain, warped = ([leaf.clone().requires_grad_() for leaf in (x, weight)] for _ in range(2))
    ours(*warped).backward()
    logits = plain[0] @ plain[1].mT
    (F.cross_entropy(logits, TARGET) + 0.5 * 0.3 / 10 * logits.amax(-1).square().sum()).backward()
    torch.testing.assert_close([leaf.grad for leaf in warped], [leaf.grad for leaf in plain])


def test_no_more_than_a_chunk_of_logits_exists(monkeypatch):
    seen = []
    linear = F.linear
    monkeypatch.setattr(F, "linear", lambda x, *rest: seen.append(len(x)) or linear(x, *rest))
    x, weight = torch.randn(64, 4, requires_grad=True), torch.randn(40, 4, requires_grad=True)
    fused_linear_cross_entropy_loss(x, torch.zeros(64, dtype=torch.long), weight).backward()
    assert seen == [8] * 8


def test_rows_that_do_not_count_make_a_loss_of_zero():
    x, weight = torch.randn(3, 4, requires_grad=True), torch.randn(11, 4)
    loss = fused_linear_cross_entropy_loss(x, torch.full((3,), -100), weight)
    loss.backward()
    assert not loss.detach() and x.grad is not None and not x.grad.any()


def test_without_gradients_only_the_loss_is_made():
    x, weight = torch.randn(10, 4, requires_grad=True), torch.randn(11, 4)
    with torch.no_grad():
        loss = fused_linear_cross_entropy_loss(x, TARGET, weight)
    assert not loss.requires_grad
    torch.testing.assert_close(loss, F.cross_entropy(x @ weight.mT, TARGET))


def test_unknown_reductions_are_refused():
    with pytest.raises(ValueError, match="reduction 'none'"):
        fused_linear_cross_entropy_loss(torch.randn(10, 4), TARGET, torch.randn(11, 4), reduction="none")
