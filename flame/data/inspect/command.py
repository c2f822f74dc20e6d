"""Inspects what a job trains on; all arguments that are not a verb's own are the job's."""

from itertools import islice

from flame.config import JobConfig, parse, resolve
from flame.data.encoder import Encoder
from flame.data.fingerprint import fingerprints
from flame.data.job import train_loader
from flame.errors import ConfigError
from flame.plugin import load_task
from flame.tokenizer import load_tokenizer
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


def read_job(job: list[str], world: int) -> tuple[JobConfig, Encoder]:
    """The resolved config of a job's command line for ``world`` ranks, and its task's encoder."""

    def task_options(name: str, plugin_path: str) -> type:
        return load_task(name, plugin_path).Options  # type: ignore[attr-defined]

    config = parse(job, task_options)
    resolve(config, world)
    task_class = load_task(config.task.name, config.model.plugin_path)
    tokenizer = load_tokenizer(config.model.tokenizer_path)
    return config, task_class(config.task, tokenizer=tokenizer, config=config).encoder()  # type: ignore[attr-defined]
