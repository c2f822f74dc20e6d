import pytest
import torch

from flame.ops.cumsum import chunk_global_cumsum
from tests.unit.ops.agreement import worst_error

BORDERS = torch.tensor([0, 1, 5, 5, 12])


def definition(s, reverse=False, cu_seqlens=None, scale=1.0):
    sizes = [s.shape[1]] if cu_seqlens is None else cu_seqlens.diff().tolist()
    parts = [part.flip(1).cumsum(1).flip(1) if reverse else part.cumsum(1) for part in s.split(sizes, 1)]
    return torch.cat(parts, 1) * scale


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("shape", [(3,), (3, 4)])
def test_sums_run_over_documents_either_way(reverse, shape):
    dense, packed = {"s": torch.randn(2, 12, *shape)}, {"s": torch.randn(1, 12, *shape)}
    assert worst_error(chunk_global_cumsum, definition, dense, reverse=reverse, scale=1.4) < 1e-6
    assert worst_error(chunk_global_cumsum, definition, packed, reverse=reverse, cu_seqlens=BORDERS) < 1e-6


def test_a_small_document_after_a_large_one_keeps_its_digits():
    s = torch.tensor([-1e6, -1e-3]).view(1, 2, 1)
    torch.testing.assert_close(chunk_global_cumsum(s, cu_seqlens=torch.tensor([0, 1, 2]))[0, 1, 0], s[0, 1, 0])


def test_the_result_is_wide_unless_asked_otherwise():
    s = torch.randn(1, 4, 2, dtype=torch.bfloat16)
    assert chunk_global_cumsum(s).dtype == torch.float32
    assert chunk_global_cumsum(s, output_dtype=None).dtype == torch.bfloat16


def test_other_layouts_are_refused():
    with pytest.raises(ValueError, match="neither"):
        chunk_global_cumsum(torch.randn(2, 3))
    with pytest.raises(ValueError, match="head_first"):
        chunk_global_cumsum(torch.randn(2, 3, 4), head_first=True)
    with pytest.raises(ValueError, match="one row"):
        chunk_global_cumsum(torch.randn(2, 3, 4), cu_seqlens=BORDERS)
