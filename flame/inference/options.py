"""The options of decoders: dataclasses whose fields are words of the command line."""

import argparse
import math
import types
import typing
from collections.abc import Iterable
from dataclasses import Field, dataclass, field, fields
from typing import Any

from flame.errors import ConfigError

_LARGEST = 2**31 - 1  # of whole numbers without a bound of their own
_COOLEST, _HOTTEST = 1e-3, 1e3  # beyond, logits become infinite, or all tokens alike


def option(default: Any, help: str, low: float | None = None, high: float | None = None, choices: Any = ()) -> Any:
    """A field with its help and the values it may take, bounds included."""
    return field(default=default, metadata={"help": help, "low": low, "high": high, "choices": tuple(choices)})


@dataclass
class Options:
    """What every decoder can be told. Each field is an option; ``None`` leaves the matter to the model."""

    max_new_tokens: int = option(200, "tokens at most", low=1)

    def check(self, given: Iterable[str] = ()) -> None:
        """Raises ConfigError for values out of range, and where ``given`` options would have no effect."""
        for item in fields(self):
            _check(item, getattr(self, item.name))

    @property
    def deterministic(self) -> bool:
        """Whether a prompt is always given the same text, whatever the seed."""
        return False


def check_temperature(value: float) -> None:
    """Raises ConfigError for a temperature that logits cannot be divided by."""
    if value and not _COOLEST <= value <= _HOTTEST:
        raise ConfigError(f"--temperature {value:g} is out of range; it is 0, or from {_COOLEST:g} to {_HOTTEST:g}")


def _check(item: Field[Any], value: Any) -> None:
    low, high, choices = (item.metadata[key] for key in ("low", "high", "choices"))
    if value is None:
        return
    if choices and value not in choices:
        raise ConfigError(f"--{item.name} '{value}' is not among {', '.join(choices)}")
    if not isinstance(value, (int, float)):
        return
    if not math.isfinite(value):
        raise ConfigError(f"--{item.name} {value:g} is no finite number; give one")
    if high is None and isinstance(value, int):
        high = _LARGEST
    if (low is not None and not value >= low) or (high is not None and not value <= high):
        span = f"at least {low}" if high is None else f"from {low} to {high}"
        raise ConfigError(f"--{item.name} {value} is out of range; it is {span}")


def add_arguments(parser: argparse._ActionsContainer, kinds: dict[str, type[Options]]) -> None:
    """Adds the fields of all options to a parser; those not given stay absent from the namespace.

    Args:
        parser: of the command line.
        kinds: objective -> its options.
    """
    found: dict[str, dict[str, Field[Any]]] = {}
    hints: dict[str, Any] = {}
    for objective, kind in kinds.items():
        hints |= typing.get_type_hints(kind)
        for item in fields(kind):
            found.setdefault(item.name, {})[objective] = item
    for name, items in found.items():
        kind = next(one for one in typing.get_args(hints[name]) or (hints[name],) if one is not types.NoneType)
        how: dict[str, Any] = {"action": "store_true"} if kind is bool else {"type": kind, "metavar": kind.__name__}
        text = next(iter(items.values())).metadata["help"] + _reach(items, len(kinds))
        parser.add_argument(f"--{name}", default=argparse.SUPPRESS, help=text.replace("%", "%%"), **how)


def _reach(items: dict[str, Field[Any]], kinds: int) -> str:
    """The default of an option and the objectives it is for."""
    only = "" if len(items) == kinds else f" [{', '.join(items)}]"
    defaults = {objective: item.default for objective, item in items.items()}
    if len(set(defaults.values())) > 1:
        return f" (default {', '.join(f'{value} for {objective}' for objective, value in defaults.items())}){only}"
    default = next(iter(defaults.values()))
    return only if default in (None, False) else f" (default {default}){only}"


def choose(given: dict[str, Any], kinds: dict[str, type[Options]], objective: str, family: str) -> Options:
    """The options of one decoder, from those that were given.

    Raises:
        ConfigError: one belongs to another decoder, is out of range, or would have no effect.
    """
    if objective not in kinds:
        raise ConfigError(f"there is no decoder for family '{family}', whose objective is '{objective}'")
    kind = kinds[objective]
    own = {item.name for item in fields(kind)}
    for name in given.keys() - own:
        others = ", ".join(other for other, options in kinds.items() if name in {item.name for item in fields(options)})
        raise ConfigError(f"--{name}: family '{family}' ({objective}) has no use for it; it is for {others}")
    options = kind(**given)
    options.check(given)
    return options
