"""The shape of the code: who may import whom, how large things may grow, and what has to be said about them."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LAYERS = [
    {"errors", "files", "compat", "hardware", "pieces", "config", "losses", "convert", "ops", "ctc", "confusion"},
    {"plugin", "tokenizer"},
    {"models", "data", "optim"},
    {"tasks", "parallel"},
    {"inference", "checkpoint"},
    {"evals", "rl"},
    {"spec", "trainer", "validate", "metrics"},
    {"cli", "train", "launch", "doctor", "families", "utils", "plan"},
]
# Parsing and running a command line, which every room with a verb needs; they import nothing of flame but errors.
COMMAND_LINE = {"flame.cli", "flame.utils.arguments"}
# The command lines of rooms: thin, and outside the layers.
COMMANDS = {
    *("flame.config.cli", "flame.data.cli", "flame.tokenizer.cli"),
    *(f"flame.data.{room}.command" for room in ("audio", "download", "inspect", "prepare")),
}
TORCHTITAN = {
    *("flame.compat", "flame.spec", "flame.trainer", "flame.validate", "flame.metrics", "flame.train", "flame.launch"),
    *("flame.config", "flame.models", "flame.parallel", "flame.checkpoint", "flame.optim"),
    "flame.data.base_loader",
}
LINES_OF_A_FILE, LINES_OF_MODELING, LINES_OF_A_FUNCTION = 300, 400, 60

SOURCES = sorted((ROOT / "flame").rglob("*.py"))
FAMILY_FILES = sorted([*(ROOT / "custom_models").rglob("*.py"), *(ROOT / "tests/fixtures/families").rglob("*.py")])
TREES = {path: ast.parse(path.read_text()) for path in [*SOURCES, *FAMILY_FILES]}


def module_name(path: Path) -> str:
    """``flame/data/loader.py`` -> ``flame.data.loader``; a package has its folder's name."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in SOURCES}


def imports(path: Path, everywhere: bool) -> Iterator[tuple[str, int]]:
    """Full names of what a file imports, with lines; only at module level unless ``everywhere``."""
    body = ast.walk(TREES[path]) if everywhere else _at_module_level(TREES[path].body)
    package = module_name(path).split(".") if path.name == "__init__.py" else module_name(path).split(".")[:-1]
    for node in body:
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            source = ".".join([*base, *(node.module or "").split(".")]).strip(".")
            yield source, node.lineno
            yield from ((f"{source}.{alias.name}", node.lineno) for alias in node.names)


def _at_module_level(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """Statements that run when the module is imported, those inside ``if`` and ``with`` included."""
    for node in body:
        yield node
        for inner in ("body", "orelse", "finalbody"):
            if isinstance(node, (ast.If, ast.With, ast.Try)):
                yield from _at_module_level(getattr(node, inner, []))


def modules_imported(path: Path, everywhere: bool = False) -> dict[str, int]:
    """The modules of flame that a file imports, by line."""
    return {name: line for name, line in imports(path, everywhere) if name in MODULES and name != "flame"}


def layer(module: str) -> int:
    room = module.split(".")[1]
    found = [index for index, rooms in enumerate(LAYERS) if room in rooms]
    assert found, f"'{room}' is in no layer: put it into LAYERS and into the design"
    return found[0]


def within(module: str, names: set[str]) -> bool:
    return any(module == name or module.startswith(name + ".") for name in names)


@pytest.mark.parametrize("module", [name for name in MODULES if name not in {"flame", *COMMANDS}])
def test_no_module_imports_a_higher_layer(module: str) -> None:
    own = layer(module)
    for imported, line in modules_imported(MODULES[module]).items():
        assert imported in COMMAND_LINE or layer(imported) <= own, f"{MODULES[module]}:{line} imports {imported}"


@pytest.mark.parametrize("module", sorted(COMMAND_LINE))
def test_what_every_command_line_uses_imports_nothing_else(module: str) -> None:
    assert set(modules_imported(MODULES[module])) <= {"flame.errors"}


def test_torchtitan_stays_behind_its_wall() -> None:
    for module, path in MODULES.items():
        for name, line in imports(path, everywhere=True):
            if name.split(".")[0] == "torchtitan":
                assert within(module, TORCHTITAN), f"{path}:{line} imports {name}"


def test_no_module_names_a_custom_family() -> None:
    for path in SOURCES:
        for name, line in imports(path, everywhere=True):
            assert name.split(".")[0] != "custom_models", f"{path}:{line} imports {name}"


def test_modules_do_not_import_each_other_in_circles() -> None:
    graph = {module: set(modules_imported(path)) - {module} for module, path in MODULES.items()}
    done: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, " -> ".join([*path[path.index(module) :], module])
        if module in done:
            return
        for imported in sorted(graph[module]):
            # A package and its own modules: __init__ gathers them, they import each other by full name.
            if not module.startswith(imported + "."):
                visit(imported, (*path, module))
        done.add(module)

    for module in graph:
        visit(module, ())


@pytest.mark.parametrize("path", FAMILY_FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_what_an_exported_folder_carries_needs_no_flame_and_no_other_family(path: Path) -> None:
    if not path.stem.startswith(("modeling_", "configuration_")):
        return
    family = module_name(path).rpartition(".")[0]
    for name, line in imports(path, everywhere=True):
        top = name.split(".")[0]
        allowed = {"torch", "transformers", "fla", *sys.stdlib_module_names}
        assert top in allowed or name.startswith(family), f"{path}:{line} imports {name}"


@pytest.mark.parametrize("path", [*SOURCES, *FAMILY_FILES], ids=lambda path: str(path.relative_to(ROOT)))
def test_files_and_functions_stay_small(path: Path) -> None:
    lines = len(path.read_text().splitlines())
    assert lines <= (LINES_OF_MODELING if path.stem.startswith("modeling_") else LINES_OF_A_FILE)
    for node in ast.walk(TREES[path]):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            assert length <= LINES_OF_A_FUNCTION, f"{path}:{node.lineno} {node.name} has {length} lines"


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_public_name_says_what_it_is(path: Path) -> None:
    tree = TREES[path]
    assert ast.get_docstring(tree), f"{path} does not open with what it is"
    for node in tree.body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_"):
            # The sections of a job are explained key by key.
            assert ast.get_docstring(node) or _is_options(node), f"{path}:{node.lineno} {node.name}"


def _is_options(node: ast.stmt) -> bool:
    return isinstance(node, ast.ClassDef) and any("Options" in ast.unparse(base) for base in node.bases)


@pytest.mark.parametrize("path", sorted((ROOT / "configs" / "jobs").glob("*.toml")), ids=lambda path: path.stem)
def test_a_shipped_job_opens_with_what_it_is(path: Path) -> None:
    first = path.read_text().splitlines()[0]
    assert first.startswith("# ") and len(first) > 20


def test_config_modules_keep_their_annotations() -> None:
    """The parser reads types at run time."""
    for path in (ROOT / "flame" / "config").glob("*.py"):
        assert "from __future__ import annotations" not in path.read_text(), path


@pytest.mark.parametrize(
    "source, found",
    [
        ("import flame.trainer", {"flame.trainer"}),
        ("from flame import trainer", {"flame.trainer"}),
        ("from flame.data.loader import build_loader", {"flame.data.loader"}),
        ("def late():\n    import flame.trainer", set()),
        ("if True:\n    import flame.trainer", {"flame.trainer"}),
    ],
)
def test_the_reader_of_imports_sees_them(source: str, found: set[str], monkeypatch: pytest.MonkeyPatch) -> None:
    path = ROOT / "flame" / "losses.py"
    monkeypatch.setitem(TREES, path, ast.parse(source))
    assert set(modules_imported(path)) - {"flame.data"} == found
