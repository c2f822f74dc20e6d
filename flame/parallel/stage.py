"""What a pipeline stage does when it is called: hidden states in and out, a summed loss out of the last."""

import inspect
from collections.abc import Callable
from typing import Any, Protocol

import torch
from transformers import PreTrainedModel

from flame.data.batch import Inputs
from flame.parallel.context import SplitSequence
from flame.parallel.split import Inlet, Outlet, layer_stack_name


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

    def __init__(self, model: PreTrainedModel, task: StageTask, context: SplitSequence | None) -> None:
        self.model, self.task, self.context = model, task, context
        self._whole: Callable[..., Any] = model.forward
        self._inlets = [module for module in model.modules() if isinstance(module, Inlet)]
        self._outlet = next((module for module in model.modules() if isinstance(module, Outlet)), None)
        # Llama 4 names another attribute as its base model than the one it has, and then the base is the model itself.
        whole = model.base_model is model
        self._base = model.get_submodule(layer_stack_name(model).partition(".")[0]) if whole else model.base_model
        self._takes_states = "inputs_embeds" in inspect.signature(self._base.forward).parameters
        self._carried: torch.Tensor | None = None

    def __call__(
        self, carried: torch.Tensor, labels: torch.Tensor, documents: torch.Tensor | None = None, **inputs: Any
    ) -> torch.Tensor:
        if self.context is not None:
            self.context.enter(documents)
        self._carried = carried
        if self._outlet is None:
            return self.task.loss_sum(_Forward(self), inputs, labels)
        self.run(self._base, self.task.model_inputs(inputs))
        handed_on, self._outlet.value = self._outlet.value, None
        assert handed_on is not None
        handed_on = handed_on.reshape(*labels.shape, -1)
        # Zero-bubble schedules detach what a stage hands on in place, which a view does not allow.
        return handed_on.clone() if handed_on._is_view() else handed_on

    def run(self, forward: Callable[..., Any], inputs: Inputs) -> Any:
        """Runs a forward pass in which token ids give way to what was handed on."""
        carried, self._carried = self._carried, None
        assert carried is not None
        if self._inlets:
            ids = inputs["input_ids"]
            hidden = carried.reshape(*ids.shape, -1)
            for inlet in self._inlets:
                inlet.value = hidden
            if self._takes_states:
                inputs = {name: value for name, value in inputs.items() if name != "input_ids"}
                inputs["inputs_embeds"] = hidden
        try:
            return forward(**inputs)
        finally:
            for inlet in self._inlets:
                inlet.value = None


class _Forward:
    """The model as a task sees it on the last stage: called with token ids, it goes on from the handed-on states."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self.config = stage.model.config
        self.get_output_embeddings = stage.model.get_output_embeddings

    def __call__(self, **inputs: Any) -> Any:
        return self._stage.run(self._stage._whole, inputs)
