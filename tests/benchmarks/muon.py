"""How long Muon takes for the matrices of a GPT, against its matrix products alone.

python -m tests.benchmarks.muon [--layers 12] [--width 768] [--dtype float32] [--runs 5]

The products are timed as plain ones of the same shapes and type in the same run, and counted as Muon's equations have
them: five times X X^T, A A and B X for each matrix. The matrices are those of a GPT with an MLP four times as wide.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
import torch.nn as nn

from flame.optim.groups import Parameter
from flame.optim.muon import Muon, Recipe
from flame.optim.orthogonal import coefficients

STEPS = 5


def main() -> None:
    """Prints both times and their ratio."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    options.add_argument("--layers", type=int, default=12)
    options.add_argument("--width", type=int, default=768)
    options.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    options.add_argument("--runs", type=int, default=5)
    options.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    given = options.parse_args()
    dtype = getattr(torch, given.dtype)
    width = given.width
    shapes = [(width, width)] * 4 + [(4 * width, width), (width, 4 * width)]
    update = update_of(shapes * given.layers, dtype, given.device)
    # In turns, so that what else the machine does slows both down alike.
    updates, products = [], []
    for run in range(given.runs + 1):
        seconds = timed(update, given.device), given.layers * sum(product_time(*s, dtype, given.device) for s in shapes)
        if run:
            updates.append(seconds[0])
            products.append(seconds[1])
    ratios = [update / product for update, product in zip(updates, products, strict=True)]
    flop = given.layers * STEPS * sum(4 * min(s) ** 2 * max(s) + 2 * min(s) ** 3 for s in shapes)
    print(
        f"{len(shapes) * given.layers} matrices, {given.dtype}, {torch.get_num_threads()} threads on {given.device}: "
        f"update {statistics.median(updates):.3f} s, products {statistics.median(products):.3f} s "
        f"({flop / statistics.median(products) / 1e9:.0f} GFLOP/s), "
        f"ratio {statistics.median(ratios):.2f} (from {min(ratios):.2f} to {max(ratios):.2f})"
    )


def update_of(shapes: list[tuple[int, int]], dtype: torch.dtype, device: str) -> Callable[[], None]:
    """A step of Muon on matrices of these shapes, momentum and weight decay included."""
    values = [nn.Parameter(0.02 * torch.randn(shape, device=device)) for shape in shapes]
    gradients = [torch.randn_like(value) for value in values]
    named = [Parameter(str(index), value, "matrices") for index, value in enumerate(values)]
    recipe = Recipe(coefficients("newton_schulz", STEPS), dtype)
    optimizer = Muon([{"params": values, "lr": 0.02, "weight_decay": 0.01}], named, ["matrices"], recipe)
    for value, gradient in zip(values, gradients, strict=True):
        value.grad = gradient
    return optimizer.step


def product_time(rows: int, columns: int, dtype: torch.dtype, device: str) -> float:
    """Seconds of all products for one matrix."""
    small, large = sorted((rows, columns))
    x, a = torch.randn(small, large, device=device).to(dtype), torch.randn(small, small, device=device).to(dtype)
    square, wide = torch.empty_like(a), torch.empty_like(x)

    def products() -> None:
        for _ in range(STEPS):
            torch.mm(x, x.T, out=square)
            torch.mm(a, a, out=square)
            torch.mm(a, x, out=wide)

    products()
    return timed(products, device)


def timed(work: Callable[[], None], device: str) -> float:
    """Seconds that ``work`` takes."""
    started = time.perf_counter()
    work()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
