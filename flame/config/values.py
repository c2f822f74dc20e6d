"""Turning what the user wrote into values of the right type, or saying which type was expected."""

import sys
from functools import cache
from types import NoneType
from typing import Any, Literal, get_args, get_origin

from pydantic import ConfigDict, TypeAdapter, ValidationError

from flame.config.command_line import Setting
from flame.errors import ConfigError, closest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

NONE_WORD = "none"
"""How an unset value is written where leaving the key out would mean its default."""

_LARGEST = 2**63 - 1  # integers end up in int64 tensors


def convert(setting: Setting, kind: Any) -> Any:
    """Converts the value of a setting: strictly from TOML, from its text on the command line.

    Lists are separated by commas on the command line, or written as in TOML; ``none`` unsets an optional key.

    Raises:
        ConfigError: The value is not of the type ``kind``.
    """
    value = setting.value
    if NoneType in get_args(kind) and isinstance(value, str) and value.lower() == NONE_WORD:
        return None
    try:
        if setting.is_text:
            value = _from_text(value, kind)
        value = _adapter(kind, strict=not setting.is_text).validate_python(value)
    except (ValidationError, tomllib.TOMLDecodeError) as error:
        hint = closest(value, _choices(kind)) if isinstance(value, str) else ""
        raise ConfigError(f"{setting.key} = {value!r} {setting.origin} must be {describe_type(kind)}.{hint}") from error
    if isinstance(value, int) and abs(value) > _LARGEST:
        raise ConfigError(f"{setting.key} = {value} {setting.origin} is too large: at most {_LARGEST}.")
    return value


def describe_type(kind: Any) -> str:
    """Says in words what values a type has: "an integer", "one of 'a', 'b'", "a list of strings or none"."""
    words = {int: "an integer", float: "a number", bool: "true or false", str: "a string", NoneType: NONE_WORD}
    arguments = get_args(kind)
    if get_origin(kind) is Literal:
        return "one of " + ", ".join(repr(choice) for choice in arguments)
    if get_origin(kind) is list:
        plural = {str: "strings", int: "integers", float: "numbers"}
        return f"a list of {plural.get(arguments[0], 'lists of strings')}"
    if arguments:
        # An integer is a number: "float | int" needs one word.
        return " or ".join(describe_type(part) for part in arguments if part is not int or float not in arguments)
    return words.get(kind) or getattr(kind, "__name__", str(kind))


def _from_text(text: str, kind: Any) -> Any:
    """Splits the text of a list; other text is left to the type adapter."""
    lists = [part for part in (kind, *get_args(kind)) if get_origin(part) is list]
    if not lists:
        return text
    if text.lstrip().startswith("["):
        return tomllib.loads(f"value = {text}")["value"]
    return [entry.strip() for entry in text.split(",") if entry.strip()]


def _choices(kind: Any) -> list[str]:
    literals = [part for part in (kind, *get_args(kind)) if get_origin(part) is Literal]
    return [str(choice) for literal in literals for choice in get_args(literal)]


@cache
def _adapter(kind: Any, strict: bool) -> TypeAdapter[Any]:
    return TypeAdapter(kind, config=ConfigDict(strict=strict, allow_inf_nan=False))
