"""``flame plan``: what a job needs on a cluster, and whether it fits, without the cluster."""

import json
import re
import sys
import warnings
from contextlib import redirect_stdout

from flame.config import parse
from flame.data.job import reads_examples
from flame.errors import ConfigError
from flame.plan.plan import as_json, make_plan, usable
from flame.plan.report import as_table
from flame.train import prepare, task_options
from flame.utils.arguments import Arguments

DESCRIPTION = """Says what a job needs on a cluster, without the cluster.

The job is checked as before training, laid out over a process group that exists only by name, and one step of a rank of
every pipeline stage is run on tensors without contents. Exit code 0: it fits (or --memory is not given); 1: it does
not; 2: it cannot be trained like that. All keys of the job may follow: --section.key value.
"""
DOES_NOT_FIT = 1

_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT]i?)?B?", re.IGNORECASE)
_UNITS = {"": 1, **{unit: 1000**power for power, unit in enumerate("KMGT", 1)}}
_UNITS |= {f"{unit}I": 1024**power for power, unit in enumerate("KMGT", 1)}


def main(argv: list[str]) -> int:
    """Runs ``flame plan``."""
    parser = Arguments("flame plan", DESCRIPTION)
    parser.allow_abbrev = False
    parser.add_argument("--nnodes", type=int, default=1, help="nodes (1)")
    parser.add_argument("--ngpu", type=int, default=8, help="devices of a node (8)")
    parser.add_argument("--memory", default="", help="memory of a device, such as 80GiB")
    parser.add_argument("--json", action="store_true", help="one object, all sizes in bytes")
    options, words = parser.parse_known_args(argv)
    if min(options.nnodes, options.ngpu) < 1:
        raise ConfigError("--nnodes and --ngpu must be at least 1")
    memory = parse_size(options.memory) if options.memory else None
    with redirect_stdout(sys.stderr), warnings.catch_warnings():  # what the checks and libraries say
        warnings.simplefilter("ignore")
        job = prepare(_for_accelerators(words), options.nnodes * options.ngpu)
        if reads_examples(job.task.encoder()):
            raise ConfigError(
                f"flame plan knows rows of tokens only, and task '{job.config.task.name}' has none; try the job itself "
                "with --training.steps 2"
            )
        plan = make_plan(job, options.nnodes, options.ngpu)
    fits = memory is None or plan.peak <= usable(memory)
    print(json.dumps(as_json(plan, memory), indent=1) if options.json else as_table(plan, memory))
    return 0 if fits else DOES_NOT_FIT


def parse_size(text: str) -> int:
    """Bytes of a size such as ``80GiB``, ``141GB`` or ``24G``.

    Raises:
        ConfigError: it is none.
    """
    found = _SIZE.fullmatch(text.strip())
    if found is None or not float(found[1]):
        raise ConfigError(f"--memory = '{text}' must be a size such as 80GiB or 141GB")
    return int(float(found[1]) * _UNITS[(found[2] or "").upper()])


def _for_accelerators(words: list[str]) -> list[str]:
    """The job's words with the precision an accelerator would choose, whatever this machine would."""
    automatic = parse(words, task_options).training.mixed_precision_param == "auto"
    return [*words, "--training.mixed_precision_param", "bfloat16"] if automatic else words
