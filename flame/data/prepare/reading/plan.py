"""What a preparation reads: the files of its inputs, and which task reads which."""

import fnmatch
import json
import os
import posixpath
import sysconfig
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem

from flame.data import suffixes
from flame.data.prepare.documents import write_json
from flame.data.prepare.job import Input
from flame.errors import DataError

_SUFFIXES = {
    **suffixes.SUFFIXES,
    **dict.fromkeys((".md", ".rst"), "txt"),
    **dict.fromkeys((".html", ".htm"), "html"),
    **dict.fromkeys((".warc", ".wet"), "warc"),
}
_MAGIC = "*?["
_PLAN = "plan.json"


@dataclass(frozen=True)
class InputFile:
    """One file to read."""

    source: int
    """Number of the input it belongs to."""
    path: str
    """Path or URL."""
    name: str
    """Path below the folder of its input, the same on every machine."""
    format: str
    bytes: int
    """Size as stored."""
    stamp: str
    """Changes when the file does: time of its last change, or the store's checksum."""

    def check_unchanged(self) -> None:
        """Makes sure that the file is the one that was planned with.

        Raises:
            DataError: It is gone, or another by now.
        """
        fs, name = url_to_fs(self.path)
        try:
            info = fs.info(name)
        except FileNotFoundError as error:
            raise DataError(f"{self.path} is gone since this preparation began: put it back, or --restart") from error
        if (int(info["size"]), _stamp(info)) != (self.bytes, self.stamp):
            raise DataError(f"{self.path} has changed since this preparation began: run again with --restart")


@dataclass(frozen=True)
class Plan:
    """The files in corpus order, and how tasks share them."""

    files: list[InputFile]
    bounds: list[int]
    """Task t reads files ``bounds[t]`` to ``bounds[t + 1]``, exclusive."""

    @property
    def tasks(self) -> int:
        """Number of tasks of the reading stage."""
        return len(self.bounds) - 1

    @property
    def bytes(self) -> int:
        """Size of all files as stored."""
        return sum(file.bytes for file in self.files)

    def save(self, folder: Path) -> None:
        """Writes the share of every task, and then the plan: if that is there, so is all."""
        for rank in range(self.tasks):
            files = self.files[self.bounds[rank] : self.bounds[rank + 1]]
            write_json(folder / f"{rank:05d}.json", [astuple(file) for file in files])
        write_json(folder / _PLAN, {"files": [astuple(file) for file in self.files], "bounds": self.bounds})

    @classmethod
    def load(cls, folder: Path) -> "Plan | None":
        """Reads what ``save`` wrote, or returns None."""
        path = folder / _PLAN
        if not path.is_file():
            return None
        value = json.loads(path.read_text(encoding="utf-8"))
        return cls([InputFile(*row) for row in value["files"]], value["bounds"])


def read_share(folder: Path, rank: int) -> list[InputFile]:
    """The files of one task of a saved plan."""
    rows = json.loads((folder / f"{rank:05d}.json").read_text(encoding="utf-8"))
    return [InputFile(*row) for row in rows]


def make_plan(inputs: list[Input], task_bytes: int) -> Plan:
    """Lists the files of all inputs and shares them out, each file whole, in order.

    Args:
        inputs: The ``[[inputs]]`` of the job.
        task_bytes: Size from which a task is given no further file.

    Raises:
        DataError: An input has no files, or one whose format cannot be told.
    """
    files = [file for number, given in enumerate(inputs) for file in _files_of(number, given)]
    bounds, size = [0], 0
    for number, file in enumerate(files):
        if size and size + file.bytes > task_bytes:
            bounds.append(number)
            size = 0
        size += file.bytes
    return Plan(files, [*bounds, len(files)])


def format_of(path: str) -> str:
    """Returns the format that a file's name tells, or an empty string."""
    return suffixes.format_of(path, _SUFFIXES)


def _files_of(number: int, given: Input) -> list[InputFile]:
    path = _expanded(given.path)
    try:
        fs, root = url_to_fs(path)
        found = _listed(fs, root, bool(given.format))
    except FileNotFoundError:
        found = []
    except (OSError, ValueError, ImportError) as error:
        raise DataError(f"inputs.{number}.path = '{given.path}' cannot be listed: {error}") from error
    base = _fixed_part(root)
    kept = [info for info in found if not _is_excluded(info["name"], base, given.exclude)]
    if not kept and not given.optional:
        why = "every file is excluded" if found else "check the path, or set format"
        raise DataError(f"inputs.{number}.path = '{given.path}' has no files: {why}")
    return [_planned(number, given, fs, base, info) for info in kept]


def _listed(fs: Any, root: str, any_suffix: bool) -> list[dict[str, Any]]:
    """The files that a path, folder or pattern means, sorted by name."""
    if any(sign in root for sign in _MAGIC):
        found = fs.glob(root, detail=True)
    elif fs.isdir(root):
        found = fs.find(root, detail=True)
        if not any_suffix:
            found = {name: info for name, info in found.items() if format_of(name)}
    else:
        found = {root: fs.info(root)}
    return [found[name] | {"name": name} for name in sorted(found) if found[name]["type"] == "file"]


def _planned(number: int, given: Input, fs: Any, root: str, info: dict[str, Any]) -> InputFile:
    path = info["name"]
    told = given.format or format_of(path)
    if not told:
        raise DataError(f"cannot tell the format of {path} from its name: set inputs.{number}.format")
    name = _below(path, root)
    shown = path if isinstance(fs, LocalFileSystem) else fs.unstrip_protocol(path)
    return InputFile(number, shown, name, told, int(info["size"]), _stamp(info))


def _stamp(info: dict[str, Any]) -> str:
    return next((str(info[key]) for key in ("ETag", "etag", "md5Hash", "mtime", "LastModified") if key in info), "")


def _fixed_part(root: str) -> str:
    """The folders of a pattern before the first sign of one."""
    parts = root.split("/")
    signs = [place for place, part in enumerate(parts) if any(sign in part for sign in _MAGIC)]
    return "/".join(parts[: signs[0]]) if signs else root


def _below(path: str, root: str) -> str:
    """The path below the folder of its input."""
    return posixpath.relpath(path, root) if path != root else posixpath.basename(path)


def _is_excluded(path: str, root: str, patterns: list[str]) -> bool:
    """Whether a pattern matches: a relative one below the input's folder at any depth, as in .gitignore."""
    inside = "/" + _below(path, root)
    return any(
        fnmatch.fnmatch(path, pattern)
        if pattern.startswith("/")
        else fnmatch.fnmatch(inside, f"*/{pattern.removeprefix('**/')}")
        for pattern in patterns
    )


def _expanded(path: str) -> str:
    """Puts the folders of this Python in place of their names, and the home folder in place of ``~``."""
    folders = {"{stdlib}": "stdlib", "{site-packages}": "purelib"}
    for name, key in folders.items():
        path = path.replace(name, sysconfig.get_path(key))
    if path.startswith("~"):
        return os.path.expanduser(path)
    return path
