"""What a preparation is made of: stages, collected part by part."""

from dataclasses import dataclass, field
from pathlib import Path

from datatrove.pipeline.base import PipelineStep

from flame.data.prepare.documents import Documents
from flame.data.prepare.job import PrepareJob, spared
from flame.data.prepare.reading.plan import Plan
from flame.data.prepare.reporting.tally import Counting

PLAN = "plan"
"""Folder of the plan inside the state."""


@dataclass(frozen=True)
class Stage:
    """Work that independent tasks do; it begins when the stage before it is complete."""

    name: str
    """Fit for a folder, and the stage's own."""
    title: str
    """For people."""
    steps: list[PipelineStep]
    """What every task runs; the first reads, each passes documents to the next."""
    tasks: int


@dataclass
class Builder:
    """Collects the stages; every part of the preparation adds its own."""

    job: PrepareJob
    plan: Plan
    work: Path
    """Folder of the state, absolute, and shared by all machines that take part."""
    counted_tokenizer: str = ""
    """Path of the ``tokenizer.json`` that tokens are counted with; empty to count none."""
    stages: list[Stage] = field(default_factory=list)
    documents: Documents = field(init=False)
    """What the last stage left."""

    def __post_init__(self) -> None:
        self.documents = Documents(self.folder("read"), self.plan.tasks)

    @property
    def published(self) -> Path:
        """Where the writing stage puts ``train`` and ``val``; they move to the output folder when all is done."""
        return self.work / "published"

    def folder(self, name: str) -> Path:
        """A folder for intermediate files, which are removed at the end."""
        return self.work / "files" / name

    def notes(self, name: str) -> Path:
        """A folder for what the report needs, one JSON file per rank."""
        return self.work / "notes" / name

    def counting(self, name: str) -> Counting:
        """How the step that the report calls ``name`` counts."""
        report = self.job.report
        sample = 1 if report.tokens == "exact" else 16
        is_first = name == "normalise"  # before it, text is mixed with mark-up; after it, what is dropped is subtracted
        return Counting(name, self.notes(name), self.counted_tokenizer, sample, report.examples, is_first)

    def spared(self, step: str) -> frozenset[str]:
        """Names of the inputs that pass a step untouched."""
        return spared(self.job, step)

    def stage(self, name: str, steps: list[PipelineStep], tasks: int, title: str = "") -> None:
        """Adds a stage to be run after those there are."""
        assert name not in {stage.name for stage in self.stages}, name
        self.stages.append(Stage(name, title or name, steps, tasks))
