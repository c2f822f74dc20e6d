"""Scales the sizes of a config down; flags are never touched, so that the small model takes the large one's code path.

Sizes are recognised by the words in their names, since every family spells them in its own way. Where sizes depend on
each other (heads divide the width, a state-space model's heads times their dimension are its inner width) the
proportions of the large config are kept.
"""

import math
import re
from collections.abc import Iterator
from typing import Any

from transformers import PreTrainedConfig

from flame.models.layer_kinds import keep_few_layers

# What a size is, by its name; the first that matches.
_ROLES = {
    role: re.compile(names)
    for role, names in {
        "layers": r"((num_)?(hidden_|encoder_|decoder_)?layers|n_layers?|num_layers_per_stack|num_blocks|depth)",
        "top_k": r"(.*experts_per_tok(en)?|moe_?top_?k|moe_k|top_k_experts)",
        "experts": r"((num|n|moe_num)_(?!shared|experts_per).*experts|(moe_)?num_experts|.*expert_num)",
        "expert_groups": r"(n_group|num_expert_groups?)",
        "top_groups": r"topk_group",
        "groups": r"(.*_)?(num_(global_)?key_value_heads|kv_(n_)?heads|num_query_groups|num_key_heads|n_?groups)",
        "heads": r"(.*_)?(num_attention_heads|attention_heads|n_heads?|num_heads|mamba_heads|num_v(alue)?_heads)",
        "head_dim": r"(.*_)?(head_dim|headdim|head_size|d_head|dim_head|kv_channels|d_kv|expand_ratio)",
        "rotary_dim": r"rotary_dim",
        "ffn": r"(d_inner|n_inner|.*intermediate_size.*|.*ffn_(hidden_size|dim)|d_?ff|dim_ff|feed_forward_size)",
        "width": r"(.*hidden_size.*|n_embd|d_model|dim|dim_fx|.*emb\w*_(dim|size)|.*_width|.*d_ssm|value_dim)",
        "vocabulary": r"(.*vocab_size.*|.*_vocab)",
        "rank": r"(.*_rank|.*lowrank)",
        "state": r"(.*state_size|.*d_state)",
        "positions": r"(n_positions|n_ctx|max_seq_len|(?!original).*max_.*position.*|context_length|rel_extent)",
        "window": r"(.*sliding_window(_size)?|.*window_(size|len)|local_attention)",
        "chunk": r"(.*chunk_(size|length)|.*block_size|index_topk|.*_budget)",
        "period": r".*(_period|_every_n_layers|_interval|_(layer|sparse)_step|window_pattern|layer_group_size)",
    }.items()
}
# What sizes become whose value depends on no other; those of latent attention by name.
_SMALL = {
    "vocabulary": 256,
    "rank": 16,
    "state": 16,
    "positions": 256,
    "window": 8,
    "chunk": 16,
    "top_k": 2,
    "expert_groups": 2,
    "top_groups": 1,
    "q_lora_rank": 32,
    "kv_lora_rank": 16,
}
# What special tokens are called in a vocabulary that is this small.
TOKEN_IDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_WIDTH, _HEADS, _EXPERTS, _LAYERS, _ROTARY = 64, 4, 4, 2, 8
_SCOPES = ("linear", "mamba", "swa", "index", "encoder", "decoder")
_Slot = tuple[dict[str, Any], str]


def small_values(config: PreTrainedConfig, layers: int = 0, divisor: int = 1) -> dict[str, Any]:
    """The values of ``config`` with every known size scaled down; arguments as in ``flame.models.config.shrink``."""
    values = config.to_dict()
    apart = set()
    for name, value in values.items():
        inner = getattr(config, name, None) if isinstance(value, dict) else None
        if isinstance(inner, PreTrainedConfig) and _layer_counts(inner, value):
            small = small_values(inner, layers, divisor)
            values[name] = small | {token: index for token, index in TOKEN_IDS.items() if token in small}
            apart.add(name)
    few = layers
    names = _layer_counts(config, values)
    # Some families derive the number from their list of layers.
    if count := values[names[0]] if names else getattr(config, "num_hidden_layers", 0):
        few = keep_few_layers(values, count, max(layers, min(_LAYERS, count)))
        # A family that runs its layers more than once counts the runs too.
        runs = next((count // values[name] for name in names if "_per_" in name), 1)
        values.update({name: few * runs if name == names[0] else few for name in names})
    _Sizes(config, values, apart, few, divisor).scale()
    return values


def _layer_counts(config: PreTrainedConfig, values: dict[str, Any]) -> list[str]:
    """The names under which a config counts its layers, the one transformers takes first."""
    names = [name for name in values if _is_size(values[name]) and _role(config, name) == "layers"]
    return sorted(names, key=lambda name: name != config.attribute_map.get("num_hidden_layers", "num_hidden_layers"))


def _role(config: PreTrainedConfig, name: str) -> str:
    """What a size is, by its name or else by the one that transformers gives it in all families."""
    common = [common for common, own in config.attribute_map.items() if own == name]
    for spelling in (name, *common):
        for role, pattern in _ROLES.items():
            if pattern.fullmatch(spelling.removesuffix("_per_layer")):
                return role
    return ""


def _is_size(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


class _Sizes:
    """The sizes of one config by what they are, and their scaling in place."""

    def __init__(
        self, config: PreTrainedConfig, values: dict[str, Any], apart: set[str], layers: int, divisor: int
    ) -> None:
        self.values, self.layers, self.divisor = values, layers, divisor
        self.slots: dict[str, list[_Slot]] = {role: [] for role in ("", *_ROLES)}
        for slot in _slots({name: value for name, value in values.items() if name not in apart}, values):
            self.slots[_role(config, slot[1])].append(slot)
        self.heads: dict[str, tuple[int, int]] = {}  # scope -> (before, after)
        self.groups: dict[str, tuple[int, int]] = {}
        self.width = (0, 0)

    def scale(self) -> None:
        """Scales all sizes, those first on which others depend."""
        self._scale_heads()
        self._scale_widths()
        self._scale_head_dims()
        for role, slots in self.slots.items():
            for held, name in slots:
                small = _SMALL.get(name, _SMALL.get(role, 0))
                if small:
                    _change(held, name, lambda value, small=small: min(value, small))
        for held, name in self.slots["vocabulary"]:
            _change(held, name, lambda value: _up(value, self.divisor) if value > 8 else value)
        for held, name in self.slots["experts"]:
            _change(held, name, lambda value: _up(min(value, max(_EXPERTS, self.divisor)), self.divisor))
        for held, name in self.slots["period"]:
            _change(held, name, lambda value: min(value, max(_LAYERS, self.layers)))
            offset = name.replace("_period", "_offset")
            if offset != name and _is_size(held.get(offset)):
                held[offset] = min(held[offset], held[name] - 1)

    def _scale_heads(self) -> None:
        for scope in {self._scope(name) for role in ("heads", "groups") for _, name in self.slots[role]}:
            heads, groups = (
                [slot for slot in self.slots[role] if self._scope(slot[1]) == scope] for role in ("heads", "groups")
            )
            before = _value((heads or groups)[0])
            after, fewer = _few_heads(before, {_value(slot) for slot in groups}, self.divisor)
            self.heads[scope] = (before, after)
            if groups:
                self.groups[scope] = (_value(groups[0]), fewer[_value(groups[0])])
            # Overrides of single layers hold heads and groups of their own; one group per head stays that.
            single = [slot for slot in groups if slot[0].get(slot[1]) in [slot[0].get(name) for _, name in heads]]
            for held, name in groups:
                small = {_value((held, name)): after} if (held, name) in single else fewer
                _change(held, name, lambda value, small=small: small[value])
            for held, name in heads:
                _change(held, name, lambda value, full=before, few=after: few * 2 if value > full else few)

    def _scope(self, name: str) -> str:
        """Heads, their groups and dimensions that belong together: those of one kind of mixer."""
        scope = next((scope for scope in _SCOPES if scope in name), "")
        if not scope and name == "n_groups" and "mamba_num_heads" in self.values:
            return "mamba"
        return scope

    def _scale_widths(self) -> None:
        """The main width first, such that all heads divide it; the others keep their proportion to it."""
        slots = sorted(self.slots["width"], key=lambda slot: slot[1] not in ("hidden_size", "d_model", "n_embd"))
        if not slots:
            return
        before = _value(slots[0])
        heads = [after for count, after in self.heads.values() if before % count == 0]
        step = math.lcm(self.divisor, *(8 * count for count in heads))
        after = _up(min(before, _WIDTH), step)
        self.width = (before, after)
        for held, name in slots:
            _change(held, name, lambda value: max(_up(value * after // before, max(8, self.divisor)), 8))
        for held, name in self.slots["ffn"]:
            small = 32 if "moe" in name or "expert" in name else 96 if self.slots["experts"] else 128
            _change(held, name, lambda value, small=small: _up(min(value, small), self.divisor))

    def _scale_head_dims(self) -> None:
        before, after = (0, 0)
        if rotary := self.values.get("qk_rope_head_dim") or 0:
            before, after = rotary, min(rotary, _ROTARY)
        elif "" in self.heads and self.width[0]:
            before, after = (size // count for size, count in zip(self.width, self.heads[""], strict=True))
        for held, name in sorted(self.slots["head_dim"], key=lambda slot: slot[1] != "head_dim"):
            dim, scope = _value((held, name)), self._scope(name)
            counts = self.groups if "key" in name and scope in self.groups else self.heads
            full, few = counts.get(scope, (0, 0))
            if before and (scope == "index" or rotary):
                # What is rotated alike keeps its proportion: the parts of latent attention, and what chooses keys.
                small = max(1, dim * after // before)
            elif full and self.width[0]:
                small = _proportional(dim * full * self.width[1], self.width[0] * few)
            else:
                small = min(dim, 16)
            _change(held, name, lambda _, small=small: small)
            if name == "head_dim" and held is self.values:
                before, after = dim, small
        if "qk_head_dim" in self.values and rotary:
            self.values["qk_head_dim"] = self.values["qk_nope_head_dim"] + self.values["qk_rope_head_dim"]
        self._scale_rotation(before, after)

    def _scale_rotation(self, before: int, after: int) -> None:
        """Whatever counts the dimensions of a head that are rotated keeps its share of the head."""
        if not before or before == after:
            return
        for held, name in self.slots["rotary_dim"]:
            _change(held, name, lambda value: max(2, value * after // before // 2 * 2))
        for held, name in self.slots[""]:
            value = held[name]
            if name in ("short_factor", "long_factor") and isinstance(value, list):
                held[name] = value[: max(1, len(value) * after // before)]
            elif name == "mrope_section":
                parts = [part * after // before for part in value]
                held[name] = [sum(value) * after // before - sum(parts[1:]), *parts[1:]]


def _slots(values: dict[str, Any], outer: dict[str, Any]) -> Iterator[_Slot]:
    """Where sizes stand, in a config and in dictionaries within it."""
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _slots(value, value)
        elif isinstance(name, str) and (_is_size(value) or isinstance(value, list)):
            yield outer, name


def _value(slot: _Slot) -> int:
    value = slot[0][slot[1]]
    return value if isinstance(value, int) else max((item for item in value if _is_size(item)), default=1)


def _change(held: dict[str, Any], name: str, rule: Any) -> None:
    """Applies a rule to a size, or to each of a list of sizes."""
    value = held[name]
    held[name] = [rule(item) if _is_size(item) else item for item in value] if isinstance(value, list) else rule(value)


def _few_heads(heads: int, groups: set[int], divisor: int) -> tuple[int, dict[int, int]]:
    """The fewest heads, and groups of them for each count of groups, that divide by what the large ones divide by."""
    for few in range(min(heads, _HEADS), 1024):
        fewer = {
            count: next(
                (small for small in range(min(count, 2), few + 1) if _alike(few, small, heads, count, divisor)), 0
            )
            for count in groups
        }
        fewer.update({heads: few} if heads in groups else {})
        if math.gcd(few, divisor) == math.gcd(heads, divisor) and all(fewer.values()):
            return few, fewer
    raise ValueError(f"{heads} heads in {groups} groups cannot be scaled down")


def _alike(few: int, small: int, heads: int, groups: int, divisor: int) -> bool:
    divides = few % small == 0 or heads % groups != 0
    return divides and (few == small) == (heads == groups) and math.gcd(small, divisor) == math.gcd(groups, divisor)


def _proportional(product: int, count: int) -> int:
    """A head's dimension: in proportion where that is a number kernels take, else the next power of two."""
    exact, rest = divmod(product, count)
    usable = not rest and (exact % 8 == 0 or exact & (exact - 1) == 0)
    return exact if usable and exact > 1 else max(4, 1 << exact.bit_length())


def _up(value: int, step: int) -> int:
    return -(-value // step) * step
