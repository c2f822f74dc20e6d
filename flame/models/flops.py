"""Counts the work of a model, so that utilisation means the same for every architecture."""

import logging

import torch
import torch.nn as nn
from torch.utils.flop_counter import FlopCounterMode

log = logging.getLogger(__name__)


def train_flops_per_token(model: nn.Module, forward_flops: int, seq_len: int) -> int:
    """Training FLOPs per token: three times the forward pass (the backward pass is two), without recomputation.

    Matrix products and attention are counted by running the model on the meta device, where a family gives no count of
    its own; look-ups (embeddings) cost nothing. Models whose forward pass depends on data cannot run on meta: they are
    charged 2 FLOPs for each weight a token meets, experts in the share that is active.

    Args:
        model: on the meta device.
        forward_flops: FLOPs of one sequence's forward pass if the family counts it itself, else 0.
        seq_len: tokens per sequence.
    """
    if not forward_flops:
        forward_flops = _counted(model, seq_len)
    return 3 * forward_flops // seq_len


def _counted(model: nn.Module, seq_len: int) -> int:
    tokens = torch.zeros(1, seq_len, dtype=torch.long, device="meta")
    try:
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            model(input_ids=tokens)
    except (NotImplementedError, RuntimeError, ValueError) as error:
        log.info("counting FLOPs from weights: the model does not run on meta (%s)", str(error).splitlines()[0])
        return 2 * _active_weights(model) * seq_len
    return counter.get_total_flops()


def _active_weights(model: nn.Module) -> int:
    """Weights that one token is multiplied with: no embedding tables, and only the active share of experts."""
    config = getattr(model, "config", None)
    experts = next(
        (n for key in ("num_experts", "num_local_experts", "n_routed_experts") if (n := getattr(config, key, 0))), 0
    )
    share = getattr(config, "num_experts_per_tok", experts) / experts if experts else 1.0
    tables = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    total = 0.0
    for name, parameter in model.named_parameters():
        if parameter.ndim >= 2 and id(parameter) not in tables:
            total += parameter.numel() * (share if ".experts." in name else 1.0)
    return int(total)
