from typing import Any

import pytest
import torch
import torch.nn.functional as F

from flame import losses
from flame.losses import cross_entropy_sum, linear_cross_entropy_sum

ROWS, WIDTH, VOCABULARY = 22, 12, 31


def problem(dtype: torch.dtype = torch.float32, bias: bool = True, ignored: str = "some") -> Any:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(2, ROWS // 2, WIDTH, generator=generator).to(dtype).requires_grad_()
    weight = torch.randn(VOCABULARY, WIDTH, generator=generator).to(dtype).requires_grad_()
    offset = torch.randn(VOCABULARY, generator=generator).to(dtype).requires_grad_() if bias else None
    labels = torch.randint(0, VOCABULARY, (2, ROWS // 2), generator=generator)
    if ignored == "some":
        labels[:, ::3] = -100
    elif ignored == "all":
        labels[:] = -100
    return hidden, weight, offset, labels


def naive(hidden, weight, bias, labels):
    return cross_entropy_sum(F.linear(hidden, weight, bias), labels)


def test_cross_entropy_is_a_sum_in_float32() -> None:
    _, _, _, labels = problem()
    logits = torch.randn(2, ROWS // 2, VOCABULARY).bfloat16()
    loss = cross_entropy_sum(logits, labels)
    chosen = labels != -100
    probabilities = logits.float().softmax(-1)[chosen].gather(1, labels[chosen].unsqueeze(1))
    torch.testing.assert_close(loss, -probabilities.log().sum())
    assert loss.dtype == torch.float32


@pytest.mark.parametrize("chunk_rows", [0, 1, 5, 7, ROWS - 1, ROWS, 1000])
@pytest.mark.parametrize("bias", [True, False])
def test_chunks_give_the_loss_and_gradients_of_the_plain_version(chunk_rows: int, bias: bool) -> None:
    expected, given = problem(bias=bias), problem(bias=bias)
    # The sum reaches backward scaled, as the trainer scales it.
    (naive(*expected) / 7).backward()
    loss = linear_cross_entropy_sum(*given, chunk_rows=chunk_rows)
    (loss / 7).backward()
    torch.testing.assert_close(loss, naive(*expected))
    for mine, other in zip(given[:3], expected[:3], strict=True):
        if other is not None:
            torch.testing.assert_close(mine.grad, other.grad)


def test_weight_gradients_of_many_bfloat16_chunks_do_not_lose_precision() -> None:
    """Summed in bfloat16, equal chunks of 0.25 would stop growing at 64."""
    hidden = torch.ones(1024, 2, dtype=torch.bfloat16)
    weight: Any = torch.zeros(4, 2, dtype=torch.bfloat16, requires_grad=True)
    linear_cross_entropy_sum(hidden, weight, None, torch.zeros(1024, dtype=torch.long), chunk_rows=1).backward()
    torch.testing.assert_close(weight.grad[1].float(), torch.full((2,), 256.0))


def test_bfloat16_is_as_close_to_float32_as_the_plain_version() -> None:
    exact = problem()
    naive(*exact).backward()
    plain, chunked = problem(torch.bfloat16), problem(torch.bfloat16)
    naive(*plain).backward()
    loss = linear_cross_entropy_sum(*chunked, chunk_rows=5)
    loss.backward()
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, naive(*exact), rtol=1e-2, atol=0)
    for mine, other, best in zip(chunked[:3], plain[:3], exact[:3], strict=True):
        assert mine.grad.dtype == torch.bfloat16
        allowed = 1.5 * (other.grad.float() - best.grad).norm() + 1e-3 * best.grad.norm()
        assert (mine.grad.float() - best.grad).norm() <= allowed


def test_nothing_to_score_gives_zero_loss_and_zero_gradients() -> None:
    hidden, weight, bias, labels = problem(ignored="all")
    loss = linear_cross_entropy_sum(hidden, weight, bias, labels, chunk_rows=5)
    loss.backward()
    assert loss.item() == 0
    assert not any(tensor.grad.any() for tensor in (hidden, weight, bias))


@pytest.mark.parametrize("cap", [0.5, 15.0])
def test_a_soft_cap_is_that_of_the_logits(cap: float) -> None:
    expected, given = problem(), problem()
    hidden, weight, bias, labels = expected
    plain = cross_entropy_sum(cap * torch.tanh((hidden @ weight.t() + bias) / cap), labels)
    plain.backward()
    loss = linear_cross_entropy_sum(*given, chunk_rows=5, soft_cap=cap)
    loss.backward()
    torch.testing.assert_close(loss, plain)
    for mine, other in zip(given[:3], expected[:3], strict=True):
        torch.testing.assert_close(mine.grad, other.grad)


def watch_products(monkeypatch: pytest.MonkeyPatch) -> list[torch.Size]:
    """Records the shapes of what ``torch.mm`` makes."""
    shapes, mm = [], torch.mm

    def watched(*args, **kwargs):
        result = mm(*args, **kwargs)
        shapes.append(result.shape)
        return result

    monkeypatch.setattr(torch, "mm", watched)
    return shapes


def test_no_gradient_is_formed_when_none_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    hidden, weight, bias, labels = problem()
    expected = naive(hidden, weight, bias, labels)
    products = watch_products(monkeypatch)
    with torch.no_grad():
        loss = linear_cross_entropy_sum(hidden, weight, bias, labels, chunk_rows=5)
    assert len(products) == -(-ROWS // 5), "a product beyond the logits themselves"
    torch.testing.assert_close(loss, expected)
    assert not loss.requires_grad


@pytest.mark.parametrize("frozen", [0, 1, 2])
def test_a_frozen_input_gets_no_gradient_and_the_others_theirs(frozen: int) -> None:
    expected, given = problem(), problem()
    naive(*expected).backward()
    given[frozen].requires_grad_(False)
    linear_cross_entropy_sum(*given, chunk_rows=4).backward()
    assert given[frozen].grad is None
    for index in {0, 1, 2} - {frozen}:
        torch.testing.assert_close(given[index].grad, expected[index].grad)


def test_all_logits_never_exist_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    products = watch_products(monkeypatch)
    monkeypatch.setattr(losses, "CHUNK_ELEMENTS", 4 * VOCABULARY + 3)
    linear_cross_entropy_sum(*problem())
    sizes = [shape for shape in products if shape[1] == VOCABULARY]
    assert max(shape[0] for shape in sizes) == 4 and sum(shape[0] for shape in sizes) == ROWS
