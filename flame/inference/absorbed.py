"""Decodes multi-head latent attention (DeepSeek V2, V3 and their kin) from its compressed cache without expanding it.

transformers caches what the paper does, a latent c (``kv_lora_rank`` values) and one rotated key (``qk_rope_head_dim``)
per token and layer, but makes keys and values of all heads from the whole cache at every step. With the up-projections
absorbed into query and output (https://arxiv.org/abs/2405.04434, section 2.1.2) the latents are keys and values as they
are, shared by all heads:

    score = (W_UK^T q_nope) . c + q_rope . k_rope        o = W_UV (sum_s softmax(score)_s c_s)

Long prefills stay expanded, which is less work there.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn as nn
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.masking_utils import sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

NAME = "flame_absorbed"
_PARTS = ("kv_a_proj_with_mqa", "kv_b_proj", "kv_a_layernorm", "expand_kv")
_SIZES = ("kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim", "layer_idx")


def absorb(model: PreTrainedModel) -> bool:
    """Makes a loaded model decode in absorbed form from now on, with the same logits and the same cache.

    Layers are told by their parts (``kv_a_proj_with_mqa``, ``kv_b_proj``, ``expand_kv``), not by their family.

    Args:
        model: for inference; its weights are not changed.

    Returns:
        Whether anything was changed: False for a model without such layers, with some that look at chosen positions
        only, or in this form already.
    """
    layers = latent_layers(model)
    if not layers or model.config._attn_implementation == NAME:
        return False
    for layer in layers:
        layer.expand_kv = _unexpanded
    model.set_attn_implementation(NAME)
    return True


@contextmanager
def absorbed(model: PreTrainedModel) -> Iterator[bool]:
    """``absorb`` for the length of a ``with`` block."""
    before = model.config._attn_implementation
    changed = absorb(model)
    try:
        yield changed
    finally:
        if changed:
            for layer in latent_layers(model):
                del layer.expand_kv
            model.set_attn_implementation(before or "sdpa")


def latent_layers(model: nn.Module) -> list[Any]:
    """The attention layers whose keys and values come from a cached latent."""
    found = [module for module in model.modules() if hasattr(module, "kv_a_proj_with_mqa")]
    usable = all(all(hasattr(layer, name) for name in (*_PARTS, *_SIZES)) for layer in found)
    # Layers with an indexer attend to positions it chooses.
    return found if usable and not any(hasattr(layer, "indexer") for layer in found) else []


def _unexpanded(latent: Tensor, rotated: Tensor) -> tuple[Tensor, Tensor]:
    """Stands for a layer's ``expand_kv``: leaves the latent [B, 1, S, R] and the rotated key [B, 1, S, D] as cached."""
    return latent, rotated


def _attend(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """What transformers calls for attention: query [B, H, T, D] -> [B, T, H, V]."""
    if vars(module).get("expand_kv") is not _unexpanded:  # other layers of the model, or further ones that draft
        return ALL_ATTENTION_FUNCTIONS["sdpa"](module, query, key, value, attention_mask, scaling=scaling, **options)
    latent, rotated = key, value
    if _expanding_is_less_work(module, query.shape[2]):
        key, value = type(module).expand_kv(module, latent, rotated)
        return ALL_ATTENTION_FUNCTIONS["sdpa"](module, query, key, value, attention_mask, scaling=scaling, **options)
    return _absorbed_attention(module, query, latent, rotated, attention_mask, scaling or module.scaling), None


def _expanding_is_less_work(module: Any, positions: int) -> bool:
    """Compares multiplications per cached token and head: expanding it once, or wider products for every query."""
    rank, rotary = module.kv_lora_rank, module.qk_rope_head_dim
    expanded = module.qk_nope_head_dim + module.v_head_dim
    return rank * expanded + positions * (expanded + rotary) < positions * (2 * rank + rotary)


def _absorbed_attention(
    module: Any, query: Tensor, latent: Tensor, rotated: Tensor, mask: Tensor | None, scaling: float
) -> Tensor:
    batch, heads, positions, _ = query.shape
    rank, length = latent.shape[-1], latent.shape[2]
    up = module.kv_b_proj.weight.view(heads, -1, rank)  # [H, nope + V, R]
    up_key, up_value = up.split([module.qk_nope_head_dim, module.v_head_dim], dim=1)
    query, query_rotated = query.split([module.qk_nope_head_dim, module.qk_rope_head_dim], dim=-1)
    # All heads share the keys, so heads and positions are rows of one product.
    rows = torch.matmul(query, up_key).reshape(batch, heads * positions, rank)
    rows_rotated = query_rotated.reshape(batch, heads * positions, -1)
    latent, rotated = latent.squeeze(1), rotated.squeeze(1)  # [B, S, R], [B, S, D]
    scores = rows @ latent.transpose(1, 2) + rows_rotated @ rotated.transpose(1, 2)
    scores = (scores * scaling).view(batch, heads, positions, length)
    if mask is None and positions > 1:
        mask = scores.new_ones(positions, length, dtype=torch.bool).tril(length - positions)
    if mask is not None:
        mask = mask[..., :length]
        scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min) if mask.dtype == torch.bool else scores + mask
    weights = scores.softmax(-1, dtype=torch.float32).to(latent.dtype)
    mixed = (weights.view(batch, heads * positions, length) @ latent).view(batch, heads, positions, rank)
    return torch.matmul(mixed, up_value.transpose(1, 2)).transpose(1, 2)  # [B, T, H, V]


AttentionInterface.register(NAME, _attend)
AttentionMaskInterface.register(NAME, sdpa_mask)
