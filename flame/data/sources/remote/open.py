"""Opening remote sources."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
from datasets.exceptions import DatasetsError

from flame.data.shards.manifest import TokenizerIdentity
from flame.data.sources.columns import (
    SourceConfig,
    check_ids_type,
    check_text_type,
    find_ids_column,
    find_text_column,
    needed_columns,
)
from flame.data.sources.keys import refuse_unused
from flame.data.sources.line_files import choose_columns
from flame.data.sources.records import DocumentSource
from flame.data.sources.remote.footers import fetch_footer
from flame.data.sources.remote.lines import RemoteLines, index_remote
from flame.data.sources.remote.listing import find_remote
from flame.data.sources.remote.row_groups import PackedRowGroups, RowGroups
from flame.data.sources.remote.storage import RemoteStorage, connect
from flame.data.sources.remote.texts import RemoteTexts
from flame.data.sources.remote.tokens import RemoteTokens
from flame.data.sources.seen import note_changes
from flame.data.sources.storage import FileInfo
from flame.data.sources.token_checks import check_tokens
from flame.data.sources.token_files import open_token_files
from flame.errors import DataError

_THREADS = 16


def open_remote(
    config: SourceConfig, columns: Sequence[str] | None, max_document_bytes: int, tokenizer: TokenizerIdentity | None
) -> DocumentSource:
    """Opens a source whose path is a URL; arguments and errors as in ``open_source``."""
    storage, found, files = find_remote(config.path, config.data_dir, config.data_files, config.format)
    refuse_unused(config, found)
    note_changes(config, files)
    if found in ("parquet", "packed"):
        return _open_tables(config, storage, files, columns, tokenizer)
    if found == "txt":
        return RemoteTexts(config.path, storage, files, max_document_bytes)
    if found == "bin":
        return _open_tokens(config, storage, files, max_document_bytes, tokenizer)
    indexed = [index_remote(storage, file) for file in files]
    source = RemoteLines(config.path, storage, indexed, found == "jsonl", max_document_bytes)
    if found == "jsonl" and len(source):
        choose_columns(source, config, columns)
    return source


def open_streamed(
    config: SourceConfig, columns: Sequence[str] | None, tokenizer: TokenizerIdentity | None
) -> DocumentSource:
    """Opens a dataset of the hub without downloading it: its parquet files are read row group by row group.

    Raises:
        DataError: It consists of other files, for which there is no exact order without a download.
    """
    options: dict[str, Any] = {"name": config.name or None, "data_dir": config.data_dir or None}
    try:
        builder = datasets.load_dataset_builder(config.path, data_files=config.data_files or None, **options)
    except (OSError, ValueError, RuntimeError, DatasetsError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise DataError(f"dataset '{config.path}' cannot be read ({reason}): check the path or the network") from error
    splits = getattr(builder.config, "data_files", None) or {}
    urls = [str(url) for url in splits.get(config.split, ())]
    if splits and not urls:
        raise DataError(f"'{config.path}' has no split '{config.split}': it is one of {', '.join(splits)}")
    if not urls or not all(url.endswith(".parquet") and "://" in url for url in urls):
        raise DataError(
            f"'{config.path}' does not consist of parquet files on the hub, and others cannot be streamed in an order "
            "that a resumed run keeps: set streaming = false, and it is downloaded once"
        )
    storage, _ = connect(urls[0])
    with ThreadPoolExecutor(_THREADS) as pool:
        files = list(pool.map(lambda url: _info(storage, url), urls))
    return _open_tables(config, storage, files, columns, tokenizer)


def _info(storage: RemoteStorage, url: str) -> FileInfo:
    info = storage.info(url)
    if info is None:
        raise DataError(f"{url} is not there any more")
    return info


def _open_tables(
    config: SourceConfig,
    storage: RemoteStorage,
    files: Sequence[FileInfo],
    columns: Sequence[str] | None,
    tokenizer: TokenizerIdentity | None,
) -> DocumentSource:
    with ThreadPoolExecutor(_THREADS) as pool:
        footers = list(pool.map(lambda file: fetch_footer(storage, file), files))
    pairs = list(zip(files, footers, strict=True))
    column = None
    for file, footer in pairs:
        schema = _schema(file, footer)
        if config.format == "packed":
            column = find_ids_column(config, schema.names, file.path)
            check_ids_type(schema, column, file.path)
        else:
            column = find_text_column(config, columns, schema.names, file.path)
            check_text_type(schema, column, file.path)
    if config.format == "packed" and column:
        vocab_size = tokenizer.vocab_size if tokenizer else 0
        return PackedRowGroups(config.path, storage, pairs, column, vocab_size)
    return RowGroups(config.path, storage, pairs, needed_columns(columns, column), column)


def _schema(file: FileInfo, footer: Any) -> pa.Schema:
    try:
        return pq.read_schema(footer)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{file.path} is not a complete parquet file ({str(error).splitlines()[0]})") from error


def _open_tokens(
    config: SourceConfig,
    storage: RemoteStorage,
    files: Sequence[FileInfo],
    longest: int,
    tokenizer: TokenizerIdentity | None,
) -> RemoteTokens:
    opened, made_by = open_token_files(storage, files, config.token_dtype, longest)
    check_tokens(config.path, storage, opened, made_by, tokenizer)
    return RemoteTokens(config.path, storage, opened, tokenizer.vocab_size if tokenizer else 0)
