"""The parts of Huginn: norm, rotary embedding, attention, gated MLP, block, and the ways to inject the input."""

from typing import Any, Protocol

import torch
import torch.nn as nn
import torch.nn.functional as F
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from .configuration_huginn_raven import RavenConfig


class Slot(Protocol):
    """Where a block leaves its keys and values; see ``modeling_raven_cache``."""

    def update(
        self, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """Takes [B, H, Q, D], gives [B, H, T, D] of all tokens so far and the mask that goes with them."""
        ...


class RMSNorm(nn.Module):
    """x / rms(x) in float32, in the dtype of x again, times a weight if it has one."""

    def __init__(self, config: RavenConfig) -> None:
        super().__init__()
        self.eps = config.norm_eps
        if config.norm_class_name == "RMSNorm_llama":
            self.weight = nn.Parameter(torch.ones(config.n_embd))
        else:
            self.register_parameter("weight", None)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        wide = hidden.float()
        normed = (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)).to(hidden.dtype)
        return normed if self.weight is None else normed * self.weight


def rotation(config: RavenConfig, position_ids: torch.Tensor) -> torch.Tensor:
    """The rotary embedding's turns [B, T, 1, D / 2] as complex numbers (https://arxiv.org/abs/2104.09864).

    Neighbouring channels are the parts of a complex number: one product turns them, and no mixed precision rounds the
    turns, as it does floating inputs of layers.
    """
    exponents = torch.arange(0, config.head_dim, 2, dtype=torch.float32, device=position_ids.device) / config.head_dim
    angles = position_ids[:, :, None, None].float() * config.rope_base**-exponents
    return torch.polar(torch.ones_like(angles), angles)


def rotated(heads: torch.Tensor, turns: torch.Tensor) -> torch.Tensor:
    """Rotates neighbouring channels (2i, 2i + 1) of ``heads`` [B, T, H, D] by the turns of their position."""
    pairs = torch.view_as_complex(heads.float().unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs * turns).flatten(-2).to(heads.dtype)


def eager_attention_forward(
    module: nn.Module,
    query: torch.Tensor,  # [B, H, Q, D]
    key: torch.Tensor,  # [B, G, T, D]
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **_: Any,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention written out; gives [B, Q, H, D] and the weights [B, H, Q, T]."""
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    scores = query @ key.transpose(-1, -2) * scaling
    if attention_mask is not None:
        scores = scores + attention_mask
    weights = F.softmax(scores, dim=-1, dtype=torch.float32).to(query.dtype)
    mixed = F.dropout(weights, dropout, module.training) @ value
    return mixed.transpose(1, 2).contiguous(), weights


class CausalSelfAttention(nn.Module):
    """Attention with one fused projection [queries; keys; values] and biases on queries and keys."""

    is_causal = True

    def __init__(self, config: RavenConfig) -> None:
        super().__init__()
        self.config = config
        self.heads, self.groups, self.head_dim = config.n_heads, config.num_key_value_heads, config.head_dim
        self.num_key_value_groups = self.heads // self.groups
        self.scaling = self.head_dim**-0.5
        sections = [heads * self.head_dim for heads in (self.heads, self.groups, self.groups)]
        self.Wqkv = nn.Linear(config.n_embd, sum(sections), bias=False)
        self.Wqkv.sections = sections  # type: ignore[assignment]
        if config.qk_bias:
            self.qk_bias = nn.Parameter(torch.zeros(2, 1, self.heads, self.head_dim))
        self.proj = nn.Linear(config.n_embd, config.n_embd, bias=False)

    def forward(
        self,
        hidden: torch.Tensor,  # [B, Q, H * D]
        turns: torch.Tensor,
        mask: torch.Tensor | None,
        slot: Slot | None,
        options: dict[str, Any],
    ) -> torch.Tensor:
        heads = self.Wqkv(hidden).unflatten(-1, (-1, self.head_dim))  # [B, Q, H + 2 G, D]
        turned, value = heads.split([self.heads + self.groups, self.groups], dim=2)
        if self.config.qk_bias:  # [2, 1, H, D], of queries and keys one after the other
            turned = turned + self.qk_bias.to(turned.dtype).view(1, 2 * self.heads, self.head_dim)
        query, key = rotated(turned, turns).transpose(1, 2).split([self.heads, self.groups], dim=1)
        value = value.transpose(1, 2)  # [B, G, Q, D]
        if slot is not None:
            key, value, mask = slot.update(key, value, mask)
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation or "eager", eager_attention_forward
        )
        mixed, _ = attend(self, query, key, value, mask, dropout=0.0, scaling=self.scaling, **options)
        return self.proj(mixed.flatten(-2))


class GatedMLP(nn.Module):
    """proj(silu(a) * b) with [a; b] = fc(x) in one projection."""

    def __init__(self, config: RavenConfig, widths_in: int = 1, widths_out: int = 1) -> None:
        super().__init__()
        self.fc = nn.Linear(widths_in * config.n_embd, 2 * config.intermediate_size, bias=False)
        self.fc.sections = [config.intermediate_size] * 2  # type: ignore[assignment]
        self.proj = nn.Linear(config.intermediate_size, widths_out * config.n_embd, bias=False)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        gate, value = self.fc(hidden).chunk(2, dim=-1)
        return self.proj(F.silu(gate) * value)


class SandwichBlock(nn.Module):
    """Attention and MLP, each with a residual, and norms where ``block_class_name`` has them."""

    def __init__(self, config: RavenConfig) -> None:
        super().__init__()
        self.kind = config.block_class_name
        self.norm_1 = RMSNorm(config)
        self.attn = CausalSelfAttention(config)
        self.norm_2 = RMSNorm(config)
        self.mlp = GatedMLP(config)
        # These begin smaller, by the square root of how many branches are added up.
        self.attn.proj.ends_branch = self.mlp.proj.ends_branch = True  # type: ignore[assignment]
        if self.kind == "SandwichBlock":
            self.norm_3 = RMSNorm(config)
            self.norm_4 = RMSNorm(config)

    def forward(
        self,
        hidden: torch.Tensor,
        turns: torch.Tensor,
        mask: torch.Tensor | None,
        slot: Slot | None,
        options: dict[str, Any],
    ) -> torch.Tensor:
        around = (turns, mask, slot, options)
        match self.kind:
            case "SandwichBlock":
                hidden = self.norm_2(hidden + self.attn(self.norm_1(hidden), *around))
                return self.norm_4(hidden + self.mlp(self.norm_3(hidden)))
            case "TransformerPreNormBlock":
                hidden = hidden + self.attn(self.norm_1(hidden), *around)
                return hidden + self.mlp(self.norm_2(hidden))
            case _:
                hidden = self.norm_1(hidden + self.attn(hidden, *around))
                return self.norm_2(hidden + self.mlp(hidden))


def make_adapter(config: RavenConfig) -> nn.Module:
    """The weights by which the embedded input enters a step; none for ``add`` and ``none``."""
    match config.injection_type:
        case "linear":
            return nn.Linear(2 * config.n_embd, config.n_embd, bias=False)
        case "ffn":
            return GatedMLP(config, widths_in=2)
        case "modulated":
            return GatedMLP(config, widths_out=2)
        case _:
            return nn.Identity()


def injected(kind: str, adapter: nn.Module, state: torch.Tensor, embedded: torch.Tensor) -> torch.Tensor:
    """What the first block of the core receives, [B, T, H], from the state and the embedded input."""
    match kind:
        case "linear" | "ffn":
            return adapter(torch.cat([state, embedded.to(state.dtype)], dim=-1))
        case "modulated":
            scale, shift = adapter(embedded).chunk(2, dim=-1)
            return state * (1 + scale) + shift
        case "add":
            return state + embedded
        case _:
            return state
