"""Inspects what a job trains on; all arguments that are not a verb's own are the job's."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice, takewhile
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

from flame.config import JobConfig, parse, resolve
from flame.config.corpora import SOURCE_FORMATS
from flame.data.examples.loader import ExampleLoader
from flame.data.fingerprint import fingerprints
from flame.data.inspect.examples import report as example_report
from flame.data.inspect.examples.measure import ExampleMeasurement
from flame.data.inspect.examples.placed import placed_batches
from flame.data.inspect.examples.render import ExampleRenderer
from flame.data.inspect.measure import Measurement
from flame.data.inspect.render import Renderer
from flame.data.inspect.report import text_table, write_report
from flame.data.inspect.rows import Rows, source_names
from flame.data.inspect.styles import Styles
from flame.data.job import AnyEncoder, AnyLoader, train_loader, validation_loader
from flame.data.loader import Loader
from flame.errors import ConfigError
from flame.plugin import load_task
from flame.spec import load_job
from flame.tasks.base import Task
from flame.tokenizer.load import load_tokenizer
from flame.utils.arguments import Arguments


class Read(NamedTuple):
    """A job as its data need it."""

    config: JobConfig
    task: Task
    encoder: AnyEncoder


def fingerprint(argv: list[str]) -> int:
    """Prints one hash per global batch: any number of ranks or workers and any restart give the same list.

    Raises:
        FlameError: the job is not valid, or its data cannot be read.
    """
    parser = Arguments("flame data fingerprint", "Prints one hash per global batch of a job.")
    parser.add_argument("--steps", type=int, default=10, help="number of global batches (10)")
    parser.add_argument("--world", type=int, default=1, help="number of data-parallel ranks to act as (1)")
    options, job = parser.parse_known_args(argv)
    if options.steps < 1 or options.world < 1:
        raise ConfigError("--steps and --world must be at least 1")
    config, _, encoder = read_job(job, options.world)
    loaders = [train_loader(config, encoder, rank, options.world) for rank in range(options.world)]
    try:
        micro_batches = config.training.global_batch_size // (config.training.local_batch_size * options.world)
        for step, digest in enumerate(islice(fingerprints(loaders, micro_batches), options.steps), start=1):
            print(f"{step:>8} {digest}", flush=True)
    finally:
        for loader in loaders:
            loader.close()
    return 0


def show(argv: list[str]) -> int:
    """Prints rows as training gets them: decoded, with the borders of documents, and what is scored; or examples.

    Raises:
        FlameError: the job is not valid, or its data cannot be read.
    """
    parser = Arguments("flame data show", "Prints the rows or examples that a job trains on.")
    parser.add_argument("-n", "--rows", type=int, default=3, help="number of rows, or of examples (3)")
    parser.add_argument("--step", type=int, default=1, help="training step to begin with (1)")
    parser.add_argument(
        "--tokens", action="store_true", help="list tokens: place, position, id, text -> label; of examples, labels"
    )
    parser.add_argument("--validation", action="store_true", help="show rows of the validation sources")
    parser.add_argument("--color", choices=("auto", "always", "never"), default="auto", help="colours (auto)")
    options, job = parser.parse_known_args(argv)
    if options.rows < 1 or options.step < 1:
        raise ConfigError("-n and --step must be at least 1")
    read = read_job(job)
    # What is shown comes sooner without other processes.
    for section in (read.config.training, read.config.validation):
        section.dataloader.num_workers = 0
    is_terminal = sys.stdout.isatty() and "NO_COLOR" not in os.environ
    styles = Styles(options.color == "always" or (options.color == "auto" and is_terminal))
    names = source_names(read.config, options.validation)
    shown = 0
    with _opened(read, options.validation) as loader:
        if isinstance(loader, ExampleLoader):
            found = _examples_shown(loader, read.task, names, styles, options.tokens, options.step)
        else:
            found = _rows_shown(loader, read, names, styles, options.tokens, options.step)
        for lines in islice(found, options.rows):
            print("\n".join(lines), end="\n\n", flush=True)
            shown += 1
    if not shown:
        raise ConfigError(f"--step {options.step}: the data ends before that step")
    return 0


def _rows_shown(
    loader: Loader, read: Read, names: list[str], styles: Styles, tokens: bool, first: int
) -> Iterator[Iterator[str]]:
    """The lines of every row from a step on."""
    rows = Rows(loader, read.config.training.global_batch_size)
    renderer = Renderer(read.task.tokenizer, names, rows.where, styles.color, tokens)
    for placed in rows:
        if placed.step >= first:
            yield renderer.lines(placed)


def _examples_shown(
    loader: ExampleLoader, task: Task, names: list[str], styles: Styles, tokens: bool, first: int
) -> Iterator[Iterator[str]]:
    """The lines of every example from a step on."""
    renderer = ExampleRenderer(loader.plan, names, task.told, styles, tokens)
    for batch in placed_batches(loader):
        if batch.step >= first:
            for row in range(len(batch.examples)):
                yield renderer.lines(batch, row)


def stats(argv: list[str]) -> int:
    """Counts what a job trains on, by source: tokens of rows, or examples.

    Raises:
        FlameError: the job is not valid, or its data cannot be read.
    """
    parser = Arguments("flame data stats", "Counts a job's tokens or examples by source, their lengths, and padding.")
    parser.add_argument("--steps", type=int, default=100, help="number of training steps to look at (100)")
    parser.add_argument("--out", default="", help="folder for a report: report.md with pictures, stats.json")
    parser.add_argument("--validation", action="store_true", help="look at the validation sources")
    options, job = parser.parse_known_args(argv)
    if options.steps < 1:
        raise ConfigError("--steps must be at least 1")
    read = read_job(job)
    out = Path(options.out).expanduser() if options.out else None
    with _opened(read, options.validation) as loader:
        count = _count_examples if isinstance(loader, ExampleLoader) else _count_rows
        for said in count(loader, read, options.steps, options.validation, out):  # type: ignore[arg-type]
            print(said)
    return 0


def _count_rows(loader: Loader, read: Read, steps: int, validation: bool, out: Path | None) -> Iterator[str]:
    """Goes through rows, and gives what is to be said of them."""
    size = read.config.training.global_batch_size
    rows = Rows(loader, size)
    measurement = Measurement(rows, source_names(read.config, validation), read.encoder)  # type: ignore[arg-type]
    chosen = takewhile(lambda placed: placed.step <= steps, rows)
    for placed in tqdm(chosen, "rows", total=steps * size, disable=not sys.stderr.isatty()):
        measurement.add(placed)
    figures = measurement.figures()
    yield text_table(figures)
    if out:
        yield from write_report(out, _title(read.config), figures, measurement)


def _count_examples(loader: ExampleLoader, read: Read, steps: int, validation: bool, out: Path | None) -> Iterator[str]:
    """Goes through micro-batches, and gives what is to be said of them."""
    names = source_names(read.config, validation)
    mix = "sequence" if validation else read.config.data.mix
    measurement = ExampleMeasurement(loader, mix, names, read.task.told)
    chosen = takewhile(lambda batch: batch.step <= steps, placed_batches(loader))
    for batch in tqdm(chosen, "micro-batches", disable=not sys.stderr.isatty()):
        measurement.add(batch)
    figures = measurement.figures()
    yield example_report.text_table(figures)
    if out:
        yield from example_report.write_report(out, _title(read.config), figures, measurement)


def _title(config: JobConfig) -> str:
    return config.job.description or config.job.dump_folder


@contextmanager
def _opened(read: Read, validation: bool) -> Iterator[AnyLoader]:
    if validation and not read.config.validation.sources:
        raise ConfigError("--validation: the job has no [[validation.sources]]")
    loader = (validation_loader if validation else train_loader)(read.config, read.encoder)
    try:
        yield loader
    finally:
        loader.close()


def read_job(job: list[str], world: int = 0) -> Read:
    """Reads a job, and makes its task and the task's encoder.

    Args:
        job: its command line.
        world: data-parallel ranks to resolve it for; 0 for the fewest that it can have. The data are the same.
    """

    def task_options(name: str, plugin_path: str) -> type:
        return load_task(name, plugin_path).Options  # type: ignore[attr-defined]

    config = parse(job, task_options)
    resolve(config, _processes(config, world))
    if config.task.formats == SOURCE_FORMATS:  # text is encoded by the tokenizer alone
        task_class = load_task(config.task.name, config.model.plugin_path)
        task = task_class(config.task, tokenizer=load_tokenizer(config.model.tokenizer_path), config=config)
    else:
        task = load_job(config).task
    return Read(config, task, task.encoder())  # type: ignore[attr-defined]


def _processes(config: JobConfig, world: int) -> int:
    """How many processes have ``world`` data-parallel ranks."""
    layout = config.parallelism
    inside = layout.tensor_parallel_degree * layout.context_parallel_degree
    if not world:
        world = layout.data_parallel_replicate_degree * max(1, layout.data_parallel_shard_degree)
        if inside * max(1, layout.data_parallel_shard_degree) % layout.expert_parallel_degree:
            world *= layout.expert_parallel_degree
    return inside * layout.pipeline_parallel_degree * world
