"""The folder of a download: finished files, what is under way, and the manifest that says what is what.

``.incoming`` holds fetched and half-written files, and a journal with a line for every finished file: a run that was
killed goes on from there. At the end of a run the journal becomes part of ``manifest.json``.
"""

import fcntl
import json
import os
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from flame.data.download.faults import disk_fault
from flame.data.download.remote import RemoteFile
from flame.data.download.transfer import make_folder
from flame.errors import DataError
from flame.files import move, remove

_VERSION = 1
Record = dict[str, Any]
"""What the manifest says about a file."""


class Folder:
    """The folder, held by this process alone.

    Args:
        path: made if need be.
        identity: corpus, subset and settings: what may not change between runs.

    Raises:
        DataError: Another process is at work here, or the folder holds another download.
        DiskFault: It cannot be written.
    """

    def __init__(self, path: Path, identity: Mapping[str, Any]):
        self.path = path
        self.incoming = path / ".incoming"
        self._journal_path = self.incoming / "journal.jsonl"
        self._identity = dict(identity)
        self._guard = threading.Lock()
        make_folder(self.incoming)
        self._lock = open(self.incoming / "lock", "w")  # noqa: SIM115 (held until close)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise DataError(f"another download is at work in {path}: wait for it, or use another --out") from error
        self._aside = self.incoming / ".replaced"
        remove(self._aside)  # of a run that was killed
        self.records = self._read()

    def holds(self, file: RemoteFile) -> bool:
        """Whether a file is here, as it is at its source now."""
        record = self.records.get(_key(file))
        if record is None or file.size not in (None, record["bytes"]) or file.digest not in ("", record["checksum"]):
            return False
        if not (file.digest or file.size is not None) and record["url"] != file.url:
            return False
        place = self.path / record["file"]
        if "files" in record:
            return place.is_dir() and count_files(place) == record["files"]
        return place.is_file() and place.stat().st_size == record["size"]

    def finish(self, file: RemoteFile, draft: Path, place: str, record: Record) -> None:
        """Puts a file, or a folder, in its place: noted first, so that it is never there unknown.

        What was there before goes away before that, so that nobody takes it for what is noted.

        Raises:
            DiskFault: It cannot be written.
        """
        final = self.path / place
        entry: Record = {"file": place, "split": file.split, "path": file.path, "url": file.url, **record}
        if draft.is_file():
            entry["size"] = draft.stat().st_size
        make_folder(final.parent)
        try:
            with self._guard:
                if final.exists():
                    make_folder(self._aside)
                    os.rename(final, self._aside / "old")
                    remove(self._aside)
                self._append(entry)
                move(draft, final)
                self.records[_key(file)] = entry
        except OSError as error:
            raise disk_fault(final, error) from error

    def write_manifest(self, revision: str, missing: Sequence[str] = ()) -> None:
        """Says what is here and, line by line, why something is missing; and forgets the journal."""
        manifest = {
            "format": "flame.download",
            "version": _VERSION,
            **self._identity,
            "revision": revision,
            "files": [self.records[key] for key in sorted(self.records)],
            **({"missing": sorted(missing)} if missing else {}),
        }
        draft = self.incoming / "manifest.json"
        try:
            draft.write_text(json.dumps(manifest, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
            move(draft, self.path / "manifest.json")
        except OSError as error:
            raise disk_fault(self.path / "manifest.json", error) from error
        self._journal_path.unlink(missing_ok=True)

    def close(self) -> None:
        """Lets go of the folder, and of ``.incoming`` if nothing is under way."""
        (self.incoming / "lock").unlink(missing_ok=True)
        for folder in sorted((path for path in self.incoming.rglob("*") if path.is_dir()), reverse=True):
            _remove_empty(folder)
        _remove_empty(self.incoming)
        self._lock.close()

    def _read(self) -> dict[str, Record]:
        records: dict[str, Record] = {}
        manifest = self.path / "manifest.json"
        if manifest.exists():
            try:
                content = json.loads(manifest.read_text(encoding="utf-8"))
                self._check(content)
                records.update({f"{entry['split']}/{entry['path']}": entry for entry in content["files"]})
            except (ValueError, KeyError, TypeError) as error:
                if isinstance(error, DataError):
                    raise
                raise DataError(
                    f"{manifest} is damaged ({error}): remove it, and what is here is fetched anew"
                ) from error
        if not self._journal_path.exists():
            self._append(self._identity)
            return records
        for number, line in enumerate(self._journal_path.read_bytes().split(b"\n")):
            try:
                entry = json.loads(line)
            except ValueError:
                continue  # the line under way when a run was killed
            if number == 0:
                self._check(entry)
            else:
                records[f"{entry['split']}/{entry['path']}"] = entry
        return records

    def _check(self, found: Mapping[str, Any]) -> None:
        for key, value in self._identity.items():
            if found.get(key) != value:
                raise DataError(
                    f"{self.path} holds a download with {key} = {found.get(key)!r}, not {value!r}: use another --out"
                )

    def _append(self, entry: Record) -> None:
        try:
            with open(self._journal_path, "ab+") as file:
                if file.tell():  # a line that was cut short must not swallow this one
                    file.seek(-1, os.SEEK_END)
                    if file.read(1) != b"\n":
                        file.write(b"\n")
                file.write(json.dumps(entry, ensure_ascii=False).encode() + b"\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise disk_fault(self._journal_path, error) from error


def identity(corpus: str, subset: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """What may not change while a folder is filled."""
    return {"corpus": corpus, "subset": subset, "settings": dict(settings)}


def count_files(folder: Path) -> int:
    """The number of files in a folder, to any depth."""
    return sum(path.is_file() for path in folder.rglob("*"))


def _key(file: RemoteFile) -> str:
    return f"{file.split}/{file.path}"


def _remove_empty(folder: Path) -> None:
    if not any(folder.iterdir()):
        folder.rmdir()
