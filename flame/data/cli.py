"""``flame data fingerprint --job.config_file job.toml --steps 10 [--world 4]``: proves the data order of a job.

Prints one hash per global batch. Any ``--world``, any number of worker processes and any restart give the same list.
"""

import argparse
from collections.abc import Sequence
from itertools import islice

from flame import config as job_config
from flame.data.fingerprint import fingerprints
from flame.data.loader import Loader, build_loader
from flame.plugin import load_task
from flame.tokenizer import load_tokenizer


def main(argv: Sequence[str]) -> int | None:
    """Runs ``flame data <verb>``; arguments that are not the verb's own are the job's.

    Raises:
        DataError: If the data cannot be read.
        ConfigError: If the job is not valid.
    """
    parser = argparse.ArgumentParser(prog="flame data", description=__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True)
    verb = verbs.add_parser("fingerprint", help="print one hash per global batch", description=__doc__)
    verb.add_argument("--steps", type=int, default=10, help="number of global batches (10)")
    verb.add_argument("--world", type=int, default=1, help="number of data-parallel ranks to act as (1)")
    options, job = parser.parse_known_args(argv)
    return _fingerprint(job, options.steps, options.world)


def _fingerprint(job: list[str], steps: int, world: int) -> None:
    config = job_config.parse(job, _task_options)
    job_config.resolve(config, world)
    loaders = _loaders(config, world)
    try:
        micro_batches = config.training.global_batch_size // (config.training.local_batch_size * world)
        for step, digest in enumerate(islice(fingerprints(loaders, micro_batches), steps), start=1):
            print(f"{step:>8} {digest}", flush=True)
    finally:
        for loader in loaders:
            loader.close()


def _task_options(name: str, plugin_path: str) -> type:
    return load_task(name, plugin_path).Options  # type: ignore[attr-defined]


def _loaders(config: job_config.JobConfig, world: int) -> list[Loader]:
    tokenizer = load_tokenizer(config.model.tokenizer_path)
    task_class = load_task(config.task.name, config.model.plugin_path)
    encoder = task_class(config.task, tokenizer=tokenizer, config=config).encoder()  # type: ignore[attr-defined]
    training = config.training
    return [
        build_loader(
            sources=config.data.sources,
            data=config.data,
            encoder=encoder,
            seq_len=training.seq_len,
            context_len=training.context_len,
            varlen=training.varlen,
            global_batch_size=training.global_batch_size,
            local_batch_size=training.local_batch_size,
            dp_rank=rank,
            dp_world_size=world,
            seed=config.debug.seed or 0,
            dataloader=training.dataloader,
        )
        for rank in range(world)
    ]
