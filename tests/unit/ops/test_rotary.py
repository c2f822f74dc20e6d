import pytest
import torch
from fla.modules.rotary.ops import rotary_embedding_ref

from flame.ops.rotary import rotary_embedding
from tests.unit.ops.agreement import worst_error

POSITIONS, WIDTH = 64, 4
ANGLES = torch.outer(torch.arange(POSITIONS, dtype=torch.float64), 0.5 ** torch.arange(WIDTH))


def definition(x, interleaved=False, positions=None):
    """Multiplies pairs of channels by the 2 x 2 rotation matrices of their positions [B, T]."""
    positions = torch.arange(x.shape[1])[None] if positions is None else positions
    cos, sin = ANGLES[positions].cos()[:, :, None], ANGLES[positions].sin()[:, :, None]  # [B, T, 1, R]
    pairs = x[..., : 2 * WIDTH].unflatten(-1, (WIDTH, 2) if interleaved else (2, WIDTH))
    pairs = pairs if interleaved else pairs.mT  # [B, T, H, R, 2]
    matrix = torch.stack([torch.stack([cos, -sin], -1), torch.stack([sin, cos], -1)], -2)
    turned = (matrix @ pairs.unsqueeze(-1)).squeeze(-1)
    turned = turned if interleaved else turned.mT
    return torch.cat([turned.flatten(-2), x[..., 2 * WIDTH :]], -1)


def ours(x, **options):
    return rotary_embedding(x, ANGLES.cos().to(x.dtype), ANGLES.sin().to(x.dtype), **options)


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("dim", [8, 12])
def test_pairs_turn_by_their_position_and_the_rest_passes(interleaved, dim):
    found = {"x": torch.randn(2, 9, 3, dim)}
    assert worst_error(ours, definition, found, interleaved=interleaved) < 1e-6
    assert worst_error(ours, definition, found, torch.float64, interleaved=interleaved) < 1e-12
    assert worst_error(ours, definition, found, torch.bfloat16, interleaved=interleaved) < 1e-2
    x = found["x"]
    expected = rotary_embedding_ref(x, ANGLES[:9].cos().float(), ANGLES[:9].sin().float(), interleaved)
    torch.testing.assert_close(ours(x, interleaved=interleaved), expected)


@pytest.mark.parametrize("interleaved", [False, True])
def test_offsets_move_every_row_or_each_its_own_way(interleaved):
    x = torch.randn(2, 5, 3, 12, dtype=torch.float64)
    torch.testing.assert_close(
        ours(x, seqlen_offsets=7, interleaved=interleaved), definition(x, interleaved, torch.arange(7, 12)[None])
    )
    expected = definition(x, interleaved, torch.stack([torch.arange(3, 8), torch.arange(40, 45)]))
    torch.testing.assert_close(ours(x, seqlen_offsets=torch.tensor([3, 40]), interleaved=interleaved), expected)


@pytest.mark.parametrize("offsets", [0, 2, torch.tensor([5, 0, 9, 1])])
def test_positions_begin_again_with_every_packed_document(offsets):
    x, borders = torch.randn(1, 12, 3, 8, dtype=torch.float64), torch.tensor([0, 1, 1, 8, 12])
    moves = offsets.tolist() if isinstance(offsets, torch.Tensor) else [offsets] * 4
    positions = torch.cat([torch.arange(n) + move for n, move in zip([1, 0, 7, 4], moves, strict=True)])
    expected = definition(x, False, positions[None])
    torch.testing.assert_close(ours(x, seqlen_offsets=offsets, cu_seqlens=borders), expected)


def test_tokens_before_the_first_position_are_blank_in_the_rotated_channels():
    x = torch.randn(2, 5, 3, 12)
    y = ours(x, seqlen_offsets=torch.tensor([-2, 0]))
    assert not y[0, :2, :, :8].any()
    torch.testing.assert_close(y[..., 8:], x[..., 8:])
    torch.testing.assert_close(y[0, 2:], ours(x[:1, 2:])[0])


def test_in_place_writes_into_the_input():
    x = torch.randn(1, 5, 2, 8)
    expected = ours(x.clone())
    assert ours(x, inplace=True) is x
    torch.testing.assert_close(x, expected)


def test_short_tables_and_narrow_heads_are_refused():
    with pytest.raises(ValueError, match="64 positions, but 70"):
        ours(torch.randn(1, 10, 1, 8), seqlen_offsets=60)
    with pytest.raises(ValueError, match="64 positions, but 70"):
        ours(torch.randn(2, 10, 1, 8), seqlen_offsets=torch.tensor([0, 60]))
    with pytest.raises(ValueError, match="width 4"):
        ours(torch.randn(1, 10, 1, 6))
