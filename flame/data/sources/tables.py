"""Opening tables: parquet files of this machine, hub datasets and saved datasets, as text or as packed rows."""

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import config as datasets_config
from datasets.exceptions import DatasetsError

from flame.data.sources.arrow_tables import ArrowTable
from flame.data.sources.columns import (
    SourceConfig,
    check_ids_type,
    check_text_type,
    find_ids_column,
    find_text_column,
    needed_columns,
)
from flame.data.sources.packed_rows import PackedRows
from flame.data.sources.records import DocumentSource
from flame.data.sources.storage import FileInfo, LocalStorage, once_per_version
from flame.errors import DataError
from flame.tokenizer.hub import hub_is_reachable

Columns = Sequence[str] | None


def open_parquet(config: SourceConfig, files: list[Path], columns: Columns, vocab_size: int) -> DocumentSource:
    """Opens local parquet files; ``format = "packed"`` makes packed rows of them.

    Raises:
        DataError: One is damaged, or lacks a column.
    """
    counts = []
    for file in files:
        rows, schema = _metadata(file)
        counts.append((file, rows))
        _chosen_column(config, schema, columns, str(file))
    counts = [(file, rows) for file, rows in counts if rows]  # `datasets` cannot read files without rows
    if not counts:
        raise DataError(f"'{config.path}' holds no documents: its parquet files have no rows")
    column = _chosen_column(config, _metadata(files[0])[1], columns, config.path)
    needed = [column] if config.format == "packed" and column else needed_columns(columns, column)
    names = [str(file) for file, _ in counts]
    try:
        dataset = _load_dataset(config, path="parquet", data_files=names, columns=needed)
    except DataError:
        for file in names:
            _check_row_groups(file, needed)
        raise
    return _source(config, dataset, counts, column, vocab_size)


def open_hub(config: SourceConfig, columns: Columns, vocab_size: int) -> DocumentSource:
    """Opens a dataset of the hub, downloaded once.

    Raises:
        DataError: It is not there, cannot be loaded, or lacks a column.
    """
    cached = Path(datasets_config.HF_DATASETS_CACHE) / config.path.replace("/", "___")
    if not (Path(config.path).expanduser().exists() or cached.exists() or hub_is_reachable()):
        raise DataError(
            f"dataset '{config.path}' is neither a local path nor in the local cache, and the hub cannot be reached: "
            "check the path or the network"
        )
    options: dict[str, Any] = {"name": config.name or None, "data_dir": config.data_dir or None}
    dataset = _load_dataset(config, path=config.path, data_files=config.data_files or None, **options)
    column = _chosen_column(config, dataset.features.arrow_schema, columns, config.path)
    return _source(config, dataset, (), column, vocab_size)


def is_saved_dataset(path: Path) -> bool:
    """Whether a folder was written by ``save_to_disk``."""
    return any((path / name).is_file() for name in ("state.json", "dataset_dict.json"))


def open_saved(config: SourceConfig, columns: Columns, vocab_size: int) -> DocumentSource:
    """Opens a folder of ``save_to_disk``.

    Raises:
        DataError: It is damaged, or lacks the split or a column.
    """
    try:
        dataset = datasets.load_from_disk(Path(config.path).expanduser())
    except (OSError, ValueError, KeyError, TypeError, AttributeError, pa.ArrowException) as error:
        raise DataError(f"'{config.path}' is not a complete saved dataset ({_first_line(error)})") from error
    if isinstance(dataset, datasets.DatasetDict):
        if config.split not in dataset:
            splits = list(map(str, dataset))
            raise DataError(f"'{config.path}' has no split '{config.split}': it is one of {', '.join(splits)}")
        dataset = dataset[config.split]
    _check_saved(config.path, dataset)
    column = _chosen_column(config, dataset.features.arrow_schema, columns, config.path)
    if config.format == "packed" and dataset._indices is not None:
        raise DataError(f"'{config.path}' was saved shuffled or selected: save it anew after flatten_indices()")
    return _source(config, dataset, (), column, vocab_size)


def _source(
    config: SourceConfig,
    dataset: datasets.Dataset,
    counts: Sequence[tuple[Path, int]],
    column: str | None,
    vocab_size: int,
) -> DocumentSource:
    if config.format == "packed" and column:
        return PackedRows(config.path, dataset, counts, column, vocab_size)
    return ArrowTable(config.path, dataset, counts, text_column=column)


def _chosen_column(config: SourceConfig, schema: pa.Schema, columns: Columns, where: str) -> str | None:
    """The column of text or of token ids, which has to be of the right type; None if no text is needed."""
    if config.format == "packed":
        column = find_ids_column(config, schema.names, where)
        check_ids_type(schema, column, where)
        return column
    column = find_text_column(config, columns, schema.names, where)
    check_text_type(schema, column, where)
    return column


def _metadata(file: Path) -> tuple[int, pa.Schema]:
    try:
        with pq.ParquetFile(file) as parquet:
            return parquet.metadata.num_rows, parquet.schema_arrow
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{file} is not a complete parquet file ({_first_line(error)}): fetch it again") from error


def _check_row_groups(file: str, columns: list[str] | None) -> None:
    """Reads a whole file to find out where it is damaged."""
    with pq.ParquetFile(file) as parquet:
        for group in range(parquet.num_row_groups):
            try:
                parquet.read_row_group(group, columns)
            except (pa.ArrowException, OSError) as error:
                raise DataError(
                    f"{file}, row group {group + 1}: cannot be loaded ({_first_line(error)}): fetch the file again"
                ) from error


def _check_saved(path: str, dataset: datasets.Dataset) -> None:
    """Looks through the Arrow files of a saved dataset, once per version: wrong offsets would be read as addresses."""
    for entry in dataset.cache_files:
        info = LocalStorage().info(entry["filename"])
        if info is not None:
            once_per_version("arrow", info, functools.partial(_check_arrow, path, info))


def _check_arrow(path: str, info: FileInfo) -> None:
    try:
        with pa.memory_map(info.path) as mapped:
            for batch in pa.ipc.open_stream(mapped):
                # As binary: text that is no UTF-8 is a matter of single rows.
                columns = [column.view(_as_binary(column.type)) for column in batch.columns]
                for column in columns:
                    column.validate(full=True)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{info.path} is damaged ({_first_line(error)}): save '{path}' anew") from error


def _as_binary(kind: pa.DataType) -> pa.DataType:
    if pa.types.is_string(kind):
        return pa.binary()
    return pa.large_binary() if pa.types.is_large_string(kind) else kind


def _load_dataset(config: SourceConfig, **options: Any) -> datasets.Dataset:
    try:
        return datasets.load_dataset(split=config.split, **options)
    except (OSError, ValueError, RuntimeError, DatasetsError, pa.ArrowException) as error:
        cause = error.__cause__ or error
        raise DataError(f"dataset '{config.path}' cannot be loaded: {_first_line(cause)}") from error


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
