"""Which keys of a ``[[data.sources]]`` table have an effect on which kind of source; the others are refused."""

from dataclasses import MISSING, fields

from flame.config.corpora import Source
from flame.data.sources.columns import SourceConfig
from flame.errors import DataError

_ALWAYS = {
    "path",
    "weight",
    "epochs",
    "split",
    "streaming",
}  # refused, where they mean nothing, when a source is opened
_FILES = {"data_dir", "data_files", "format"}
_RECORDS = {"text_column", "layout"}
_USED = {
    "builtin": {"format"},
    "txt": _FILES,
    "lines": _FILES,
    "jsonl": _FILES | _RECORDS,
    "parquet": _FILES | _RECORDS,
    "packed": _FILES | {"text_column"},
    "bin": _FILES | {"token_dtype"},
    "saved": _RECORDS | {"format"},
    "hub": {"name"} | _FILES | _RECORDS,
}
_CALLED = {
    "builtin": "text of this machine",
    "txt": "text files",
    "lines": "files of lines",
    "jsonl": "jsonl files",
    "parquet": "parquet files",
    "packed": "packed rows, token ids",
    "bin": ".bin files, token ids",
    "saved": "a saved dataset",
    "hub": "a hub dataset",
}
_DEFAULTS = {
    field.name: field.default if field.default is not MISSING else field.default_factory()  # type: ignore[misc]
    for field in fields(Source)
    if field.name != "path"
}


def refuse_unused(config: SourceConfig, kind: str) -> None:
    """Refuses keys that a source of this kind does not use.

    Args:
        config: What the job says about the source.
        kind: ``builtin``, ``hub``, ``saved`` (by ``save_to_disk``), or the format of files.

    Raises:
        DataError: One is set; the message names it and the keys that may be set.
    """
    refuse_other_keys(config, _USED[kind] - ({"layout"} if config.format == "packed" else set()), _CALLED[kind])
    if kind == "saved" and config.format not in ("", "packed"):
        raise DataError(
            f"'{config.path}': format = '{config.format}' has no effect on a saved dataset; set packed, or take it out"
        )


def refuse_other_keys(config: SourceConfig, used: set[str], called: str) -> None:
    """Refuses keys that are set but not among those that a source uses.

    Args:
        config: What the job says about the source.
        used: The keys that have an effect, besides those that every source has.
        called: What messages call sources of this kind.

    Raises:
        DataError: One is set; the message names it and the keys that may be set.
    """
    for key, default in _DEFAULTS.items():
        value = getattr(config, key, default)
        if key not in used | _ALWAYS and value != default:
            remedy = f"set only {', '.join(sorted(used))}" if used != {"format"} else "take it out"
            raise DataError(f"'{config.path}': {key} = {value!r} has no effect on {called}; {remedy}")
