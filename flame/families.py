"""Lists the model families that can be trained here, and what each of them supports.

flame families [--json] [--all]
"""

import json
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch

from flame.config import locate
from flame.config.files import shipped
from flame.ops.table import KERNELS_ONLY, WITHOUT_CACHE
from flame.plugin import (
    ModelPlugin,
    custom_families,
    fla_families,
    installed_families,
    load_plugin,
    load_task,
    tasks,
    transformers_families,
)
from flame.utils.arguments import Arguments

# Columns of the pages that `tests.parallel.matrix` writes from runs -> the names of `ModelPlugin.refuses`.
COLUMNS = {"FSDP": "data", "TP": "tensor", "PP": "pipeline", "CP": "context", "EP": "expert", "packs": "varlen"}
PAGES = {"transformers": "parallelism_matrix.md", "fla": "fla_families.md", "custom_models": "custom_families.md"}
_DOCUMENTS = (Path(__file__).resolve().parents[1] / "docs", Path(sys.prefix) / "share" / "flame" / "docs")


@dataclass(frozen=True)
class Support:
    """Whether a family trains in some way."""

    works: bool | None
    """None where no run has tried it, or it means nothing for the family (experts of a model without)."""
    reason: str = ""
    """Why not."""


@dataclass(frozen=True)
class Family:
    """One line of ``flame families``."""

    model_type: str
    origin: str
    heads: list[str]
    trains_here: bool
    """Whether this machine has the device it needs."""
    note: str
    """Why it does not train."""
    objective: str = "autoregressive"
    tasks: list[str] = field(default_factory=list)
    """The tasks that train its objective."""
    decodes_with_cache: bool | None = True
    """None where there is nothing to decode token by token."""
    supports: Mapping[str, Support] = field(default_factory=dict)
    """By what a job may ask for: a value of ``COLUMNS``, ``compile``."""


def main(argv: list[str]) -> int:
    """Runs ``flame families``."""
    parser = Arguments("flame families", (__doc__ or "").strip())
    parser.add_argument("--json", action="store_true", help="a list of objects")
    parser.add_argument("--all", action="store_true", help="every family of transformers by name, not their number")
    options = parser.parse_args(argv)
    found = families()
    if options.json:
        print(json.dumps([asdict(family) for family in found], indent=1))
        return 0
    for origin in ("custom_models", "installed", "fla", "transformers"):
        members = [family for family in found if family.origin == origin]
        if not members:
            continue
        trainable = sum(family.trains_here and not family.note for family in members)
        print(f"{origin}: {len(members)} families, {trainable} train here")
        if origin == "transformers" and not options.all:
            print(f"  any causal language model; --all names them\n  {_totals(members)}\n  those with named shapes:")
            members = [family for family in members if family.model_type in _shaped()]
        print("\n".join(_table(members)), end="\n\n")
    return 0


def families() -> list[Family]:
    """Every family that ``load_plugin`` finds without a ``model.plugin_path``, the first of equal names only."""
    pages = {origin: measured(page) for origin, page in PAGES.items()}
    trained_by = _trained_by()

    def described(plugin: ModelPlugin, origin: str) -> Family:
        trains = not plugin.needs_triton or torch.accelerator.is_available()
        tried = pages.get(origin, {}).get(plugin.model_type, {})
        note = "" if trains else f"needs a GPU: {plugin.needs_triton}"
        if tried and tried["data"].works is False:
            note = tried["data"].reason
        refused = {what: Support(False, reason) for what, reason in plugin.refuses.items()}
        return Family(
            plugin.model_type,
            origin,
            sorted(plugin.auto_classes),
            trains,
            note,
            plugin.objective,
            trained_by.get(plugin.objective, []),
            plugin.decodes_with_cache if plugin.features is None else None,
            {**dict.fromkeys(COLUMNS.values(), Support(None)), **tried, **refused},
        )

    found = [described(load_plugin(name), "custom_models") for name in custom_families()]
    found += [described(load_plugin(name), "installed") for name in installed_families()]
    found += [described(_fla_plugin(name), "fla") for name in fla_families()]
    found += [described(ModelPlugin(name), "transformers") for name in transformers_families()]
    first: dict[str, Family] = {}
    for family in found:
        first.setdefault(family.model_type, family)
    return list(first.values())


def _shaped() -> set[str]:
    """The families that a shipped config is of."""
    shapes = [locate(path) for path in shipped() if path.suffix == ".json"]
    return {json.loads(path.read_text()).get("model_type", "") for path in shapes}


def measured(page: str) -> dict[str, dict[str, Support]]:
    """What a page of ``tests.parallel.matrix`` says, by family; nothing if the page is not there."""
    path = next((folder / page for folder in _DOCUMENTS if (folder / page).is_file()), None)
    if path is None:
        return {}
    text = path.read_text(encoding="utf-8")
    reasons = dict(re.findall(r"^(\d+)\. (.*)$", text, re.M))
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|")]
    titles: list[str] = next((row for row in rows if row[0] == "family"), [])
    found: dict[str, dict[str, Support]] = {}
    for row in rows[rows.index(titles) + 2 :] if titles else []:
        # "CP 2 all-to-all" is another way to do what the column before it does.
        cells = {
            COLUMNS[name]: cell
            for title, cell in zip(titles, row, strict=True)
            if (name := title.removesuffix(" 2")) in COLUMNS
        }
        lacking = row[1] if row[1].startswith("does not train here") else ""
        found[row[0]] = {
            name: Support(False, lacking) if lacking else _cell(cell, reasons) for name, cell in cells.items()
        }
    return found


def _cell(cell: str, reasons: Mapping[str, str]) -> Support:
    if not cell:
        return Support(None)
    number = re.search(r"\d+$", cell)
    return Support(cell in ("=", "≈"), reasons.get(number[0], "") if number else "")


def _trained_by() -> dict[str, list[str]]:
    """The tasks that train each objective."""
    found: dict[str, list[str]] = {}
    for name in tasks():
        for objective in load_task(name).objectives:  # type: ignore[attr-defined]
            found.setdefault(objective, []).append(name)
    return found


def _fla_plugin(model_type: str) -> ModelPlugin:
    """Without importing fla, which takes seconds."""
    needs_triton, cached = KERNELS_ONLY.get(model_type, ""), model_type not in WITHOUT_CACHE
    return ModelPlugin(model_type, needs_triton=needs_triton, decodes_with_cache=cached, origin="fla")


def _table(members: Sequence[Family]) -> list[str]:
    """A line for each family, and the reasons its marks refer to."""
    reasons: dict[str, int] = {}
    width = max(len(", ".join(family.tasks)) for family in members) + 2
    wide = max(len(", ".join(family.heads)) for family in members) + 2
    columns = "".join(f"{name:<7}" for name in COLUMNS)
    lines = [f"  {'family':<26}{'objective':<18}{'task.name':<{width}}{'heads':<{wide}}{columns}cache"]
    for family in members:
        marks = ["" if family.note else _mark(family.supports[what], reasons) for what in COLUMNS.values()]
        cache = {True: "yes", False: "no", None: ""}[family.decodes_with_cache]
        line = f"  {family.model_type:<26}{family.objective:<18}{', '.join(family.tasks):<{width}}"
        line += f"{', '.join(family.heads):<{wide}}"
        lines.append(f"{line}{''.join(f'{mark:<7}' for mark in marks)}{cache:<7}{family.note}".rstrip())
    return lines + [f"  {number}: {reason}" for reason, number in reasons.items()]


def _mark(support: Support, reasons: dict[str, int]) -> str:
    if support.works is None:
        return ""
    if support.works:
        return "yes"
    return f"no {reasons.setdefault(support.reason, len(reasons) + 1)}" if support.reason else "no"


def _totals(members: list[Family]) -> str:
    works = {name: sum(bool(family.supports[what].works) for family in members) for name, what in COLUMNS.items()}
    tried = sum(any(support.works is not None for support in family.supports.values()) for family in members)
    return f"tried: {tried}; equal to one process: " + ", ".join(f"{name} {n}" for name, n in works.items() if n)
