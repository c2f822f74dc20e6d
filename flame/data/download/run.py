"""A whole download: many files at once, each fetched, verified, converted and put in its place."""

from collections.abc import Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path

from tqdm import tqdm

from flame.data.download.convert import unpack, write_parquet
from flame.data.download.documents import check_format, check_parquet
from flame.data.download.faults import DamagedFile, FileFault
from flame.data.download.folder import Folder, Record
from flame.data.download.places import place_of
from flame.data.download.registry import Corpus
from flame.data.download.remote import RemoteFile
from flame.data.download.transfer import Link, Stopped, fetch
from flame.errors import DataError

_WHOLE_TRIES = 2  # downloads of a file that turns out damaged only when it is read


@dataclass
class Outcome:
    """What a run has done."""

    fetched: list[Record] = field(default_factory=list)
    present: list[Record] = field(default_factory=list)
    """What was there from earlier runs."""
    failed: list[str] = field(default_factory=list)
    """Why files are missing, a line for each."""


def download(
    corpus: Corpus, files: Sequence[RemoteFile], folder: Folder, revision: str, *, workers: int, link: Link
) -> Outcome:
    """Fetches files into a folder and writes its manifest, whatever happens.

    Files that are there already are left alone. A file that cannot be had does not keep others from being fetched.

    Args:
        corpus: whose files they are.
        files: what to fetch.
        folder: where to.
        revision: of the dataset, for the manifest.
        workers: files at once.
        link: patience with the network.

    Raises:
        Unreachable: There is no connection.
        DiskFault: The folder cannot be written.
        DataError: A file has no texts where the registry says they are.
    """
    outcome = Outcome()
    missing = []
    for file in files:
        if folder.holds(file):
            outcome.present.append(folder.records[f"{file.split}/{file.path}"])
        else:
            missing.append(file)
    sizes = [file.size for file in missing]
    total = None if None in sizes else sum(size for size in sizes if size is not None)
    bar = tqdm(desc=corpus.name, total=total, unit="B", unit_scale=True, disable=not missing)
    link.advance = bar.update
    pool = ThreadPoolExecutor(workers, thread_name_prefix="download")
    try:
        jobs = {pool.submit(_obtain, corpus, file, folder, link): file for file in missing}
        _watch(jobs, outcome, bar)
    finally:
        link.stop.set()
        pool.shutdown(wait=True, cancel_futures=True)
        bar.close()
        folder.write_manifest(revision, outcome.failed)
    return outcome


def _watch(jobs: dict[Future[Record], RemoteFile], outcome: Outcome, bar: tqdm) -> None:
    open_jobs = set(jobs)
    while open_jobs:
        done, open_jobs = wait(open_jobs, timeout=0.5, return_when=FIRST_EXCEPTION)
        for job in done:
            try:
                outcome.fetched.append(job.result())
            except FileFault as error:
                outcome.failed.append(str(error))
        bar.set_postfix_str(f"{len(outcome.fetched)} of {len(jobs)} files")


def _obtain(corpus: Corpus, file: RemoteFile, folder: Folder, link: Link) -> Record:
    raw = folder.incoming / file.split / file.path
    for attempt in range(_WHOLE_TRIES):
        checksum = fetch(file, raw, link)
        try:
            return _put_in_place(corpus, file, raw, checksum, folder, link)
        except DamagedFile:
            raw.unlink()
            # With a checksum these are the very bytes that were published.
            if file.digest or attempt == _WHOLE_TRIES - 1:
                raise
    raise AssertionError("unreachable")


def _put_in_place(corpus: Corpus, file: RemoteFile, raw: Path, checksum: str, folder: Folder, link: Link) -> Record:
    def check() -> None:
        if link.stop.is_set():
            raise Stopped

    check()
    kind = check_format(file.name, corpus)
    place = place_of(file, kind)
    record: Record = {"bytes": raw.stat().st_size, "checksum": checksum}
    if kind == "parquet" and corpus.text_column == "text":
        record["documents"] = check_parquet(raw, "text")
        folder.finish(file, raw, place, record)
        return folder.records[f"{file.split}/{file.path}"]
    draft = raw.with_name(raw.name + ".draft")
    figures = unpack(raw, draft) if kind == "archive" else write_parquet(raw, draft, corpus, check)
    folder.finish(file, draft, place, {**record, **figures})
    raw.unlink()
    return folder.records[f"{file.split}/{file.path}"]


def raise_failures(outcome: Outcome, out: Path) -> None:
    """Raises ``DataError`` if files are missing."""
    if outcome.failed:
        count = len(outcome.failed)
        others = f" (and {count - 1} more: see 'missing' in its manifest.json)" if count > 1 else ""
        raise DataError(
            f"{count} of {count + len(outcome.fetched)} files are missing in {out}: {outcome.failed[0]}{others}"
        )
