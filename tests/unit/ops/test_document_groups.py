"""Packed documents as dense batches, and walks over blocks of queries."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from flame.ops import rows
from flame.ops.documents import Borders, alike, by_document, join
from flame.ops.forgetting import parallel_forgetting_attn
from flame.ops.path_attention import parallel_path_attn
from flame.ops.rows import Span, by_rows


def test_documents_of_similar_length_share_a_batch():
    assert alike([100, 10, 90, 0, 60, 1000, 70]) == [[5], [0, 2], [6, 4], [1]]
    assert alike([3, 64, 0, 20]) == [[1, 3, 0]]
    assert alike([]) == []


def test_little_is_padding():
    lengths = torch.randint(1, 2000, (300,), generator=torch.Generator().manual_seed(0)).tolist()
    groups = alike(lengths)
    assert sorted(index for group in groups for index in group) == list(range(300))
    computed = sum(len(group) * max(lengths[index] for index in group) ** 2 for group in groups)
    assert computed < 1.5 * sum(length**2 for length in lengths)
    assert len(groups) < 20


def test_tokens_return_to_their_places():
    borders = Borders.of(torch.tensor([0, 5, 5, 6, 200, 330]), 330)
    x = torch.randn(330, 2)
    batches = [borders.batch(documents, x.device) for documents in alike(borders.lengths)]
    assert torch.equal(join([batch.take(x) for batch in batches], batches, 330), x)
    first = batches[:1]
    part = join([batch.take(x) for batch in first], first, 330)
    assert torch.equal(part[6:200], x[6:200]) and not part[:6].any()


@pytest.mark.parametrize("borders", [[0, 4], [1, 5], [0, 3, 2, 5]])
def test_borders_that_do_not_cover_the_tokens_are_refused(borders):
    with pytest.raises(ValueError, match="cu_seqlens"):
        by_document(lambda x: (x,), [torch.ones(1, 5, 1)], torch.tensor(borders))


def test_several_rows_beside_borders_are_refused():
    with pytest.raises(ValueError, match="batch of 1"):
        by_document(lambda x: (x,), [torch.ones(2, 5, 1)], torch.tensor([0, 10]))


@pytest.mark.parametrize(("queries", "window"), [(50, None), (50, 7), (50, 40), (1, None), (1, 9), (30, 7)])
def test_every_query_meets_exactly_its_keys(queries, window):
    keys = torch.arange(50.0)[:, None]

    def body(span: Span, own: torch.Tensor, theirs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        assert torch.equal(theirs[:, 0], torch.arange(span.start, span.last))
        seen = ~span.hidden(own.device)
        return own, (seen * theirs.mT).sum(-1, keepdim=True), seen.sum(-1, keepdim=True)

    own, total, count = by_rows(body, [keys[50 - queries :]], [keys], window, block=16)
    assert torch.equal(own, keys[50 - queries :])
    assert torch.equal(count, (own + 1).clamp(max=window or 50))
    assert torch.equal(total, count * (2 * own - count + 1) / 2)


def test_gradients_are_the_same_when_scores_are_computed_again(monkeypatch):
    def gradients() -> list[torch.Tensor]:
        generator = torch.Generator().manual_seed(0)
        leaves = [torch.randn(2, 70, 4, generator=generator, requires_grad=True) for _ in range(2)]

        def body(span: Span, q: torch.Tensor, k: torch.Tensor) -> tuple[torch.Tensor, ...]:
            return ((q @ k.mT).masked_fill(span.hidden(q.device), -torch.inf).softmax(-1) @ k,)

        by_rows(body, leaves[:1], leaves[1:], block=16)[0].square().sum().backward()
        return [x.grad for x in leaves if x.grad is not None]

    kept = gradients()
    monkeypatch.setattr(rows, "HELD", 0)
    for again, before in zip(gradients(), kept, strict=True):
        torch.testing.assert_close(again, before)


def test_autocast_does_not_narrow_scores():
    def body(span: Span, q: torch.Tensor, k: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return (q @ k.mT,)

    x = torch.randn(40, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        (scores,) = by_rows(body, [x], [x], block=64)
    assert torch.equal(scores, x @ x.mT)


def test_work_is_counted_without_values():
    x, g = torch.empty(1, 300, 2, 16, device="meta"), torch.empty(1, 300, 2, device="meta")
    borders = torch.empty(2, dtype=torch.long, device="meta")
    with FakeTensorMode(allow_non_fake_inputs=True):
        assert parallel_forgetting_attn(x, x, x, g, cu_seqlens=borders).shape == x.shape
        assert parallel_path_attn(x, x, x, x, g, g)[0].shape == x.shape
