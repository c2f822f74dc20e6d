"""Which files a corpus consists of: listed by the hub, by a file of paths, or by the registry itself."""

import gzip
import re
import zlib
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import PurePosixPath
from typing import Any, NamedTuple
from urllib.parse import unquote

from huggingface_hub import HfApi, RepoFile, constants, hf_hub_url
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, HFValidationError, RepositoryNotFoundError
from huggingface_hub.utils import build_hf_headers

from flame.data.download.faults import Unreachable
from flame.data.download.registry import Corpus
from flame.data.download.remote import RemoteFile, answers, check_url, read_whole
from flame.errors import DataError


class Listing(NamedTuple):
    """What there is to fetch."""

    revision: str
    """The commit of a dataset of the hub, or an empty string."""
    files: list[RemoteFile]
    """Split by split, in the order of the numbers in their names."""


def list_files(corpus: Corpus, splits: Sequence[str]) -> Listing:
    """Lists the files of some splits.

    Raises:
        Unreachable: There is no connection.
        DataError: There is no such dataset or list, or a split of it has no files.
    """
    revision = ""
    if corpus.repo:
        revision, files = _list_hub(corpus)
    elif corpus.paths:
        files = [file for split in splits for file in _list_paths(corpus, split)]
    else:
        files = [_from_url(corpus, split, url) for split in corpus.splits for url in corpus.names(split)]
    chosen = [file for split in splits for file in sorted(files, key=_natural) if file.split == split]
    for split in splits:
        if not any(file.split == split for file in chosen):
            raise DataError(
                f"corpus '{corpus.name}' has no files for '{split}' ({', '.join(corpus.names(split))}): check "
                f"--subset, or look at {corpus.home or corpus.repo}"
            )
    return Listing(revision, chosen)


def _list_hub(corpus: Corpus) -> tuple[str, list[RemoteFile]]:
    # The hub's own client tries for most of a minute before it says that there is no network.
    if constants.HF_HUB_OFFLINE or not answers(constants.ENDPOINT):
        raise Unreachable(
            f"the hub ({constants.ENDPOINT}) cannot be reached: check the network, HF_ENDPOINT and HF_HUB_OFFLINE"
        )
    api, repo = HfApi(), corpus.repo
    patterns = {split: corpus.names(split) for split in corpus.splits}
    try:
        commit = api.repo_info(repo, revision=corpus.revision, repo_type="dataset").sha or corpus.revision
        folders = sorted({_folder(pattern) for names in patterns.values() for pattern in names})
        if "" in folders:
            folders = [""]
        entries = [
            entry
            for folder in folders
            for entry in api.list_repo_tree(
                repo, folder.rstrip("/") or None, recursive=True, revision=commit, repo_type="dataset"
            )
        ]
    except (GatedRepoError, RepositoryNotFoundError) as error:
        raise DataError(
            f"dataset '{repo}' does not exist on the hub, or is not open to you: look at {corpus.home or repo}, and "
            "run `hf auth login` if it asks for permission"
        ) from error
    except (HfHubHTTPError, HFValidationError) as error:
        raise DataError(f"dataset '{repo}' cannot be listed: {' '.join(str(error).split())}") from error
    except OSError as error:
        raise Unreachable(f"the hub broke off ({error}): try again") from error
    headers = build_hf_headers()
    found = []
    for entry in {entry.path: entry for entry in entries if isinstance(entry, RepoFile)}.values():
        split, pattern = _split_of(entry.path, patterns)
        if split:
            url = hf_hub_url(repo, entry.path, repo_type="dataset", revision=commit)
            place = entry.path.removeprefix(_folder(pattern))
            found.append(RemoteFile(split, place, url, entry.size, _digest(entry), headers))
    return commit, found


def _split_of(path: str, patterns: dict[str, list[str]]) -> tuple[str, str]:
    """The last split that names a path, and the pattern by which it does."""
    for split in reversed(patterns):
        for pattern in patterns[split]:
            if fnmatchcase(path, pattern):
                return split, pattern
    return "", ""


def _digest(entry: Any) -> str:
    # Files outside LFS are small, and known by a hash of git's own.
    return f"sha256:{entry.lfs.sha256}" if entry.lfs else ""


def _folder(pattern: str) -> str:
    """The folder that holds all that matches: ``data/train-*.parquet`` -> ``data/``."""
    fixed = re.split(r"[*?\[]", pattern, maxsplit=1)[0]
    return fixed[: fixed.rfind("/") + 1]


def _list_paths(corpus: Corpus, split: str) -> list[RemoteFile]:
    (url,) = corpus.names(split)
    own = {check_url(place).scheme for place in (url, corpus.base) if place}
    content = read_whole(RemoteFile(split, "paths", url))
    try:
        lines = (gzip.decompress(content) if url.endswith(".gz") else content).decode().split()
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise DataError(f"{url} is not a list of paths ({error}): try again") from error
    files = [_from_url(corpus, split, corpus.base + line) for line in lines]
    for file in files:
        _check_listed(file.url, url, corpus.base, own)
    return files


def _check_listed(address: str, source: str, base: str, own: set[str]) -> None:
    """A list is written by others: it may not point to files of this machine, nor ``base`` run on into another host."""
    parts = check_url(address)
    is_web = parts.scheme in ("http", "https")
    if not (is_web or parts.scheme in own) or (not is_web and "::" in address):
        raise DataError(f"{source} lists '{address}', which is neither http(s) nor where the list itself is")
    if base and parts.netloc != check_url(base).netloc:
        raise DataError(f"{source} lists '{address}', which is not below '{base}': end base with '/'")


def _from_url(corpus: Corpus, split: str, url: str) -> RemoteFile:
    name = PurePosixPath(unquote(check_url(url).path)).name
    return RemoteFile(split, name, url, digest=corpus.checksums.get(name, ""))


def _natural(file: RemoteFile) -> list[tuple[int, str]]:
    """Sorts ``chunk2`` before ``chunk10``."""
    return [(int(piece), "") if piece.isdecimal() else (-1, piece) for piece in re.split(r"(\d+)", file.path) if piece]
