"""Compares one of fla's Triton kernels with our function: in Triton's interpreter, and on a GPU."""

import inspect
import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, normalize, softplus

from flame.ops.install import original, resolve
from flame.ops.table import ENTRY_POINTS

Sizes = dict[str, int]
Errors = dict[str, float]

SMALL: Sizes = {"B": 1, "T": 70, "H": 2, "G": 4, "Q": 32, "K": 32, "V": 16, "M": 16, "F": 16, "C": 2, "D": 48, "E": 80}
LARGE: Sizes = {
    "B": 2,
    "T": 1000,
    "H": 4,
    "G": 8,
    "Q": 64,
    "K": 64,
    "V": 64,
    "M": 64,
    "F": 16,
    "C": 16,
    "D": 256,
    "E": 2000,
}
SHARES = (0, 0.01, 0.26, 0.9, 1)
"""Where packed documents begin and end, as shares of the tokens; the first of ``SMALL`` has one token."""

FULL_PRECISION = {"decay", "state", "ridge", "index", "zero"}
"""Kinds of inputs that keep their dtype in a comparison in half precision."""


@dataclass(frozen=True)
class Case:
    """One entry point of fla.

    ``inputs`` are ``name:SIZES:kind``: each letter of SIZES is one of ``Sizes`` or N, the number of documents, a digit
    is itself, and a product stands in parentheses. ``a.0`` and ``a.1`` make a tuple ``a``.
    """

    path: str
    inputs: str
    options: dict[str, Any] = field(default_factory=dict)
    label: str = ""
    fixed: tuple[str, ...] = ()  # inputs to which fla gives no gradient
    forward_only: bool = False  # fla's kernel has no backward pass
    detached_states: bool = False  # fla's backward pass drops the gradient of the final states
    half_only: bool = False  # fla's kernel refuses float32
    rounds: bool = False  # fla rounds inputs to half precision whatever their dtype
    positional: bool = False  # autograd.Function.apply takes no names
    dense_only: bool = False  # fla's refuses cu_seqlens
    packed_only: bool = False  # fla's needs them
    loose: float = 1  # how much wider the tolerance is

    @property
    def name(self) -> str:
        return self.path.split(":")[1] + (f"-{self.label}" if self.label else "")

    def layouts(self) -> list[bool]:
        """False for dense rows, True for packed documents."""
        takes_documents = "cu_seqlens" in inspect.signature(resolve(ENTRY_POINTS[self.path])).parameters
        return [False] * (not self.packed_only) + [True] * (takes_documents and not self.dense_only)

    def parsed(self) -> Iterator[tuple[str, list[str], str]]:
        for entry in self.inputs.split():
            name, shape, kind = (*entry.split(":"), "normal")[:3]
            yield name, [product or letter for product, letter in re.findall(r"\((\w+)\)|(\w)", shape)], kind


def _drawn(kind: str, shape: list[int], top: int, generator: torch.Generator) -> Tensor:
    x = torch.randn(shape, generator=generator)
    kinds = {
        "normal": lambda: x,
        "state": lambda: x,
        "unit": lambda: normalize(x, dim=-1),
        "small": lambda: x * 0.1,
        "zero": lambda: torch.zeros_like(x),
        "decay": lambda: logsigmoid(2 * x + 2),
        "share": lambda: x.sigmoid(),
        "ridge": lambda: 0.25 + softplus(x),
        "index": lambda: torch.randint(top, shape, generator=generator),
    }
    return kinds[kind]()


def draw(case: Case, sizes: Sizes, packed: bool, device: str, dtype: torch.dtype) -> dict[str, Tensor]:
    """The same numbers for every device and dtype; several documents in one row if ``packed``."""
    sizes = {**sizes, "N": sizes["B"], **{str(digit): digit for digit in range(10)}}
    borders = torch.tensor([math.ceil(share * sizes["T"]) for share in SHARES], dtype=torch.int32)
    if packed:
        sizes |= {"B": 1, "N": len(borders) - 1}
    generator = torch.Generator().manual_seed(0)
    found: dict[str, Tensor] = {}
    for name, shape, kind in case.parsed():
        lengths = [math.prod(sizes[letter] for letter in product) for product in shape]
        x = _drawn(kind, lengths, sizes["E"], generator)
        found[name] = x.to(device, None if kind in FULL_PRECISION else dtype)
    return found | ({"cu_seqlens": borders.to(device)} if packed else {})


def disagreement(
    case: Case, sizes: Sizes, packed: bool = False, device: str = "cpu", dtype: torch.dtype = torch.float32
) -> Errors:
    """Of outputs, final states and gradients: the norm of the difference over that of fla's.

    Raises:
        AssertionError: other outputs, shapes, dtypes or gradients than fla's.
    """
    inputs = draw(case, sizes, packed, device, dtype)
    theirs = results(case, original(case.path), inputs)
    ours = results(case, resolve(ENTRY_POINTS[case.path]), inputs)
    assert theirs.keys() == ours.keys(), f"{sorted(theirs)} against our {sorted(ours)}"
    errors: Errors = {}
    for name, expected in theirs.items():
        found = ours[name]
        assert found.shape == expected.shape, f"{name}: {tuple(expected.shape)} against our {tuple(found.shape)}"
        # Final states of ours are always in float32, of fla's at times in the dtype of the inputs.
        assert found.dtype == expected.dtype or (
            found.dtype == torch.float32 and name.startswith("out.") and "output_final_state" in case.options
        ), f"{name}: {expected.dtype} against our {found.dtype}"
        difference = (found.double() - expected.double()).norm()
        errors[name] = float(difference / expected.double().norm().clamp_min(1e-3))
    return errors


def results(case: Case, function: Any, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """Outputs by their places, and gradients of a random weighting of them by the inputs' names."""
    leaves: dict[str, Tensor] = {}
    given: dict[str, Any] = {}
    for name, x in inputs.items():
        wanted = x.is_floating_point() and name not in case.fixed and not case.forward_only
        leaves[name] = x.detach().clone().requires_grad_(wanted)
        base, _, place = name.partition(".")
        given[base] = (*given.get(base, ()), leaves[name]) if place else leaves[name]
    with torch.set_grad_enabled(not case.forward_only):
        outputs = dict(_flat(function(*given.values()) if case.positional else function(**given, **case.options)))
    generator = torch.Generator().manual_seed(7)
    loss = torch.zeros((), device=next(iter(inputs.values())).device)
    for name, y in outputs.items():
        weights = torch.randn(y.shape, generator=generator).to(y.device)
        if y.requires_grad and not (case.detached_states and name not in ("out", "out.0")):
            loss = loss + (y.float() * weights).sum()
    if loss.requires_grad:
        loss.backward()
    grads = {f"d {name}": x.grad for name, x in leaves.items() if x.grad is not None}
    return {name: y.detach() for name, y in outputs.items()} | grads


def _flat(outputs: Any, name: str = "out") -> Iterator[tuple[str, Tensor]]:
    if isinstance(outputs, Tensor):
        yield name, outputs
    elif isinstance(outputs, Iterable):
        for place, output in enumerate(outputs):
            yield from _flat(output, f"{name}.{place}")
