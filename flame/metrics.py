"""Shows and keeps the figures of a run: a console line, ``metrics.jsonl``, TensorBoard and Weights & Biases."""

import json
import logging
import math
import os
import sys
import time
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torchtitan.components.metrics import MetricsProcessor
from torchtitan.distributed import ParallelDims
from torchtitan.tools.utils import NoColor

from flame.config import JobConfig

log = logging.getLogger(__name__)


class Metrics(MetricsProcessor):
    """torchtitan's processor with a line per step for people and one for programs.

    ``tokens`` counts every position fed to the model over all ranks; ``tps`` is per device, ``MFU`` only on hardware
    whose peak is known.
    """

    def __init__(self, job_config: JobConfig, parallel_dims: ParallelDims, model_args: Any = None) -> None:
        os.environ.setdefault("WANDB_PROJECT", "flame")
        super().__init__(job_config, parallel_dims)  # its third parameter would be put before every figure's name
        if not sys.stdout.isatty():
            self.color = NoColor()
        self.history = History(Path(job_config.job.dump_folder) / "metrics.jsonl", writes=dist.get_rank() == 0)
        self.work: list[float] = []
        """Work of the micro-batches since the last report, relative to ``num_flops_per_token``."""
        self._started: tuple[int, float] | None = None  # (step, time) after this process's first step

    def log(
        self,
        step: int,
        global_avg_loss: float,
        global_max_loss: float,
        grad_norm: float,
        extra_metrics: dict[str, Any] | None = None,
    ) -> None:
        """Reports a training step. ``extra_metrics`` holds lr, tokens and what the task reports (bpb ...)."""
        elapsed = time.perf_counter() - self.time_last_log
        tps = self.ntokens_since_last_log / (elapsed * self.parallel_dims.non_data_parallel_size)
        memory = self.device_memory_monitor.get_peak_stats()
        figures: dict[str, Any] = {
            "loss": global_avg_loss,
            "grad_norm": grad_norm,
            **(extra_metrics or {}),
            "tps": tps,
            "memory_gib": memory.max_reserved_gib,
            "data_wait": sum(self.data_loading_times) / elapsed,
        }
        if not math.isnan(self.gpu_peak_flops):
            work = sum(self.work) / len(self.work) if self.work else 1.0
            figures["mfu"] = work * self.num_flops_per_token * tps / self.gpu_peak_flops
        self.history.write({"step": step, **figures})
        self.logger.log(figures, step)
        self._print(step, figures)
        self._restart_clock()

    def log_validation(self, loss: float, step: int, extra_metrics: dict[str, Any] | None = None) -> None:
        """Reports a validation; ``extra_metrics`` holds what the task reports."""
        figures = {"val_loss": loss, **{f"val_{name}": value for name, value in (extra_metrics or {}).items()}}
        self.history.write({"step": step, **figures})
        self.logger.log(figures, step)
        color = self.color
        shown = "  ".join(f"{name} {value:.4f}" for name, value in figures.items())
        log.info("%svalidation  step %d  %s%s", color.yellow, step, shown, color.reset)
        self._restart_clock()

    def resume(self, step: int) -> None:
        """Forgets what a longer, lost run wrote after ``step``."""
        self.history.truncate(step)
        self._started = None

    def _restart_clock(self) -> None:
        self.ntokens_since_last_log = 0
        self.work.clear()
        self.data_loading_times.clear()
        self.time_last_log = time.perf_counter()
        self.device_memory_monitor.reset_peak_stats()

    def _print(self, step: int, figures: dict[str, Any]) -> None:
        color, steps = self.color, self.job_config.training.steps
        bpb = f"bpb {figures['bpb']:.4f}  " if "bpb" in figures else ""
        mfu = f"  mfu {figures['mfu']:.1%}" if "mfu" in figures else ""
        skipped = f"  skipped {figures['skipped_steps']}" if figures.get("skipped_steps") else ""
        log.info(
            f"{color.red}step {step:>{len(str(steps))}}/{steps}  "
            f"{color.green}loss {figures['loss']:.4f}  {bpb}"
            f"{color.orange}grad {figures['grad_norm']:.3f}  "
            f"{color.magenta}lr {figures['lr']:.2e}  "
            f"{color.blue}{figures['tps']:,.0f} tok/s{mfu}  "
            f"{color.turquoise}{figures['memory_gib']:.2f} GiB  "
            f"{color.cyan}ETA {self._eta(step)}{skipped}{color.reset}"
        )

    def _eta(self, step: int) -> str:
        """Time left at the mean pace since this process's first report, validation and saving included."""
        if self._started is None:
            self._started = (step, time.perf_counter())
            return "-"
        first, since = self._started
        seconds = int((time.perf_counter() - since) / (step - first) * (self.job_config.training.steps - step))
        return f"{seconds // 3600}:{seconds // 60 % 60:02}:{seconds % 60:02}"


class History:
    """``metrics.jsonl``: one object per report, each with its ``step``; kept across restarts without doubled steps."""

    def __init__(self, path: Path, writes: bool) -> None:
        self.path = path
        self.writes = writes

    def write(self, record: dict[str, Any]) -> None:
        """Appends one report."""
        if self.writes:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a") as file:
                file.write(json.dumps({name: _strict(value) for name, value in record.items()}) + "\n")

    def truncate(self, step: int) -> None:
        """Drops the reports after ``step`` and a last line that was cut off."""
        if not self.writes or not self.path.is_file():
            return
        kept = [line for line in self.path.read_text().splitlines() if _step_of(line) <= step]
        self.path.write_text("".join(line + "\n" for line in kept))

    def last(self) -> dict[str, Any]:
        """The newest value of every figure."""
        figures: dict[str, Any] = {}
        if self.path.is_file():
            for line in self.path.read_text().splitlines():
                if _step_of(line) < math.inf:
                    figures.update(json.loads(line))
        return figures


def _strict(value: Any) -> Any:
    """JSON has no infinity and no NaN; the loss of a skipped step becomes null."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _step_of(line: str) -> float:
    try:
        return json.loads(line)["step"]
    except json.JSONDecodeError:
        return math.inf
