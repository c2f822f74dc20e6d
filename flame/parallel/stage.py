"""What a pipeline stage does when it is called: hidden states in and out, a summed loss out of the last."""

from collections.abc import Callable
from typing import Any, Protocol

import torch
from transformers import PreTrainedModel

from flame.parallel.context import ContextParallel, Inputs
from flame.parallel.split import Anatomy, Inlet, Outlet


class StageTask(Protocol):
    """What a stage needs of the job's task."""

    def model_inputs(self, inputs: Inputs) -> Inputs:
        """The keyword arguments of the forward pass."""
        ...

    def loss_sum(self, model: Any, inputs: Inputs, labels: torch.Tensor) -> torch.Tensor:
        """Runs the model and returns the summed loss."""
        ...


class Stage:
    """What takes the place of a stage's ``forward``: hidden states in and out, a summed loss out of the last.

    Called with what the stage before handed on [B, T, H] (the first: token ids [B, T]) and, by name, the batch itself.
    """

    def __init__(
        self, model: PreTrainedModel, found: Anatomy, task: StageTask, context: ContextParallel | None, index: int
    ) -> None:
        stack = model.get_submodule(found.layers)
        self.model, self.task, self.context, self.index = model, task, context, index
        self._whole: Callable[..., Any] = model.forward
        self._inlet = next((layer for layer in stack.children() if isinstance(layer, Inlet)), None)
        self._outlet = next((layer for layer in stack.children() if isinstance(layer, Outlet)), None)

    def __call__(
        self, carried: torch.Tensor, labels: torch.Tensor, documents: torch.Tensor | None = None, **inputs: torch.Tensor
    ) -> torch.Tensor:
        if self.context is not None:
            self.context.enter(documents)
        if self._inlet is not None:
            self._inlet.value = carried
        if self._outlet is None:
            return self.task.loss_sum(_Forward(self), inputs, labels)
        self._run(self.model.base_model, self.task.model_inputs(inputs))
        handed_on, self._outlet.value = self._outlet.value, None
        assert handed_on is not None
        handed_on = handed_on.reshape(*labels.shape, -1)
        # Zero-bubble schedules detach what a stage hands on in place, which a view does not allow.
        return handed_on.clone() if handed_on._is_view() else handed_on

    def _run(self, forward: Callable[..., Any], inputs: Inputs) -> Any:
        """Runs a forward pass whose token ids give way to what was handed on."""
        if self._inlet is not None and self._inlet.value is not None:
            ids = inputs["input_ids"]
            hidden = self._inlet.value.reshape(*ids.shape, -1)
            inputs = {name: value for name, value in inputs.items() if name != "input_ids"}
            self._inlet.value, inputs["inputs_embeds"] = hidden, hidden
        try:
            return forward(**inputs)
        finally:
            if self._inlet is not None:
                self._inlet.value = None


class _Forward:
    """The model as a task sees it on the last stage: called with token ids, it goes on from the handed-on states."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self.config = stage.model.config
        self.get_output_embeddings = stage.model.get_output_embeddings

    def __call__(self, **inputs: Any) -> Any:
        return self._stage._run(self._stage._whole, inputs)
