"""nanochat's first architecture is transformers' ``nanochat``; flame adds how nanochat starts its weights."""

import math

import torch
import torch.nn as nn
from transformers import PreTrainedModel

from flame.plugin import ModelPlugin


@torch.no_grad()
def initialise(model: PreTrainedModel) -> None:
    """Matrices normal with std ``min(1, sqrt(out / in)) / sqrt(in)``, embeddings with std 1; what writes into the
    residual stream and the output head begin at zero. https://github.com/karpathy/nanochat (November 2025)
    """
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and name.endswith(("self_attn.o_proj", "mlp.fc2", "lm_head")):
            nn.init.zeros_(module.weight)
        elif isinstance(module, nn.Linear):
            std = min(1.0, math.sqrt(module.out_features / module.in_features)) / math.sqrt(module.in_features)
            nn.init.normal_(module.weight, std=std)
        elif isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight)


PLUGIN = ModelPlugin(model_type="nanochat", initialise=initialise)
