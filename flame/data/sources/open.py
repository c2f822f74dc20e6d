"""Opening a source: from what a job says about it to documents with random access."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import config as datasets_config
from datasets.exceptions import DatasetsError

from flame.data.sources.arrow_tables import ArrowTable
from flame.data.sources.files import find_files, is_local
from flame.data.sources.line_files import IndexedFile, LineFiles
from flame.data.sources.line_index import index_lines
from flame.data.sources.records import TEXT, DocumentSource
from flame.data.sources.text_files import TextFiles
from flame.errors import DataError, closest
from flame.tokenizer.corpus import corpus_files
from flame.tokenizer.hub import hub_is_reachable

_BUILTIN = "builtin:"
_BUILDERS = {"json": "jsonl", "parquet": "parquet", "text": "txt"}
"""Names that ``datasets`` gives to local formats, as in ``path = "json"`` with ``data_files``."""
_USUAL_TEXT_COLUMNS = ("text", "content")


class SourceConfig(Protocol):
    """One ``[[data.sources]]`` of a job."""

    path: str
    name: str
    split: str
    data_dir: str
    data_files: list[str]
    weight: float
    text_column: str
    format: str
    streaming: bool


def open_source(config: SourceConfig, columns: Sequence[str] | None, max_document_bytes: int) -> DocumentSource:
    """Opens a source, so that what is wrong with it as a whole comes out before training.

    Args:
        config: What the job says about the source.
        columns: The record keys that are needed, ``"text"`` standing for the source's text column; None for all.
        max_document_bytes: Longest document.

    Raises:
        DataError: If the source does not exist, is damaged, lacks a column or holds no documents.
    """
    if not config.path:
        raise DataError("a data source has no path: name a file, a folder, a hub dataset or builtin:python-stdlib")
    if config.streaming:
        raise DataError(
            f"'{config.path}': streaming cannot be resumed exactly or shared by any number of ranks, "
            "set streaming = false and the dataset is downloaded once and read from disk"
        )
    source = _open(config, columns, max_document_bytes)
    if not len(source):
        raise DataError(f"'{config.path}' holds no documents: check data.sources path, split and data_files")
    return source


def _open(config: SourceConfig, columns: Sequence[str] | None, max_document_bytes: int) -> DocumentSource:
    path = config.path
    if config.format == "builtin" or path.startswith(_BUILTIN):
        files = corpus_files(path.removeprefix(_BUILTIN), config.split)
        return TextFiles(path, files, max_document_bytes)
    is_builder = path in _BUILDERS and bool(config.data_files)
    if config.format == "hub" or not (is_builder or is_local(path)):
        return _open_hub(config, columns)
    if _is_saved_dataset(Path(path).expanduser()):
        return _open_saved(config, columns)
    if config.split != "train":
        raise DataError(f"'{path}' is local and has no split '{config.split}': name the files of that split in path")
    wanted = config.format or (_BUILDERS[path] if is_builder else "")
    found, files = find_files("" if is_builder else path, config.data_dir, config.data_files, wanted)
    if found == "parquet":
        return _open_parquet(config, files, columns)
    if found == "txt":
        return TextFiles(path, files, max_document_bytes)
    return _open_lines(config, files, found == "jsonl", columns, max_document_bytes)


def _open_lines(
    config: SourceConfig, files: list[Path], is_json: bool, columns: Sequence[str] | None, max_document_bytes: int
) -> LineFiles:
    indexed = [IndexedFile(file, *index_lines(file)) for file in files]
    source = LineFiles(config.path, indexed, is_json, max_document_bytes)
    if is_json and len(source):
        found = source.columns()
        if found:  # if no row could be read at all, the policy for bad rows decides
            source.text_column = _text_column(config, columns, list(found), config.path)
        elif columns is None or TEXT in columns:
            source.text_column = config.text_column or TEXT
    return source


def _open_parquet(config: SourceConfig, files: list[Path], columns: Sequence[str] | None) -> ArrowTable:
    counts = []
    for file in files:
        try:
            with pq.ParquetFile(file) as parquet:
                counts.append((file, parquet.metadata.num_rows))
                schema = parquet.schema_arrow
        except (pa.ArrowException, OSError) as error:
            raise DataError(f"{file} is not a complete parquet file ({_first_line(error)}): fetch it again") from error
        _check_text_type(schema, _text_column(config, columns, schema.names, str(file)), str(file))
    counts = [(file, rows) for file, rows in counts if rows]  # `datasets` cannot read files without rows
    if not counts:
        raise DataError(f"'{config.path}' holds no documents: its parquet files have no rows")
    names = pq.read_schema(files[0]).names
    text_column = _text_column(config, columns, names, config.path)
    needed = None if columns is None else [text_column if name == TEXT and text_column else name for name in columns]
    dataset = _load_dataset(config, path="parquet", data_files=[str(file) for file, _ in counts], columns=needed)
    return ArrowTable(config.path, dataset, counts, text_column)


def _open_hub(config: SourceConfig, columns: Sequence[str] | None) -> ArrowTable:
    cached = Path(datasets_config.HF_DATASETS_CACHE) / config.path.replace("/", "___")
    if not (Path(config.path).expanduser().exists() or cached.exists() or hub_is_reachable()):
        raise DataError(
            f"dataset '{config.path}' is neither a local path nor in the local cache, and the hub cannot be reached: "
            "check the path or the network"
        )
    options: dict[str, Any] = {"name": config.name or None, "data_dir": config.data_dir or None}
    dataset = _load_dataset(config, path=config.path, data_files=config.data_files or None, **options)
    return _from_dataset(config, dataset, columns)


def _open_saved(config: SourceConfig, columns: Sequence[str] | None) -> ArrowTable:
    try:
        dataset = datasets.load_from_disk(Path(config.path).expanduser())
    except (OSError, ValueError, pa.ArrowException) as error:
        raise DataError(f"'{config.path}' is not a complete saved dataset ({_first_line(error)})") from error
    if isinstance(dataset, datasets.DatasetDict):
        if config.split not in dataset:
            splits = list(map(str, dataset))
            raise DataError(f"'{config.path}' has no split '{config.split}': it is one of {', '.join(splits)}")
        dataset = dataset[config.split]
    return _from_dataset(config, dataset, columns)


def _from_dataset(config: SourceConfig, dataset: datasets.Dataset, columns: Sequence[str] | None) -> ArrowTable:
    text_column = _text_column(config, columns, dataset.column_names, config.path)
    _check_text_type(dataset.features.arrow_schema, text_column, config.path)
    return ArrowTable(config.path, dataset, text_column=text_column)


def _load_dataset(config: SourceConfig, **options: Any) -> datasets.Dataset:
    try:
        return datasets.load_dataset(split=config.split, **options)
    except (OSError, ValueError, RuntimeError, DatasetsError, pa.ArrowException) as error:
        cause = error.__cause__ or error
        raise DataError(f"dataset '{config.path}' cannot be loaded: {_first_line(cause)}") from error


def _text_column(config: SourceConfig, columns: Sequence[str] | None, found: Sequence[str], where: str) -> str | None:
    """Finds the source's text column; None if no text is needed.

    Raises:
        DataError: If it, or another column that is needed, does not exist.
    """
    for column in columns or ():
        if column != TEXT and column not in found:
            raise DataError(f"{where} has no column '{column}', only {', '.join(found)}.{closest(column, found)}")
    if config.text_column and config.text_column not in found:
        hint = closest(config.text_column, found)
        raise DataError(
            f"{where} has no column '{config.text_column}', only {', '.join(found)}: set text_column.{hint}"
        )
    usual = next((column for column in _USUAL_TEXT_COLUMNS if column in found), None)
    chosen = config.text_column or usual
    if chosen is None and TEXT in (columns or ()):
        raise DataError(f"{where} has no column 'text' or 'content', only {', '.join(found)}: set text_column to one")
    return chosen if columns is None or TEXT in columns else None


def _check_text_type(schema: pa.Schema, column: str | None, where: str) -> None:
    if column is None:
        return
    kind = schema.field(column).type
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)):
        raise DataError(f"{where}: column '{column}' holds {kind}, not text: set text_column to a column of strings")


def _is_saved_dataset(path: Path) -> bool:
    return any((path / name).is_file() for name in ("state.json", "dataset_dict.json"))


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
