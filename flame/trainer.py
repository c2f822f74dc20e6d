"""torchtitan's Trainer with a task for the loss, one denominator, a guard, exact resume and export.

The loop itself, its set-up and its profiling are torchtitan's; only what a step does is here.
"""

import logging
from collections.abc import Iterable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torchtitan.components.dataloader import DataloaderExhaustedError
from torchtitan.train import Trainer as TitanTrainer

from flame import compat
from flame.checkpoint.autoexport import AutoExport
from flame.checkpoint.guard import Guard, Verdict
from flame.checkpoint.manager import CheckpointManager
from flame.config import JobConfig
from flame.data.batch import Batch, to_device
from flame.errors import DataError
from flame.metrics import Metrics
from flame.models.experts import watch_experts
from flame.optim import Optimizers
from flame.optim.schedule import Schedule
from flame.parallel.gradients import clip_gradients
from flame.parallel.layout import Layout, layout_of
from flame.parallel.passes import Passes
from flame.parallel.preflight import Trial, preflight
from flame.parallel.reduce import sum_over_data
from flame.spec import Job, register, write_assets
from flame.tasks.base import seeded

log = logging.getLogger(__name__)

_SHARED_DRAWS = -1  # in the place of a row, for what all ranks draw alike


class Trainer(TitanTrainer):
    """Trains a ``Job``. ``ntokens_seen`` counts positions over all ranks, so it survives a change of their number."""

    metrics_processor: Metrics
    checkpointer: CheckpointManager
    job_config: JobConfig

    def __init__(self, job: Job) -> None:
        compat.use_checkpoint_manager(CheckpointManager)
        register(job)
        self.job = job
        self.guard = Guard(job.config.guard)
        self.data_ended = False
        self._first_step: int | None = None
        self._blank_batches = 0
        super().__init__(job.config)
        self.experts = watch_experts(self.model_parts, job.config, self.parallel_dims)
        log.info(self._summary())
        if job.grown_vocabulary:
            log.warning("the vocabulary was raised to %d, the tokenizer's size", job.model_config.vocab_size)
        if job.config.export.enable and not job.config.checkpoint.enable:
            log.info("checkpoint.enable is false, so there will be nothing to resume from and no HuggingFace folder")
        self.exports = AutoExport(job.config, card=self._card)
        if dist.get_rank() == 0 and job.config.checkpoint.enable:
            self.checkpointer.on_complete.append(self.exports.step_completed)

    def init_distributed(self) -> Layout:
        """torchtitan's, with flame's grid of devices; what the grid computes is proven right away."""
        layout = layout_of(self.job_config, super().init_distributed().world_size)
        job = self.job
        preflight(Trial(job.model_class, job.model_config, job.task, job.config, layout))
        return layout

    @property
    def passes(self) -> Passes:
        """How batches run through the model."""
        assert self.job.passes is not None
        return self.job.passes

    def batch_generator(self, data_iterable: Iterable[Batch]) -> Iterator[Batch]:
        """torchtitan's, called once the checkpoint is loaded, so that a job that cannot go on overwrites nothing:
        whatever a lost run logged after it is dropped first, and the job is written down."""
        self.metrics_processor.resume(self.step)
        if dist.get_rank() == 0:
            write_assets(self.job)
        return super().batch_generator(data_iterable)

    def train_step(self, data_iterator: Iterator[Batch]) -> None:
        """One optimizer step over the rank's micro-batches; a step the guard rejects changes no state but its count."""
        self.optimizers.zero_grad()
        lr = self.lr_schedulers.schedulers[0].get_last_lr()[0]
        tokens_before = self.ntokens_seen
        batches = self._prepared(data_iterator)
        counts = self._count(batches)
        if not counts.pop("documents"):
            self._end_of_data(tokens_before)
        valid = counts.pop("valid")
        self.ntokens_seen = tokens_before + int(counts.pop("tokens"))

        local_loss = self._accumulate(batches, valid)
        loss = sum_over_data({"loss": local_loss}, self.parallel_dims, shares=True)["loss"]
        grad_norm = self._clip()
        verdict = self.guard.judge(self.step, loss, grad_norm)
        accepted = verdict is Verdict.ACCEPT
        if accepted:
            self.checkpointer.maybe_wait_for_staging()
            self.optimizers.step()
            self.lr_schedulers.step()
        self.experts.end_step(accepted)
        self._tighten_timeouts()

        if self.metrics_processor.should_log(self.step):
            task = self.job.task
            figures = {"lr": lr, "tokens": self.ntokens_seen, **task.report(loss, valid, counts)}
            figures |= {**task.observed(), **self.experts.figures()}
            if isinstance(self.optimizers, Optimizers) and self.optimizers.left_out:
                figures |= {"left_out_tensors": self.optimizers.left_out}
            if self.guard.skipped:
                figures |= {"skipped_steps": self.guard.skipped, "rollbacks": self.guard.rollbacks}
            self.metrics_processor.log(self.step, loss, loss, grad_norm, extra_metrics=figures)
            for alarm in task.examine({"loss": loss, **figures}):
                log.warning("step %d: %s", self.step, alarm)
        if verdict is Verdict.ROLL_BACK:
            self._roll_back()

    def _roll_back(self) -> None:
        """Goes on from the last good checkpoint with lower learning rates; the data go on from where they are."""
        step = self.checkpointer.roll_back(self.guard.newest_usable())
        if step is None:
            log.warning("step %d: there is no checkpoint to go back to; skipping on", self.step)
            return
        self.guard.went_back(step)
        self._rescale_rates()
        log.warning(
            "step %d: back to step %d, all learning rates times %g from here on", self.step, step, self.guard.rate_scale
        )
        self.step = step
        self.metrics_processor.resume(step)
        if self.job_config.validation.enable:
            self.validator.validated = step  # type: ignore[attr-defined]

    def _rescale_rates(self) -> None:
        for schedule in self.lr_schedulers.schedulers:
            assert isinstance(schedule, Schedule)
            schedule.rescale(self.guard.rate_scale)

    def _prepared(self, data_iterator: Iterator[Batch]) -> list[Batch]:
        """The step's micro-batches after ``Task.draw`` and ``Task.prepare``, which may change labels and so come before
        the count. What they draw depends on (seed, step) and on (seed, step, row of the global batch)."""
        rows, task = self.job_config.training.local_batch_size, self.job.task
        seed, passes = self.job_config.debug.seed, self.gradient_accumulation_steps
        batches, task.step = [], self.step
        self._blank_batches = 0
        drawn = task.draw(seeded(seed, self.step, _SHARED_DRAWS))
        for index in range(passes):
            inputs, labels = next(data_iterator)
            self._blank_batches += self.dataloader.is_blank  # type: ignore[union-attr]
            first = rows * (passes * self._data_rank() + index)
            generators = (seeded(seed, self.step, first + row) for row in range(len(labels)))
            # torchtitan counts labels.
            self.metrics_processor.ntokens_since_last_log += int(task.positions(inputs, labels)) - labels.numel()
            batches.append(task.prepare_rows(({**inputs, **drawn}, labels), generators))
            self.metrics_processor.work.append(task.work(batches[-1][0]))
        return batches

    def _count(self, batches: list[Batch]) -> dict[str, float]:
        """Scored labels, positions, micro-batches with documents and the task's counts, summed over micro-batches and
        ranks."""
        totals = {"documents": torch.tensor(len(batches) - self._blank_batches)}
        task = self.job.task
        for inputs, labels in batches:
            counted = {"valid": task.scored(inputs, labels), "tokens": task.positions(inputs, labels)}
            for name, value in {**counted, **task.counts(labels)}.items():
                totals[name] = totals.get(name, torch.tensor(0)) + value
        return sum_over_data(totals, self.parallel_dims)

    def _end_of_data(self, tokens: int) -> None:
        """Ends the run at the step before this one, for which no rank has documents left, and saves it.

        Raises:
            DataloaderExhaustedError: Always; torchtitan's loop ends with it.
            DataError: The run could not do a single step.
        """
        self.step, self.ntokens_seen = self.step - 1, tokens
        if not self.step:
            raise DataError("the sources hold no usable documents: see what was skipped above")
        log.warning(
            "the data ended: all sources have had their data.sources epochs after step %d of %d; raise epochs, or "
            "remove them, for a longer run",
            self.step,
            self.job_config.training.steps,
        )
        self.data_ended = True
        self.dataloader.take_back_step()  # type: ignore[union-attr]
        self.checkpointer.save(self.step, last_step=True)
        if self.job_config.validation.enable and not self.validator.should_validate(self.step):
            self.validator.validate(self.model_parts, self.step)
        raise DataloaderExhaustedError

    def _accumulate(self, batches: list[Batch], valid: float) -> torch.Tensor:
        """Runs forward and backward over the micro-batches; returns this rank's share of the mean loss."""
        total = torch.zeros((), device=self.device)
        for batch in batches:
            inputs, labels = to_device(batch, self.device)
            total += self.forward_backward_step(input_dict=inputs, labels=labels, global_valid_tokens=valid)
        self.passes.finish_gradients()
        return total

    def forward_backward_step(
        self, *, input_dict: dict[str, Any], labels: torch.Tensor, global_valid_tokens: Any
    ) -> torch.Tensor:
        """One micro-batch: the task's summed loss over the global number of scored labels, and its gradients."""
        return self.passes.train(input_dict, labels, max(float(global_valid_tokens), 1.0))

    def _clip(self) -> float:
        """Clips gradients to ``training.max_norm``; returns their norm over all ranks, before clipping."""
        if isinstance(self.optimizers, Optimizers):
            self.optimizers.leave_out_nonfinite()
        parameters = [parameter for part in self.model_parts for parameter in part.parameters()]
        norm = clip_gradients(
            parameters, self.job_config.training.max_norm, self.parallel_dims, twins=self.passes.twins
        )
        # With no tensor left, the step is no step: the guard has to know.
        return float("nan") if not norm and self.job_config.optimizer.skip_nonfinite_tensors else norm

    def _data_rank(self) -> int:
        return self.parallel_dims.get_mesh("batch").get_local_rank() if self.parallel_dims.dp_enabled else 0

    def _tighten_timeouts(self) -> None:
        """Shortens collective timeouts after this process's first step; torchtitan/train.py:699 does so at step 1 only,
        so that a resumed run would keep the long ones."""
        if self._first_step is None:
            self._first_step = self.step
            if self.step != 1:
                timeout = timedelta(seconds=self.job_config.comm.train_timeout_seconds)
                compat.set_pg_timeouts(timeout, self.parallel_dims)

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps of the trainer itself."""
        return {**super().state_dict(), "guard": self.guard.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores what ``state_dict`` gave."""
        super().load_state_dict(state_dict)
        if "guard" in state_dict:
            self.guard.load_state_dict(state_dict["guard"])
            self._rescale_rates()

    def _summary(self) -> str:
        training, devices = self.job_config.training, dist.get_world_size()
        parameters = self.model_args.parameters  # type: ignore[attr-defined]
        megaflops = self.metrics_processor.num_flops_per_token / 1e6
        rows, length, passes = training.global_batch_size, training.seq_len, self.gradient_accumulation_steps
        return (
            f"{self.job.plugin.model_type}: {parameters:,} parameters, {megaflops:,.1f} MFLOP per token; "
            f"{training.mixed_precision_param} on {devices} x {compat.DEVICE_TYPE}; "
            f"a step is {rows} rows x {length} = {rows * length:,} tokens{f' in {passes} passes' * (passes > 1)}"
        )

    def _card(self) -> dict[str, Any]:
        """What the exported model's card says of its training."""
        figures = self.metrics_processor.history.last()
        return {
            "model_type": self.job.plugin.model_type,
            "task": self.job_config.task.name,
            "data": [source.path for source in self.job_config.data.sources],
            "step": self.step,
            "tokens": self.ntokens_seen,
            **{name: figures[name] for name in ("loss", "val_loss", "val_bpb") if name in figures},
        }

    def close(self) -> None:
        """Waits for checkpoints under way and closes logs and data workers."""
        super().close()
        if getattr(self, "dataloader", None) is not None:
            self.dataloader.close()  # type: ignore[union-attr]


def train(job: Job) -> Path | None:
    """Trains a job in an initialised process environment (``RANK``, ``WORLD_SIZE``, ``LOCAL_RANK``, ``MASTER_*``).

    Returns:
        The exported HuggingFace folder of the last step, on rank 0, if the job exports.
    """
    try:
        trainer = Trainer(job)
        first = dist.get_rank() == 0
        try:
            trainer.train()
        finally:
            trainer.close()
    except BaseException:
        # Other ranks may still be sending to this one, and gloo aborts a process that ends its groups under them.
        if dist.is_initialized() and dist.get_world_size() == 1:
            compat.end_process_groups()
        raise
    compat.end_process_groups()
    if first:
        trainer.exports.finish(trainer.step, is_over=trainer.data_ended or trainer.step == job.config.training.steps)
    return trainer.exports.last
