"""Turns checkpoints into HuggingFace folders by themselves, in the background, from complete files alone."""

import logging
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch.distributed as dist

from flame.checkpoint.hf_export import export_hf
from flame.checkpoint.layout import RunFolder, step_folder
from flame.config import JobConfig

log = logging.getLogger(__name__)


class AutoExport:
    """Exports the last step, and every ``export.interval`` steps, of a run; does nothing on ranks other than 0.

    No rank waits for another: the weights are read from the finished checkpoint.
    """

    def __init__(self, config: JobConfig, card: Callable[[int], dict[str, Any]]) -> None:
        self.config = config
        self.folder = RunFolder(Path(config.job.dump_folder), config.checkpoint.folder)
        self.last: Path | None = None
        self._card = card
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="export")
        self._pending: list[Future[Path]] = []

    def step_completed(self, step: int, checkpoint: Path) -> None:
        """Called on rank 0 when a step's checkpoint is complete on disk."""
        interval = self.config.export.interval
        if step == self.config.training.steps or (interval and step % interval == 0):
            self._export(step, checkpoint)

    def run_resumed(self, step: int) -> None:
        """Called once a run's checkpoint is loaded: exports a finished run whose export was lost."""
        finished = step == self.config.training.steps and step > 0
        if finished and dist.get_rank() == 0 and not step_folder(self.folder.hf, step).is_dir():
            self._export(step, step_folder(self.folder.checkpoint, step))

    def _export(self, step: int, checkpoint: Path) -> None:
        if not self.config.export.enable:
            return
        out = step_folder(self.folder.hf, step)
        self._pending.append(
            self._pool.submit(
                export_hf,
                checkpoint,
                self.folder.model_assets,
                out,
                dtype=self.config.export.dtype,
                max_shard_size=self.config.export.max_shard_size,
                card=self._card(step),
            )
        )

    def close(self) -> None:
        """Waits for exports under way; an export that failed raises here."""
        self._pool.shutdown(wait=True)
        for future in self._pending:
            self.last = future.result()
            log.info("exported to %s", self.last)
        self._pending.clear()
