"""Runs fla's Triton kernels on a CPU, by Triton's interpreter:  python -m tests.unit.ops.interpreter CASE...

A process of its own, as the interpreter is chosen when triton is imported. What keeps it from fla's kernels is mended
here; the kernels themselves are as they are. Prints one line of JSON for each comparison.
"""

import ast
import json
import os
import sys
import traceback
from typing import Any

os.environ["TRITON_INTERPRET"] = "1"

import numpy as np  # noqa: E402
import torch  # noqa: E402
import triton.language as tl  # noqa: E402
from triton.language.extra import libdevice  # noqa: E402
from triton.runtime import autotuner, interpreter  # noqa: E402


class _Transformer(interpreter.ASTTransformer):
    """A loop counter is a tensor, as in a compiled kernel; one of ``tl.static_range`` stays a constant there too."""

    def visit_For(self, node: ast.For) -> ast.AST:
        self.generic_visit(node)
        called = node.iter.func if isinstance(node.iter, ast.Call) else None
        if getattr(called, "id", getattr(called, "attr", "")) == "range" and isinstance(node.target, ast.Name):
            semantic = ast.Name(id="interpreter_semantic", ctx=ast.Load())
            value = ast.Call(
                func=ast.Attribute(value=semantic, attr="to_tensor", ctx=ast.Load()),
                args=[ast.Name(id=node.target.id, ctx=ast.Load()), ast.Constant(value=False)],
                keywords=[],
            )
            target = ast.Name(id=node.target.id, ctx=ast.Store())
            node.body.insert(0, ast.Assign(targets=[target], value=value))
        return node


def _gather(src: tl.tensor, index: tl.tensor, axis: int) -> tl.tensor:
    return interpreter.interpreter_semantic.gather(src, index, axis)


def _elementwise(function: Any) -> Any:
    def apply(x: Any) -> tl.tensor:
        return tl.tensor(interpreter.TensorHandle(function(x.handle.data), x.handle.dtype), x.type)

    return apply


def _compared(compare: Any) -> Any:
    def create(self: Any, left: Any, right: Any) -> Any:
        return interpreter.TensorHandle(compare(self, left, right).data, tl.int1)

    return create


def _widened(x: Any) -> Any:
    if x.dtype != tl.bfloat16:
        return x
    return interpreter.TensorHandle((x.data.astype(np.uint32) << 16).view(np.float32), tl.float32)


def _dot(self: Any, a: Any, b: Any, d: Any, input_precision: Any, max_num_imprecise_acc: Any) -> Any:
    return _builder_dot(self, _widened(a), _widened(b), d, input_precision, max_num_imprecise_acc)


_builder_dot = interpreter.InterpreterBuilder.create_dot


def enable() -> None:
    """Mends the interpreter and the autotuner of this process; to be called before fla is imported."""
    interpreter.FunctionRewriter.ast_transformer = _Transformer()
    # All configurations take as long: the first is chosen, and none is run to be timed.
    autotuner.Autotuner._bench = lambda self, *args, config, **kwargs: 0.0  # type: ignore[method-assign]
    # fla binds these by name, where the interpreter does not find them to replace them.
    tl.gather, libdevice.tanh, libdevice.log1p = _gather, _elementwise(np.tanh), _elementwise(np.log1p)
    # Two kernels ask for it.
    torch.Tensor.is_cuda = property(lambda self: True)  # type: ignore[assignment]
    # It multiplies matrices of bfloat16 as the integers in which it keeps them.
    interpreter.InterpreterBuilder.create_dot = _dot
    # A comparison of scalars keeps their dtype, and is then no mask.
    builder = interpreter.InterpreterBuilder
    for name in [name for name in vars(builder) if name.startswith(("create_icmp", "create_fcmp"))]:
        setattr(builder, name, _compared(getattr(builder, name)))


def main(names: list[str]) -> None:
    enable()
    from tests.unit.ops.kernel_cases import CASES
    from tests.unit.ops.kernel_comparison import SMALL, disagreement

    for name in names:
        case = CASES[name]
        for packed in case.layouts():
            found: dict[str, Any] = {"name": name, "packed": packed}
            try:
                dtype = torch.float16 if case.half_only else torch.float32
                found["errors"] = disagreement(case, SMALL, packed, dtype=dtype)
            except Exception:
                found["failure"] = traceback.format_exc()
            print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
