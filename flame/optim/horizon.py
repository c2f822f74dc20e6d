"""The length of a run from a budget: tokens per parameter, tokens, or floating-point operations."""

import logging

import torch
from transformers import PreTrainedConfig, PreTrainedModel

from flame.config import JobConfig
from flame.errors import ConfigError
from flame.models.build import build_model
from flame.models.flops import train_flops_per_token
from flame.optim.groups import classify
from flame.plugin import ModelPlugin

log = logging.getLogger(__name__)


def derive_steps(
    config: JobConfig, cls: type[PreTrainedModel], model: PreTrainedConfig, plugin: ModelPlugin, work: float = 1.0
) -> None:
    """Sets ``training.steps`` of a resolved job that has a budget: as many whole steps as it pays for, at least one.

    Args:
        config: the job; changed in place.
        cls: the model's class.
        model: its config.
        plugin: its family, which may count FLOPs itself.
        work: what the task makes of these FLOPs on average, ``Task.mean_work``.

    Raises:
        ConfigError: the job also sets another number of steps.
    """
    training = config.training
    if not (training.tokens_per_param or training.tokens or training.flops):
        return
    tokens, budget = _tokens(config, cls, model, plugin, work)
    per_step = training.global_batch_size * training.seq_len
    steps = max(1, int(tokens // per_step))
    if training.steps not in (0, steps):
        raise ConfigError(
            f"training.steps = {training.steps}, but {budget} are {steps} steps of {per_step:,} tokens; remove one of "
            "them (training.steps = 0 stands for none)"
        )
    training.steps = steps
    log.info("%s: %d steps of %s tokens", budget, steps, f"{per_step:,}")


def _tokens(
    config: JobConfig, cls: type[PreTrainedModel], model: PreTrainedConfig, plugin: ModelPlugin, work: float
) -> tuple[float, str]:
    """The tokens a budget pays for, and the budget in words."""
    training = config.training
    if training.tokens:
        return training.tokens, f"training.tokens = {training.tokens:,}"
    with torch.device("meta"):
        built = build_model(cls, model)
    if training.flops:
        forward_flops = plugin.forward_flops(model, training.seq_len) if plugin.forward_flops else 0
        per_token = round(work * train_flops_per_token(built, forward_flops, training.seq_len))
        tokens = training.flops / per_token
        return tokens, f"training.flops = {training.flops:g} at {per_token:,} per token"
    embeddings = training.count_params == "all"
    count = sum(p.value.numel() for p in classify(built) if embeddings or p.role != "embeddings")
    kind = "" if embeddings else " besides embeddings"
    return count * training.tokens_per_param, (
        f"training.tokens_per_param = {training.tokens_per_param:g} for {count:,} parameters{kind}"
    )
