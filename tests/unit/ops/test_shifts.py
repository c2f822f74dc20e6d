import pytest
import torch
from fla.modules.token_shift import token_shift_ref

from flame.ops.shifts import token_shift
from tests.unit.ops.agreement import worst_error

BORDERS = torch.tensor([0, 1, 5, 5, 12])


def definition(x, cache=None, cu_seqlens=None):
    borders = None if cu_seqlens is None else cu_seqlens.tolist()
    rows = list(x) if borders is None else [x[0, a:b] for a, b in zip(borders[:-1], borders[1:], strict=True)]
    deltas, last = [], []
    for number, row in enumerate(rows):
        before = torch.zeros_like(x[0, 0]) if cache is None else cache[number]
        for token in row:
            deltas.append(before - token)
            before = token
        last.append(before)
    return torch.stack(deltas).view_as(x), torch.stack(last)


@pytest.mark.parametrize("length", [1, 2, 9])
@pytest.mark.parametrize("cached", [False, True])
def test_each_token_leaves_the_difference_to_the_one_before(length, cached):
    found = {"x": torch.randn(3, length, 4)} | ({"cache": torch.randn(3, 4)} if cached else {})
    assert worst_error(token_shift, lambda output_cache, **x: definition(**x), found, output_cache=True) < 1e-7
    if not cached:
        torch.testing.assert_close(token_shift(found["x"]), token_shift_ref(found["x"]))


@pytest.mark.parametrize("cached", [False, True])
def test_packed_documents_begin_with_their_own_cache(cached):
    found = {"x": torch.randn(1, 12, 4)} | ({"cache": torch.randn(4, 4)} if cached else {})

    def ours(**x):
        return token_shift(**x, cu_seqlens=BORDERS, output_cache=True)

    assert worst_error(ours, lambda **x: definition(**x, cu_seqlens=BORDERS), found) < 1e-7
    if not cached:
        torch.testing.assert_close(token_shift(found["x"], BORDERS), token_shift_ref(found["x"], BORDERS))


def test_packed_documents_in_several_rows_are_refused():
    with pytest.raises(ValueError, match="1, T, D"):
        token_shift(torch.randn(2, 6, 4), torch.tensor([0, 12]))
