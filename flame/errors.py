"""Errors a user can mend: one line that carries the offending value and the remedy.

The command lines print them as ``flame: error: <line>`` and exit with code 2.
"""

import difflib
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
