"""Which files a URL stands for."""

from collections.abc import Sequence
from typing import Any

from flame.data.sources.files import check_format, choose_files, has_magic
from flame.data.sources.remote.storage import RemoteStorage, attempt, connect, file_info
from flame.data.sources.storage import FileInfo
from flame.errors import DataError


def find_remote(
    url: str, data_dir: str, data_files: Sequence[str], wanted: str
) -> tuple[RemoteStorage, str, list[FileInfo]]:
    """Finds the files of a remote source.

    Args:
        url: A file, a folder (searched to any depth) or a glob.
        data_dir: A folder inside ``url``.
        data_files: Files or globs inside that folder; empty for all.
        wanted: The format, or an empty string to tell it from the suffixes.

    Returns:
        Where they lie, their format, and the files sorted by name.

    Raises:
        DataError: If there are none, files of several formats, or the server cannot be reached.
    """
    check_format(wanted)
    root = f"{url.rstrip('/')}/{data_dir}" if data_dir else url
    patterns = [f"{root.rstrip('/')}/{pattern}" for pattern in data_files] or [root]
    storage, _ = connect(patterns[0])
    named: dict[str, dict[str, Any]] = {}
    inside: dict[str, dict[str, Any]] = {}
    for pattern in patterns:
        try:
            _expand(storage, pattern, named, inside)
        except FileNotFoundError:
            raise DataError(f"no file or folder '{pattern}': check data.sources path and data_files") from None
    found, names = choose_files(list(named), list(inside), wanted, patterns)
    details = inside | named
    # A listing of links, which is what HTTP servers give, says nothing about the files.
    told = {name: details[name] if details[name].get("size") is not None else storage.ask(name) for name in names}
    return storage, found, [file_info(name, told[name]) for name in names]


def _expand(storage: RemoteStorage, pattern: str, named: dict[str, Any], inside: dict[str, Any]) -> None:
    filesystem = storage.filesystem
    if has_magic(pattern) and not pattern.startswith(("http://", "https://")):
        matches: Any = attempt(pattern, lambda: filesystem.glob(pattern, detail=True))
        for details in matches.values():
            _take(storage, details, named, inside)
    else:
        _take(storage, attempt(pattern, lambda: filesystem.info(pattern)), named, inside)


def _take(storage: RemoteStorage, details: dict[str, Any], named: dict[str, Any], inside: dict[str, Any]) -> None:
    """Sorts a file under those that were named, and the files of a folder under those inside."""
    filesystem = storage.filesystem
    name = details["name"]
    if details["type"] != "directory":
        named[_url(storage, name)] = details
        return
    files: Any = attempt(_url(storage, name), lambda: filesystem.find(name, detail=True))
    for found in files.values():
        inside[_url(storage, found["name"])] = found


def _url(storage: RemoteStorage, name: str) -> str:
    return storage.filesystem.unstrip_protocol(name)
