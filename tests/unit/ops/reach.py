"""Finds the Triton kernels that a function or a class of fla can reach, by reading what its code names."""

import sys
from collections.abc import Iterable, Iterator
from types import BuiltinMethodType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any

from triton.runtime.jit import KernelInterface

_WRAPPERS = (BuiltinMethodType, MethodType, staticmethod, classmethod, property)


def chains(roots: Iterable[Any]) -> Iterator[tuple[str, ...]]:
    """One way to every kernel that ``roots`` reach: the names from the root to the function that launches it."""
    todo: list[tuple[Any, tuple[str, ...]]] = [(root, (_name(root),)) for root in roots]
    seen: set[int] = set()
    while todo:
        here, path = todo.pop()
        for there in _parts(here):
            if isinstance(there, KernelInterface):
                yield path
            elif id(there) not in seen and (_home(there).split(".")[0] == "fla" or isinstance(there, _WRAPPERS)):
                seen.add(id(there))
                todo.append((there, path if isinstance(there, _WRAPPERS) else (*path, _name(there))))


def _parts(x: Any) -> Iterator[Any]:
    if isinstance(x, FunctionType):
        yield from _named(x)
    elif isinstance(x, type):
        yield from vars(x).values()
        yield from x.__bases__
    elif isinstance(x, property):
        yield from (f for f in (x.fget, x.fset) if f is not None)
    elif isinstance(x, (staticmethod, classmethod)):
        yield x.__func__
    elif isinstance(x, (MethodType, BuiltinMethodType)):
        yield x.__self__  # the class of autograd.Function.apply


def _named(function: FunctionType) -> Iterator[Any]:
    """What the code names: globals, names of the modules it knows or imports, and what its wrapper holds."""
    names = [name for code in _codes(function.__code__) for name in code.co_names]
    modules = [sys.modules[name] for name in names if name.startswith("fla.") and name in sys.modules]
    for name in names:
        value = function.__globals__.get(name)
        if isinstance(value, ModuleType):
            modules += [value] if value.__name__.startswith("fla.") else []
        else:
            yield value
    for module in modules:
        yield from (vars(module)[name] for name in names if name in vars(module))
    for cell in function.__closure__ or ():
        yield cell.cell_contents
    yield getattr(function, "__wrapped__", None)


def _codes(code: CodeType) -> Iterator[CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _codes(constant)


def _home(x: Any) -> str:
    """The module of ``x``; that of its code where it is ours, also behind the name of what it wraps."""
    module = getattr(x, "__globals__", {}).get("__name__", "") if isinstance(x, FunctionType) else ""
    return module if module.startswith("flame") else str(getattr(x, "__module__", "") or "")


def _name(x: Any) -> str:
    return f"{_home(x)}:{getattr(x, '__name__', x)}"
