"""Writing a job as TOML that reads back as the same job."""

import json
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from typing import Any

from flame import __version__
from flame.config.aliases import ALIASES, CORPUS_ALIASES, REFUSED, UNUSED_SECTIONS
from flame.config.schema import default_of, join
from flame.config.sections import JobConfig
from flame.config.values import NONE_WORD


def to_toml(config: JobConfig) -> str:
    """Writes every key flame uses; ``parse`` of the result gives an equal job, but for ``job.config_file``."""
    origin = f", read from {config.job.config_file!r}" if config.job.config_file else ""
    comment = f"# A whole job, as flame {__version__} ran it{origin}."
    return "\n".join([comment, *_table(config, "", ""), ""])


def _table(section: Any, name: str, header: str) -> Iterator[str]:
    """Yields the lines of a table: its own keys first, then the tables inside it."""
    values = [(join(name, declared.name), declared, getattr(section, declared.name)) for declared in fields(section)]
    unwritten = {*UNUSED_SECTIONS, *REFUSED, *ALIASES, *CORPUS_ALIASES}
    values = [(full, declared, value) for full, declared, value in values if full not in unwritten]
    lines = []
    for _, declared, value in values:
        if value is None and default_of(declared) is not None:
            value = NONE_WORD
        if value is not None and not _is_table(value):
            lines.append(f"{declared.name} = {_literal(value)}")
    if lines:
        yield from ("", header, *lines)
    for full, _, value in values:
        if is_dataclass(value):
            yield from _table(value, full, f"[{full}]")
        elif _is_table(value):
            for entry in value:
                yield from _table(entry, full, f"[[{full}]]")


def _is_table(value: Any) -> bool:
    return is_dataclass(value) or (isinstance(value, list) and bool(value) and is_dataclass(value[0]))


def _literal(value: Any) -> str:
    if isinstance(value, str):
        # JSON's escapes are TOML's, but for the one control character that JSON leaves alone.
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, list):
        return "[" + ", ".join(_literal(entry) for entry in value) + "]"
    return str(value).lower() if isinstance(value, bool) else repr(value)
