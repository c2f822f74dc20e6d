"""The orthogonal matrix nearest to a given one, by polynomials that need nothing but matrix products.

X = U S V^T is mapped to U p(S) V^T, where p(s) = a s + b s^3 + c s^5 pushes all singular values in (0, 1] towards 1.
One polynomial again and again: https://kellerjordan.github.io/posts/muon/; a sequence of them, each the best for what
the last one left (Polar Express): https://arxiv.org/abs/2505.16932.
"""

import torch
from torch import Tensor

Coefficients = tuple[tuple[float, float, float], ...]

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
POLAR_EXPRESS = (
    (8.156554524902461, -22.48329292557795, 15.878769915207462),
    (4.042929935166739, -2.808917465908714, 0.5000178451051316),
    (3.8916678022926607, -2.772484153217685, 0.5060648178503393),
    (3.285753657755655, -2.3681294933425376, 0.46449024233003106),
    (2.3465413258596377, -1.7097828382687081, 0.42323551169305323),
)
# Symmetric products are computed by panels of rows up to the diagonal; below this size that costs more than it saves.
_PANEL, _PANELS = 192, 4


def coefficients(kind: str, steps: int) -> Coefficients:
    """The polynomials of ``optimizer.orthogonalization``, in order."""
    return POLAR_EXPRESS[:steps] if kind == "polar_express" else (NEWTON_SCHULZ,) * steps


def flops(rows: int, columns: int, steps: int) -> int:
    """Floating-point operations of the products for one matrix, none saved by symmetry."""
    small, large = sorted((rows, columns))
    return steps * (4 * small * small * large + 2 * small**3)


def orthogonalize(stack: Tensor, polynomials: Coefficients, margin: float = 1.0) -> Tensor:
    """Makes matrices orthogonal in place, each by itself.

    Args:
        stack: [K, M, N] with M <= N, contiguous, in the type to compute in.
        polynomials: (a, b, c) of each step.
        margin: by how much the norms are made smaller than 1, for polynomials that diverge beyond.
    """
    norm = torch.linalg.vector_norm(stack, dim=(-2, -1), keepdim=True, dtype=torch.float32)
    inverse = (1.0 / (norm * margin + 1e-7)).to(stack.dtype)
    if stack.device.type == "cpu":
        # One after another, what is computed on stays in the cache.
        for matrix, factor in zip(stack, inverse, strict=True):
            _iterate(matrix, factor, polynomials)
    else:
        _iterate(stack, inverse, polynomials)
    return stack


def _iterate(x: Tensor, factor: Tensor, polynomials: Coefficients) -> None:
    """X <- p(factor X) for each polynomial; x is [M, N] or [K, M, N]."""
    result, y = x, torch.empty_like(x)
    gram = x.new_empty(*x.shape[:-1], x.shape[-2])
    square = torch.empty_like(gram)
    product = torch.addmm if x.ndim == 2 else torch.baddbmm
    torch.mul(x, factor, out=y)
    x, y = y, x
    for a, b, c in polynomials:
        _symmetric(gram, None, x, x.mT, 0.0, 1.0)
        _symmetric(square, gram, gram, gram, b, c)  # b A + c A^2
        product(x, square, x, beta=a, out=y)
        x, y = y, x
    if x is not result:
        result.copy_(x)


def _symmetric(out: Tensor, base: Tensor | None, left: Tensor, right: Tensor, beta: float, alpha: float) -> None:
    """out = beta base + alpha left right, known to be symmetric: on a CPU only panels up to the diagonal are computed,
    5/8 of the products with four of them."""
    size = len(out)
    panels = min(_PANELS, size // _PANEL) if out.ndim == 2 and out.device.type == "cpu" else 1
    if panels <= 1:
        if base is None:
            torch.matmul(left, right, out=out)
        else:
            (torch.addmm if out.ndim == 2 else torch.baddbmm)(base, left, right, beta=beta, alpha=alpha, out=out)
        return
    bounds = [size * panel // panels for panel in range(panels + 1)]
    for low, high in zip(bounds[:-1], bounds[1:], strict=True):
        here = out[low:high, :high]
        if base is None:
            torch.mm(left[low:high], right[:, :high], out=here)
        else:
            torch.addmm(base[low:high, :high], left[low:high], right[:, :high], beta=beta, alpha=alpha, out=here)
        out[:low, low:high].copy_(here[:, :low].mT)
