"""Keeps the experts of a mixture evenly loaded, without a loss (selection bias) and with one (per sequence).

Routers are found by what they are, not by a list of families: beside a module called ``experts`` stands one whose
forward pass returns logits, weights and the indices of the chosen experts. Where there is a selection bias, a float32
buffer ``e_score_correction_bias``, it is raised for experts with less than the mean load and lowered for the others
after every optimizer step (https://arxiv.org/abs/2408.15664).
"""

import logging
from collections.abc import Iterable
from dataclasses import fields
from typing import Any

import torch
import torch.distributed as dist
import torch.nn as nn
from torch import Tensor
from torch.distributed.tensor import DTensor
from torchtitan.distributed import ParallelDims
from transformers import PreTrainedConfig, PreTrainedModel

from flame.config import JobConfig, Moe
from flame.errors import ConfigError
from flame.models.balance import SCORES, Routing, attach_loss, fitting_scores, routing_of, sequence_balance
from flame.models.build import SELECTION_BIAS, build_model
from flame.pieces import part_of

log = logging.getLogger(__name__)

BIAS = SELECTION_BIAS
_ROUTERS = ("gate", "router")


class Router:
    """One router and what passed through it since the last step.

    Args:
        name: its HuggingFace name.
        module: what returns logits, weights and choices.
        bias: the selection bias [E], if it has one.
    """

    def __init__(self, name: str, module: nn.Module, bias: Tensor | None) -> None:
        self.name, self.module, self.bias = name, module, bias
        self.load: Tensor | None = None  # [E] int64, positions that chose each expert
        self.scores = ""  # key of SCORES, once it is known

    def count(self, routing: Routing) -> None:
        """Adds the choices of a forward pass to the load."""
        if self.load is None:
            experts = self.bias.numel() if self.bias is not None else routing.experts
            self.load = torch.zeros(experts, dtype=torch.long, device=routing.chosen.device)
        chosen = routing.chosen.flatten().long()
        self.load.scatter_add_(0, chosen, torch.ones_like(chosen))

    def move(self, step: Tensor) -> None:
        """Adds ``step`` [E] to the bias."""
        assert self.bias is not None
        step = step.to(self.bias.dtype).view(self.bias.shape)
        if isinstance(self.bias, DTensor):
            self.bias.to_local().add_(part_of(self.bias, step))
        else:
            self.bias.add_(step)

    def score(self, routing: Routing) -> str:
        """Which function turns the router's logits into scores; read off the weights it returns."""
        if self.scores:
            return self.scores
        fitting = fitting_scores(routing)
        if len(fitting) == 1:
            self.scores = fitting[0]
        elif not fitting:
            raise ConfigError(
                f"moe.sequence_balance_loss: the weights of {self.name} are neither "
                f"{' nor '.join(SCORES)} scores; set it to 0"
            )
        usual = "sigmoid" if self.bias is not None else "softmax"  # all weights are alike, or one expert is chosen
        return self.scores or (usual if usual in fitting else fitting[0])


class Experts:
    """The routers of this rank's part of a model, watched during training.

    Args:
        routers: all of them.
        options: the job's ``[moe]`` section.
        rows: sequences of one optimizer step, over all ranks and micro-batches.
        length: positions of a sequence that this rank holds.
        data: the ranks that hold other data for the same layers (data and context parallelism).
        context: the ranks that hold other positions of the same sequences.
        stages: the ranks that hold other layers.
    """

    def __init__(
        self,
        routers: list[Router],
        options: Moe,
        rows: int,
        length: int,
        data: dist.ProcessGroup | None = None,
        context: dist.ProcessGroup | None = None,
        stages: dist.ProcessGroup | None = None,
    ) -> None:
        self.routers, self.options, self.rows, self.length = routers, options, rows, length
        self.data, self.context, self.stages = data, context, stages
        self._loss = torch.zeros(())  # of the step under way, this rank's share
        self._worst = torch.zeros(())
        self._reported_loss = torch.zeros(())
        self._anywhere = self._reduced(torch.tensor(float(len(routers))), stages, dist.ReduceOp.SUM) > 0
        self._handles = [router.module.register_forward_hook(self._hook(router)) for router in routers]

    @torch.no_grad()
    def end_step(self, accepted: bool) -> None:
        """Moves the biases by what the step's micro-batches chose; collective over ``data``.

        Args:
            accepted: whether the optimizer stepped; if not, loads are forgotten and nothing changes.
        """
        routers = [router for router in self.routers if router.load is not None]
        loads = [router.load for router in routers]
        if routers:
            counted = self._reduced(torch.cat(loads), self.data, dist.ReduceOp.SUM)  # type: ignore[arg-type]
            worst = []
            for router, load in zip(routers, counted.split([len(load) for load in loads]), strict=True):  # type: ignore[arg-type]
                mean = load.double().mean()
                worst.append((load.max() / mean).float())
                if accepted and router.bias is not None and self.options.bias_update_rate:
                    router.move(self.options.bias_update_rate * torch.sign(mean - load))
                router.load = None
            self._worst = torch.stack(worst).max()
        self._reported_loss, self._loss = self._loss, torch.zeros(())

    def figures(self) -> dict[str, float]:
        """Of the last step: ``expert_load``, the largest load of an expert over the mean, in the layer where that is
        worst; ``balance_loss``, what the sequence balance loss added to the objective. Collective over all ranks."""
        if not self._anywhere:
            return {}
        worst = self._reduced(self._worst, self.stages, dist.ReduceOp.MAX).item()
        figures = {"expert_load": worst} if worst else {}  # no router could be read
        if self.options.sequence_balance_loss:
            share = self._reduced(self._reported_loss, self.data, dist.ReduceOp.SUM)
            figures["balance_loss"] = self._reduced(share, self.stages, dist.ReduceOp.SUM).item()
        return figures

    def release(self) -> None:
        """Takes the hooks off the model."""
        for handle in self._handles:
            handle.remove()

    def _hook(self, router: Router) -> Any:
        # Not compiled: whether autograd is recomputing is known at run time only.
        @torch.compiler.disable
        def observe(module: nn.Module, args: Any, output: Any) -> Any:
            if not module.training:
                return None
            routing = routing_of(output)
            if routing is None:
                return self._cannot_read(router)
            first_time = torch._C._current_graph_task_id() == -1  # else activation checkpointing runs it once more
            if first_time:
                router.count(routing)
            if not self.options.sequence_balance_loss or not torch.is_grad_enabled():
                return None
            loss = self._balance(router, routing)
            if first_time:
                self._loss = self._loss.to(loss.device) + loss.detach()
            return attach_loss(output, routing, loss)

        return observe

    def _balance(self, router: Router, routing: Routing) -> Tensor:
        if routing.logits is None:
            raise ConfigError(f"moe.sequence_balance_loss: {router.name} returns no logits; set it to 0")
        scores = SCORES[router.score(routing)](routing.logits.float())
        balance = sequence_balance(scores, routing.chosen.shape[-1], self.length, self.context)
        return self.options.sequence_balance_loss * balance.sum() / self.rows

    def _cannot_read(self, router: Router) -> None:
        if self.options.sequence_balance_loss:
            raise ConfigError(
                f"moe.sequence_balance_loss: {router.name} returns no choices flame can read; set it to 0"
            )
        if router in self.routers:
            self.routers.remove(router)
            if router.bias is not None:
                log.warning("%s returns no choices flame can read: its experts are not balanced", router.name)

    def _reduced(self, value: Tensor, group: dist.ProcessGroup | None, operation: Any) -> Tensor:
        if group is None or dist.get_world_size(group) == 1:
            return value
        moved = value.to(_device_of(group) if value.device.type == "cpu" else value.device, copy=True)
        dist.all_reduce(moved, op=operation, group=group)
        return moved


def watch_experts(parts: Iterable[nn.Module], config: JobConfig, layout: ParallelDims) -> Experts:
    """Watches the routers of a job's model.

    Args:
        parts: the model, or this rank's stages of it, with storage.
        config: the job, resolved.
        layout: its grid of devices.
    """
    routers = [router for part in parts for router in find_routers(part)]
    groups = {name: layout.get_optional_mesh(name) for name in ("loss", "cp", "pp")}
    data, context, stages = (mesh.get_group() if mesh is not None else None for mesh in groups.values())
    training = config.training
    length = training.seq_len // config.parallelism.context_parallel_degree
    return Experts(routers, config.moe, training.global_batch_size, length, data, context, stages)


def check_experts(model_class: type[PreTrainedModel], model_config: PreTrainedConfig, options: Moe) -> None:
    """Refuses options that nothing in the model would heed.

    Args:
        model_class: the class that will be trained.
        model_config: its config.
        options: the job's ``[moe]`` section.

    Raises:
        ConfigError: there is no router, or none with a bias to move.
    """
    asked = [item.name for item in fields(Moe) if getattr(options, item.name) not in (0, item.default)]
    if not asked:
        return
    with torch.device("meta"):
        routers = find_routers(build_model(model_class, model_config))
    for name in asked:
        given, family = f"moe.{name} = {getattr(options, name)}", model_config.model_type
        if not routers:
            raise ConfigError(f"{given}: flame finds no router of experts in '{family}'; leave it out")
        if name == "bias_update_rate" and all(router.bias is None for router in routers):
            raise ConfigError(f"{given}: routers of '{family}' have no bias; use moe.sequence_balance_loss")


def find_routers(model: nn.Module) -> list[Router]:
    """The routers of a model, in order."""
    found = []
    for name, block in model.named_modules():
        if not isinstance(block._modules.get("experts"), nn.Module):
            continue
        holder = next((module for module in block.modules() if _bias_of(module) is not None), None)
        module = next((block._modules[child] for child in _ROUTERS if child in block._modules), None)
        if module is None and holder is not block:
            module = holder
        if module is not None:
            bias = _bias_of(holder) if holder is not None else None
            full = next((f"{name}.{inner}" for inner, other in block.named_modules() if other is module), name)
            found.append(Router(full.replace("_checkpoint_wrapped_module.", ""), module, bias))
        elif holder is not None:
            log.warning("flame cannot find what chooses the experts of %s: they are not balanced", name)
    return found


def _bias_of(module: nn.Module) -> Tensor | None:
    """A module's selection bias: a buffer, in a few families a parameter without gradient."""
    found = module._buffers.get(BIAS)
    parameter = module._parameters.get(BIAS)
    return parameter if found is None and parameter is not None and not parameter.requires_grad else found


def _device_of(group: dist.ProcessGroup) -> torch.device:
    """Where a group's collectives want their tensors."""
    return dist.distributed_c10d._get_pg_default_device(group)
