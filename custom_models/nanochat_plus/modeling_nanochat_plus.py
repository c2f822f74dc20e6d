import math
from collections.abc import Callable
from typing import Any, TypeVar

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor
from transformers import Cache, DynamicCache, GenerationMixin, PreTrainedModel
from transformers import initialization as init
from transformers.cache_utils import DynamicLayer
from transformers.masking_utils import create_causal_mask, create_sliding_window_causal_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.nanochat.modeling_nanochat import (
    NanoChatMLP,
    NanoChatRMSNorm,
    NanoChatRotaryEmbedding,
    apply_rotary_pos_emb,
    eager_attention_forward,
)
from transformers.utils.generic import can_return_tuple, merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from .configuration_nanochat_plus import NanoChatPlusConfig

Layer = TypeVar("Layer", nn.Linear, nn.Embedding)
_MASKS = {"full_attention": create_causal_mask, "sliding_attention": create_sliding_window_causal_mask}
CACHE = "cache" if "cache" in CausalLMOutputWithPast.__dataclass_fields__ else "past_key_values"
"""What transformers calls the cache that outputs hold: ``cache`` since 5.24."""


def _starting(layer: Layer, fill: Callable[..., Tensor], *values: float) -> Layer:
    """Notes on a layer how its weight starts. transformers initialises what stands outside of it (as this file does)
    only module by module, passing over those without weights of their own: an attention cannot start its projections.
    """
    layer.start = (fill, *values)  # type: ignore[assignment]
    return layer


def _uniform(layer: Layer, config: NanoChatPlusConfig, share: float = 1.0) -> Layer:
    """Starts a weight with ``share`` of the standard deviation ``hidden_size ** -0.5``."""
    bound = share * math.sqrt(3 / config.hidden_size)
    return _starting(layer, init.uniform_, -bound, bound)


class NanoChatPlusAttention(nn.Module):
    """Normalised queries and keys after rotation, and values with a gated share of an embedding of their token."""

    def __init__(self, config: NanoChatPlusConfig, layer_idx: int):
        super().__init__()
        self.config, self.layer_idx = config, layer_idx
        self.head_dim = config.hidden_size // config.num_attention_heads
        self.num_key_value_groups = config.num_attention_heads // config.num_key_value_heads
        self.scaling = config.qk_scale**2 * self.head_dim**-0.5
        self.sliding_window = config.sliding_window if config.layer_types[layer_idx] == "sliding_attention" else None
        self.is_causal = True
        width = config.num_key_value_heads * self.head_dim
        self.q_proj = _uniform(nn.Linear(config.hidden_size, config.hidden_size, bias=False), config)
        self.k_proj = _uniform(nn.Linear(config.hidden_size, width, bias=False), config)
        self.v_proj = _uniform(nn.Linear(config.hidden_size, width, bias=False), config)
        self.o_proj = _starting(nn.Linear(config.hidden_size, config.hidden_size, bias=False), init.zeros_)
        self.norm = NanoChatRMSNorm(config.rms_norm_eps)
        self.has_value_embedding = config.has_value_embedding(layer_idx)
        if self.has_value_embedding:
            self.value_embed = _uniform(nn.Embedding(config.padded_vocab_size, width), config)
            gate = nn.Linear(config.gate_channels, config.num_key_value_heads, bias=False)
            self.value_gate = _starting(gate, init.uniform_, 0.0, 0.02)

    def forward(
        self,
        hidden: Tensor,
        input_ids: Tensor,
        rotation: tuple[Tensor, Tensor],
        attention_mask: Tensor | None = None,
        cache: Cache | None = None,
        **kwargs,
    ) -> Tensor:
        q, k, v = (
            project(hidden).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)  # [B, H, T, D]
            for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        if self.has_value_embedding:
            gate = 3 * torch.sigmoid(self.value_gate(hidden[..., : self.value_gate.in_features]))  # [B, T, H]
            share = gate.unsqueeze(-1) * self.value_embed(input_ids).unflatten(-1, (-1, self.head_dim))
            v = v + share.transpose(1, 2)
        q, k = (self.norm(x) for x in apply_rotary_pos_emb(q, k, *rotation))
        if cache is not None:
            k, v = cache.update(k, v, self.layer_idx)
        name = self.config._attn_implementation or "eager"
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(name, eager_attention_forward)
        options = {"scaling": self.scaling, "sliding_window": self.sliding_window, **kwargs}
        o, _ = attend(self, q, k, v, attention_mask, **options)
        return self.o_proj(o.flatten(2))


class NanoChatPlusDecoderLayer(GradientCheckpointingLayer):
    """Attention and MLP with the residual scalars of its depth, [B, T, H] in and out."""

    def __init__(self, config: NanoChatPlusConfig, layer_idx: int):
        super().__init__()
        self.attention_type = config.layer_types[layer_idx]
        self.self_attn = NanoChatPlusAttention(config, layer_idx)
        self.mlp = NanoChatMLP(config)
        _uniform(self.mlp.fc1, config, 0.4)
        _starting(self.mlp.fc2, init.zeros_)
        self.norm = NanoChatRMSNorm(config.rms_norm_eps)

    def forward(self, hidden: Tensor, **kwargs) -> Tensor:
        hidden = hidden + self.self_attn(self.norm(hidden), **kwargs)
        return hidden + self.mlp(self.norm(hidden))


class NanoChatPlusPreTrainedModel(PreTrainedModel):
    """What transformers wants to know of the family, and how each kind of weight starts."""

    config_class = NanoChatPlusConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ["NanoChatPlusDecoderLayer"]
    _skip_keys_device_placement = ["cache", "past_key_values"]
    _supports_flash_attn = True
    _supports_sdpa = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_record_outputs = {"hidden_states": NanoChatPlusDecoderLayer}

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, (nn.Linear, nn.Embedding)):
            fill, *values = vars(module)["start"]
            fill(module.weight, *values)
        elif isinstance(module, NanoChatPlusModel):
            layers = self.config.num_hidden_layers
            init.zeros_(module.smear_lambda)
            init.constant_(module.backout_lambda, 0.2)
            init.copy_(module.residual_lambdas, torch.linspace(1.15, 1.05, layers))
            init.copy_(module.embedding_lambdas, torch.linspace(0.20, 0.05, layers))
        else:
            super()._init_weights(module)


class NanoChatPlusModel(NanoChatPlusPreTrainedModel):
    """Embedding, smear, layers and backout: token ids [B, T] to hidden states [B, T, H]."""

    def __init__(self, config: NanoChatPlusConfig):
        super().__init__(config)
        layers = config.num_hidden_layers
        table = nn.Embedding(config.padded_vocab_size, config.hidden_size)
        self.embed_tokens = _starting(table, init.normal_, 0.0, 0.8)
        self.smear_gate = _starting(nn.Linear(config.smear_channels, 1, bias=False), init.uniform_, 0.0, 0.02)
        self.smear_lambda = nn.Parameter(torch.zeros(1))
        self.residual_lambdas = nn.Parameter(torch.ones(layers))
        self.embedding_lambdas = nn.Parameter(torch.zeros(layers))
        self.backout_lambda = nn.Parameter(torch.zeros(1))
        self.layers = nn.ModuleList(NanoChatPlusDecoderLayer(config, layer) for layer in range(layers))
        self.norm = NanoChatRMSNorm(config.rms_norm_eps)
        self.rotary_emb = NanoChatRotaryEmbedding(config)  # type: ignore[arg-type]
        self.gradient_checkpointing = False
        self.post_init()

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
        input_ids: [B, T]; value embeddings need them beside ``inputs_embeds`` too.
        attention_mask: [B, S] 1 where there is a token and 0 where there is padding, cached tokens included.
        position_ids: [B, T]; without a mask, documents begin where they restart.
        past_key_values: earlier tokens; transformers calls it ``cache`` since 5.24.
        """
        if input_ids is None:
            raise ValueError("value embeddings are looked up by input_ids; inputs_embeds alone will not do")
        cache = past_key_values if cache is None else cache
        if cache is not None and cache.is_compileable:
            raise ValueError("the smear needs a cache that grows; leave cache_implementation out")
        if attention_mask is not None and attention_mask.dim() != 2:
            raise ValueError(f"attention_mask {tuple(attention_mask.shape)} must be [batch, tokens]")
        if use_cache and cache is None:
            cache = DynamicCache(config=self.config)
        seen = 0 if cache is None else cache.get_seq_length()
        embedded = self.norm(self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds)
        if position_ids is None:
            position_ids = torch.arange(seen, seen + embedded.shape[1], device=embedded.device).unsqueeze(0)
        masks = {
            # By position: the cache has another name in each of two releases.
            kind: _MASKS[kind](self.config, embedded, attention_mask, cache, position_ids)
            for kind in set(self.config.layer_types)
        }
        hidden = first = self._smeared(embedded, _follows(attention_mask, position_ids), cache)
        rotation = self.rotary_emb(hidden, position_ids=position_ids)
        taken_back = hidden
        for index, layer in enumerate(self.layers):
            hidden = layer(
                self.residual_lambdas[index] * hidden + self.embedding_lambdas[index] * first,
                input_ids=input_ids,
                rotation=rotation,
                attention_mask=masks[layer.attention_type],
                position_ids=position_ids,
                cache=cache,
                **kwargs,
            )
            if index == self.config.num_hidden_layers // 2:
                taken_back = hidden
        hidden = self.norm(hidden - self.backout_lambda * taken_back)
        held: Any = {CACHE: cache}
        return BaseModelOutputWithPast(last_hidden_state=hidden, **held)

    def _smeared(self, embedded: Tensor, follows: Tensor, cache: Cache | None) -> Tensor:
        """Adds a gated share of the token before to embeddings [B, T, D], where it is of the same document."""
        before = F.pad(embedded[:, :-1], (0, 0, 1, 0))
        if cache is not None:
            index = self.config.num_hidden_layers
            if len(cache.layers) == index:
                # One more layer, so that beams are reordered and guesses taken back as for keys.
                cache.layers.append(DynamicLayer())
            kept = embedded.unsqueeze(1)  # [B, 1, T, D], as of one head
            before = cache.update(kept, kept[..., :0], index)[0].squeeze(1)
            before = F.pad(before, (0, 0, 1, 0))[:, -embedded.shape[1] - 1 : -1]
        gate = self.smear_lambda * torch.sigmoid(self.smear_gate(embedded[..., : self.smear_gate.in_features]))
        return embedded + gate * follows.unsqueeze(-1) * before


def _follows(mask: Tensor | None, positions: Tensor) -> Tensor:
    """[B, T] whether the token before belongs to the same document, by a mask [B, S] or by positions [B, T].

    The first of a row may do so: what comes before it, if anything, is in the cache.
    """
    if mask is not None:
        return F.pad(mask.bool()[:, :-1], (1, 0))[:, -positions.shape[1] :]
    return F.pad(positions.diff() == 1, (1, 0), value=True)


class NanoChatPlusForCausalLM(NanoChatPlusPreTrainedModel, GenerationMixin):
    """The model with its head; logits [B, T, V] are softly capped in float32."""

    _tp_plan = {"lm_head": "colwise_gather_output"}

    def __init__(self, config: NanoChatPlusConfig):
        super().__init__(config)
        self.model = NanoChatPlusModel(config)
        head = nn.Linear(config.hidden_size, config.padded_vocab_size, bias=False)
        self.lm_head = _starting(head, init.normal_, 0.0, 0.001)
        self.post_init()

    def resize_token_embeddings(self, *args, **kwargs):
        raise ValueError("value embeddings are looked up by token too; build the model with another vocab_size instead")

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
        logits = self.lm_head(outputs.last_hidden_state[:, kept]).float()
        if self.config.vocab_padding:
            logits = logits[..., : self.config.vocab_size]
        if cap := self.config.final_logit_softcapping:
            logits = cap * torch.tanh(logits / cap)
        loss = None if labels is None else self.loss_function(logits, labels, self.config.vocab_size, **kwargs)
        held = {CACHE: getattr(outputs, CACHE)}
        return CausalLMOutputWithPast(loss=loss, logits=logits, hidden_states=outputs.hidden_states, **held)
