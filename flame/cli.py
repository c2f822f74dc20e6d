"""The ``flame`` command: ``flame VERB ...`` runs a verb, which is imported only then, so that help comes at once."""

import importlib
import os
import sys
import traceback
from collections.abc import Callable
from typing import NamedTuple

from flame import __version__
from flame.errors import ConfigError, FlameError, closest

USAGE_ERROR = 2
INTERRUPTED = 130  # 128 + SIGINT, as a shell reports it


class Verb(NamedTuple):
    """Where a verb lives; its function takes the words after the verb and returns an exit code or None."""

    module: str
    function: str
    help: str


VERBS: dict[str, Verb] = {
    "train": Verb("flame.launch", "main", "train the model of a job file"),
    "plan": Verb("flame.plan.command", "main", "say what a job needs on a cluster, without the cluster"),
    "generate": Verb("flame.inference.generate", "main", "continue a prompt with a trained model"),
    "transcribe": Verb("flame.inference.transcribe", "main", "write down what is said in recordings"),
    "classify": Verb("flame.inference.classify", "main", "tell the classes of time series"),
    "convert": Verb("flame.utils.convert", "main", "turn a checkpoint into a HuggingFace folder, or back"),
    "data": Verb("flame.data.cli", "main", "fetch, prepare and inspect what a job trains on"),
    "tokenizer": Verb("flame.tokenizer.cli", "main", "train a tokenizer, or measure one"),
    "families": Verb("flame.families", "main", "list the model families and what each supports"),
    "config": Verb("flame.config.cli", "main", "explain the keys of a job file"),
    "doctor": Verb("flame.doctor", "main", "check versions, devices and compilers"),
}
"""Name of a verb -> where it lives."""


def run(main: Callable[[list[str]], int | None], argv: list[str]) -> int:
    """Runs a command line, turning errors a user can mend into one line.

    Args:
        main: Takes the arguments and returns an exit code, or None for 0.
        argv: The arguments, without the name of the program.

    Returns:
        The exit code: 2 after an error the user can mend, 130 when interrupted.
    """
    try:
        code = main(argv) or 0
        sys.stdout.flush()  # here rather than at exit, where a reader that is gone would be an error
        return code
    except ValueError as error:
        if os.environ.get("FLAME_DEBUG") == "1":
            traceback.print_exc()
        # Other ValueErrors come from libraries, or are our own fault: say how to find out.
        hint = "" if isinstance(error, FlameError) else " (FLAME_DEBUG=1 shows where)"
        print(f"flame: error: {' '.join(str(error).split())}{hint}", file=sys.stderr)
        return USAGE_ERROR
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        # The reader, such as `head`, has what it wanted. Nothing more can be written, not even by the exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def main(argv: list[str] | None = None) -> int:
    """Runs ``flame``.

    Args:
        argv: The arguments; those of the process if None.

    Returns:
        The exit code.
    """
    return run(_dispatch, sys.argv[1:] if argv is None else argv)


def _dispatch(argv: list[str]) -> int | None:
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(_help())
        return 0
    if argv[0] == "--version":
        print(f"flame {__version__}")
        return 0
    name, *rest = argv
    if name not in VERBS:
        raise ConfigError(f"Unknown verb '{name}'.{closest(name, VERBS)} `flame --help` lists them.")
    verb = VERBS[name]
    return getattr(importlib.import_module(verb.module), verb.function)(rest)


def _help() -> str:
    width = max(map(len, VERBS))
    verbs = "\n".join(f"  {name:<{width}}  {verb.help}" for name, verb in VERBS.items())
    return f"usage: flame VERB [ARGUMENTS]\n\n{verbs}\n\n`flame VERB --help` says more about one."


if __name__ == "__main__":
    sys.exit(main())
