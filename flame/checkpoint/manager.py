"""Saves and loads a run's steps during training: torchtitan's manager with steps that exist only once complete.

torchtitan decides when to save and what a step holds; this class decides how it reaches the disk, which step is
good enough to load, how long steps are kept, and where the weights of a new run come from.
"""

import flame.compat  # noqa: F401  torchtitan binds its device when it is imported

# isort: split
import logging
import shutil
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions
from torch.distributed.checkpoint.state_dict_saver import AsyncCheckpointerType, AsyncSaveResponse, async_save, save
from torchtitan.components import checkpoint as titan
from torchtitan.tools.utils import GarbageCollection

from flame.checkpoint.agreement import causes, decided_by_first
from flame.checkpoint.hf_import import local_folder
from flame.checkpoint.layout import (
    DamagedStepError,
    check_step,
    find_steps,
    partial_folder,
    publish,
    remove_leftovers,
    remove_old_steps,
    set_aside_newer,
    step_folder,
    step_of,
    write_manifest,
)
from flame.checkpoint.loading import check_initial, load_hf, load_step
from flame.checkpoint.storage import StepWriter
from flame.checkpoint.tied import tied_names
from flame.errors import CheckpointError

logger = logging.getLogger(__name__)


class CheckpointManager(titan.CheckpointManager):
    """Same constructor and calls as torchtitan's.

    Attributes:
        on_complete: Called on rank 0, in a background thread, with step and folder once a step is on disk. The step
            is not removed before they return; what they raise is raised by the next save, step or ``close``.
    """

    def __init__(
        self,
        dataloader: Any,
        model_parts: list[nn.Module],
        optimizers: Any,
        lr_schedulers: Any,
        states: dict[str, Any],
        checkpoint_config: Any,
        sd_adapter: Any,
        base_folder: str = "",
        ft_manager: Any = None,
    ) -> None:
        self.on_complete: list[Callable[[int, Path], None]] = []
        self.save_future: Future[None] | None = None
        self._saved_step = -1
        self._model_parts = model_parts
        self._tied = tied_names(model_parts)
        self._background = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        super().__init__(
            dataloader,
            model_parts,
            optimizers,
            lr_schedulers,
            states,
            # Retention is ours: torchtitan's counts folders still being written, and so refuses to keep only one.
            replace(checkpoint_config, keep_latest_k=0),
            sd_adapter,
            base_folder,
            ft_manager,
        )
        self._kept_steps = checkpoint_config.keep_latest_k
        if self.enable and not self.load_only and dist.get_rank() == 0:
            remove_leftovers(Path(self.folder))

    def close(self) -> None:
        """Waits for the save in the background, if any, and raises its error."""
        try:
            self._async_wait()
        finally:
            self._background.shutdown()
            super().close()

    @torch.no_grad()
    def save(self, curr_step: int, last_step: bool = False) -> None:
        """Saves a step when it is due, unless it is on disk already."""
        if curr_step == self._saved_step or not self._should_save(curr_step, last_step):
            return
        super().save(curr_step, last_step)
        self._saved_step = curr_step

    def dcp_save(
        self,
        state_dict: dict[str, Any],
        checkpoint_id: str,
        async_mode: titan.AsyncMode,
        enable_garbage_collection: bool = False,
        to_hf: bool = False,
    ) -> Any:
        """Writes a step; it gets its name when all ranks have written.

        Returns:
            ``None`` after a blocking save, else torchtitan's future (or pair of futures) of the step on disk.

        Raises:
            CheckpointError: The step could not be written.
        """
        folder = Path(checkpoint_id)
        if to_hf:
            self._save_hf(state_dict, folder)
        elif async_mode != titan.AsyncMode.DISABLED:
            return self._save_in_background(state_dict, folder, async_mode)
        else:
            try:
                save(state_dict, storage_writer=StepWriter(folder, self._tied))
            except CheckpointException as error:
                raise self._failed_save(folder, error) from error
        if enable_garbage_collection:
            GarbageCollection.collect("GC collection invoked by checkpointer.")
        self.save_future = self._background.submit(self._follow_up, folder)
        return None

    def maybe_wait_for_staging(self) -> None:
        """Waits until the weights may change again, and raises the error of a save that has failed meanwhile."""
        super().maybe_wait_for_staging()
        if self.save_future is not None and self.save_future.done():
            self._async_wait()

    def _save_in_background(self, state: dict[str, Any], folder: Path, mode: titan.AsyncMode) -> Any:
        in_process = mode == titan.AsyncMode.ASYNC_WITH_PINNED_MEM
        if self.stager is None:
            self.stager = DefaultStager(StagingOptions(False, False, False, False))
        response = async_save(
            state,
            storage_writer=StepWriter(folder, self._tied),
            process_group=self.pg,
            async_checkpointer_type=AsyncCheckpointerType.PROCESS if in_process else AsyncCheckpointerType.THREAD,
            async_stager=self.stager,
        )
        if isinstance(response, AsyncSaveResponse):
            done = self._background.submit(self._follow_up, folder, response.upload_completion)
            return AsyncSaveResponse(response.staging_completion, done)
        return self._background.submit(self._follow_up, folder, response)

    def _save_hf(self, state: dict[str, Any], folder: Path) -> None:
        partial = partial_folder(folder)
        if dist.get_rank() == 0:
            shutil.rmtree(partial, ignore_errors=True)
        dist.barrier()
        state = {name: tensor for name, tensor in state.items() if self._tied.get(name) not in state}
        super().dcp_save(state, str(partial), titan.AsyncMode.DISABLED, to_hf=True)
        dist.barrier()
        if dist.get_rank() == 0:
            names = [str(path.relative_to(partial)) for path in partial.rglob("*") if path.is_file()]
            write_manifest(partial, step_of(folder), names, self._tied)
            publish(partial, folder)
        dist.barrier()

    def _follow_up(self, folder: Path, upload: Future[Any] | None = None) -> None:
        """Runs in a thread: waits for the step to be on disk, then does what follows from it on rank 0."""
        if upload is not None:
            try:
                upload.result()
            except CheckpointException as error:
                raise self._failed_save(folder, error) from error
        if dist.get_rank() != 0 or folder.parent != Path(self.folder):
            return
        for path in set_aside_newer(folder.parent, step_of(folder)):
            logger.warning("%s holds a step newer than the one this run went back to: it is not used any more.", path)
        for hook in self.on_complete:
            hook(step_of(folder), folder)
        if self._kept_steps:
            remove_old_steps(folder.parent, self._kept_steps)

    def _failed_save(self, folder: Path, error: CheckpointException) -> CheckpointError:
        if dist.get_rank() == 0:
            shutil.rmtree(partial_folder(folder), ignore_errors=True)
        return CheckpointError(f"{folder} could not be saved: {causes(error)[0]!r}")

    def _async_wait(self) -> None:
        future, self.save_future = self.save_future, None
        if future is not None:
            future.result()

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
        steps = decided_by_first(lambda: find_steps(Path(self.folder)))
        if step == -1 and not steps:
            return self._load_initial()
        if steps and (self.initial_load_path or self.initial_load_in_hf):
            logger.info("%s holds steps, so checkpoint.initial_load_path is not used.", self.folder)
        if step != -1:
            self._load_asked(step, steps)
        else:
            self._load_newest(steps)
        return True

    def _load_newest(self, steps: list[int]) -> None:
        for step in reversed(steps):
            try:
                return self._load_step(step)
            except DamagedStepError as error:
                logger.warning("Skipping step-%d: %s.", step, error)
        raise CheckpointError(
            f"None of the steps {steps} in {self.folder} is good, see the warnings above: restore one, or move them "
            f"away to start over"
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
        self._saved_step = step

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
        load_hf(named, self._model_parts, local_folder(source), self._tied)
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
        load_step(state_dict, model, Path(checkpoint_id), self._tied)
        if model:
            self.states[titan.MODEL].load_state_dict(model)
