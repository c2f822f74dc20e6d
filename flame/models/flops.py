"""Counts the work of a model, so that utilisation means the same for every architecture."""

import copy
import logging
from typing import Any

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

log = logging.getLogger(__name__)


def train_flops_per_token(model: nn.Module, forward_flops: int, seq_len: int) -> int:
    """Training FLOPs per token: three times the forward pass (the backward pass is two), without recomputation.

    Matrix products and attention are counted by running the model on the meta device, where a family gives no count of
    its own; look-ups (embeddings) cost nothing, and causal attention the pairs of positions that see each other (half
    of what torchtitan and PaLM's formula count), since kernels compute no others. Models whose forward pass depends on
    data cannot run on meta: they are charged 2 FLOPs for each weight a token meets, experts in the share that is
    active.

    Args:
        model: on the meta device.
        forward_flops: FLOPs of one sequence's forward pass if the family counts it itself, else 0.
        seq_len: tokens per sequence.
    """
    if not forward_flops:
        forward_flops = _counted(model, seq_len)
    return 3 * forward_flops // seq_len


def _counted(model: nn.Module, seq_len: int) -> int:
    # Grouped products of experts have a meta implementation in bfloat16 only.
    model = copy.deepcopy(model).to(torch.bfloat16)
    counter = FlopCounterMode(display=False, custom_mapping={torch.ops.aten._grouped_mm: _grouped_mm_flops})
    level = logging.getLogger("torch._subclasses.fake_tensor").level
    logging.getLogger("torch._subclasses.fake_tensor").setLevel(logging.CRITICAL)
    unseen = _UnseenPairs()
    try:
        # The fake mode lets code that asks tensors for values know that there are none.
        with torch.no_grad(), counter, FakeTensorMode(allow_non_fake_inputs=True), unseen:
            model(input_ids=torch.zeros(1, seq_len, dtype=torch.long, device="meta"))
    except (NotImplementedError, RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        log.info("FLOPs are counted from weights, because the model does not run without data: %s", reason)
        return 2 * _active_weights(model) * seq_len
    finally:
        logging.getLogger("torch._subclasses.fake_tensor").setLevel(level)
    return counter.get_total_flops() - unseen.flops


class _UnseenPairs(TorchFunctionMode):
    """Counts what causal attention leaves out of the square of all positions, which is what the counter sees."""

    flops = 0

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention and kwargs.get("is_causal"):
            query, _, value = (*args, *(kwargs[name] for name in ("query", "key", "value") if name in kwargs))[:3]
            length = query.shape[-2]
            heads = query.shape[:-2].numel()
            self.flops += heads * length * (length - 1) * (query.shape[-1] + value.shape[-1])
        return func(*args, **kwargs)


def _grouped_mm_flops(tokens: torch.Size, experts: torch.Size, *_: Any, **__: Any) -> int:
    """FLOPs of [M, K] x [G, K, N] where each row meets one of the G matrices; torch counts none."""
    return 2 * tokens[0] * tokens[1] * experts[-1]


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
