from typing import Any

import torch.nn as nn
from torch import Tensor
from transformers import Cache, DynamicCache, GenerationMixin, PreTrainedModel
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.utils.generic import can_return_tuple, merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from .configuration_sba import SBAConfig
from .modeling_stick_breaking import Documents, stick_breaking

CACHE = "cache" if "cache" in CausalLMOutputWithPast.__dataclass_fields__ else "past_key_values"
"""What transformers calls the cache that outputs hold: ``cache`` since 5.24."""


class SBAAttention(nn.Module):
    """Projections around ``stick_breaking``, [B, T, D] in and out."""

    def __init__(self, config: SBAConfig, layer_idx: int):
        super().__init__()
        self.layer_idx = layer_idx
        self.head_dim = config.hidden_size // config.num_heads
        self.attend_current, self.add_remainder = config.attend_current, config.add_remainder
        width = config.num_kv_heads * self.head_dim
        self.q_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=config.qkv_bias)
        self.k_proj = nn.Linear(config.hidden_size, width, bias=config.qkv_bias)
        self.v_proj = nn.Linear(config.hidden_size, width, bias=config.qkv_bias)
        self.o_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=False)

    def forward(self, hidden: Tensor, documents: Documents | None, cache: Cache | None) -> Tensor:
        q, k, v = (
            project(hidden).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)  # [B, H, T, D]
            for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        own = v
        if cache is not None:
            k, v = cache.update(k, v, self.layer_idx)
        o, left = stick_breaking(q, k, v, documents, self.attend_current)
        if self.add_remainder:
            o = o + left.unsqueeze(-1) * own.repeat_interleave(q.shape[1] // own.shape[1], 1)
        return self.o_proj(o.transpose(1, 2).flatten(2))


class SBAMLP(nn.Module):
    """The gated MLP, [B, T, D] in and out."""

    def __init__(self, config: SBAConfig):
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)
        self.act_fn = ACT2FN[config.hidden_act]

    def forward(self, hidden: Tensor) -> Tensor:
        return self.down_proj(self.act_fn(self.gate_proj(hidden)) * self.up_proj(hidden))


class SBABlock(GradientCheckpointingLayer):
    """Attention and MLP, each after a norm and with a residual."""

    def __init__(self, config: SBAConfig, layer_idx: int):
        super().__init__()
        self.attn_norm = nn.RMSNorm(config.hidden_size, eps=config.norm_eps)
        self.attn = SBAAttention(config, layer_idx)
        self.mlp_norm = nn.RMSNorm(config.hidden_size, eps=config.norm_eps)
        self.mlp = SBAMLP(config)

    def forward(self, hidden: Tensor, documents: Documents | None = None, cache: Cache | None = None) -> Tensor:
        hidden = hidden + self.attn(self.attn_norm(hidden), documents, cache)
        return hidden + self.mlp(self.mlp_norm(hidden))


class SBAPreTrainedModel(PreTrainedModel):
    """What transformers wants to know of the family."""

    config_class = SBAConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ["SBABlock"]
    _skip_keys_device_placement = ["cache", "past_key_values"]
    _can_record_outputs = {"hidden_states": SBABlock}


class SBAModel(SBAPreTrainedModel):
    """Embedding, blocks and last norm: token ids [B, T] to hidden states [B, T, D]."""

    def __init__(self, config: SBAConfig):
        super().__init__(config)
        self.embeddings = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(SBABlock(config, layer_idx) for layer_idx in range(config.num_hidden_layers))
        self.norm = nn.RMSNorm(config.hidden_size, eps=config.norm_eps)
        self.gradient_checkpointing = False
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.embeddings

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.embeddings = value

    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        cache: Cache | None = None,
        **kwargs,
    ) -> BaseModelOutputWithPast:
        """Args:
        input_ids: [B, T], or ``inputs_embeds`` [B, T, D] in their place.
        attention_mask: [B, S] 1 where there is a token and 0 where there is padding, cached tokens included.
        position_ids: [B, T] that restart where a packed document begins; they say nothing else.
        past_key_values: earlier tokens; transformers calls it ``cache`` since 5.24.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give either input_ids or inputs_embeds")
        hidden = self.embeddings(input_ids) if inputs_embeds is None else inputs_embeds
        cache = past_key_values if cache is None else cache
        if use_cache and cache is None:
            cache = DynamicCache(config=self.config)
        if cache is not None and cache.is_compileable:
            raise ValueError("stick-breaking attention needs a cache that grows; leave cache_implementation out")
        seen = 0 if cache is None else cache.get_seq_length()
        documents = _documents(attention_mask, position_ids, hidden.shape[1], seen)
        for layer in self.layers:
            hidden = layer(hidden, documents=documents, cache=cache)
        held: Any = {CACHE: cache}
        return BaseModelOutputWithPast(last_hidden_state=self.norm(hidden), **held)


def _documents(mask: Tensor | None, positions: Tensor | None, length: int, seen: int) -> Documents | None:
    """What a mask, or else positions, say about ``length`` tokens after ``seen`` cached ones."""
    if mask is not None:
        if mask.dim() != 2 or mask.shape[1] != seen + length:
            raise ValueError(
                f"attention_mask {tuple(mask.shape)} must be [batch, {seen + length}], cached tokens included"
            )
        mask = mask.bool()
        starts = (mask[:, 1:] & ~mask[:, :-1]).sum(1) + mask[:, 0]
        return Documents.of(mask.long(), whole=bool((starts <= 1).all()))
    if positions is None or seen:
        return None
    return Documents.of((positions.diff(prepend=positions[:, :1] - 1) != 1).cumsum(1))


class SBAForCausalLM(SBAPreTrainedModel, GenerationMixin):
    """The model with its head: logits [B, T, V]."""

    _tied_weights_keys = {"lm_head.weight": "model.embeddings.weight"}
    _tp_plan = {"lm_head": "colwise_gather_output"}

    def __init__(self, config: SBAConfig):
        super().__init__(config)
        self.model = SBAModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        cache: Cache | None = None,
        **kwargs,
    ) -> CausalLMOutputWithPast:
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            cache=past_key_values if cache is None else cache,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            **kwargs,
        )
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(outputs.last_hidden_state[:, kept])
        loss = None if labels is None else self.loss_function(logits, labels, self.config.vocab_size, **kwargs)
        held = {CACHE: getattr(outputs, CACHE)}
        return CausalLMOutputWithPast(loss=loss, logits=logits, hidden_states=outputs.hidden_states, **held)
