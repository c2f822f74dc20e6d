"""Texts as the reading stage leaves them, and the stages after it run in this process, one task after the other."""

import copy
import hashlib
import json
import random
from pathlib import Path
from typing import Any

from datatrove.data import Document
from loguru import logger

from flame.data.prepare.builder import Builder
from flame.data.prepare.dedup.stages import add_decontamination, add_exact, add_minhash
from flame.data.prepare.documents import DocumentWriter
from flame.data.prepare.job import PrepareJob
from flame.data.prepare.options import Dedup, Exact, Minhash, Output, Split
from flame.data.prepare.reading.plan import InputFile, Plan
from flame.data.prepare.writing.stages import add_writing

logger.remove()  # datatrove tells of every bucket
TOKENIZER = "builtin:python-stdlib-8k"
KEEP_ALL = Dedup(Exact(enable=False), Minhash(enable=False))


def random_texts(count: int, words: tuple[int, int] = (40, 120), seed: int = 0) -> list[str]:
    """Texts of made-up words that have nothing in common but words."""
    draw = random.Random(seed)
    letters = "abcdefghijklmnopqrstuvwxyz"
    vocabulary = ["".join(draw.choices(letters, k=draw.randint(3, 9))) for _ in range(3000)]
    return [" ".join(draw.choices(vocabulary, k=draw.randint(*words))) for _ in range(count)]


def make_builder(
    folder: Path, texts: list[str], tasks: int = 1, sources: list[str] | None = None, **sections: Any
) -> Builder:
    """A preparation whose reading stage is done: its documents are these texts, shared out to tasks in order."""
    sections = {"output": Output(format="parquet"), "split": Split(0), **sections}
    size = sum(len(text.encode()) for text in texts)
    file = InputFile(source=0, path="texts", name="texts", format="txt", bytes=size, stamp="")
    plan = Plan([file], list(range(tasks + 1)))
    builder = Builder(PrepareJob(**sections), plan, folder)
    documents = [
        Document(text, f"texts/{row}", metadata={"source": sources[row] if sources else "texts", "row": row})
        for row, text in enumerate(texts)
    ]
    for rank in range(tasks):
        share = documents[len(texts) * rank // tasks : len(texts) * (rank + 1) // tasks]
        list(DocumentWriter(builder.documents.folder).run(share, rank, tasks))
    for add in (add_exact, add_minhash, add_decontamination, add_writing):
        add(builder)
    return builder


def run_stages(builder: Builder, until: str = "") -> None:
    """Runs the stages up to one, exclusive, or all; a task that is marked as done is left out."""
    for stage in builder.stages:
        if stage.name == until:
            return
        for rank in range(stage.tasks):
            marker = builder.folder("done") / stage.name / str(rank)
            if marker.exists():
                continue
            data = None
            for step in copy.deepcopy(stage.steps):
                data = step(data, rank, stage.tasks)
            for _ in data or ():
                pass
            marker.parent.mkdir(parents=True, exist_ok=True)
            marker.touch()


def kept(builder: Builder, until: str = "scatter") -> list[int]:
    """Runs the stages before writing, and returns the rows of what is left, in corpus order."""
    run_stages(builder, until)
    ranks = range(builder.documents.tasks)
    return [document.metadata["row"] for rank in ranks for document in builder.documents.reader().run(None, rank, 1)]


def notes(builder: Builder, name: str) -> list[Any]:
    """What a step wrote down for the report, by rank."""
    return [json.loads(path.read_text()) for path in sorted(builder.notes(name).glob("*.json"))]


def digests(folder: Path) -> dict[str, str]:
    """The files of a folder with hashes of their content."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()[:16] for path in files}
