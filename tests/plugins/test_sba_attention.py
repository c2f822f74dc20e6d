"""The arithmetic of the stick-breaking family: against fla's definition, its kernel, and the sum of all shares."""

import importlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from fla.ops.stickbreaking_attn.naive import naive_stickbreaking_attn
from torch import Tensor

from flame.plugin import load_plugin
from tests.unit.ops.agreement import worst_error

load_plugin("sba")
ops = importlib.import_module("custom_models.sba.modeling_stick_breaking")
ROOT = Path(__file__).parents[2]


def states(length: int, rows: int = 2, strength: float = 1.0) -> dict[str, Tensor]:
    """Queries of four heads over two of keys, [B, T, H, D]."""
    generator = torch.Generator().manual_seed(0)
    shapes = {"q": (rows, length, 4, 16), "k": (rows, length, 2, 16), "v": (rows, length, 2, 8)}
    x = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    return x | {"q": x["q"] * strength}


def ours(q: Tensor, k: Tensor, v: Tensor, documents: Any = None, attend_current: Any = False) -> tuple[Tensor, Tensor]:
    """``stick_breaking`` with fla's order of dimensions."""
    o, left = ops.stick_breaking(*(x.transpose(1, 2) for x in (q, k, v)), documents, attend_current)
    return o.transpose(1, 2), left.transpose(1, 2)


@pytest.mark.parametrize("length, current", [(1, True), (2, False), (17, True), (40, False), (40, True)])
def test_outputs_and_gradients_are_those_of_flas_definition(length, current, monkeypatch) -> None:
    monkeypatch.setattr(ops, "BLOCK", 16)  # several blocks, the last of them short
    error = worst_error(ours, naive_stickbreaking_attn, states(length), attend_current=current)
    assert error < 3e-6


@pytest.mark.parametrize("held", [0, 1 << 24])
def test_long_rows_agree_with_flas_definition(held, monkeypatch) -> None:
    monkeypatch.setattr(ops, "HELD", held)
    assert worst_error(ours, naive_stickbreaking_attn, states(300)) < 3e-6


def test_saturated_scores_stay_finite_and_right() -> None:
    assert worst_error(ours, naive_stickbreaking_attn, states(40, strength=100.0)) < 1e-4


def test_half_precision_is_as_exact_as_its_rounding() -> None:
    assert worst_error(ours, naive_stickbreaking_attn, states(40), torch.bfloat16) < 0.02


@pytest.mark.parametrize("current", [False, True])
def test_shares_and_what_is_left_make_one_stick(current) -> None:
    x = {name: value.double() for name, value in states(50).items()}
    shares, left = ours(x["q"], x["k"], torch.ones_like(x["v"]), attend_current=current)
    torch.testing.assert_close(shares[..., 0] + left, torch.ones_like(left), rtol=0, atol=1e-12)
    assert (left > 0).all()


def test_the_first_token_of_a_document_sees_nothing() -> None:
    numbers = torch.tensor([[0, 0, 0, 1, 1]]).expand(2, -1)
    o, left = ours(**states(5), documents=ops.Documents.of(numbers))
    assert not o[:, [0, 3]].any()
    assert bool((left[:, [0, 3]] == 1).all())
    assert bool(o[:, [1, 2, 4]].any(-1).all())


@pytest.mark.parametrize("block", [4, 128])
def test_packed_documents_are_those_they_are_alone(block, monkeypatch) -> None:
    monkeypatch.setattr(ops, "BLOCK", block)
    x, borders = states(30, rows=1), [0, 1, 8, 9, 23, 30]
    lengths = torch.tensor(borders).diff()
    documents = ops.Documents.of(torch.arange(len(lengths)).repeat_interleave(lengths)[None])
    assert documents.borders.tolist() == borders
    packed = ours(**x, documents=documents)
    for start, stop in zip(borders, borders[1:], strict=False):
        alone = ours(**{name: value[:, start:stop] for name, value in x.items()})
        for mine, other in zip(packed, alone, strict=True):
            torch.testing.assert_close(mine[:, start:stop], other)


def test_gradients_of_packed_documents_are_those_of_a_mask(monkeypatch) -> None:
    monkeypatch.setattr(ops, "BLOCK", 4)
    numbers = torch.tensor([[0] * 3 + [1] * 7 + [2] * 4, [0] * 9 + [1] * 5])
    documents = ops.Documents.of(numbers)

    def separately(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        rows = []
        for row in range(2):
            kept = [numbers[row] == number for number in numbers[row].unique()]
            spans = [[x[row : row + 1, at] for x in (q, k, v)] for at in kept]
            parts = [naive_stickbreaking_attn(q, k, v) for q, k, v in spans]
            rows.append([torch.cat(part, 1) for part in zip(*parts, strict=True)])
        o, left = (torch.cat(part) for part in zip(*rows, strict=True))
        return o, left

    assert worst_error(lambda q, k, v: ours(q, k, v, documents), separately, states(14)) < 3e-6


def test_what_the_kernel_is_given_is_what_the_blocks_compute() -> None:
    """Rows become one packed row with borders; fla's definition stands in for its kernel."""

    def kernel(q: Tensor, k: Tensor, v: Tensor, attend_current: bool, cu_seqlens: Tensor | None = None):
        spans = [slice(None)] if cu_seqlens is None else list(map(slice, cu_seqlens[:-1], cu_seqlens[1:]))
        parts = [naive_stickbreaking_attn(q[:, at], k[:, at], v[:, at], None, attend_current) for at in spans]
        return tuple(torch.cat(part, 1) for part in zip(*parts, strict=True))

    q, k, v = (x.transpose(1, 2) for x in states(14).values())
    for numbers in (torch.zeros(2, 14), torch.tensor([[0] * 3 + [1] * 11, [0] * 14])):
        documents = ops.Documents.of(numbers)
        for mine, other in zip(
            ops._by_kernel(kernel, q, k, v, documents, True), ops.stick_breaking(q, k, v, documents, True), strict=True
        ):
            torch.testing.assert_close(mine, other)


@pytest.mark.slow
def test_flas_kernel_agrees_in_tritons_interpreter() -> None:
    """The kernel itself, on packed documents, forward and backward."""
    program = """
import json, torch
from tests.unit.ops.interpreter import enable
enable()
from fla.ops.stickbreaking_attn import parallel_stickbreaking_attn as kernel
from custom_models.sba import modeling_stick_breaking as ops
documents = ops.Documents.of(torch.tensor([[0] * 20 + [1] * 50]))
torch.manual_seed(0)
results = []
inputs = [torch.randn(1, heads, 70, 16).half() for heads in (4, 2, 2)]
weights = torch.randn(1, 4, 70, 16), torch.randn(1, 4, 70)
for by in (lambda *x: ops._by_kernel(kernel, *x, documents, False), lambda *x: ops.stick_breaking(*x, documents)):
    leaves = [x.clone().requires_grad_() for x in inputs]
    outputs = by(*leaves)
    sum((y.float() * w).sum() for y, w in zip(outputs, weights)).backward()
    results.append([*outputs, *(x.grad for x in leaves)])
print(json.dumps([float((a - b).float().norm() / b.float().norm()) for a, b in zip(*results)]))
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    assert max(json.loads(done.stdout.splitlines()[-1])) < 5e-3
