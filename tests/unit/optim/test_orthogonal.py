"""Orthogonalisation against its formula and against the singular value decomposition."""

import pytest
import torch

from flame.optim.orthogonal import NEWTON_SCHULZ, coefficients, flops, orthogonalize


def by_formula(matrix: torch.Tensor, steps: int) -> torch.Tensor:
    """The polynomial of nanochat, one product at a time, in float64."""
    a, b, c = NEWTON_SCHULZ
    x = matrix.double()
    x = x.T if len(x) > x.shape[1] else x
    x = x / (x.norm() + 1e-7)
    for _ in range(steps):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.T if matrix.shape[0] > matrix.shape[1] else x


@pytest.mark.parametrize("steps", [1, 4, 5])
@pytest.mark.parametrize("size", [(8, 8), (12, 40), (400, 420), (785, 800)])
def test_it_is_the_formula_also_by_panels(size: tuple[int, int], steps: int) -> None:
    matrices = torch.randn(2, *size)
    found = orthogonalize(matrices.clone(), coefficients("newton_schulz", steps))
    for matrix, result in zip(matrices, found, strict=True):
        torch.testing.assert_close(result.double(), by_formula(matrix, steps), rtol=1e-4, atol=1e-5)


def test_singular_values_come_near_one() -> None:
    matrix = torch.randn(1, 64, 96)
    left, _, right = torch.linalg.svd(matrix[0], full_matrices=False)
    found = orthogonalize(matrix.clone(), coefficients("newton_schulz", 5))[0]
    values = torch.linalg.svdvals(found)
    assert values.min() > 0.6 and values.max() < 1.25
    closer = orthogonalize(matrix.clone(), coefficients("polar_express", 5), margin=1.01)[0]
    assert (closer - left @ right).norm() < 0.5 * (found - left @ right).norm()
    assert (torch.linalg.svdvals(closer) - 1).abs().max() < 0.2


def test_no_gradient_gives_no_step() -> None:
    assert orthogonalize(torch.zeros(1, 4, 6), coefficients("newton_schulz", 5)).abs().max() == 0


def test_bfloat16_comes_near_float32() -> None:
    matrix = torch.randn(1, 64, 96)
    exact = orthogonalize(matrix.clone(), coefficients("newton_schulz", 5))
    rounded = orthogonalize(matrix.bfloat16(), coefficients("newton_schulz", 5)).float()
    assert (rounded - exact).norm() < 0.05 * exact.norm()


def test_work_is_that_of_the_products() -> None:
    assert flops(8, 4, 5) == flops(4, 8, 5) == 5 * (2 * 4 * 8 * 4 + 2 * 4 * 4 * 4 + 2 * 4 * 4 * 8)
