"""Next-token prediction.

[task]
name = "causal_lm"
"""

import logging
import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn as nn
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerFast

from flame.config import JobConfig, TaskOptions
from flame.data import TextEncoder
from flame.data.batch import Batch, Inputs
from flame.errors import ConfigError
from flame.losses import IGNORE_INDEX, cross_entropy_sum
from flame.models.documents import document_inputs, documents_are_isolated
from flame.models.head import head_is_last, loss_in_head, scoring_head, soft_cap
from flame.models.mtp import (
    add_further_layers,
    further_layers,
    let_go_of_further_layers,
    take_further_tokens,
    with_further_tokens,
)
from flame.models.trial import trial_model
from flame.tasks.base import Task, scored
from flame.tokenizer.byte_lengths import token_bytes

log = logging.getLogger(__name__)

_OWN_LOSS_TERMS = ("use_l2warp", "aux_loss_scale")  # of fla's models
_LARGEST_EXPONENT = math.log(sys.float_info.max)


@dataclass
class CausalLMOptions(TaskOptions):
    """The ``[task]`` table of ``causal_lm``."""

    name: str = "causal_lm"
    """The task to train."""

    linear_cross_entropy: Literal["auto", "on", "off"] = "auto"
    """
    Compute the loss without ever holding the logits of all positions. "auto" does so for every family in which nothing
    follows the output head; "on" refuses the others; "off" computes all logits.
    """

    mtp_loss_weight: float = 0.0
    """
    Weight of the loss of predicting tokens beyond the next one, by the `num_nextn_predict_layers` layers of the model's
    config (DeepSeek-V3: 0.3, later 0.1); 0 trains without such layers.
    """

    def __post_init__(self) -> None:
        if self.mtp_loss_weight < 0:
            raise ConfigError(f"task.mtp_loss_weight = {self.mtp_loss_weight:g} must be at least 0.")


class CausalLM(Task):
    """Cross entropy of the next token; bits per byte compare tokenizers."""

    Options = CausalLMOptions
    options: CausalLMOptions

    def __init__(self, options: TaskOptions, tokenizer: PreTrainedTokenizerFast, config: JobConfig) -> None:
        super().__init__(options, tokenizer, config)
        self.documents = "position_ids"
        self.loss_in_head = False
        self._token_bytes = token_bytes(tokenizer)
        self._further = 0  # tokens predicted beyond the next one
        self._further_loss: tuple[torch.Tensor, torch.Tensor] | None = None  # sum and labels of the last micro-batch

    def encoder(self) -> TextEncoder:
        return TextEncoder(self.tokenizer, add_bos=self.config.data.add_bos, add_eos=self.config.data.add_eos)

    def extend(self, model_class: type[PreTrainedModel], config: PreTrainedConfig) -> None:
        """Adds the layers that predict further tokens, if their loss counts; else the config asks for none, so that
        no exported folder claims layers that nobody trained."""
        let_go_of_further_layers(model_class, config)
        if not self.options.mtp_loss_weight:
            if further_layers(config):
                log.warning(
                    "the config has %d layers that predict further tokens; they are left out, since "
                    "task.mtp_loss_weight is 0",
                    further_layers(config),
                )
                config.get_text_config().num_mtp_layers = 0
            return
        if self.config.parallelism.pipeline_parallel_degree > 1:
            raise ConfigError(
                "task.mtp_loss_weight: layers that predict further tokens need embedding and head on one rank; set "
                "parallelism.pipeline_parallel_degree to 1, or the weight to 0"
            )
        add_further_layers(model_class, config)
        self._further = further_layers(config)

    def check(self, model_class: type[nn.Module], config: PreTrainedConfig, documents: str) -> None:
        """Finds out on a scaled-down model where the loss may be taken and that packed documents stay apart."""
        assert issubclass(model_class, PreTrainedModel)
        flash = (config._attn_implementation or "").startswith("flash")
        self.documents = "one_row" if flash and documents == "position_ids" else documents
        for name in _OWN_LOSS_TERMS:
            if getattr(config, name, 0):
                log.warning(
                    "%s = %s of '%s' adds to the loss that the model itself computes; flame trains on cross entropy",
                    name,
                    getattr(config, name),
                    config.model_type,
                )
        if getattr(config, "output_router_logits", False):
            log.warning(
                "output_router_logits of '%s' adds a loss to the one that the model itself computes; flame balances "
                "experts by moe.sequence_balance_loss",
                config.model_type,
            )
        small = trial_model(model_class, config)
        if small is None:
            self._check_nothing(config.model_type)
            return
        if self.config.training.varlen:
            self._check_documents(small, self.documents)
        if self._further and (soft_cap(small) or not head_is_last(small)):
            raise ConfigError(
                f"task.mtp_loss_weight: '{config.model_type}' changes its logits after the head, which its further "
                "layers would miss; set it to 0"
            )
        layout = self.config.parallelism
        if self.options.linear_cross_entropy == "off" or (
            layout.disable_loss_parallel and layout.tensor_parallel_degree > 1
        ):
            return
        self.loss_in_head = head_is_last(small)
        if self.options.linear_cross_entropy == "on" and not self.loss_in_head:
            raise ConfigError(
                f"task.linear_cross_entropy: '{config.model_type}' changes its logits after the head; set it to 'auto'"
            )

    def _check_documents(self, small: PreTrainedModel, documents: str) -> None:
        family = small.config.model_type
        try:
            isolated = documents_are_isolated(small, documents)
        except (NotImplementedError, ValueError, AssertionError) as error:
            reason = " ".join(str(error).split())
            raise ConfigError(
                f"training.varlen: '{family}' takes no packed documents ({reason}); set it to false"
            ) from error
        if not isolated:
            raise ConfigError(f"training.varlen: '{family}' lets packed documents see each other; set it to false")

    def _check_nothing(self, model_type: str) -> None:
        """For a family that cannot be tried: all logits are computed, and what needs proof is refused."""
        if self.config.training.varlen or self.options.linear_cross_entropy == "on" or self._further:
            raise ConfigError(
                f"family '{model_type}' cannot be scaled down to prove training.varlen, task.mtp_loss_weight or "
                "task.linear_cross_entropy = 'on'; set them to false, 0 and 'auto'"
            )

    def loss(self, outputs: Any, labels: torch.Tensor, inputs: Mapping[str, Any]) -> torch.Tensor:
        return cross_entropy_sum(outputs.logits, labels.view(outputs.logits.shape[:-1]))

    def model_inputs(self, inputs: Inputs) -> Inputs:
        return document_inputs(inputs, self.documents)

    def prepare(self, inputs: Inputs, labels: torch.Tensor, generator: torch.Generator) -> Batch:
        inputs, labels = super().prepare(inputs, labels, generator)
        return with_further_tokens(inputs, labels, self._further), labels

    def loss_sum(self, model: Any, inputs: Inputs, labels: torch.Tensor) -> torch.Tensor:
        """The summed loss of the next token; that of further tokens is in its gradient, not in its value."""
        inputs, ids, further_labels = take_further_tokens(inputs)
        if ids and torch.is_grad_enabled():
            return self._loss_with_further(model, inputs, labels, ids, further_labels)
        if self.loss_in_head:
            return loss_in_head(model, self.model_inputs(inputs), labels)
        return super().loss_sum(model, inputs, labels)

    def _loss_with_further(
        self,
        model: Any,
        inputs: Inputs,
        labels: torch.Tensor,
        ids: list[torch.Tensor],
        further_labels: list[torch.Tensor],
    ) -> torch.Tensor:
        given = self.model_inputs(inputs)
        shape = given["input_ids"].shape  # one row where flash attention wants documents so
        given = {**given, "further_ids": [each.reshape(shape) for each in ids]}
        if self.loss_in_head:
            with scoring_head(model, [labels, *further_labels]):
                outputs, further = model(**given)
            loss = outputs.logits
        else:
            outputs, logits = model(**given)
            loss = self.loss(outputs, labels, inputs)
            further = [cross_entropy_sum(*pair) for pair in zip(logits, further_labels, strict=True)]
        total = torch.stack(further).sum()
        count = torch.stack([(each != IGNORE_INDEX).sum() for each in further_labels]).sum()
        self._further_loss = (total.detach(), count)
        added = self.options.mtp_loss_weight / len(further) * total
        return loss + (added - added.detach())

    def observed(self) -> dict[str, float]:
        """``mtp_loss``: the mean loss of further tokens in this rank's last micro-batch."""
        if self._further_loss is None:
            return {}
        total, count = self._further_loss
        return {"mtp_loss": (total / count.clamp_min(1)).item()}

    def counts(self, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        if self._token_bytes.device != labels.device:
            self._token_bytes = self._token_bytes.to(labels.device)
        return {"bytes": self._token_bytes[scored(labels)].sum()}

    def report(self, loss: float, valid: float, counts: Mapping[str, float]) -> dict[str, float]:
        """Perplexity, and bits per byte: the summed loss in bits over the UTF-8 bytes of the scored tokens."""
        figures = {"ppl": math.exp(loss) if loss < _LARGEST_EXPONENT else math.inf}
        if counts["bytes"]:
            figures["bpb"] = loss * valid / (math.log(2) * counts["bytes"])
        return figures


TASK = CausalLM
