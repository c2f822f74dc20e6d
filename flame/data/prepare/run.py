"""A preparation from its job to its end."""

import sys
from pathlib import Path

from flame.data.encoder import tokenizer_fingerprint
from flame.data.prepare.builder import PLAN, Stage
from flame.data.prepare.executors import run_locally, run_on_ray
from flame.data.prepare.finish import clean_up, finished, nothing_left
from flame.data.prepare.job import PrepareJob
from flame.data.prepare.reading.plan import Plan, make_plan
from flame.data.prepare.reporting.collect import collect
from flame.data.prepare.reporting.markdown import size, summary_of
from flame.data.prepare.slurm import check_no_jobs, submit_to_slurm
from flame.data.prepare.stages import build_stages
from flame.data.prepare.state import STATE, absolute, alone, claim, forget
from flame.errors import ConfigError, DataError
from flame.files import atomic
from flame.tokenizer.load import load_tokenizer


def prepare(job: PrepareJob, is_restart: bool = False, is_dry: bool = False) -> int:
    """Runs a preparation, or goes on with one that was interrupted.

    Args:
        job: What is to be done.
        is_restart: Whether to begin anew.
        is_dry: Whether to check everything, and do nothing.

    Returns:
        The exit code.

    Raises:
        FlameError: The job, an input or the output folder is not as it should be.
    """
    output = absolute(job.output.folder)
    try:
        return _prepare(job, output, is_restart, is_dry)
    except OSError as error:
        where = f" '{error.filename}'" if error.filename else ""
        raise DataError(f"preparing '{output}': {error.strerror or error}{where}") from error


def _prepare(job: PrepareJob, output: Path, is_restart: bool, is_dry: bool) -> int:
    work = output / STATE
    job.output.check()
    tokenizer, fingerprint = _tokenizer(job)
    if is_dry:
        plan = make_plan(job.inputs, job.executor.task_bytes)
        _say(plan, build_stages(job, plan, work))
        return 0
    with alone(output):
        if finished(output) is None:
            check_no_jobs(work)
        if is_restart:
            forget(output)
        claim(job, output, fingerprint)
        if (done := finished(output)) is not None:
            clean_up(job, work)
            print(f"{output} is finished: {summary_of(done['written'])}; --restart prepares it anew")
            return 0
        plan = _plan(job, work)
        counted = _counted_tokenizer(job, work, tokenizer)
        stages = build_stages(job, plan, work, counted)
        _say(plan, stages)
        if job.executor.kind == "slurm":
            last = submit_to_slurm(stages, work, job.executor)
            print(f"submitted; the result is in {output} when job {last} is done")
            return 0
        run = run_locally if job.executor.kind == "local" else run_on_ray
        run(stages, work, job.executor, lambda stage: _check_left(job, work, plan) if stage is stages[0] else None)
        done = finished(output)
        assert done is not None
        print(f"{output}: {summary_of(done['written'])}; report: {output / 'report.md'}")
    return 0


def _check_left(job: PrepareJob, work: Path, plan: Plan) -> None:
    """Ends the run, before hours are spent on it, if cleaning left nothing."""
    found = collect(job, work, plan)
    if not found["steps"][-1]["kept"]["documents"]:
        raise DataError(nothing_left(found))


def _plan(job: PrepareJob, work: Path) -> Plan:
    """The plan of the interrupted run, or a new one."""
    plan = Plan.load(work / PLAN)
    if plan is None:
        plan = make_plan(job.inputs, job.executor.task_bytes)
        plan.save(work / PLAN)
        return plan
    now = make_plan(job.inputs, job.executor.task_bytes).files
    if now != plan.files:
        changed = sorted({file.path for file in {*now} ^ {*plan.files}})
        raise ConfigError(
            f"{len(changed)} input files have changed, gone or come since this preparation began, among them "
            f"{changed[0]}: begin anew with --restart"
        )
    return plan


def _tokenizer(job: PrepareJob) -> tuple[str, str]:
    """The tokenizer of the output as JSON, and its fingerprint; both empty for text."""
    if not job.output.tokenizer:
        return "", ""
    backend = load_tokenizer(job.output.tokenizer).backend_tokenizer
    return backend.to_str(), tokenizer_fingerprint(backend)


def _counted_tokenizer(job: PrepareJob, work: Path, tokenizer: str) -> str:
    if not tokenizer or job.report.tokens == "none":
        return ""
    path = work / "tokenizer.json"
    with atomic(path) as temporary:
        temporary.write_text(tokenizer, encoding="utf-8")
    return str(path)


def _say(plan: Plan, stages: list[Stage]) -> None:
    files = f"{len(plan.files):,} file{'' if len(plan.files) == 1 else 's'}"
    print(f"{files}, {size(plan.bytes)}; stages: {', '.join(f'{s.name} ({s.tasks})' for s in stages)}", file=sys.stderr)
