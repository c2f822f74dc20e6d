"""argparse for the small verbs, with flame's manner of failing: one line, exit code 2."""

import argparse
from typing import NoReturn

from flame.errors import ConfigError


class Arguments(argparse.ArgumentParser):
    """A parser whose errors are ``ConfigError``s; ``--dashed-names`` and ``--underscored_names`` are the same."""

    def __init__(self, prog: str, description: str) -> None:
        super().__init__(prog, description=description, formatter_class=argparse.RawDescriptionHelpFormatter)

    def parse_args(self, args: list[str]) -> argparse.Namespace:  # type: ignore[override]
        """Parses; option names may be written with dashes or underscores."""
        return super().parse_args([_underscored(arg) for arg in args])

    def error(self, message: str) -> NoReturn:
        """Raises instead of printing usage and leaving."""
        raise ConfigError(f"{message}; `{self.prog} --help` lists what there is")


def _underscored(arg: str) -> str:
    if not arg.startswith("--"):
        return arg
    name, equals, value = arg[2:].partition("=")
    return f"--{name.replace('-', '_')}{equals}{value}"
