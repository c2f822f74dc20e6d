"""Saves a run's steps during training: torchtitan's manager with steps that exist only once complete.

torchtitan decides when to save and what a step holds; this class decides how it reaches the disk and how long steps are
kept. Which step is good enough to load is decided in ``step_loader``.
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

from flame.checkpoint.agreement import causes
from flame.checkpoint.layout import (
    partial_folder,
    publish,
    remove_leftovers,
    remove_old_steps,
    set_aside_newer,
    step_of,
    write_manifest,
)
from flame.checkpoint.step_loader import StepLoader
from flame.checkpoint.storage import StepWriter
from flame.checkpoint.tied import tied_names
from flame.errors import CheckpointError

logger = logging.getLogger(__name__)


class CheckpointManager(StepLoader):
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
        self.saved_step = -1
        self.model_modules = model_parts
        self.tied = tied_names(model_parts)
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
        if curr_step == self.saved_step or not self._should_save(curr_step, last_step):
            return
        super().save(curr_step, last_step)
        self.saved_step = curr_step

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
                save(state_dict, storage_writer=StepWriter(folder, self.tied))
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
            storage_writer=StepWriter(folder, self.tied),
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
        state = {name: tensor for name, tensor in state.items() if self.tied.get(name) not in state}
        super().dcp_save(state, str(partial), titan.AsyncMode.DISABLED, to_hf=True)
        dist.barrier()
        if dist.get_rank() == 0:
            names = [str(path.relative_to(partial)) for path in partial.rglob("*") if path.is_file()]
            write_manifest(partial, step_of(folder), names, self.tied)
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

    def wait_for_saves(self) -> None:
        """Waits until every save under way is on disk, on all ranks."""
        super().maybe_wait_for_staging()
        self._async_wait()
        dist.barrier()

    def _async_wait(self) -> None:
        future, self.save_future = self.save_future, None
        if future is not None:
            future.result()
