"""Builds the job's optimizer over the parameters of all parts of the model."""

import logging
from dataclasses import fields
from typing import Any

import torch
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer
from torchtitan.components.optimizer import OptimizersContainer
from torchtitan.components.optimizer import build_optimizers as titan_optimizers
from torchtitan.distributed import ParallelDims
from transformers import PreTrainedModel

from flame import compat
from flame.config import JobConfig
from flame.config.optimization import Optimizer as Keys
from flame.config.optimization import resolve_optimizer
from flame.hardware import cpu_bfloat16
from flame.models.ends import ends
from flame.optim.ellis_adam import ELLISAdam, Options
from flame.optim.grouped import GroupedOptimizer
from flame.optim.groups import Parameter, by_role, classify
from flame.optim.muon import Muon, Recipe
from flame.optim.orthogonal import coefficients

log = logging.getLogger(__name__)

_WIDTH = 768
"""The width that learning rates of embeddings and head are given for."""


class Optimizers(OptimizersContainer):
    """torchtitan's container of one optimizer for each part of the model, for optimizers with groups of their own."""

    left_out = 0
    """Gradients of tensors left out so far by this process, since they were not finite."""

    def __init__(self, parts: list[PreTrainedModel], optimizers: list[Optimizer], keys: Keys) -> None:
        self.model_parts = parts  # type: ignore[assignment]
        self.optimizers = optimizers
        parameters = [
            value for optimizer in optimizers for group in optimizer.param_groups for value in group["params"]
        ]
        self._post_init(parameters, {"lr": keys.lr or keys.matrix_lr})

    def state_dict(self) -> dict[str, Any]:
        """The state of all optimizers by parameter names."""
        self._initialize()
        return super().state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores what ``state_dict`` gave, whatever the layout it was saved from."""
        self._initialize()
        super().load_state_dict(state_dict)

    def leave_out_nonfinite(self) -> None:
        """Takes away the gradients of tensors that are not finite throughout, where the job asks for that; counts them
        in ``left_out``."""
        for optimizer in self.optimizers:
            if isinstance(optimizer, ELLISAdam) and optimizer.options.skip_nonfinite_tensors:
                self.left_out += optimizer.leave_out_nonfinite()

    def _initialize(self) -> None:
        for optimizer in self.optimizers:
            if isinstance(optimizer, GroupedOptimizer):
                optimizer.initialize()


def build_optimizers(
    parts: list[PreTrainedModel], config: JobConfig, parallel_dims: ParallelDims, ft_manager: Any = None
) -> OptimizersContainer:
    """The optimizer of a resolved job: ``optimizer.name``; AdamW and Adam on one group are torchtitan's.

    Args:
        parts: the model, or this rank's pipeline stages.
        config: the job.
        parallel_dims: its layout.
        ft_manager: torchtitan's, unused.
    """
    keys = config.optimizer
    resolve_optimizer(keys)
    if keys.name in ("AdamW", "Adam") and not keys.no_decay:
        made = titan_optimizers(parts, keys, parallel_dims, ft_manager)  # type: ignore[arg-type]
    else:
        make = {"AdamW": _adam, "Adam": _adam, "Muon": _muon, "ELLISAdam": _ellis}[keys.name]
        made = Optimizers(parts, [make(part, config) for part in parts], keys)
    for optimizer in made.optimizers:
        _obey_the_job(optimizer)
    return made


def _obey_the_job(optimizer: Optimizer) -> None:
    """Lets a resumed run go by its own job file: a checkpoint also holds the learning rate, betas and weight decay that
    it was saved with."""
    asked = [{name: value for name, value in group.items() if name != "params"} for group in optimizer.param_groups]

    def restore(loaded: Optimizer) -> None:
        for group, own in zip(loaded.param_groups, asked, strict=True):
            saved = {**group, "lr": group.get("initial_lr", group["lr"])}
            for name in ("lr", "betas", "eps", "weight_decay"):
                if name in own and name in saved and not _alike(own[name], saved[name]):
                    log.info("optimizer: %s is %s from here on; the checkpoint has %s", name, own[name], saved[name])
            group.update(own)
            if "initial_lr" in group:  # a schedule multiplies it
                group["initial_lr"] = own["lr"]

    optimizer.register_load_state_dict_post_hook(restore)


def _alike(own: Any, saved: Any) -> bool:
    return list(own) == list(saved) if isinstance(own, (tuple, list)) else own == saved


def _adam(part: PreTrainedModel, config: JobConfig) -> Optimizer:
    keys = config.optimizer
    kind = {"AdamW": torch.optim.AdamW, "Adam": torch.optim.Adam}[keys.name]
    groups, _ = _shared_groups(classify(part), keys)
    return kind(groups, fused=keys.implementation == "fused", foreach=keys.implementation == "foreach")


def _ellis(part: PreTrainedModel, config: JobConfig) -> ELLISAdam:
    keys = config.optimizer
    groups, roles = _shared_groups(classify(part), keys)
    dtype = None if keys.state_dtype == "param" else getattr(torch, keys.state_dtype)
    flags = {item.name: getattr(keys, item.name) for item in fields(Options) if item.name != "state_dtype"}
    options = Options(**flags, state_dtype=dtype)
    return ELLISAdam(groups, roles, options)


def _shared_groups(parameters: list[Parameter], keys: Keys) -> tuple[list[dict[str, Any]], list[str]]:
    """Groups that differ by nothing but their weight decay."""
    groups, roles = [], []
    for role, held in by_role(parameters):
        decay = 0.0 if role in (keys.no_decay or []) else keys.weight_decay
        groups.append(
            {
                "params": [parameter.value for parameter in held],
                "lr": keys.lr,
                "betas": (keys.beta1, keys.beta2),
                "eps": keys.eps,
                "weight_decay": decay,
            }
        )
        roles.append(role)
    return groups, roles


def _muon(part: PreTrainedModel, config: JobConfig) -> Muon:
    keys, parameters = config.optimizer, classify(part)
    width = part.config.get_text_config().hidden_size
    scale = (width / _WIDTH) ** -0.5 if keys.width_scaling else 1.0
    embedding_lr = _of_their_size(part) if keys.embedding_lr is None else keys.embedding_lr
    own = {
        "embeddings": (embedding_lr * scale, keys.embedding_betas, keys.embedding_weight_decay),
        "head": (keys.head_lr * scale, keys.head_betas, keys.head_weight_decay),
        "scalars": (keys.scalar_lr, keys.scalar_betas, keys.scalar_weight_decay),
    }
    groups, roles = [], []
    for role, held in by_role(parameters):
        group: dict[str, Any] = {"params": [parameter.value for parameter in held]}
        if role == "matrices":
            group |= {"lr": keys.matrix_lr, "weight_decay": keys.weight_decay}
        else:
            lr, betas, decay = own[role]
            group |= {"lr": lr, "betas": tuple(betas) or (keys.beta1, keys.beta2), "weight_decay": decay}
            group |= {"eps": keys.eps, "fused": keys.implementation == "fused"}
            group |= {"foreach": keys.implementation == "foreach"}
        groups.append(group)
        roles.append(role)
    return Muon(groups, parameters, roles, _recipe(config))


@torch.no_grad()
def _of_their_size(part: PreTrainedModel) -> float:
    """A fifth of the root mean square that embeddings start with: 0.2 for nanochat's, whose variance is 1, 0.004 for
    those of most families. Rounded, so that no layout's order of summation shows."""
    weight = getattr(ends(part)[0], "weight", None)
    if weight is None or weight.is_meta:  # `flame plan` runs nothing
        return 0.0
    mean_square = weight.float().square().mean()
    size = (mean_square.full_tensor() if isinstance(mean_square, DTensor) else mean_square).sqrt().item()
    return float(f"{0.2 * (size or 1.0):.2g}")


def _recipe(config: JobConfig) -> Recipe:
    keys, schedule = config.optimizer, config.lr_scheduler
    fast = compat.DEVICE_TYPE != "cpu" or cpu_bfloat16()
    dtype = {"auto": torch.bfloat16 if fast else torch.float32}.get(keys.orthogonalization_dtype)
    steps = schedule.total_steps or config.training.steps
    decay = steps if schedule.decay_ratio is None else round(steps * schedule.decay_ratio)
    return Recipe(
        polynomials=coefficients(keys.orthogonalization, keys.orthogonalization_steps),
        dtype=dtype or getattr(torch, keys.orthogonalization_dtype),
        margin=1.01 if keys.orthogonalization == "polar_express" else 1.0,
        momentum=keys.momentum,
        momentum_start=keys.momentum_start,
        momentum_warmup_steps=keys.momentum_warmup_steps,
        momentum_end=keys.momentum_end,
        steps=steps,
        cooldown=min(decay, steps - min(int(schedule.warmup_steps), steps)),
        cosine_weight_decay=keys.weight_decay_schedule == "cosine",
        cautious=keys.cautious_weight_decay,
        equalize_rows=keys.equalize_rows,
        split_fused=keys.split_fused,
    )
