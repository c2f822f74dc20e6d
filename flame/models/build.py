"""Builds the class torchtitan trains: the HuggingFace class itself, with one mixin for initialisation.

Parameter names are HuggingFace's, so checkpoint keys are too, and export is the identity.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
import torch.nn as nn
from torchtitan.protocols.model import BaseModelArgs
from transformers import PreTrainedConfig, PreTrainedModel

from flame.config import JobConfig
from flame.errors import ConfigError
from flame.models.ends import ends
from flame.models.flops import train_flops_per_token
from flame.models.handout import hand_out
from flame.plugin import ModelPlugin

_FROM_HF = object()
SELECTION_BIAS = "e_score_correction_bias"
"""The buffer that routers add to their scores when they choose experts (https://arxiv.org/abs/2408.15664)."""


class TitanMixin:
    """Adds torchtitan's initialisation protocol in front of a HuggingFace class."""

    init_seed: int = 0
    plain_class: type[PreTrainedModel]  # the class before sharding gave it another
    initialise: Callable[[PreTrainedModel], None] | None = None  # the plugin's

    def init_weights(self, buffer_device: Any = _FROM_HF) -> None:
        """Fills parameters and buffers with what plain construction gives, whatever the sharding.

        Rank 0 constructs the model once, unsharded, on the CPU; every rank receives its shards. Values that a family
        sets in ``__init__`` (``A_log``, ``dt_bias``, rotary tables) are right by construction, and the same seed gives
        the same weights for every number of ranks and every layout.

        HuggingFace calls a method of the same name, without arguments, from ``post_init``; that call is passed on.
        """
        if buffer_device is _FROM_HF:
            super().init_weights()  # type: ignore[misc]
            return
        assert isinstance(self, PreTrainedModel)
        config = copy.deepcopy(self.config)
        if self.config._attn_implementation not in ("sdpa", "flash_attention_2", "flex_attention"):
            config._attn_implementation = "eager"  # some constructors do not know context parallelism's
        reference = plain_model(self.plain_class, config, self.init_seed) if dist.get_rank() == 0 else None
        hand_out(self, reference, buffer_device)


@dataclass
class ModelArgs(BaseModelArgs):
    """What torchtitan logs and asks of a model: JSON values only."""

    model_type: str = ""
    forward_flops: int = 0
    parameters: int = 0
    """Of the whole model; known once it is built."""

    def update_from_config(self, job_config: JobConfig, **kwargs: Any) -> None:
        """The model config is complete before torchtitan sees it."""

    def get_nparams_and_flops(self, model: nn.Module, seq_len: int) -> tuple[int, int]:
        """Returns (parameters, training FLOPs per token); tied weights count once."""
        self.parameters = sum(parameter.numel() for parameter in model.parameters())
        return self.parameters, train_flops_per_token(model, self.forward_flops, seq_len)


def model_class(plugin: ModelPlugin, config: PreTrainedConfig, head: str) -> type[PreTrainedModel]:
    """The family's HuggingFace class for a head (``causal_lm``, ``ctc`` ...), with the mixin in front.

    Raises:
        ConfigError: the family has no such head.
    """
    auto = plugin.auto_classes.get(head)
    if auto is None or type(config) not in auto._model_mapping:  # type: ignore[attr-defined]
        heads = ", ".join(plugin.auto_classes)
        raise ConfigError(
            f"family '{plugin.model_type}' has no head '{head}' (it has: {heads}); choose another task.name"
        )
    hf_class = auto._model_mapping[type(config)]  # type: ignore[attr-defined]
    cls = type(hf_class.__name__, (TitanMixin, hf_class), {"__module__": hf_class.__module__})
    cls.plain_class = cls
    cls.initialise = staticmethod(plugin.initialise) if plugin.initialise else None
    return cls


def build_model(cls: type[PreTrainedModel], config: PreTrainedConfig) -> PreTrainedModel:
    """Constructs ``cls`` from a copy of ``config`` on the current default device, in the current default dtype."""
    config = copy.deepcopy(config)
    model = cls._from_config(
        config, dtype=torch.get_default_dtype(), attn_implementation=config._attn_implementation or None
    )
    model.config.use_cache = False
    _train_every_token(model)
    for module in model.modules():
        bias = module._buffers.get(SELECTION_BIAS)
        if bias is not None:  # a sum of small steps, whatever the type of the weights
            module._buffers[SELECTION_BIAS] = bias.float()
    return model


def _train_every_token(model: PreTrainedModel) -> None:
    """Gives the embedding of ``pad_token_id`` gradients as well, which torch withholds from a padding index: most
    tokenizers pad with the token that ends documents, and labels say what is not scored."""
    embedding, _ = ends(model)
    if isinstance(embedding, nn.Embedding):
        embedding.padding_idx = None


def count_parameters(cls: type[PreTrainedModel], config: PreTrainedConfig) -> int:
    """How many parameters ``cls`` would have, without making them."""
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in build_model(cls, config).parameters())


def plain_model(cls: type[PreTrainedModel], config: PreTrainedConfig, seed: int) -> PreTrainedModel:
    """Constructs ``cls`` unsharded on the CPU in float32 from ``seed``, leaving the global generators untouched."""
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.manual_seed(seed)
        model = build_model(cls, config)
        initialise = getattr(cls, "initialise", None)
        if initialise is not None:
            initialise(model)
        return model
