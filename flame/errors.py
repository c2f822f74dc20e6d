"""Errors a user can mend: one line that carries the offending value and the remedy.

The command lines print them as ``flame: error: <line>`` and exit with code 2.
"""

import difflib
import importlib.util
from collections.abc import Iterable


class FlameError(ValueError):
    """Bad input of any kind; the message is one line with the value and what to do."""


class ConfigError(FlameError):
    """A job file or command line that cannot be trained as it is."""


class DataError(FlameError):
    """A data source that cannot be read or does not hold what the job expects."""


class CheckpointError(FlameError):
    """A checkpoint that is absent, incomplete or damaged, or does not fit the model."""


def closest(name: str, valid: Iterable[str]) -> str:
    """Returns ``" Did you mean 'x'?"`` for the valid name nearest to ``name``, or an empty string."""
    matches = difflib.get_close_matches(name, list(valid), n=1, cutoff=0.6)
    return f" Did you mean '{matches[0]}'?" if matches else ""


def need(extra: str, *modules: str) -> None:
    """Refuses to go on without optional packages.

    Args:
        extra: The extra of flame that installs them, such as ``prepare``.
        modules: What is going to be imported.

    Raises:
        ConfigError: One of them is not installed; the message is the command that installs it.
    """
    for module in modules:
        if importlib.util.find_spec(module) is None:
            raise ConfigError(f'this needs the package {module}, which is not installed: pip install "flame[{extra}]"')
