"""Running stages on Slurm: job arrays that wait for each other, submitted by datatrove."""

import functools
import json
import shutil
import subprocess
from pathlib import Path

from datatrove.executor.slurm import SlurmPipelineExecutor

from flame.data.prepare.builder import Stage
from flame.data.prepare.documents import write_json
from flame.data.prepare.executors import logs_of
from flame.data.prepare.job import Executor
from flame.errors import ConfigError

_SUBMITTED = "slurm.json"
"""File in the state with the ids of the jobs, each written down as soon as it is submitted."""


def submit_to_slurm(stages: list[Stage], work: Path, options: Executor) -> str:
    """Submits every stage as a job array that waits for the one before it.

    Returns:
        The id of the last job.

    Raises:
        ConfigError: There is no sbatch here, or no partition is named.
    """
    slurm = options.slurm
    if not slurm.partition:
        raise ConfigError('executor.kind = "slurm" needs a partition: set executor.slurm.partition')
    if shutil.which("sbatch") is None:
        raise ConfigError('executor.kind = "slurm" needs the command sbatch: run this on a login node of the cluster')
    write_json(work / _SUBMITTED, [])  # those of an earlier run are over, see check_no_jobs
    previous: SlurmPipelineExecutor | None = None
    for stage in stages:
        previous = SlurmPipelineExecutor(
            pipeline=stage.steps,  # pyright: ignore[reportArgumentType]  steps are what it wants
            tasks=stage.tasks,
            workers=options.workers or -1,
            time=slurm.time,
            partition=slurm.partition,
            cpus_per_task=slurm.cpus_per_task,
            mem_per_cpu_gb=slurm.mem_per_cpu_gb,
            qos=slurm.qos,
            job_name=f"prepare-{stage.name}",
            env_command=slurm.setup,
            sbatch_args=dict(_named(argument) for argument in slurm.sbatch_args),
            max_array_size=slurm.max_array_size,
            mail_type="NONE",
            logging_dir=str(logs_of(stage, work)),
            depends=previous,
            job_id_retriever=functools.partial(_noted, work / _SUBMITTED),
        )
    assert previous is not None
    previous.run()
    return str(previous.job_id)


def check_no_jobs(work: Path) -> None:
    """Makes sure that no job of an earlier submission is waiting or running: it would do the same work, or lose it.

    Raises:
        ConfigError: One is, or it cannot be known.
    """
    path = work / _SUBMITTED
    submitted = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else []
    if not submitted:
        return
    if shutil.which("squeue") is None:
        raise ConfigError(
            f"'{work.parent}' was submitted to Slurm, and whether its jobs are over is not known here without the "
            f"command squeue: run this on a login node, or remove {path} if they are"
        )
    asked = subprocess.run(["squeue", "--noheader", "--format=%F"], capture_output=True, text=True)
    if asked.returncode:
        raise ConfigError(f"squeue does not say whether jobs of '{work.parent}' are over: {asked.stderr.strip()}")
    queue = set(asked.stdout.split())
    if left := [number for number in submitted if number in queue]:
        raise ConfigError(
            f"{len(left)} Slurm jobs of an earlier run still work for '{work.parent}': wait for them, or end them with "
            f"scancel {' '.join(left)}"
        )


def _noted(path: Path, answer: str) -> str:
    """The id in what sbatch says of a job, written down before the next one is submitted."""
    number = answer.split()[-1]
    write_json(path, [*json.loads(path.read_text(encoding="utf-8")), number])
    return number


def _named(argument: str) -> tuple[str, str]:
    name, _, value = argument.partition("=")
    return name.strip().lstrip("-"), value.strip()
