"""Opening a source: from what a job says about it to documents with random access."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from flame.data.shards.manifest import TokenizerIdentity
from flame.data.sources.columns import SourceConfig as SourceConfig
from flame.data.sources.files import check_format, find_files, is_local, is_remote
from flame.data.sources.keys import refuse_unused
from flame.data.sources.layout import WithLayout
from flame.data.sources.line_files import IndexedFile, LineFiles, choose_columns
from flame.data.sources.line_index import index_lines
from flame.data.sources.records import DocumentSource
from flame.data.sources.remote.open import open_remote, open_streamed
from flame.data.sources.seen import note_changes
from flame.data.sources.storage import FileInfo, LocalStorage
from flame.data.sources.tables import is_saved_dataset, open_hub, open_parquet, open_saved
from flame.data.sources.text_files import TextFiles
from flame.data.sources.token_checks import check_tokens
from flame.data.sources.token_files import open_token_files
from flame.data.sources.token_shards import TokenShards
from flame.errors import DataError
from flame.tokenizer.corpus import corpus_files

_BUILTIN = "builtin:"
_BUILDERS = {"json": "jsonl", "parquet": "parquet", "text": "txt"}
"""Names that ``datasets`` gives to local formats, as in ``path = "json"`` with ``data_files``."""


def open_source(
    config: SourceConfig,
    columns: Sequence[str] | None,
    max_document_bytes: int,
    tokenizer: TokenizerIdentity | None = None,
) -> DocumentSource:
    """Opens a source, so that what is wrong with it as a whole comes out before training.

    Args:
        config: What the job says about the source.
        columns: The record keys that are needed, ``"text"`` standing for the source's text column; None for all.
        max_document_bytes: Longest document, in tokens for sources of token ids.
        tokenizer: The job's, which sources of token ids must have been made with; None to check nothing.

    Raises:
        DataError: If the source does not exist, is damaged, lacks a column, holds no documents, or holds token ids of
            another tokenizer.
    """
    if not config.path:
        raise DataError("a data source has no path: name a file, a folder, a hub dataset or builtin:python-stdlib")
    check_format(config.format)
    source = _open(config, columns, max_document_bytes, tokenizer)
    if not len(source):
        raise DataError(f"'{config.path}' holds no documents: check data.sources path, split and data_files")
    return WithLayout(source, config.layout) if config.layout else source


def identity_of(encoder: Any) -> TokenizerIdentity:
    """The tokenizer of an encoder, as far as it tells."""
    return TokenizerIdentity(
        getattr(encoder, "fingerprint", ""), getattr(encoder, "tokenizer_name", ""), getattr(encoder, "vocab_size", 0)
    )


def _open(
    config: SourceConfig, columns: Sequence[str] | None, max_document_bytes: int, tokenizer: TokenizerIdentity | None
) -> DocumentSource:
    path = config.path
    vocab_size = tokenizer.vocab_size if tokenizer else 0
    if config.format == "builtin" or path.startswith(_BUILTIN):
        if config.streaming or config.format not in ("", "builtin"):
            raise DataError(f"'{path}' is text on this machine: set streaming = false and leave format out")
        refuse_unused(config, "builtin")
        files = corpus_files(path.removeprefix(_BUILTIN), config.split)
        return TextFiles(path, files, max_document_bytes)
    if is_remote(path):
        _refuse_split(config)
        return open_remote(config, columns, max_document_bytes, tokenizer)
    is_builder = path in _BUILDERS and bool(config.data_files)
    if config.format == "hub" or not (is_builder or is_local(path)):
        if config.format not in ("", "hub", "packed", "parquet"):
            raise DataError(f"no file or folder '{path}' of format {config.format}: check data.sources path and format")
        refuse_unused(config, "hub")
        if config.streaming:
            return open_streamed(config, columns, tokenizer)
        return open_hub(config, columns, vocab_size)
    if config.streaming:
        raise DataError(f"'{path}' is local: set streaming = false")
    if is_saved_dataset(Path(path).expanduser()):
        refuse_unused(config, "saved")
        return open_saved(config, columns, vocab_size)
    _refuse_split(config)
    wanted = config.format or (_BUILDERS[path] if is_builder else "")
    found, files = find_files("" if is_builder else path, config.data_dir, config.data_files, wanted)
    refuse_unused(config, found)
    infos = [info for file in files if (info := LocalStorage().info(str(file))) is not None]
    note_changes(config, infos)
    if found in ("parquet", "packed"):
        return open_parquet(config, files, columns, vocab_size)
    if found == "txt":
        return TextFiles(path, files, max_document_bytes)
    if found == "bin":
        return _open_tokens(config, infos, max_document_bytes, tokenizer)
    return _open_lines(config, files, found == "jsonl", columns, max_document_bytes)


def _open_tokens(
    config: SourceConfig, files: list[FileInfo], longest: int, tokenizer: TokenizerIdentity | None
) -> TokenShards:
    storage = LocalStorage()
    opened, made_by = open_token_files(storage, files, config.token_dtype, longest)
    check_tokens(config.path, storage, opened, made_by, tokenizer)
    return TokenShards(config.path, opened, tokenizer.vocab_size if tokenizer else 0)


def _open_lines(
    config: SourceConfig, files: list[Path], is_json: bool, columns: Sequence[str] | None, max_document_bytes: int
) -> LineFiles:
    indexed = []
    for file in files:
        plain, index = index_lines(file)
        info = LocalStorage().info(str(plain))
        assert info is not None
        indexed.append(IndexedFile(str(file), info, index))
    source = LineFiles(config.path, indexed, is_json, max_document_bytes)
    if is_json and len(source):
        choose_columns(source, config, columns)
    return source


def _refuse_split(config: SourceConfig) -> None:
    if config.split != "train":
        raise DataError(
            f"'{config.path}' is local and has no split '{config.split}': name the files of that split in path"
            if not is_remote(config.path)
            else f"'{config.path}' has no split '{config.split}': name the files of that split in path"
        )
