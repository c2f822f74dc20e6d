"""Lists the model families that can be trained here.

flame families [--json] [--all]
"""

import json
from dataclasses import asdict, dataclass

import torch

from flame.ops.table import KERNELS_ONLY
from flame.plugin import custom_families, fla_families, installed_families, load_plugin, transformers_families
from flame.utils.arguments import Arguments


@dataclass(frozen=True)
class Family:
    """One line of ``flame families``."""

    model_type: str
    origin: str
    heads: list[str]
    trains_here: bool
    note: str


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
        trainable = sum(family.trains_here for family in members)
        print(f"{origin}: {len(members)} families, {trainable} train here")
        if origin == "transformers" and not options.all:
            print("  any causal language model; --all names them")
            continue
        for family in members:
            print(f"  {family.model_type:<28}{', '.join(family.heads):<20}{family.note}")
    return 0


def families() -> list[Family]:
    """Every family that ``load_plugin`` finds without a ``model.plugin_path``, the first of equal names only."""
    found = [_family(name, "custom_models") for name in custom_families()]
    found += [_family(name, "installed") for name in installed_families()]
    found += [_fla_family(name) for name in fla_families()]
    found += [Family(name, "transformers", ["causal_lm"], True, "") for name in transformers_families()]
    return list({family.model_type: family for family in reversed(found)}.values())[::-1]


def _family(model_type: str, origin: str) -> Family:
    plugin = load_plugin(model_type)
    return _described(model_type, origin, sorted(plugin.auto_classes), plugin.needs_triton)


def _fla_family(model_type: str) -> Family:
    """Without importing fla, which takes seconds."""
    return _described(model_type, "fla", ["causal_lm"], KERNELS_ONLY.get(model_type, ""))


def _described(model_type: str, origin: str, heads: list[str], needs_triton: str) -> Family:
    trains = not needs_triton or torch.accelerator.is_available()
    return Family(model_type, origin, heads, trains, "" if trains else f"needs a GPU: {needs_triton}")
