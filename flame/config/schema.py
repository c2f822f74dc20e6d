"""What a job may say: every key with its type and default, read off the section classes."""

import difflib
import re
from collections.abc import Iterator
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass
from functools import cache
from typing import Any, get_args, get_origin, get_type_hints

from flame.config.aliases import ALIASES, CORPUS_ALIASES, REFUSED, UNUSED_SECTIONS
from flame.config.sections import JobConfig, TaskOptions
from flame.errors import ConfigError

CONFIG_FILE = "job.config_file"
"""The one key that only the command line may hold."""

REQUIRED: Any = MISSING
"""The default of a key that has none."""


@dataclass(frozen=True)
class Key:
    """One key of a job."""

    name: str
    """Dotted name, such as ``training.steps``; ``*`` stands for the position in a list of tables."""
    kind: Any
    """Its type annotation."""
    default: Any
    section: type
    """Class of the section it belongs to."""

    @property
    def field(self) -> str:
        """Name inside its section."""
        return _leaf(self.name)


@dataclass(frozen=True, eq=False)
class Schema:
    """All keys and sections of a job whose task is known."""

    keys: dict[str, Key]
    sections: dict[str, type]
    """Dotted name -> class, with "" for the whole job and a final ``*`` for a list of tables."""

    def key(self, name: str) -> Key | None:
        """Returns the key called ``name``, whose list positions are numbers."""
        return self.keys.get(pattern(name)) if "*" not in name else None

    def canonical(self, name: str) -> str | None:
        """Returns the canonical name of a key or alias, or None if there is neither."""
        name = ALIASES.get(name, name)
        return name if self.key(name) else None

    def is_section(self, name: str) -> bool:
        """Whether ``name`` is a table."""
        return pattern(name) in self.sections

    def is_alias_section(self, name: str) -> bool:
        """Whether ``name`` is a table of upstream that holds nothing but aliases and refused keys."""
        return any(known.startswith(f"{name}.") for known in (*ALIASES, *REFUSED))

    def is_table_list(self, name: str) -> bool:
        """Whether ``name`` is a list of tables, such as ``data.sources``."""
        return f"{name}.*" in self.sections

    def is_bool(self, name: str) -> bool:
        """Whether ``name``, or the key it is an alias of, is a flag."""
        if name in REFUSED:
            return any(isinstance(value, bool) for value in REFUSED[name].harmless)
        key = self.key(ALIASES.get(name, name))
        return name == "training.streaming" or (key is not None and bool in (key.kind, *get_args(key.kind)))

    def used(self) -> Iterator[Key]:
        """Yields the keys that mean something to flame."""
        renamed = {*REFUSED, *ALIASES, *CORPUS_ALIASES} - {CONFIG_FILE}
        for name, key in self.keys.items():
            if not name.startswith(UNUSED_SECTIONS) and name not in renamed:
                yield key

    def unknown(self, name: str, origin: str) -> ConfigError:
        """Returns the error for a key or section that does not exist, with the closest that does."""
        if name and self.is_section(name):
            return ConfigError(f"'{name}' {origin} is a section: write {name}.KEY.")
        what = "key" if "." in name else "section or key"
        nearest = display(self._closest(name))
        hint = f"Did you mean '{nearest}'?" if nearest else "`flame config list` prints every key."
        return ConfigError(f"Unknown {what} '{name}' {origin}. {hint}")

    def _closest(self, name: str) -> str:
        """Finds the valid name meant by ``name``: a sibling, the same key elsewhere, a section, or what looks alike."""
        sections = {section: section for section in self.sections if section and section not in UNUSED_SECTIONS}
        keys = {key.name: key.name for key in self.used()} | ALIASES | {alias: alias for alias in CORPUS_ALIASES}
        names = keys | sections
        section, _, leaf = pattern(name).rpartition(".")
        leaves = {_leaf(known): target for known, target in reversed(names.items())}
        siblings = {_leaf(known): target for known, target in names.items() if known.rpartition(".")[0] == section}
        namesakes = {known: target for known, target in names.items() if _leaf(known) == leaf}
        return (
            _match(leaf, siblings, 0.6)
            or _match(pattern(name), namesakes, 0.0)
            or _match(pattern(name), names, 0.75)
            or _match(leaf, leaves, 0.75)
            or ""
        )


@cache
def schema_for(task: type = TaskOptions) -> Schema:
    """Reads the schema off ``JobConfig``, with ``task`` as the class of the ``[task]`` table."""
    keys: dict[str, Key] = {}
    sections: dict[str, type] = {}
    _walk(JobConfig, "", {"task": task}, keys, sections)
    return Schema(keys, sections)


def pattern(name: str) -> str:
    """Replaces list positions by ``*``: ``data.sources.0.path`` -> ``data.sources.*.path``."""
    return re.sub(r"\.(0|[1-9]\d*)(?=\.|$)", ".*", name)


def display(name: str) -> str:
    """Writes the name of a key for people, with N for the position in a list of tables."""
    return name.replace("*", "N")


def join(section: str, name: str) -> str:
    """Returns the dotted name of ``name`` inside ``section``; "" is the job itself."""
    return f"{section}.{name}" if section else name


def default_of(declared: Field[Any]) -> Any:
    """Returns the default of a dataclass field, built if it has a factory, or ``REQUIRED``."""
    return declared.default_factory() if declared.default_factory is not MISSING else declared.default


def _walk(
    section: type, name: str, overrides: dict[str, type], keys: dict[str, Key], sections: dict[str, type]
) -> None:
    sections[name] = section
    kinds = get_type_hints(section)
    for declared in fields(section):
        full, kind = join(name, declared.name), overrides.get(join(name, declared.name), kinds[declared.name])
        element = get_args(kind)[0] if get_origin(kind) is list else None
        if isinstance(kind, type) and is_dataclass(kind):
            _walk(kind, full, overrides, keys, sections)
        elif isinstance(element, type) and is_dataclass(element):
            _walk(element, f"{full}.*", overrides, keys, sections)
        else:
            keys[full] = Key(full, kind, default_of(declared), section)


def _leaf(name: str) -> str:
    return name.rpartition(".")[2]


def _match(name: str, names: dict[str, str], cutoff: float) -> str | None:
    found = difflib.get_close_matches(name, names, n=1, cutoff=cutoff)
    return names[found[0]] if found else None
