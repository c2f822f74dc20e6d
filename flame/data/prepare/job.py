"""The job file of a preparation: what is read, how it is cleaned, and where it goes.

Annotations stay real types here, because the job file's reader looks at them: no postponed evaluation.
"""

from dataclasses import dataclass, field, fields
from typing import Literal

from flame.data.prepare.cleaning.options import Filters, Language, Normalise, Pii
from flame.data.prepare.options import Decontaminate, Dedup, Output, Shuffle, Split
from flame.errors import ConfigError, closest

FORMATS = ("parquet", "jsonl", "txt", "lines", "html", "warc")
STEPS = (
    *("normalise", "language", "gopher_quality", "gopher_repetition", "c4", "fineweb", "pii"),
    *("exact", "minhash", "decontaminate"),
)
"""Steps that an input can be spared."""
OWN_COLUMNS = ("source", "language", "score", "markup")
"""Keys of a document's metadata that mean something to the steps."""


@dataclass
class Input:
    """One corpus; a job lists them as `[[inputs]]` tables."""

    path: str = ""
    """File, folder, glob pattern or fsspec URL; `{stdlib}` and `{site-packages}` stand for those of this Python."""

    name: str = ""
    """What the report and the documents call it; empty for the last part of the path."""

    format: str = ""
    """`parquet`, `jsonl`, `lines`, `txt` (a file is a document), `html` or `warc` (also WET); empty to tell by name."""

    exclude: list[str] = field(default_factory=list)
    """Glob patterns of files to leave out, at any depth below the part of `path` that is no pattern."""

    text_column: str = ""
    """Column that holds the text; empty for the first of `text` and `content`."""

    columns: list[str] = field(default_factory=list)
    """Further columns to carry along to parquet output; not `source`, `language`, `score` or `markup`."""

    skip: list[str] = field(default_factory=list)
    """Steps that this input passes untouched, such as `gopher_quality`; `filters` for all quality filters."""

    limit: int = 0
    """Most documents to read of every file; 0 for all."""

    optional: bool = False
    """Whether the input may have no files at all."""

    def __post_init__(self) -> None:
        if not self.path:
            raise ConfigError("inputs has an entry without a path; name a file, folder, pattern or URL.")
        if self.format not in ("", *FORMATS):
            hint = closest(self.format, FORMATS)
            raise ConfigError(f"inputs.format = '{self.format}' must be one of {', '.join(FORMATS)}.{hint}")
        for step in self.skip:
            if step not in ("filters", *STEPS):
                raise ConfigError(f"inputs.skip names '{step}', which is no step.{closest(step, ('filters', *STEPS))}")
        for column in self.columns:
            if column in OWN_COLUMNS:
                raise ConfigError(
                    f"inputs.columns names '{column}', which is what flame calls a column of its own: leave it out "
                    "(the files may have it), or rename it in the files to carry it along."
                )
        if self.limit < 0:
            raise ConfigError(f"inputs.limit = {self.limit} must be 0 or more.")


@dataclass
class Read:
    """How files are read."""

    on_bad_file: Literal["error", "skip"] = "error"
    """What a truncated or damaged file does: end the run, or lose what follows the damage, counted in the report."""

    on_bad_row: Literal["error", "skip"] = "skip"
    """What a row without usable text does: end the run, or be left out, counted in the report."""

    max_document_bytes: int = 16_777_216
    """Longest document that is read; memory per worker is 15 to 50 times this at worst."""

    on_large_document: Literal["skip", "cut", "error"] = "skip"
    """
    What a longer document does: be left out and counted, lose its end, or end the run. Pages, and lines of JSON of more
    than four times this length, are never cut but left out.
    """

    def __post_init__(self) -> None:
        if self.max_document_bytes < 1024:
            raise ConfigError(f"read.max_document_bytes = {self.max_document_bytes} must be at least 1024.")


@dataclass
class Report:
    """The report: `report.json`, `report.md`, and pictures where matplotlib is installed."""

    examples: int = 3
    """Dropped documents shown for every filter and reason."""

    tokens: Literal["estimate", "exact", "none"] = "estimate"
    """How tokens of dropped documents are counted: one document in 16 (`estimate`) or every one is tokenized."""

    def __post_init__(self) -> None:
        if self.examples < 0:
            raise ConfigError(f"report.examples = {self.examples} must be 0 or more.")


@dataclass
class Slurm:
    """How tasks are submitted with `executor.kind = "slurm"`."""

    partition: str = ""
    """Partition of the cluster; required."""

    time: str = "24:00:00"
    """Time limit of a task."""

    cpus_per_task: int = 1
    """Cores of a task; more give it more memory."""

    mem_per_cpu_gb: int = 4
    """Memory per core in GB."""

    qos: str = ""
    """Quality of service; empty for the cluster's own."""

    max_array_size: int = 1001
    """Largest job array that the cluster takes."""

    setup: str = ""
    """Command that makes `flame` available on a node, such as `source /shared/venv/bin/activate`."""

    sbatch_args: list[str] = field(default_factory=list)
    """Further options of sbatch as `name=value`, such as `account=physics`."""

    def __post_init__(self) -> None:
        for argument in self.sbatch_args:
            if not argument.partition("=")[0].strip():
                raise ConfigError(f"executor.slurm.sbatch_args has '{argument}', which is not name=value.")


@dataclass
class Ray:
    """How tasks are run with `executor.kind = "ray"`."""

    address: str = "auto"
    """Address of the cluster."""

    cpus_per_task: int = 1
    """Cores of a task."""

    mem_per_cpu_gb: float = 4.0
    """Memory per core in GB."""


@dataclass
class Executor:
    """Where the work is done. None of these keys changes the result."""

    kind: Literal["local", "slurm", "ray"] = "local"
    """Processes of this machine, or a cluster; with a cluster, `output.folder` must be on a shared file system."""

    workers: int = 0
    """Tasks at a time; 0 for all cores (local) or as many as the cluster gives."""

    task_bytes: int = 16_777_216
    """Bytes of input in one task of the reading stage: what is lost at most per worker when a run is killed."""

    keep_work: bool = False
    """Whether intermediate files stay after the end."""

    slurm: Slurm = field(default_factory=Slurm)
    ray: Ray = field(default_factory=Ray)

    def __post_init__(self) -> None:
        if self.workers < 0:
            raise ConfigError(f"executor.workers = {self.workers} must be 0 or more.")
        if self.task_bytes < 1:
            raise ConfigError(f"executor.task_bytes = {self.task_bytes} must be at least 1.")


@dataclass
class PrepareJob:
    """A whole preparation: one attribute per section of the job file."""

    seed: int = 42
    """Seed of everything drawn: the order of documents and what is held out."""

    inputs: list[Input] = field(default_factory=list)
    read: Read = field(default_factory=Read)
    normalise: Normalise = field(default_factory=Normalise)
    language: Language = field(default_factory=Language)
    filters: Filters = field(default_factory=Filters)
    pii: Pii = field(default_factory=Pii)
    dedup: Dedup = field(default_factory=Dedup)
    decontaminate: Decontaminate = field(default_factory=Decontaminate)
    shuffle: Shuffle = field(default_factory=Shuffle)
    split: Split = field(default_factory=Split)
    output: Output = field(default_factory=Output)
    report: Report = field(default_factory=Report)
    executor: Executor = field(default_factory=Executor)


def input_name(given: Input) -> str:
    """What the report calls an input: its name, or the last part of its path that is no pattern."""
    parts = [part for part in given.path.split("/") if part and not any(sign in part for sign in "*?[")]
    return given.name or (parts[-1] if parts else given.path)


def spared(job: PrepareJob, step: str) -> frozenset[str]:
    """Names of the inputs that pass a step untouched."""
    group = "filters" if step in {declared.name for declared in fields(Filters)} else step
    return frozenset(input_name(given) for given in job.inputs if step in given.skip or group in given.skip)
