"""Inspects what a job trains on; all arguments that are not a verb's own are the job's."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice, takewhile
from pathlib import Path

from tqdm import tqdm

from flame.config import JobConfig, parse, resolve
from flame.data.encoder import Encoder
from flame.data.fingerprint import fingerprints
from flame.data.inspect.measure import Measurement
from flame.data.inspect.render import Renderer
from flame.data.inspect.report import text_table, write_report
from flame.data.inspect.rows import Rows, source_names
from flame.data.job import train_loader, validation_loader
from flame.data.loader import Loader
from flame.errors import ConfigError
from flame.plugin import load_task
from flame.tokenizer.load import load_tokenizer
from flame.utils.arguments import Arguments


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
    config, encoder = read_job(job, options.world)
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
    """Prints rows as training gets them: decoded, with the borders of documents, and what is scored.

    Raises:
        FlameError: the job is not valid, or its data cannot be read.
    """
    parser = Arguments("flame data show", "Prints the rows that a job trains on.")
    parser.add_argument("-n", "--rows", type=int, default=3, help="number of rows (3)")
    parser.add_argument("--step", type=int, default=1, help="training step to begin with (1)")
    parser.add_argument("--tokens", action="store_true", help="list tokens: place, position, id, text -> label")
    parser.add_argument("--validation", action="store_true", help="show rows of the validation sources")
    parser.add_argument("--color", choices=("auto", "always", "never"), default="auto", help="colours (auto)")
    options, job = parser.parse_known_args(argv)
    if options.rows < 1 or options.step < 1:
        raise ConfigError("-n and --step must be at least 1")
    config, encoder = read_job(job)
    tokenizer = load_tokenizer(config.model.tokenizer_path)
    is_terminal = sys.stdout.isatty() and "NO_COLOR" not in os.environ
    with _opened(config, encoder, options.validation) as loader:
        rows = Rows(loader, config.training.global_batch_size)
        renderer = Renderer(
            tokenizer,
            source_names(config, options.validation),
            rows.where,
            color=options.color == "always" or (options.color == "auto" and is_terminal),
            tokens=options.tokens,
        )
        wanted = (placed for placed in rows if placed.step >= options.step)
        shown = 0
        for placed in islice(wanted, options.rows):
            print("\n".join(renderer.lines(placed)), end="\n\n", flush=True)
            shown += 1
    if not shown:
        raise ConfigError(f"--step {options.step}: the data ends before that step")
    return 0


def stats(argv: list[str]) -> int:
    """Counts what a job trains on, by source.

    Raises:
        FlameError: the job is not valid, or its data cannot be read.
    """
    parser = Arguments("flame data stats", "Counts a job's tokens by source, documents' lengths and rows' filling.")
    parser.add_argument("--steps", type=int, default=100, help="number of training steps to look at (100)")
    parser.add_argument("--out", default="", help="folder for a report: report.md with pictures, stats.json")
    parser.add_argument("--validation", action="store_true", help="look at the validation sources")
    options, job = parser.parse_known_args(argv)
    if options.steps < 1:
        raise ConfigError("--steps must be at least 1")
    config, encoder = read_job(job)
    with _opened(config, encoder, options.validation) as loader:
        rows = Rows(loader, config.training.global_batch_size)
        measurement = Measurement(rows, source_names(config, options.validation), encoder)
        chosen = takewhile(lambda placed: placed.step <= options.steps, rows)
        total = options.steps * config.training.global_batch_size
        for placed in tqdm(chosen, "rows", total=total, disable=not sys.stderr.isatty()):
            measurement.add(placed)
        figures = measurement.figures()
    print(text_table(figures))
    if options.out:
        title = config.job.description or config.job.dump_folder
        print("\n".join(write_report(Path(options.out).expanduser(), title, figures, measurement)))
    return 0


@contextmanager
def _opened(config: JobConfig, encoder: Encoder, validation: bool) -> Iterator[Loader]:
    if validation and not config.validation.sources:
        raise ConfigError("--validation: the job has no [[validation.sources]]")
    loader = (validation_loader if validation else train_loader)(config, encoder)
    try:
        yield loader
    finally:
        loader.close()


def read_job(job: list[str], world: int = 0) -> tuple[JobConfig, Encoder]:
    """Reads a job, and makes its task's encoder.

    Args:
        job: its command line.
        world: data-parallel ranks to resolve it for; 0 for the fewest that it can have. The data are the same.
    """

    def task_options(name: str, plugin_path: str) -> type:
        return load_task(name, plugin_path).Options  # type: ignore[attr-defined]

    config = parse(job, task_options)
    resolve(config, _processes(config, world))
    task_class = load_task(config.task.name, config.model.plugin_path)
    tokenizer = load_tokenizer(config.model.tokenizer_path)
    return config, task_class(config.task, tokenizer=tokenizer, config=config).encoder()  # type: ignore[attr-defined]


def _processes(config: JobConfig, world: int) -> int:
    """How many processes have ``world`` data-parallel ranks."""
    layout = config.parallelism
    inside = layout.tensor_parallel_degree * layout.context_parallel_degree
    if not world:
        world = layout.data_parallel_replicate_degree * max(1, layout.data_parallel_shard_degree)
        if inside * max(1, layout.data_parallel_shard_degree) % layout.expert_parallel_degree:
            world *= layout.expert_parallel_degree
    return inside * layout.pipeline_parallel_degree * world
