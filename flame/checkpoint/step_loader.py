"""Finds the step that a run goes on from, and loads it: torchtitan's manager, as far as it reads.

A step that is incomplete or damaged is passed over for the one before; a step that was asked for by name is not.
"""

import flame.compat  # noqa: F401  torchtitan binds its device when it is imported

# isort: split
import logging
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torchtitan.components import checkpoint as titan
from torchtitan.tools.utils import GarbageCollection

from flame.checkpoint.agreement import decided_by_first
from flame.checkpoint.hf_import import local_folder
from flame.checkpoint.layout import DamagedStepError, check_step, find_steps, step_folder
from flame.checkpoint.loading import check_initial, load_hf, load_step
from flame.errors import CheckpointError

logger = logging.getLogger(__name__)


class StepLoader(titan.CheckpointManager):
    """The reading half of ``CheckpointManager``.

    Attributes:
        saved_step: The step that is on disk as it is in memory, or -1.
        tied: Name of a tied tensor -> name of the tensor that is stored.
        model_modules: The model, as its parts on this rank.
    """

    saved_step: int
    tied: dict[str, str]
    model_modules: list[nn.Module]

    @torch.no_grad()
    def load(self, step: int = -1) -> bool:
        """Loads a step of this run, else what ``checkpoint.initial_load_path`` names.

        Args:
            step: The step, or -1 for the newest good one.

        Returns:
            Whether anything was loaded.

        Raises:
            CheckpointError: The step asked for is absent or damaged, or there are steps but none is good.
        """
        if self.enable_ft_dataloader_checkpoints:
            self._ft_load()
        if not self.enable:
            return False
        steps = self._steps_on_disk()
        if step == -1 and not steps:
            return self._load_initial()
        if steps and (self.initial_load_path or self.initial_load_in_hf):
            logger.info("%s holds steps, so checkpoint.initial_load_path is not used.", self.folder)
        if step != -1:
            self._load_asked(step, steps)
        else:
            self._first_good(reversed(steps), self._load_step)
        return True

    @torch.no_grad()
    def roll_back(self, newest: int) -> int | None:
        """Loads model, optimizer and schedule of the newest good step up to ``newest``; the position in the data and
        the trainer's own counters stay.

        Returns:
            The step, or None if there is none.

        Raises:
            CheckpointError: There are steps, but none is good.
        """
        if not self.enable:
            return None
        self.wait_for_saves()
        steps = [step for step in self._steps_on_disk() if 0 < step <= newest]
        if not steps:
            return None
        kept = {name: state for name, state in self.states.items() if name not in (titan.DATALOADER, titan.TRAIN_STATE)}

        def load(step: int) -> None:
            folder = step_folder(Path(self.folder), step)
            decided_by_first(lambda: check_step(folder))
            self.dcp_load(self._flattened_model_states_sd(kept), str(folder), from_hf=False, from_quantized=False)

        self.saved_step = self._first_good(reversed(steps), load)
        return self.saved_step

    def wait_for_saves(self) -> None:
        """Waits until every save under way is on disk."""
        raise NotImplementedError

    def _steps_on_disk(self) -> list[int]:
        return decided_by_first(lambda: find_steps(Path(self.folder)))

    def _first_good(self, steps: Iterable[int], load: Callable[[int], None]) -> int:
        """Loads the first of ``steps`` that is not damaged, and returns it."""
        tried = []
        for step in steps:
            try:
                load(step)
                return step
            except DamagedStepError as error:
                logger.warning("Skipping step-%d: %s.", step, error)
                tried.append(step)
        raise CheckpointError(
            f"None of the steps {sorted(tried)} in {self.folder} is good, see the warnings above: restore one, or move "
            "them away to start over"
        )

    def _load_asked(self, step: int, steps: list[int]) -> None:
        if step not in steps:
            raise CheckpointError(f"checkpoint.load_step = {step} is not in {self.folder}; available steps: {steps}")
        try:
            self._load_step(step)
        except DamagedStepError as error:
            raise CheckpointError(
                f"checkpoint.load_step = {step} is damaged: {error}; available steps: {steps}"
            ) from None

    def _load_step(self, step: int) -> None:
        folder = step_folder(Path(self.folder), step)
        decided_by_first(lambda: check_step(folder))
        # Step 0 is what a run starts from: a model alone.
        self._load_states(folder, model_only=step == 0)
        self.saved_step = step

    def _load_initial(self) -> bool:
        if self.initial_load_in_hf:
            source = self.initial_load_path or getattr(self.sd_adapter, "hf_assets_path", None)
            if not source:
                raise CheckpointError("checkpoint.initial_load_in_hf = true needs a folder: set initial_load_path")
            self._load_initial_hf(source)
        elif self.initial_load_path:
            folder = Path(self.initial_load_path)
            decided_by_first(lambda: check_initial(folder))
            self._load_states(folder, self.initial_load_model_only)
        return bool(self.initial_load_in_hf or self.initial_load_path)

    def _load_initial_hf(self, source: str) -> None:
        if self.initial_load_in_hf_quantized:
            raise CheckpointError("checkpoint.initial_load_in_hf_quantized = true is not supported: use plain weights")
        decided_by_first(lambda: local_folder(source))  # one rank downloads, the others find it in the cache
        model = self.states[titan.MODEL].state_dict()
        named = self.sd_adapter.to_hf(model) if self.sd_adapter else model
        load_hf(named, self.model_modules, local_folder(source), self.tied)
        self.states[titan.MODEL].load_state_dict(self.sd_adapter.from_hf(named) if self.sd_adapter else named)
        logger.info("Loaded the weights of %s.", source)

    def _load_states(self, folder: Path, model_only: bool) -> None:
        states = self._states_to_load(model_only)
        self.dcp_load(states, str(folder), from_hf=False, from_quantized=False)
        GarbageCollection.collect("GC collection for checkpoint loading.")
        logger.info("Loaded %s%s.", folder, " (the model only)" if model_only else "")

    def dcp_load(self, state_dict: dict[str, Any], checkpoint_id: str, from_hf: bool, from_quantized: bool) -> None:
        """Loads a DCP step into the given states, checking every record it reads.

        Raises:
            DamagedStepError: A file of the step is not what was written.
            CheckpointError: The step does not fit.
        """
        assert not from_hf and not from_quantized, "HuggingFace folders are read by load_hf"
        names = self.states[titan.MODEL].state_dict() if titan.MODEL in self.states else {}
        model = {name: tensor for name, tensor in state_dict.items() if name in names}
        load_step(state_dict, model, Path(checkpoint_id), self.tied)
        if model:
            self.states[titan.MODEL].load_state_dict(model)
