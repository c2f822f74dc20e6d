"""Chooses few layers of many such that each kind of layer survives, and cuts everything that is said per layer."""

import itertools
import re
from collections.abc import Sequence
from typing import Any

# Lists of the layers something holds for (``hybrid_layer_ids``), not of one value for each layer.
_LISTS_LAYERS = re.compile(r"(.*_)?(ids|idxs|indexes|indices|layers)")
# Counts of the layers at either end that are of another kind.
_FIRST = re.compile(
    r"(first_k_dense_replace|num_dense_layers|moe_layer_start_index|max_window_layers|num_self_decoder_layers)"
)
_LAST = re.compile(r"num_kv_shared_layers")
# Lists that have a length of their own, which may happen to be the number of layers.
_NOT_OF_LAYERS = ("multipliers", "limit", "factor", "section", "_id")
_FEW_VALUES, _MANY_KINDS = 4, 8


def keep_few_layers(values: dict[str, Any], count: int, layers: int) -> int:
    """Cuts the lists and counts of ``values`` that speak of layers, in place.

    Args:
        values: a config's values.
        count: how many layers it has.
        layers: how many must be left at least; above ``count`` the config's pattern is repeated.

    Returns:
        How many layers are left: ``layers``, or more where there are more kinds of them.
    """
    lists: dict[str, Sequence[Any]] = {
        name: value for name, value in values.items() if isinstance(value, (list, tuple)) and value
    }
    # The hybrid families of fla name the layers in the options of their attention.
    inner = [held for held in values.values() if isinstance(held, dict) and "model_type" not in held]
    holding = [
        (held, name, set(value))
        for held in (values, *inner)
        for name, value in held.items()
        if isinstance(value, (list, tuple)) and value and _lists_layers(name, value, count)
    ]
    names = {name for held, name, _ in holding if held is values}
    per_layer = {
        name: value
        for name, value in lists.items()
        if name not in names and len(value) == count and not name.endswith(_NOT_OF_LAYERS)
    }
    counts = {name: value for name, value in values.items() if isinstance(value, int) and not isinstance(value, bool)}
    first = {name: value for name, value in counts.items() if _FIRST.fullmatch(name)}
    last = {name: count - value for name, value in counts.items() if _LAST.fullmatch(name)}

    rows: list[Sequence[Any]] = [value for value in per_layer.values() if len(set(map(str, value))) <= _FEW_VALUES]
    rows += [[index in indices for index in range(count)] for _, _, indices in holding]
    rows += [[index < border for index in range(count)] for border in (*first.values(), *last.values())]
    overrides = {int(index): value for index, value in (values.get("per_layer_config") or {}).items()}
    rows += [[str(overrides.get(index, "")) for index in range(count)]] if overrides else []
    kept = _one_of_each(rows, count, max(layers, _length_of_pattern(lists, count)))

    for name, value in per_layer.items():
        values[name] = [value[index % count] for index in kept]
    for held, name, indices in holding:
        held[name] = [place for place, index in enumerate(kept) if index % count in indices]
    for name, border in first.items():
        values[name] = sum(index < border for index in kept)
    for name, border in last.items():
        values[name] = sum(index >= border for index in kept)
    if overrides:
        # Copies, since layers of one kind may share an object.
        values["per_layer_config"] = {
            str(place): dict(overrides[index % count]) for place, index in enumerate(kept) if index % count in overrides
        }
    runs = values.get("attention_types")
    if "attention_layers" in per_layer and isinstance(runs, list):  # GPT-Neo: [[kinds, how often], ...]
        values["attention_types"] = [[values["attention_layers"], 1]]
    return len(kept)


def _lists_layers(name: str, value: Sequence[Any], count: int) -> bool:
    if not _LISTS_LAYERS.fullmatch(name) or not all(type(index) is int for index in value):
        return False
    return all(low < high for low, high in itertools.pairwise([-1, *value, count]))


def _length_of_pattern(lists: dict[str, Sequence[Any]], count: int) -> int:
    """Layers that a pattern takes which the family repeats itself (``block_types`` of RecurrentGemma)."""
    patterns = [value for name, value in lists.items() if name.endswith(("types", "pattern")) and len(value) < count]
    return max((len(value) for value in patterns if all(isinstance(kind, str) for kind in value)), default=0)


def _one_of_each(rows: list[Sequence[Any]], count: int, layers: int) -> list[int]:
    """The first layer of each kind and the foremost others; together the original order, hence its pattern.

    The last layer stays, since some families demand something of it; layers called hybrid share weights with each
    other, so there are two of them.
    """
    kinds = [str([row[index] for row in rows]) for index in range(count)]
    places: dict[str, list[int]] = {}
    for index, kind in enumerate(kinds):
        places.setdefault(kind, []).append(index)
    if len(places) > _MANY_KINDS:  # each value once instead of each combination
        places = {}
        for index, (place, row) in itertools.product(range(count), enumerate(rows)):
            places.setdefault(f"{place} {row[index]}", []).append(index)
    kept = {count - 1}
    for kind, found in places.items():
        if not kept & set(found):
            kept.add(found[0])
        if "hybrid" in kind:
            kept.update(found[:2])
    for index in itertools.count():
        if len(kept) >= layers:
            break
        kept.add(index)
    return sorted(kept)
