"""Our functions against fla's Triton kernels on the same GPU:  pytest tests/gpu -m gpu"""

import pytest
import torch

from tests.unit.ops.kernel_cases import CASES
from tests.unit.ops.kernel_comparison import LARGE, disagreement

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

BOUNDS = {torch.float32: 1e-2, torch.bfloat16: 4e-2}
"""The greatest relative errors of norms: fla multiplies matrices of float32 in TF32."""


@pytest.mark.parametrize("dtype", BOUNDS, ids=str)
@pytest.mark.parametrize(("name", "packed"), [(name, packed) for name in CASES for packed in CASES[name].layouts()])
def test_ours_equal_flas_kernels(name: str, packed: bool, dtype: torch.dtype) -> None:
    case = CASES[name]
    if case.half_only and dtype is torch.float32:
        pytest.skip("fla's kernel takes half precision only")
    errors = disagreement(case, LARGE, packed, "cuda", dtype)
    bound = case.loose * BOUNDS[dtype]
    wrong = {place: error for place, error in errors.items() if not error < bound}
    assert not wrong, wrong
