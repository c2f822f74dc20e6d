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
from flame.data.batch import Inputs
from flame.errors import ConfigError
from flame.losses import cross_entropy_sum
from flame.models.documents import document_inputs, documents_are_isolated
from flame.models.head import head_is_last, loss_in_head
from flame.models.trial import trial_model
from flame.tasks.base import Task, scored
from flame.tokenizer import token_bytes

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


class CausalLM(Task):
    """Cross entropy of the next token; bits per byte compare tokenizers."""

    Options = CausalLMOptions
    options: CausalLMOptions

    def __init__(self, options: TaskOptions, tokenizer: PreTrainedTokenizerFast, config: JobConfig) -> None:
        super().__init__(options, tokenizer, config)
        self.documents = "position_ids"
        self.loss_in_head = False
        self._token_bytes = token_bytes(tokenizer)

    def encoder(self) -> TextEncoder:
        return TextEncoder(self.tokenizer, add_bos=self.config.data.add_bos, add_eos=self.config.data.add_eos)

    def check(self, model_class: type[nn.Module], config: PreTrainedConfig, documents: str) -> None:
        """Finds out on a scaled-down model where the loss may be taken and that packed documents stay apart."""
        assert issubclass(model_class, PreTrainedModel)
        self.documents = documents
        for name in _OWN_LOSS_TERMS:
            if getattr(config, name, 0):
                log.warning(
                    "%s = %s of '%s' adds to the loss that the model itself computes; flame trains on cross entropy",
                    name,
                    getattr(config, name),
                    config.model_type,
                )
        small = trial_model(model_class, config)
        if small is None:
            self._check_nothing(config.model_type)
            return
        if self.config.training.varlen:
            self._check_documents(small, documents)
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
        if self.config.training.varlen or self.options.linear_cross_entropy == "on":
            raise ConfigError(
                f"family '{model_type}' cannot be scaled down to prove training.varlen or task.linear_cross_entropy = "
                "'on'; set them to false and 'auto'"
            )

    def loss(self, outputs: Any, labels: torch.Tensor, inputs: Mapping[str, Any]) -> torch.Tensor:
        return cross_entropy_sum(outputs.logits, labels.view(outputs.logits.shape[:-1]))

    def model_inputs(self, inputs: Inputs) -> Inputs:
        return document_inputs(inputs, self.documents)

    def loss_sum(self, model: Any, inputs: Inputs, labels: torch.Tensor) -> torch.Tensor:
        if self.loss_in_head:
            return loss_in_head(model, self.model_inputs(inputs), labels)
        return super().loss_sum(model, inputs, labels)

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
