"""The registry of corpora: TOML tables, flame's own and a user's."""

import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from flame.errors import ConfigError, closest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

OWN_REGISTRY = Path(__file__).with_name("corpora.toml")
_SUBSET = "{subset}"
_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")
_CHECKSUM = re.compile(r"(sha256:[0-9a-f]{64}|md5:[0-9a-f]{32})")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


@dataclass(frozen=True)
class Corpus:
    """One table of the registry; its keys are explained at the head of ``corpora.toml``."""

    name: str
    title: str = ""
    license: str = ""
    home: str = ""
    repo: str = ""
    revision: str = "main"
    subset: str = ""
    files: Mapping[str, Sequence[str]] = field(default_factory=dict)
    paths: Mapping[str, str] = field(default_factory=dict)
    base: str = ""
    checksums: Mapping[str, str] = field(default_factory=dict)
    text_column: str = "text"
    columns: Sequence[str] = ()
    separator: str = ""

    @property
    def splits(self) -> list[str]:
        """The names of its parts, such as ``train``."""
        return list(self.files or self.paths)

    @property
    def settings(self) -> dict[str, Any]:
        """What decides how a fetched file is converted."""
        return {"text_column": self.text_column, "columns": list(self.columns), "separator": self.separator}

    def names(self, split: str) -> list[str]:
        """The patterns, URLs or path list of a split, ``{subset}`` and ranges written out.

        Raises:
            ConfigError: A range counts down.
        """
        written = self.files[split] if self.files else [self.paths[split]]
        return [name for pattern in written for name in _expand(pattern.replace(_SUBSET, self.subset))]


def load_registry(own: str = "") -> dict[str, Corpus]:
    """Reads flame's registry, and on top of it a user's.

    Raises:
        ConfigError: A file cannot be read, or a table in it is not a corpus.
    """
    corpora: dict[str, Corpus] = {}
    for path in [OWN_REGISTRY, *([Path(own).expanduser()] if own else [])]:
        try:
            tables = tomllib.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise ConfigError(f"--registry: cannot read {path} ({error.strerror})") from error
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise ConfigError(f"--registry: {path} is not TOML ({error})") from error
        corpora.update({name: _corpus(name, table, path) for name, table in tables.items()})
    return corpora


def find_corpus(registry: Mapping[str, Corpus], name: str) -> Corpus:
    """The corpus of this name.

    Raises:
        ConfigError: There is none.
    """
    if name not in registry:
        hint = closest(name, registry) or " `flame data download --list` shows all; --registry adds some."
        raise ConfigError(f"the registry has no corpus '{name}'.{hint}")
    return registry[name]


def _corpus(name: str, table: Any, path: Path) -> Corpus:
    where = f"{path}: [{name}]"
    if not isinstance(table, dict) or not _NAME.fullmatch(name):
        raise ConfigError(f"{where} is not a corpus: write a table named in letters, digits, '-', '_' and '.'")
    defaults = {key.name: key for key in fields(Corpus) if key.name != "name"}
    for key in table:
        if key not in defaults:
            raise ConfigError(f"{where} has an unknown key '{key}'.{closest(key, defaults)}")
    for key in ("files", "paths", "checksums"):
        _check_table(where, key, table.get(key, {}), lists=key == "files")
    for key, value in table.items():
        if key == "columns" and not _is_list_of_text(value):
            raise ConfigError(f"{where} columns = {value!r} is not a list of names")
        if key not in ("files", "paths", "checksums", "columns") and not isinstance(value, str):
            raise ConfigError(f"{where} {key} = {value!r} is not text")
    corpus = Corpus(name=name, **table)
    if bool(corpus.files) == bool(corpus.paths):
        raise ConfigError(f"{where} needs either files.SPLIT or paths.SPLIT, such as files.train = ['https://...']")
    if corpus.paths and corpus.repo:
        raise ConfigError(f"{where} has both repo and paths: paths lists URLs, files lists what is in a repo")
    for file, checksum in corpus.checksums.items():
        if not _CHECKSUM.fullmatch(checksum):
            raise ConfigError(f"{where} checksums: '{checksum}' of {file} is not 'sha256:...' or 'md5:...'")
    return corpus


def _check_table(where: str, key: str, table: Any, lists: bool) -> None:
    kind = "a table of lists of text" if lists else "a table of text"
    fits = isinstance(table, dict) and all(
        _is_list_of_text(value) and value if lists else isinstance(value, str) for value in table.values()
    )
    if not fits:
        raise ConfigError(f"{where} {key} is not {kind}")
    if key != "checksums":
        for split in table:
            if not _NAME.fullmatch(split):
                raise ConfigError(f"{where} {key}: '{split}' cannot name a folder")


def _is_list_of_text(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def _expand(pattern: str) -> list[str]:
    """``a{08..10}`` -> ``a08``, ``a09``, ``a10``."""
    found = _RANGE.search(pattern)
    if not found:
        return [pattern]
    first, last = found.groups()
    if int(first) > int(last):
        raise ConfigError(f"'{pattern}' of the registry counts down: write {{{last}..{first}}}")
    numbers = [f"{number:0{len(first)}d}" for number in range(int(first), int(last) + 1)]
    return [name for number in numbers for name in _expand(pattern[: found.start()] + number + pattern[found.end() :])]
