"""The loader of examples: micro-batches for one data-parallel rank, and a state that fits any number of ranks.

A global batch is chosen as a whole (``batches``) and then shared out, sorted by length, in equal pieces: one for each
micro-batch of each rank. So it does not depend on their number, and every piece has little padding.
"""

import json
from collections.abc import Iterator
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import torch

from flame.data.base_loader import BaseLoader, DataloaderConfig
from flame.data.batch import Batch
from flame.data.examples.batches import BatchPlan, Place
from flame.data.examples.maker import MicroBatch, Share
from flame.data.resuming import START_OVER, compare
from flame.errors import DataError

_KEPT = {
    "rows": "training.global_batch_size",
    "budget": "task.steps_per_batch",
    "seed": "debug.seed",
    "shuffle": "data.shuffle",
    "mix": "data.mix",
}
"""What a state is meaningless without, by its key in the layout, and its key in the job."""

_CHANGES = {
    "examples": "the numbers of examples changed, so some may be seen twice or never",
    "longest": "training.seq_len changed, so the order of batches may differ",
    "encoder": "the way from records to examples changed",
    "weights": "the weights changed",
    "epochs": "the most passes over the sources changed",
}
"""What may change on the way, and is told."""


class ExampleLoader(BaseLoader[MicroBatch]):
    """Micro-batches of one rank; made by ``build.build_example_loader``.

    Iterating yields ``(inputs, labels)``: values ``[B, T, width]`` under the encoder's name and ``attention_mask``
    ``[B, T]``; ``labels`` ``[B, L]``, -100 where not scored. A new iteration goes on after the last batch handed out;
    if sources do not repeat, it is a new pass over them.
    """

    def __init__(self, share: Share, layout: dict[str, Any], dataloader: DataloaderConfig, is_endless: bool):
        super().__init__(dataloader)
        self._share = share
        self._layout = layout
        self._is_endless = is_endless
        self._place = share.place
        self._before = share.place  # the place before the last global batch
        self._handed = 0  # micro-batches of the current global batch
        self._is_resumed = False

    @property
    def plan(self) -> BatchPlan:
        """Which examples batches consist of."""
        return self._share.plan

    def __iter__(self) -> Iterator[Batch]:
        return map(self._collated, self.micro_batches())

    def micro_batches(self) -> Iterator[MicroBatch]:
        """What iterating makes batches of: arrays, with the examples they hold."""
        self._stop_workers()
        if not (self._is_endless or self._is_resumed):
            self._place = self._share.plan.start()
        self._is_resumed, self._handed = False, 0
        for made in self._stream():
            if made.has_ended and not self._is_endless:
                break
            self._note_place(made)
            yield made
        self._stop_workers()

    def blank(self) -> Batch:
        """A batch of which nothing is scored."""
        examples = [self._share.plan.encoder.blank()]
        values, labels = torch.from_numpy(examples[0].values), torch.from_numpy(examples[0].labels)
        mask = torch.ones(1, len(values), dtype=torch.long)
        return {self._share.plan.encoder.inputs_name: values[None], "attention_mask": mask}, labels[None]

    def state_dict(self) -> dict[str, Any]:
        """Returns the place after the last global batch handed out; the same on every rank."""
        return {"layout": json.dumps(self._layout), "place": json.dumps(asdict(self._place))}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on from a state.

        Raises:
            DataError: It belongs to a job with other batches or sources.
        """
        if not state_dict:
            return  # torchtitan's way of saying that the checkpoint holds no data state
        if "place" not in state_dict:
            raise DataError(f"the checkpoint's data state is of a task on text: keep the task, {START_OVER}")
        self._check_layout(json.loads(state_dict["layout"]))
        self._stop_workers()
        saved = json.loads(state_dict["place"])
        self._place = self._before = Place(tuple(saved["given"]), saved["window"], saved["batch"])
        self._is_resumed = True

    def take_back_step(self) -> None:
        """Makes the state that before the last step; the current iteration must not go on afterwards."""
        self._place = self._before

    def close(self) -> None:
        """Ends the worker processes and logs what was skipped; safe to call again."""
        self._stop_workers()
        self._record.summarise_examples()

    def _check_layout(self, saved: dict[str, Any]) -> None:
        if len(saved["examples"]) != len(self._layout["examples"]):
            raise DataError(
                f"the checkpoint's data state has {len(saved['examples'])} sources, the job has "
                f"{len(self._layout['examples'])}: keep them, {START_OVER}"
            )
        compare(saved, self._layout, _KEPT, _CHANGES)

    def _stream(self) -> Iterator[MicroBatch]:
        lanes = max(1, self._dataloader.num_workers)
        share = replace(self._share, place=self._place, lanes=lanes)
        return self._made(share, {lane: np.zeros(1, np.int64) for lane in range(lanes)}, at_once=1, ahead=2)

    def _note_place(self, made: MicroBatch) -> None:
        self._handed += 1
        self.is_blank = made.has_ended
        if self._handed == 1:
            self._before = self._place
        if self._handed == len(self._share.pieces):
            self._place, self._handed = made.place, 0

    def _collated(self, made: MicroBatch) -> Batch:
        inputs, labels = made.arrays
        tensors = {name: torch.from_numpy(value) for name, value in inputs.items()}
        if self._pin_memory:
            tensors = {name: value.pin_memory() for name, value in tensors.items()}
        return tensors, torch.from_numpy(labels)
