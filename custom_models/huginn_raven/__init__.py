"""Huginn, the recurrent-depth language model of https://arxiv.org/abs/2502.05171."""

from typing import Any

from transformers import AutoConfig, AutoModelForCausalLM

from flame.plugin import ModelPlugin

from .configuration_huginn_raven import RavenConfig
from .modeling_huginn_raven import RavenForCausalLM

AutoConfig.register("huginn_raven", RavenConfig, exist_ok=True)
AutoModelForCausalLM.register(RavenConfig, RavenForCausalLM, exist_ok=True)


def forward_flops(config: Any, length: int) -> int:
    """FLOPs of one sequence's forward pass with the mean number of steps."""
    return config.outer_flops(length) + config.mean_recurrence * config.core_flops(length)


PLUGIN = ModelPlugin(
    model_type="huginn_raven",
    tiny=lambda: RavenConfig(
        n_embd=64,
        n_heads=4,
        n_layers_in_prelude=1,
        n_layers_in_recurrent_block=2,
        n_layers_in_coda=1,
        intermediate_size=96,
        vocab_size=256,
        block_size=128,
        mean_recurrence=4,
        mean_backprop_depth=2,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    ),
    forward_flops=forward_flops,
    objective="recurrent_depth",
    refuses={"pipeline": "its core is run many times in a pass and ends where it began, so no cut makes stages of it"},
)
