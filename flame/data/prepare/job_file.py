"""Reading the job file of a preparation: defaults, below the TOML file, below the command line."""

import sys
from dataclasses import dataclass, fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

from flame.config.command_line import COMMAND_LINE, Setting, split_arguments
from flame.config.schema import default_of
from flame.config.values import convert, describe_type
from flame.data.prepare.job import PrepareJob, input_name
from flame.errors import ConfigError, closest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


@dataclass(frozen=True)
class _Section:
    """A table: its class, and the types of its keys."""

    owner: type
    kinds: dict[str, Any]


def read_job(path: Path, words: list[str]) -> PrepareJob:
    """Reads a preparation.

    Args:
        path: The job file.
        words: Overrides, such as ``["--dedup.minhash.enable=false", "--inputs.0.limit", "100"]``.

    Raises:
        ConfigError: The file cannot be read, or a key is unknown, or its value of another type or out of range.
    """
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path} is not valid TOML: {error}.") from error
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}.") from error
    values = _checked(PrepareJob, table, "", f"in {path}")
    for setting in split_arguments(words):
        _override(values, setting)
    job = _build(PrepareJob, values, "")
    _check(job)
    return job


def _check(job: PrepareJob) -> None:
    if not job.inputs:
        raise ConfigError("the job has no inputs: give it at least one [[inputs]] table with a path.")
    if not job.output.folder:
        raise ConfigError("the job has no output.folder: say where the result goes.")
    names: dict[str, int] = {}
    for number, given in enumerate(job.inputs):
        name = input_name(given)
        if name in names:
            raise ConfigError(f"inputs.{names[name]} and inputs.{number} are both called '{name}': set inputs.name.")
        names[name] = number


def _checked(owner: type, table: dict[str, Any], section: str, origin: str) -> dict[str, Any]:
    """Converts the values of a TOML table, and of those inside; refuses what is unknown."""
    values: dict[str, Any] = {}
    for name, value in table.items():
        full = f"{section}.{name}" if section else name
        kind = _section(owner).kinds.get(name)
        if kind is None:
            raise _unknown(full, origin)
        if element := _element(kind):
            if not isinstance(value, list) or not all(isinstance(entry, dict) for entry in value):
                raise ConfigError(f"{full} {origin} must be a list of tables, each under [[{full}]].")
            values[name] = [_checked(element, entry, f"{full}.{i}", origin) for i, entry in enumerate(value)]
        elif is_dataclass(kind):
            if not isinstance(value, dict):
                raise ConfigError(f"{full} = {value!r} {origin} must be a table, under [{full}].")
            values[name] = _checked(kind, value, full, origin)  # pyright: ignore[reportArgumentType]  a class
        elif isinstance(value, dict):
            raise ConfigError(f"{full} {origin} is a table, but must be {describe_type(kind)}.")
        else:
            values[name] = convert(Setting(full, value, origin), kind)
    return values


def _override(values: dict[str, Any], setting: Setting) -> None:
    """Puts a setting of the command line in place; a bare flag is true."""
    owner: Any = PrepareJob
    place: Any = values
    *sections, leaf = setting.key.split(".")
    for depth, name in enumerate(sections):
        if isinstance(place, list):
            if not name.isdecimal() or int(name) > len(place):
                raise ConfigError(f"'{setting.key}' {COMMAND_LINE}: {'.'.join(sections[:depth])} has no entry {name}.")
            place += [{}] if int(name) == len(place) else []
            place = place[int(name)]
            continue
        kind = _section(owner).kinds.get(name)
        if kind is None or not (is_dataclass(kind) or _element(kind)):
            raise _unknown(setting.key, COMMAND_LINE)
        owner = _element(kind) or kind
        place = place.setdefault(name, [] if _element(kind) else {})
    kind = None if isinstance(place, list) else _section(owner).kinds.get(leaf)
    if kind is None or is_dataclass(kind) or _element(kind):
        raise _unknown(setting.key, COMMAND_LINE)
    if setting.value is None and kind is not bool:
        raise ConfigError(f"--{setting.key} needs a value: write --{setting.key} VALUE.")
    text = Setting(setting.key, "true" if setting.value is None else setting.value, setting.origin)
    place[leaf] = convert(text, kind)  # pyright: ignore  a table, by the checks above


def _build(owner: type, values: dict[str, Any], section: str) -> Any:
    arguments: dict[str, Any] = {}
    for name, kind in _section(owner).kinds.items():
        full = f"{section}.{name}" if section else name
        if element := _element(kind):
            entries = values.get(name, [])
            arguments[name] = [_build(element, entry, f"{full}.{i}") for i, entry in enumerate(entries)]
        elif is_dataclass(kind):
            arguments[name] = _build(kind, values.get(name, {}), full)  # pyright: ignore[reportArgumentType]
        elif name in values:
            arguments[name] = values[name]
    return owner(**arguments)


@cache
def _section(owner: type) -> _Section:
    hints = get_type_hints(owner)
    return _Section(owner, {declared.name: hints[declared.name] for declared in fields(owner)})


def _element(kind: Any) -> Any:
    """The class of the tables of a list of tables, or None."""
    inner = get_args(kind)[0] if get_origin(kind) is list else None
    return inner if is_dataclass(inner) else None


def every_key() -> dict[str, tuple[Any, Any]]:
    """Dotted name -> (type, default) of every key; ``N`` stands for the position in a list of tables."""
    found: dict[str, tuple[Any, Any]] = {}

    def walk(owner: type, section: str) -> None:
        for declared in fields(owner):
            kind = _section(owner).kinds[declared.name]
            full = f"{section}.{declared.name}" if section else declared.name
            if element := _element(kind):
                walk(element, f"{full}.N")
            elif is_dataclass(kind):
                walk(kind, full)  # pyright: ignore[reportArgumentType]
            else:
                found[full] = (kind, default_of(declared))

    walk(PrepareJob, "")
    return found


def _unknown(name: str, origin: str) -> ConfigError:
    """Names the nearest key: of the same section, else the same word elsewhere, else what looks alike."""
    names = list(every_key())
    plain = ".".join("N" if part.isdecimal() else part for part in name.split("."))
    section, _, leaf = plain.rpartition(".")
    siblings = [key for key in names if key.rpartition(".")[0] == section]
    hint = closest(plain, siblings) or closest(plain, [key for key in names if key.rpartition(".")[2] == leaf])
    sections = sorted({key.rpartition(".")[0] for key in names} - {""})
    hint = hint or closest(plain, [*sections, *names])
    return ConfigError(f"Unknown key '{name}' {origin}.{hint or ' `flame data prepare --list` prints every key.'}")
