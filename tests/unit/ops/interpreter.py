"""Lets fla's Triton kernels run on a CPU, by Triton's interpreter. Import it before triton, in a process of its own.

Three things keep fla from it: the autotuner wants to time configurations, loop counters are Python's integers where fla
calls ``.to`` on them, and fla's device context wants a GPU. Each is mended here, nothing of fla's kernels is changed.
"""

import ast
import os

os.environ["TRITON_INTERPRET"] = "1"

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


def enable() -> None:
    """Mends the interpreter and the autotuner of this process."""
    interpreter.FunctionRewriter.ast_transformer = _Transformer()
    # All configurations take as long: the first is chosen, and none is run to be timed.
    autotuner.Autotuner._bench = lambda self, *args, config, **kwargs: 0.0  # type: ignore[method-assign]
