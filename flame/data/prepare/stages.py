"""The stages of a preparation, in the order in which they run."""

from collections.abc import Callable
from pathlib import Path

from flame.data.prepare.builder import PLAN, Builder, Stage
from flame.data.prepare.cleaning.filters import cleaning_steps
from flame.data.prepare.cleaning.normalise import check_extractor
from flame.data.prepare.dedup.stages import add_decontamination, add_exact, add_minhash
from flame.data.prepare.documents import DocumentWriter
from flame.data.prepare.finish import Finish
from flame.data.prepare.job import PrepareJob
from flame.data.prepare.reading.plan import Plan
from flame.data.prepare.reading.reader import InputReader
from flame.data.prepare.writing.stages import add_writing


def add_reading(builder: Builder) -> None:
    """Adds the stage that reads, normalises, filters and masks: one pass over the inputs."""
    if any(file.format in ("html", "warc") for file in builder.plan.files):
        check_extractor(builder.job.normalise.html)
    reader = InputReader(builder.counting("read"), builder.work / PLAN, builder.job.inputs, builder.job.read)
    steps = [reader, *cleaning_steps(builder.job, builder.counting), DocumentWriter(builder.documents.folder)]
    builder.stage("read", steps, builder.plan.tasks, "read and clean")


def add_finish(builder: Builder) -> None:
    """Adds the stage that reports and hands the result over."""
    builder.stage("finish", [Finish(builder.job, builder.work)], 1, "report")


PARTS: list[Callable[[Builder], None]] = [
    *(add_reading, add_exact, add_minhash, add_decontamination, add_writing, add_finish),
]
"""What adds stages, in order; a part that the job switches off adds none."""


def build_stages(job: PrepareJob, plan: Plan, work: Path, counted_tokenizer: str = "") -> list[Stage]:
    """Returns the stages of a job.

    Args:
        job: The job.
        plan: Its files, saved in ``work``.
        work: Folder of the state.
        counted_tokenizer: Path of the ``tokenizer.json`` that tokens are counted with; empty to count none.
    """
    builder = Builder(job, plan, work, counted_tokenizer)
    for part in PARTS:
        part(builder)
    return builder.stages
