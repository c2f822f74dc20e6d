"""Reading a job: defaults, below the TOML file, below the command line."""

import sys
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, cast

from flame.config.aliases import CORPUS_ALIASES, REFUSED, corpus_type, refuse, sources_from_corpora
from flame.config.command_line import Setting, expand_flag, split_arguments
from flame.config.files import locate
from flame.config.schema import CONFIG_FILE, REQUIRED, Schema, default_of, join, pattern, schema_for
from flame.config.sections import JobConfig, TaskOptions
from flame.config.values import convert, describe_type
from flame.errors import ConfigError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


@dataclass
class _Layer:
    """The settings of one origin under their canonical names, converted."""

    values: dict[str, Any] = field(default_factory=dict)
    corpora: dict[str, Any] = field(default_factory=dict)
    """Upstream's lists of corpora, which become sources once the layers are merged."""
    replaced: set[str] = field(default_factory=set)
    """Lists of tables given as a whole, which do not extend those of the layer below."""

    def replace(self, name: str, paths: list[str]) -> None:
        """Sets a list of tables to those with the given paths, forgetting earlier paths."""
        self.replaced.add(name)
        self.values = {key: value for key, value in self.values.items() if not _is_path_of(name, key)}
        self.values |= {f"{name}.{index}.path": path for index, path in enumerate(paths)}


def parse(args: list[str], task_options: Callable[[str, str], type] | None = None) -> JobConfig:
    """Reads a job from the command line and the file it names.

    Args:
        args: Words such as ``["--job.config_file", "job.toml", "--training.steps", "10"]``.
        task_options: Maps a task name and ``model.plugin_path`` to the dataclass of the job's ``[task]`` table, and
            raises ``ConfigError`` for a name it does not know. Without it only ``task.name`` exists.

    Returns:
        The job; ``task`` is an instance of the class ``task_options`` gave.

    Raises:
        ConfigError: The file cannot be read, or a key is unknown, given twice over, or of another type.
    """
    given = split_arguments(args)
    file_name = next((setting.value for setting in reversed(given) if setting.key == CONFIG_FILE), None)
    table = _read(locate(file_name)) if file_name is not None else {}
    schema = schema_for(_task_class(given, table, task_options))
    in_file = _layer(_flatten(table, "", f"in {file_name}", schema), schema)
    on_command_line = _layer([expand_flag(setting, schema) for setting in given], schema)
    return cast(JobConfig, _build("", _nest(_merge(in_file, on_command_line)), schema))


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path} is not valid TOML: {error}.") from error
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}.") from error


def _task_class(given: list[Setting], table: dict[str, Any], task_options: Callable[[str, str], type] | None) -> type:
    """Looks the task up before anything is checked, because its options are part of the schema."""
    if task_options is None:
        return TaskOptions

    def early(section: str, name: str, default: str) -> str:
        in_file = table[section].get(name) if isinstance(table.get(section), dict) else None
        values = [setting.value for setting in given if setting.key == f"{section}.{name}"]
        return next((value for value in (*reversed(values), in_file) if isinstance(value, str)), default)

    return task_options(early("task", "name", TaskOptions.name), early("model", "plugin_path", ""))


def _flatten(table: dict[str, Any], section: str, origin: str, schema: Schema) -> list[Setting]:
    """Lists the leaves of a TOML table under dotted names; refuses tables and values in each other's place."""
    settings = []
    for name, value in table.items():
        full = join(section, name)
        if schema.is_table_list(full):
            if not isinstance(value, list) or not all(isinstance(entry, dict) for entry in value):
                raise ConfigError(f"{full} {origin} must be a list of tables, each under [[{full}]].")
            for index, entry in enumerate(value):
                settings += _flatten(entry, f"{full}.{index}", origin, schema)
        elif isinstance(value, dict):
            if key := schema.key(full):
                raise ConfigError(f"{full} {origin} is a table, but must be {describe_type(key.kind)}.")
            if not schema.is_section(full) and not schema.is_alias_section(full):
                raise schema.unknown(full, origin)
            settings += _flatten(value, full, origin, schema)
        elif schema.is_section(full):
            raise ConfigError(f"{full} = {value!r} {origin} must be a table, under [{full}].")
        else:
            settings.append(Setting(full, value, origin))
    return settings


def _layer(settings: list[Setting], schema: Schema) -> _Layer:
    """Translates aliases, converts values, and refuses what contradicts itself."""
    layer = _Layer()
    spelled: dict[str, str] = {}
    unknown: dict[str, ConfigError] = {}
    for setting in settings:
        name, origin = setting.key, setting.origin
        canonical = schema.canonical(name)
        if name in REFUSED and not (setting.is_text and name == CONFIG_FILE):
            refuse(name, setting.value, origin)
        elif name in CORPUS_ALIASES:
            layer.corpora[name] = convert(setting, corpus_type(name, setting.is_text))
        elif schema.is_table_list(name):
            layer.replace(name, convert(setting, list[str]))
        elif canonical is None:
            unknown[name] = schema.unknown(name, origin)
        else:
            value = convert(setting, schema.keys[pattern(canonical)].kind)
            if spelled.setdefault(canonical, name) != name and layer.values[canonical] != value:
                raise ConfigError(
                    f"{name} = {value!r} and {spelled[canonical]} = {layer.values[canonical]!r} {origin} "
                    f"are names of the same key; keep {canonical}."
                )
            layer.values[canonical] = value
    if unknown:
        raise _most_telling(unknown)
    if layer.corpora and any(_is_path_of("data.sources", key) for key in layer.values):
        alias = next(iter(layer.corpora))
        raise ConfigError(f"{alias} and data.sources both name the corpora {settings[0].origin}; keep data.sources.")
    return layer


def _most_telling(unknown: dict[str, ConfigError]) -> ConfigError:
    """Of the errors of unknown keys, the one about a misspelling: beside a misspelt ``task.name``, all options of that
    task are unknown. It resembles a key of its own section, or at least some key."""
    for name, error in unknown.items():
        if f"Did you mean '{name.rpartition('.')[0]}." in str(error):
            return error
    return next((error for error in unknown.values() if "Did you mean" in str(error)), next(iter(unknown.values())))


def _is_path_of(name: str, key: str) -> bool:
    return pattern(key) == f"{name}.*.path"


def _merge(in_file: _Layer, on_command_line: _Layer) -> dict[str, Any]:
    """Lays the command line over the file; a list of sources given as a whole replaces the one below."""
    values, corpora = dict(in_file.values), dict(in_file.corpora)
    replaced = set(on_command_line.replaced)
    if "data.sources" in replaced:
        corpora = {}
    if "training.dataset" in on_command_line.corpora:
        replaced.add("data.sources")
    values = {name: value for name, value in values.items() if not name.startswith(tuple(f"{r}." for r in replaced))}
    return values | sources_from_corpora(corpora | on_command_line.corpora) | on_command_line.values


def _nest(values: dict[str, Any]) -> dict[str, Any]:
    """Turns dotted names into nested tables; a list of tables is keyed by its positions, as text."""
    tree: dict[str, Any] = {}
    for name, value in values.items():
        *sections, leaf = name.split(".")
        table = tree
        for section in sections:
            table = table.setdefault(section, {})
        table[leaf] = value
    return tree


def _build(section: str, tree: dict[str, Any], schema: Schema) -> Any:
    """Builds the dataclass of a section, and of those inside it, from a tree of converted values."""
    owner = schema.sections[pattern(section)]
    arguments: dict[str, Any] = {}
    for declared in fields(owner):
        full, given = join(section, declared.name), tree.get(declared.name)
        if schema.is_section(full):
            arguments[declared.name] = _build(full, given or {}, schema)
        elif schema.is_table_list(full):
            arguments[declared.name] = _build_list(full, given or {}, schema)
        elif declared.name in tree:
            arguments[declared.name] = given
        elif default_of(declared) is REQUIRED:
            raise ConfigError(f"{section} has no {declared.name}; set {full}.")
    try:
        return owner(**arguments)
    except ConfigError:
        raise
    except (AssertionError, ValueError) as error:  # raised by the __post_init__ of a section
        raise ConfigError(f"[{section}] {error}") from error


def _build_list(name: str, tree: dict[str, Any], schema: Schema) -> list[Any]:
    positions = sorted(int(position) for position in tree)
    if positions != list(range(len(positions))):
        gap = next(index for index, position in enumerate(positions) if index != position)
        raise ConfigError(f"{name}.{positions[-1]} is set, but there is no {name}.{gap}; positions count from 0.")
    return [_build(f"{name}.{index}", tree[str(index)], schema) for index in positions]
