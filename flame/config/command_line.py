"""The command line as settings: ``--section.key value``, ``--section.key=value`` and flags."""

from dataclasses import dataclass
from typing import Any

from flame.config.aliases import CORPUS_ALIASES, REFUSED
from flame.config.schema import CONFIG_FILE, Schema
from flame.errors import ConfigError

COMMAND_LINE = "on the command line"


@dataclass(frozen=True)
class Setting:
    """One key with a value, as the user gave it."""

    key: str
    """Dotted name, possibly an alias or unknown."""
    value: Any
    """A value of TOML, or text of the command line, where None stands for a bare flag."""
    origin: str
    """Where it stands, to end a sentence with: "in job.toml" or "on the command line"."""

    @property
    def is_text(self) -> bool:
        """Whether the value is still text to be converted."""
        return self.origin == COMMAND_LINE


def split_arguments(arguments: list[str]) -> list[Setting]:
    """Splits a command line into settings, in order; dashes in keys become underscores.

    The word after a key is its value unless it begins with two dashes; such a value is written ``--key=--value``.

    Raises:
        ConfigError: A word belongs to no key.
    """
    settings = []
    words = iter(range(len(arguments)))
    for index in words:
        word = arguments[index]
        if not word.startswith("--") or word == "--":
            raise ConfigError(f"Unexpected argument '{word}': write keys as --section.key value.")
        name, equals, value = word[2:].partition("=")
        text: str | None = value if equals else None
        if not equals and index + 1 < len(arguments) and not arguments[index + 1].startswith("--"):
            text = arguments[next(words)]
        settings.append(Setting(name.replace("-", "_"), text, COMMAND_LINE))
    return settings


def expand_flag(setting: Setting, schema: Schema) -> Setting:
    """Gives a flag its value: ``--a.b`` is true; ``--a.no_b`` and ``--no_a.b`` are false.

    Raises:
        ConfigError: A key that is no flag has no value, or a negated flag has one.
    """
    key = setting.key
    if not _known(key, schema):
        section, dot, leaf = key.rpartition(".")
        for positive in (section + dot + leaf.removeprefix("no_"), key.removeprefix("no_")):
            if positive != key and schema.is_bool(positive):
                if setting.value is not None:
                    raise ConfigError(f"--{key} takes no value, but got '{setting.value}'; use --{positive} instead.")
                return Setting(positive, "false", setting.origin)
        raise schema.unknown(key, setting.origin)
    if setting.value is not None or (key in REFUSED and key != CONFIG_FILE):
        return setting
    if not schema.is_bool(key):
        raise ConfigError(f"--{key} needs a value: write --{key} VALUE.")
    return Setting(key, "true", setting.origin)


def _known(key: str, schema: Schema) -> bool:
    known = key in REFUSED or key in CORPUS_ALIASES or schema.canonical(key) is not None
    return known or schema.is_table_list(key)
