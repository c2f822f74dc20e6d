"""What a model is trained on, from the command line: fetched, prepared, looked at."""

import importlib
from typing import NamedTuple

from flame.errors import ConfigError, closest


class Verb(NamedTuple):
    """Where a verb lives; its function takes the words after the verb and returns an exit code or None."""

    module: str
    function: str
    help: str


VERBS: dict[str, Verb] = {
    "download": Verb("flame.data.download.command", "main", "fetch a public corpus"),
    "prepare": Verb("flame.data.prepare.command", "main", "clean, filter, deduplicate and shard a corpus"),
    "prepare-ctc": Verb(
        "flame.data.audio.command", "prepare_ctc", "filter recordings, make manifests and a vocabulary"
    ),
    "show": Verb("flame.data.inspect.command", "show", "print the rows or examples that a job trains on"),
    "stats": Verb("flame.data.inspect.command", "stats", "count a job's tokens or examples by source, with pictures"),
    "fingerprint": Verb("flame.data.inspect.command", "fingerprint", "print a hash per global batch of a job"),
}
"""Name of a verb -> where it lives, imported when it runs."""


def main(argv: list[str]) -> int | None:
    """Runs ``flame data VERB ...``.

    Raises:
        FlameError: there is no such verb, or what it raises.
    """
    if not argv or argv[0] in ("-h", "--help"):
        width = max(map(len, VERBS))
        lines = "\n".join(f"  {name:<{width}}  {verb.help}" for name, verb in VERBS.items())
        print(f"usage: flame data VERB [ARGUMENTS]\n\n{lines}\n\n`flame data VERB --help` says more about one.")
        return 0
    name, *rest = argv
    if name not in VERBS:
        raise ConfigError(f"flame data has no verb '{name}': use {', '.join(VERBS)}.{closest(name, VERBS)}")
    verb = VERBS[name]
    return getattr(importlib.import_module(verb.module), verb.function)(rest)
