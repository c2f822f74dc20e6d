"""argparse for the small verbs, with flame's manner of failing: one line, exit code 2."""

import argparse
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from flame.errors import ConfigError


class Arguments(argparse.ArgumentParser):
    """A parser whose errors are ``ConfigError``s; ``--dashed-names`` and ``--underscored_names`` are the same."""

    def __init__(self, prog: str, description: str) -> None:
        super().__init__(prog, description=description, formatter_class=argparse.RawDescriptionHelpFormatter)

    def parse_known_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:
        """Parses; option names may be written with dashes or underscores. ``parse_args`` comes through here too."""
        words = sys.argv[1:] if args is None else args
        return super().parse_known_args([_underscored(word) for word in words], namespace)

    def error(self, message: str) -> NoReturn:
        """Raises instead of printing usage and leaving."""
        raise ConfigError(f"{message}; `{self.prog} --help` lists what there is")


def _underscored(word: str) -> str:
    if not word.startswith("--"):
        return word
    name, equals, value = word[2:].partition("=")
    return f"--{name.replace('-', '_')}{equals}{value}"
