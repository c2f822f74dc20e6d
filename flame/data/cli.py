"""Inspects what a job trains on.

flame data fingerprint --job.config_file job.toml --steps 10 [--world 4]

prints one hash per global batch: any --world, any number of worker processes and any restart give the same list.
"""

from itertools import islice

from flame.config import parse, resolve
from flame.data.fingerprint import fingerprints
from flame.data.job import train_loader
from flame.errors import ConfigError, closest
from flame.plugin import load_task
from flame.tokenizer import load_tokenizer
from flame.utils.arguments import Arguments

_VERBS = ("fingerprint",)


def main(argv: list[str]) -> int:
    """Runs ``flame data VERB``; arguments that are not the verb's own are the job's.

    Raises:
        FlameError: there is no such verb, the job is not valid, or its data cannot be read.
    """
    if not argv or argv[0] in ("-h", "--help"):
        print((__doc__ or "").strip())
        return 0
    if argv[0] not in _VERBS:
        raise ConfigError(f"flame data has no verb '{argv[0]}': use fingerprint.{closest(argv[0], _VERBS)}")
    parser = Arguments("flame data fingerprint", "Prints one hash per global batch of a job.")
    parser.add_argument("--steps", type=int, default=10, help="number of global batches (10)")
    parser.add_argument("--world", type=int, default=1, help="number of data-parallel ranks to act as (1)")
    options, job = parser.parse_known_args(argv[1:])
    if options.steps < 1 or options.world < 1:
        raise ConfigError("--steps and --world must be at least 1")
    _fingerprint(job, options.steps, options.world)
    return 0


def _fingerprint(job: list[str], steps: int, world: int) -> None:
    def task_options(name: str, plugin_path: str) -> type:
        return load_task(name, plugin_path).Options  # type: ignore[attr-defined]

    config = parse(job, task_options)
    resolve(config, world)
    task_class = load_task(config.task.name, config.model.plugin_path)
    tokenizer = load_tokenizer(config.model.tokenizer_path)
    encoder = task_class(config.task, tokenizer=tokenizer, config=config).encoder()  # type: ignore[attr-defined]
    loaders = [train_loader(config, encoder, rank, world) for rank in range(world)]
    try:
        micro_batches = config.training.global_batch_size // (config.training.local_batch_size * world)
        for step, digest in enumerate(islice(fingerprints(loaders, micro_batches), steps), start=1):
            print(f"{step:>8} {digest}", flush=True)
    finally:
        for loader in loaders:
            loader.close()
