"""Turns checkpoints into HuggingFace folders by themselves, from complete files alone: no rank waits for another."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from flame.checkpoint.hf_export import export_hf
from flame.checkpoint.layout import RunFolder, find_steps, step_folder, update_latest
from flame.config import JobConfig

log = logging.getLogger(__name__)


class AutoExport:
    """Exports the last step of a run, and every ``export.interval`` steps before it; used on rank 0.

    Attributes:
        last: the folder exported last by this process.
    """

    def __init__(self, config: JobConfig, card: Callable[[], dict[str, Any]]) -> None:
        self.config = config
        self.run = RunFolder(Path(config.job.dump_folder), config.checkpoint.folder)
        self.last: Path | None = None
        self._card = card

    def step_completed(self, step: int, checkpoint: Path) -> None:
        """Called in the background when a step is complete on disk; the step is kept until this returns.

        The last step is left to ``finish``, so that its card can tell of the validation that follows the save.
        """
        interval = self.config.export.interval
        if self.config.export.enable and interval and step % interval == 0 and step != self.config.training.steps:
            self._export(step, checkpoint)

    def finish(self, step: int, is_over: bool) -> None:
        """Called once training has ended at ``step``: exports it if the run is over and it is not exported yet."""
        out = step_folder(self.run.hf, step)
        finished = self.config.export.enable and is_over
        if finished and step in find_steps(self.run.checkpoint) and not out.is_dir():
            self._export(step, step_folder(self.run.checkpoint, step))
        elif finished and out.is_dir():
            self.last = out

    def _export(self, step: int, checkpoint: Path) -> None:
        export = self.config.export
        self.last = export_hf(
            checkpoint,
            self.run.model_assets,
            step_folder(self.run.hf, step),
            dtype=export.dtype,
            max_shard_size=export.max_shard_size,
            card=self._card(),
        )
        update_latest(self.run.hf, step)
        log.info("exported step %d to %s", step, self.last)
