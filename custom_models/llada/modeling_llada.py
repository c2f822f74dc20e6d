"""LLaDA, a Llama that sees both sides of every token (https://arxiv.org/abs/2502.09992).

It predicts the tokens that stand behind ``config.mask_token_id``, each at its own position: no shift. ``generate``
fills masks in (modeling_llada_sampling), ``log_likelihood`` scores an answer (modeling_llada_likelihood).
"""

import re
from typing import Any

import torch
import torch.nn as nn
from transformers import GenerationMixin, LlamaPreTrainedModel
from transformers.loss.loss_utils import fixed_cross_entropy
from transformers.masking_utils import (
    and_masks,
    create_bidirectional_mask,
    find_packed_sequence_indices,
    packed_sequence_mask_function,
)
from transformers.modeling_outputs import BaseModelOutput, CausalLMOutputWithPast, MaskedLMOutput
from transformers.modeling_utils import slice_logits_to_keep
from transformers.models.llama.modeling_llama import (
    LlamaAttention,
    LlamaDecoderLayer,
    LlamaRMSNorm,
    LlamaRotaryEmbedding,
)
from transformers.utils.generic import can_return_tuple
from transformers.utils.output_capturing import capture_outputs

from .configuration_llada import LLaDAConfig
from .modeling_llada_blocks import block_numbers, sees
from .modeling_llada_likelihood import LikelihoodMixin
from .modeling_llada_sampling import SamplingMixin

CACHE = "cache" if "cache" in CausalLMOutputWithPast.__dataclass_fields__ else "past_key_values"
"""What transformers calls the cache: ``cache`` since 5.24."""


class LLaDADecoderLayer(LlamaDecoderLayer):
    """Llama's layer; its attention is not causal even where it is called without a mask."""

    def __init__(self, config: LLaDAConfig, layer_idx: int):
        super().__init__(config, layer_idx)
        self.self_attn.is_causal = False


class LLaDAPreTrainedModel(LlamaPreTrainedModel):
    """What transformers wants to know of the family."""

    config: LLaDAConfig
    _no_split_modules = ["LLaDADecoderLayer"]
    _can_record_outputs = {"hidden_states": LLaDADecoderLayer, "attentions": LlamaAttention}

    # The hub's names for weights, and ours; * stands for a layer's number.
    checkpoint_names = {
        "model.transformer.wte.weight": "model.embed_tokens.weight",
        "model.transformer.blocks.*.attn_norm.weight": "model.layers.*.input_layernorm.weight",
        "model.transformer.blocks.*.q_proj.weight": "model.layers.*.self_attn.q_proj.weight",
        "model.transformer.blocks.*.k_proj.weight": "model.layers.*.self_attn.k_proj.weight",
        "model.transformer.blocks.*.v_proj.weight": "model.layers.*.self_attn.v_proj.weight",
        "model.transformer.blocks.*.attn_out.weight": "model.layers.*.self_attn.o_proj.weight",
        "model.transformer.blocks.*.ff_norm.weight": "model.layers.*.post_attention_layernorm.weight",
        "model.transformer.blocks.*.ff_proj.weight": "model.layers.*.mlp.gate_proj.weight",
        "model.transformer.blocks.*.up_proj.weight": "model.layers.*.mlp.up_proj.weight",
        "model.transformer.blocks.*.ff_out.weight": "model.layers.*.mlp.down_proj.weight",
        "model.transformer.ln_f.weight": "model.norm.weight",
        "model.transformer.ff_out.weight": "lm_head.weight",
    }

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any:
        """transformers' own, for folders with the hub's names as well; what it loads is saved under ours."""
        kwargs.setdefault(
            "key_mapping", {_pattern(hub): own.replace("*", r"\1") for hub, own in cls.checkpoint_names.items()}
        )
        loaded = super().from_pretrained(*args, **kwargs)
        model: Any = loaded[0] if isinstance(loaded, tuple) else loaded
        model._weight_conversions = None
        return loaded


class LLaDAModel(LLaDAPreTrainedModel):
    """The stack of layers, without a head."""

    def __init__(self, config: LLaDAConfig):
        super().__init__(config)
        # No padding_idx: LLaDA pads with the end-of-text token, which has to learn.
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(LLaDADecoderLayer(config, index) for index in range(config.num_hidden_layers))
        self.norm = LlamaRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.rotary_emb = LlamaRotaryEmbedding(config=config)
        self.gradient_checkpointing = False
        self.post_init()

    @capture_outputs
    def forward(
        self,
        input_ids: torch.Tensor | None = None,  # [B, T]
        attention_mask: torch.Tensor | None = None,  # [B, S], 0 where there is padding; or [B, 1, T, S]
        position_ids: torch.Tensor | None = None,  # [B, T]; packed documents where they restart
        past_key_values: Any = None,
        inputs_embeds: torch.Tensor | None = None,  # [B, T, H]
        cache: Any = None,
        clean_ids: torch.Tensor | None = None,  # [B, T]
        block_start: int | torch.Tensor = 0,  # or [B, 1]
        **kwargs: Any,
    ) -> BaseModelOutput:
        """Without an attention mask, positions that restart are taken for packed documents, which stay apart.

        Args:
            cache: a ``BlockCache``, or None; ``past_key_values`` up to transformers 5.23.
            clean_ids: the text without masks, where ``config.block_length`` is set: blocks of ``input_ids`` see earlier
                ones in it. Outputs are those of ``input_ids``.
            block_start: a position at which a block begins.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give either input_ids or inputs_embeds")
        hidden = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        length = hidden.shape[1]
        if position_ids is None:
            position_ids = torch.arange(length, device=hidden.device).unsqueeze(0)
        cache = past_key_values if cache is None else cache
        documents = None
        if attention_mask is None and cache is None and "flash" not in (self.config._attn_implementation or ""):
            # Flash attention reads documents off the positions itself.
            documents = find_packed_sequence_indices(position_ids.expand(hidden.shape[:2]))
        if clean_ids is not None:
            hidden = torch.cat([hidden, self.embed_tokens(clean_ids)], dim=1)  # [B, 2T, H]
            position_ids = position_ids.repeat(1, 2)
            documents = documents if documents is None else documents.repeat(1, 2)
            attention_mask = attention_mask if attention_mask is None else attention_mask.repeat(1, 2)
        blocks = self._blocks(position_ids, block_start, cache, clean_ids is not None)
        mask = self._mask(hidden, attention_mask, documents, blocks, cache, length)
        rotation = self.rotary_emb(hidden, position_ids=position_ids)
        for layer in self.layers[: self.config.num_hidden_layers]:
            hidden = layer(
                hidden,
                attention_mask=mask,
                position_embeddings=rotation,
                position_ids=position_ids,
                **{CACHE: cache},
                **kwargs,
            )
        return BaseModelOutput(last_hidden_state=self.norm(hidden[:, :length]))

    def _blocks(self, positions: torch.Tensor, start: Any, cache: Any, doubled: bool) -> torch.Tensor | None:
        """Numbers of the tokens' blocks, [B, S]; None where every token sees every other."""
        size = self.config.block_length
        if doubled and (not size or cache is not None):
            raise ValueError("clean_ids are for a config with a block_length, without a cache")
        if size and "flash" in (self.config._attn_implementation or ""):
            raise ValueError(
                f"block_length = {size}: flash attention takes no mask; choose attn_implementation = 'flex_attention'"
            )
        # What a cache holds already are blocks that are finished, and the queries' own.
        return block_numbers(positions, size, start) if size and not (cache and cache.keys) else None

    def _mask(
        self,
        hidden: torch.Tensor,
        mask: torch.Tensor | None,
        documents: torch.Tensor | None,
        blocks: torch.Tensor | None,
        cache: Any,
        length: int,
    ) -> Any:
        """What attention is to be told of padding, packed documents and blocks; None if there is nothing to tell."""
        functions = [] if documents is None else [packed_sequence_mask_function(documents)]
        if blocks is not None:
            functions.append(sees(blocks.expand(hidden.shape[:2]), length))
        held: Any = {CACHE: cache, "and_mask_function": and_masks(*functions) if functions else None}
        return create_bidirectional_mask(self.config, hidden, mask, **held)


class LLaDAModelLM(SamplingMixin, LikelihoodMixin, LLaDAPreTrainedModel, GenerationMixin):
    """LLaDA with its output head; the class that the hub's configs name."""

    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}
    _tp_plan = {"lm_head": "colwise_gather_output"}
    _pp_plan: Any = {"lm_head": (["hidden_states"], ["logits"])}

    def __init__(self, config: LLaDAConfig):
        super().__init__(config)
        self.model = LLaDAModel(config)
        self.vocab_size = config.vocab_size
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Any = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        cache: Any = None,
        num_items_in_batch: int | torch.Tensor | None = None,
        **kwargs: Any,  # clean_ids, block_start
    ) -> MaskedLMOutput:
        """Args as ``LLaDAModel``'s, and:

        Args:
            labels: [B, T], what stands behind the masks, at the SAME position; -100 elsewhere. The loss is the mean
                cross entropy without the weights of the training objective, which the ids do not tell.
            num_items_in_batch: what the loss is divided by instead of this batch's labels, as transformers has it.
            logits_to_keep: what positions logits are wanted of, as in transformers: 0 for all, positions [N], or a mask
                [B, T], which makes them [N, V].
        """
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            cache=past_key_values if cache is None else cache,
            inputs_embeds=inputs_embeds,
            **kwargs,
        )
        logits = self.lm_head(slice_logits_to_keep(outputs.last_hidden_state, logits_to_keep))
        loss = None
        if labels is not None:
            given = {"num_items_in_batch": num_items_in_batch, "ignore_index": -100}
            loss = fixed_cross_entropy(logits.flatten(0, -2).float(), labels.flatten().to(logits.device), **given)
        return MaskedLMOutput(
            loss=loss, logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )


LLaDAForCausalLM = LLaDAModelLM


def _pattern(name: str) -> str:
    """The regular expression of a name in which ``*`` stands for a number."""
    return "^" + re.escape(name).replace(r"\*", r"(\d+)") + "$"
