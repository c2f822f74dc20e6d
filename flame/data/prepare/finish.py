"""The last stage of a preparation: the report, and handing the result over."""

import importlib.util
import json
import os
import shutil
from pathlib import Path
from typing import Any

from datatrove.pipeline.base import PipelineStep

from flame.data.prepare.builder import PLAN
from flame.data.prepare.documents import write_json
from flame.data.prepare.job import PrepareJob
from flame.data.prepare.reading.plan import Plan
from flame.data.prepare.reporting.collect import collect
from flame.data.prepare.reporting.markdown import count, markdown
from flame.data.prepare.state import FINISHED, RESULTS
from flame.errors import DataError
from flame.files import DRAFTS, atomic


class Finish(PipelineStep):
    """Writes the report, moves ``train`` and ``val`` to the output folder, and says that all is done; a single task.

    Args:
        job: The job.
        work: Folder of its state, inside the output folder.
    """

    type = "REPORT"
    name = "finish"

    def __init__(self, job: PrepareJob, work: Path) -> None:
        super().__init__()
        self.job = job
        self.work = work

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> None:
        """Does it; a run that was killed in between goes on here.

        Raises:
            DataError: No document is left.
        """
        plan = Plan.load(self.work / PLAN)
        assert plan is not None
        found = collect(self.job, self.work, plan)
        if not found["written"].get("train", {}).get("documents"):
            raise DataError(nothing_left(found))
        output = self.work.parent
        write_json(output / "report.json", found)
        has_picture = importlib.util.find_spec("matplotlib") is not None
        if has_picture:
            from flame.data.prepare.reporting.pictures import draw

            with atomic(output / "report.png") as temporary:
                draw(found, temporary)
        with atomic(output / "report.md") as temporary:
            temporary.write_text(markdown(found, has_picture), encoding="utf-8")
        for name in RESULTS:
            if (self.work / "published" / name).is_dir():
                os.rename(self.work / "published" / name, output / name)
        write_json(output / FINISHED, {"written": found["written"], "format": self.job.output.format})
        clean_up(self.job, self.work)


def clean_up(job: PrepareJob, work: Path) -> None:
    """Removes intermediate files, which may be as large as the corpus, and what killed tasks were writing."""
    if not job.executor.keep_work:
        shutil.rmtree(work / "files", ignore_errors=True)
    for draft in [*work.rglob(DRAFTS), *work.parent.glob(DRAFTS)]:
        draft.unlink(missing_ok=True)


def nothing_left(found: dict[str, Any]) -> str:
    """Says where the documents went."""
    drops = [
        (reason["documents"], step["name"], reason["reason"]) for step in found["steps"] for reason in step["reasons"]
    ]
    most = sorted(drops, reverse=True)[:3]
    why = ", ".join(f"{count(number)} by {step} ({reason})" for number, step, reason in most)
    read = found["read"]["documents"]
    return f"no document is left for train: {count(read)} were read" + (f", and dropped: {why}" if why else "")


def finished(output: Path) -> dict[str, Any] | None:
    """What a finished preparation wrote, or None."""
    path = output / FINISHED
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
