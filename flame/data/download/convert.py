"""Turning fetched files into what training reads: parquet files of texts, and folders of unpacked archives."""

import json
import tarfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from flame.data.compressed import DAMAGE, decompressed
from flame.data.download.documents import Document, no_text, read_documents
from flame.data.download.faults import DamagedFile, FileFault, disk_fault
from flame.data.download.folder import count_files
from flame.data.download.registry import Corpus
from flame.errors import DataError
from flame.files import remove

_GROUP_BYTES = 1 << 23  # text per row group: with its encoded copy, this is what a conversion keeps in memory
_GROUP_ROWS = 10_000


def write_parquet(source: Path, target: Path, corpus: Corpus, check: Callable[[], None]) -> dict[str, Any]:
    """Writes the documents of a file as parquet: ``text``, the corpus's columns, and ``meta`` for all else.

    Args:
        source: the fetched file.
        target: overwritten.
        corpus: says what the columns are.
        check: called now and then; may raise to end the work.

    Returns:
        ``documents``, ``text_bytes``, and ``skipped`` by reason, if any were.

    Raises:
        DamagedFile: The file ends early, or is not what its name says.
        DataError: None of its records has a text; a ``FileFault``, if no other ``text_column`` could help.
        DiskFault: The target cannot be written.
    """
    columns = [name for name in corpus.columns if name != "text"]
    schema = pa.schema([("text", pa.string()), *((name, pa.string()) for name in columns), ("meta", pa.string())])
    skipped: Counter[str] = Counter()
    documents, text_bytes, group, group_bytes = 0, 0, [], 0
    try:
        with (
            open(target, "wb") as file,
            pq.ParquetWriter(file, schema, compression="zstd", use_dictionary=False) as writer,
        ):
            for document in read_documents(source, corpus, skipped):
                group.append(_row(document, columns))
                size = len(document.text.encode())
                group_bytes += size
                text_bytes += size
                documents += 1
                if group_bytes >= _GROUP_BYTES or len(group) >= _GROUP_ROWS:
                    writer.write_table(pa.Table.from_pylist(group, schema))
                    group, group_bytes = [], 0
                    check()
            writer.write_table(pa.Table.from_pylist(group, schema))
        if not documents and skipped:
            raise _nothing_usable(source.name, corpus, skipped)
    except DataError:
        target.unlink()
        raise
    except OSError as error:
        raise disk_fault(target, error) from error
    figures: dict[str, Any] = {"documents": documents, "text_bytes": text_bytes}
    return {**figures, "skipped": dict(sorted(skipped.items()))} if skipped else figures


def _nothing_usable(name: str, corpus: Corpus, skipped: Counter[str]) -> DataError:
    if list(skipped) == [no_text(corpus.text_column)]:
        return DataError(f"{name}: none of its records has a text in '{corpus.text_column}', set text_column")
    why = ", ".join(f"{count:,} {reason}" for reason, count in skipped.most_common())
    hint = ": JSON is read as one object per line" if any("JSON" in reason for reason in skipped) else ""
    return FileFault(f"{name} holds no text that can be used ({why}){hint}")


def unpack(source: Path, target: Path) -> dict[str, Any]:
    """Unpacks an archive into a folder, which is emptied first.

    Returns:
        ``files``, their number.

    Raises:
        DamagedFile: The archive ends early, or is none.
        DiskFault: The folder cannot be written.
        FileFault: A name in the archive cannot.
    """
    try:
        remove(target)
        target.mkdir(parents=True)
        with _archive(source) as archive:
            archive.extractall(target, filter="data")
    except (tarfile.TarError, *DAMAGE) as error:
        remove(target)
        raise DamagedFile(f"{source.name} cannot be unpacked ({' '.join(str(error).split())})") from error
    except OSError as error:
        raise disk_fault(target, error) from error
    return {"files": count_files(target)}


@contextmanager
def _archive(source: Path) -> Iterator[tarfile.TarFile]:
    if source.name.lower().endswith(".zst"):  # which tarfile itself does not know
        with (
            open(source, "rb") as stored,
            tarfile.open(fileobj=decompressed(source.name, stored), mode="r|") as archive,
        ):
            yield archive
    else:
        with tarfile.open(source) as archive:
            yield archive


def _row(document: Document, columns: list[str]) -> dict[str, str | None]:
    fields = document.fields
    row = {name: _as_text(fields.pop(name, None)) for name in columns}
    meta = json.dumps(fields, ensure_ascii=False, default=str) if fields else None
    return {"text": document.text, **row, "meta": meta and meta.encode(errors="replace").decode()}


def _as_text(value: Any) -> str | None:
    if value is None or isinstance(value, str):
        return value if value is None else value.encode(errors="replace").decode()
    return json.dumps(value, default=str)
