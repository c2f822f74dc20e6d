"""How fla's token mixers and MLPs are split: by heads, or by channels where there are none.

A unit's forward runs on any share of its heads, given the rows of its projections that make those heads and the
columns of its output projection that read them; the outputs of all shares add up to the whole. So tensor parallelism
gives each rank a share of the weights, and context parallelism a share of the heads over the whole sequence.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch.nn as nn

Sections = tuple[tuple[int, bool], ...]

_PROJECTIONS = r"(?:q|k|v|g|f|i|r|s|a|b|bt|w|gk|gs|o_gate|a_atk|b_atk)_proj(?:\.[12])?\.(?:weight|bias)"
_PER_HEAD = r"(?:A_log|dt_bias|A_log_atk|dt_bias_atk|log_atk_scale|decay|D|lambda_params|bonus|k_k|k_a|r_k|r_bias)"
_CONVOLUTIONS = r"[a-z]_conv1d\.(?:weight|bias)"


@dataclass(frozen=True)
class Unit:
    """Which parameters and numbers of a module belong to its heads. What no pattern names is whole on every rank."""

    columns: str = "|".join((_PROJECTIONS, _CONVOLUTIONS, _PER_HEAD))
    """Parameters (regular expression over their names) whose first dimension lists heads or channels."""

    rows: str = r"o_proj\.weight"
    """Parameters whose last dimension does."""

    whole: str = r"[a-z]_proj\.0\..*"
    """Exceptions to ``columns``: the first of two low-rank projections."""

    packed: Mapping[str, Callable[[Any], Sections]] = field(default_factory=dict)
    """Parameters whose first dimension packs several projections: from the module, the length of each section and
    whether it lists channels. Ranks keep them whole and use their share of each section."""

    sums: tuple[str, ...] = ()
    """Linear submodules within the unit that read all channels: their outputs are summed over the shares."""

    single: tuple[str, ...] = ("num_householder", "n_groups")
    """Attributes that must be 1 for a unit to be split: otherwise parameters pack more than heads."""

    counts: tuple[str, ...] = ("num_heads", "num_kv_heads", "num_v_heads", "key_dim", "value_dim")
    """Attributes (dotted where a submodule has them) that count heads or channels, as far as the module has them."""

    arguments: tuple[str, ...] = ()
    """Keyword arguments whose last dimension lists channels."""

    wide_norm: str = ""
    """The submodule that normalises over all heads at once, and so needs the mean over all shares."""

    plain: tuple[str, str] | None = None
    """A method that runs fused kernels, which know nothing of shares, and the one to run in its place."""

    mixes: bool = True
    """Whether positions see each other in it."""

    def kind(self, name: str) -> str:
        """How a parameter is split: ``packed``, ``columns``, ``rows``, ``whole``, or ``offset``, the bias of rows."""
        if name in self.packed:
            return "packed"
        if name.endswith(".bias") and re.fullmatch(self.rows, f"{name.removesuffix('bias')}weight"):
            return "offset"
        if re.fullmatch(self.rows, name):
            return "rows"
        columns = re.fullmatch(self.columns, name) and not re.fullmatch(self.whole, name)
        return "columns" if columns else "whole"


def _gate_and_input(mixer: Any) -> Sections:
    return (mixer.intermediate_size, True), (mixer.intermediate_size, True)


def _convolved(mixer: Any) -> Sections:
    """Mamba2's keys and queries (B and C) belong to groups that all heads share."""
    return (mixer.intermediate_size, True), (2 * mixer.n_groups * mixer.ssm_state_size, False)


def _projected(mixer: Any) -> Sections:
    return (mixer.intermediate_size, True), *_convolved(mixer), (mixer.num_heads, True)


_HEADS = Unit()
_NORMED_HEADS = Unit(  # whose query and key norms are group norms over all heads
    rf"{_HEADS.columns}|[qk]_norm\.(?:weight|bias)",
    counts=(*_HEADS.counts, "q_norm.num_groups", "k_norm.num_groups"),
)
_WIDE = Unit(columns=f"{_HEADS.columns}|g_norm\\.weight", wide_norm="g_norm")
_RWKV_COUNTS = ("num_heads", "key_dim", "value_dim", "g_norm.num_groups")

UNITS: dict[str, Unit] = {
    "fla.modules.mlp:GatedMLP": Unit(r"(?:gate|up)_proj\.weight", r"down_proj\.weight", counts=(), mixes=False),
    "fla.layers.abc:ABCAttention": _HEADS,
    "fla.layers.attn:Attention": _HEADS,
    "fla.layers.comba:Comba": _HEADS,
    "fla.layers.delta_net:DeltaNet": _HEADS,
    "fla.layers.deltaformer:DeltaFormerAttention": _HEADS,
    "fla.layers.forgetting_attn:ForgettingAttention": _NORMED_HEADS,
    "fla.layers.gated_deltanet:GatedDeltaNet": _HEADS,
    "fla.layers.gated_deltaproduct:GatedDeltaProduct": _HEADS,
    "fla.layers.gdn2:GatedDeltaNet2": _HEADS,
    "fla.layers.gla:GatedLinearAttention": _HEADS,
    "fla.layers.gsa:GatedSlotAttention": _WIDE,
    "fla.layers.hgrn:HGRNAttention": Unit(_WIDE.columns, arguments=("lower_bound",), wide_norm="g_norm"),
    "fla.layers.hgrn2:HGRN2Attention": Unit(_WIDE.columns, arguments=("lower_bound",), wide_norm="g_norm"),
    "fla.layers.kda:KimiDeltaAttention": _HEADS,
    "fla.layers.lightnet:LightNetAttention": _WIDE,
    "fla.layers.linear_attn:LinearAttention": _HEADS,
    "fla.layers.mamba:Mamba": Unit(
        r"conv1d\..*|dt_proj\..*|A_log|D",
        rows=r"(?:out|x)_proj\.weight",
        packed={"in_proj.weight": _gate_and_input, "in_proj.bias": _gate_and_input},
        sums=("x_proj",),
        counts=("intermediate_size",),
        plain=("cuda_kernels_forward", "slow_forward"),
    ),
    "fla.layers.mamba2:Mamba2": Unit(
        r"A_log|D|dt_bias|norm\.weight",
        rows=r"out_proj\.weight",
        packed={
            "in_proj.weight": _projected,
            "in_proj.bias": _projected,
            "conv1d.weight": _convolved,
            "conv1d.bias": _convolved,
        },
        wide_norm="norm",
        counts=("num_heads", "intermediate_size"),
        plain=("cuda_kernels_forward", "torch_forward"),
    ),
    "fla.layers.mesa_net:MesaNet": _HEADS,
    "fla.layers.mla:MultiheadLatentAttention": Unit(
        r"(?:q|kv)_proj\.2\.weight|q_proj\.weight", counts=("num_heads",), whole=r"[a-z]+_proj\.[01]\..*"
    ),
    "fla.layers.moba:MoBA": _HEADS,
    "fla.layers.mom:MomAttention": Unit(
        rf"(?:q|g)_proj\.weight|[kvab]_proj(?:\.\d+)?\.weight|shared_[kvab]\.weight|{_CONVOLUTIONS}|{_PER_HEAD}",
        whole="-",
    ),
    "fla.layers.nsa:NativeSparseAttention": _HEADS,
    "fla.layers.multiscale_retention:MultiScaleRetention": _HEADS,
    "fla.layers.parallax:Parallax": _HEADS,
    "fla.layers.path_attn:PaTHAttention": _HEADS,
    "fla.layers.precond_gated_deltanet:PrecondGatedDeltaNet": _HEADS,
    "fla.layers.precond_kda:PrecondKDA": _HEADS,
    "fla.layers.raven:Raven": _WIDE,
    "fla.layers.rwkv6:RWKV6Attention": Unit(
        r"[rkvg]_proj\.linear\.weight|w_proj\.linear\.lora\.2\..*|bonus|g_norm\..*", counts=_RWKV_COUNTS
    ),
    "fla.layers.rwkv7:RWKV7Attention": Unit(
        r"[rkv]_proj\.weight|[wvag]_lora\.lora\.2\..*|k_k|k_a|r_k|g_norm\..*", counts=_RWKV_COUNTS
    ),
    "fla.layers.stickbreaking_attn:StickBreakingAttention": _HEADS,
    "fla.layers.wall_attn:WallAttention": _NORMED_HEADS,
    "fla.models.rwkv6.modeling_rwkv6:RWKV6FeedForward": Unit(r"key\.linear\.weight", r"value\.weight", counts=()),
    "fla.models.rwkv7.modeling_rwkv7:RWKV7FeedForward": Unit(r"key\.weight", r"value\.weight", counts=()),
}
"""fla's modules by ``module:class``."""


def unit_of(module: nn.Module) -> Unit | None:
    """How a module is split; None if it is not known."""
    return next((UNITS[key] for key in map(_path, type(module).__mro__) if key in UNITS), None)


def made_of_units(model: nn.Module) -> bool:
    """True for the families of fla, which are split by their units and not by a plan of transformers."""
    return any(cls.__module__.startswith("fla.") for cls in type(model).__mro__)


def units_of(model: nn.Module) -> dict[str, Unit]:
    """The units of a model by their full names."""
    found = {name: unit_of(module) for name, module in model.named_modules()}
    return {name: unit for name, unit in found.items() if unit is not None}


def _path(cls: type) -> str:
    return f"{cls.__module__}:{cls.__name__}"
