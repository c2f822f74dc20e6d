"""Small preparations: a job builder, and stages that run in this process."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from datatrove.data import Document
from datatrove.executor.local import LocalPipelineExecutor
from loguru import logger
from prepare_stand_ins import job_of

from flame.data.prepare.builder import Builder
from flame.data.prepare.documents import DocumentWriter
from flame.data.prepare.reading.plan import InputFile, Plan


@pytest.fixture(autouse=True)
def quiet() -> None:
    """datatrove logs to the standard error."""
    logger.remove()


@pytest.fixture
def make_builder(tmp_path: Path) -> Callable[..., Builder]:
    """Makes a builder whose documents are given, as if they had been read; ``overrides`` are dotted keys."""

    def make(texts: Sequence[str] | Sequence[Sequence[str]], overrides: Mapping[str, Any] | None = None) -> Builder:
        ranks: list[list[str]] = [list(texts)] if not texts or isinstance(texts[0], str) else [list(t) for t in texts]  # pyright: ignore[reportAssignmentType]
        settings = {"inputs": [{"path": "given.jsonl", "name": "given"}], "output.folder": str(tmp_path / "out")}
        job = job_of(settings | {"output.format": "parquet"} | dict(overrides or {}))
        size = sum(len(text) for rank in ranks for text in rank)
        file = InputFile(0, "given.jsonl", "given.jsonl", "jsonl", size, "")
        builder = Builder(job, Plan([file] * len(ranks), list(range(len(ranks) + 1))), tmp_path / "out" / ".prepare")
        row = 0
        for rank, given in enumerate(ranks):
            documents = []
            for text in given:
                row += 1
                documents.append(Document(text, f"given/given.jsonl#{row}", metadata={"source": "given"}))
            list(DocumentWriter(builder.documents.folder).run(documents, rank))
        return builder

    return make


@pytest.fixture
def run_stages() -> Callable[[Builder], None]:
    """Runs the stages of a builder in this process, rank by rank."""

    def run(builder: Builder) -> None:
        for stage in builder.stages:
            logs = str(builder.work / "logs" / stage.name)
            for rank in range(stage.tasks):
                # A task of a cluster unpickles its steps: they carry nothing over from another rank.
                executor = LocalPipelineExecutor(list(stage.steps), tasks=stage.tasks, logging_dir=logs)
                executor._run_for_rank(rank, local_rank=1)

    return run
