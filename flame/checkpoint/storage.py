"""How a step of DCP reaches the disk and comes back: complete or not at all, and checked on the way in.

``StepWriter`` does its work in the calls that DCP makes anyway, so it holds for blocking saves and for saves in a
background thread or process alike: ranks write and checksum their own files, and when all have, the coordinator
writes the manifest and renames the folder before any rank is told that the save is over.
"""

import io
import os
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import xxhash
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner
from torch.distributed.checkpoint.storage import WriteResult
from torch.futures import Future

from flame.checkpoint.layout import (
    DCP_METADATA,
    DamagedStepError,
    partial_folder,
    publish,
    step_of,
    write_manifest,
)
from flame.checkpoint.safetensors_file import PIECE_BYTES, read_into

# DCP pickles the attributes of its storage records as they are, so one more does not keep others from reading them.
CHECKSUM = "xxh3_64"


class StepWriter(FileSystemWriter):
    """Writes one step beside its final folder and renames it once every rank's files are durable.

    Args:
        folder: The final folder, ``.../step-N``.
        tied: Parameter names that share storage with another, and that other's name; kept in the manifest.
    """

    def __init__(self, folder: Path, tied: Mapping[str, str] | None = None) -> None:
        self.final = folder
        self.tied = dict(tied or {})
        # Its own fsync runs before the last bytes leave the buffer; ``seal`` does it after the file is closed.
        super().__init__(partial_folder(folder), sync_files=False)

    @property
    def checkpoint_id(self) -> str | os.PathLike:
        """The folder the step will be found in."""
        return self.final

    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        """Empties what a failed save may have left. Runs on the coordinator, before any rank writes."""
        for leftover in Path(self.path).iterdir():
            leftover.unlink()
        return super().prepare_global_plan(plans)

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        """Writes this rank's tensors, then checksums them and makes them durable."""
        future = super().write_data(plan, planner)
        seal(Path(self.path), future.value())
        return future

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        """Writes the metadata and the manifest and gives the step its name. Runs on the coordinator."""
        super().finish(metadata, results)
        names = {result.storage_data.relative_path for rank in results for result in rank}
        write_manifest(Path(self.path), step_of(self.final), names | {DCP_METADATA}, self.tied)
        publish(Path(self.path), self.final)


class StepReader(FileSystemReader):
    """Reads a step and compares every record with its checksum; records of other writers have none."""

    def _slice_file(self, file: Any, sinfo: Any) -> IO[bytes]:
        file.seek(sinfo.offset)
        data = file.read(sinfo.length)
        compare(sinfo, len(data), xxhash.xxh3_64_intdigest(data), Path(self.path))
        return io.BytesIO(data)


def seal(folder: Path, results: list[WriteResult]) -> None:
    """Adds a checksum to each storage record of files just written, and makes the files durable.

    The bytes come from the page cache: this costs about 0.1 s per GiB.
    """
    by_file: dict[str, list[Any]] = {}
    for result in results:
        by_file.setdefault(result.storage_data.relative_path, []).append(result.storage_data)
    for name, records in by_file.items():
        descriptor = os.open(folder / name, os.O_RDONLY)
        try:
            for record in records:
                vars(record)[CHECKSUM] = checksum_of(descriptor, record.offset, record.length)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def checksum_of(descriptor: int, offset: int, length: int) -> int:
    """Returns the checksum of ``length`` bytes of a file, reading them in small pieces."""
    digest = xxhash.xxh3_64()
    buffer = memoryview(bytearray(min(length, PIECE_BYTES)))
    for begin in range(offset, offset + length, PIECE_BYTES):
        piece = buffer[: min(PIECE_BYTES, offset + length - begin)]
        read_into(descriptor, piece, begin)
        digest.update(piece)
    return digest.intdigest()


def compare(record: Any, length: int, checksum: int, folder: Path) -> None:
    """Compares what was read for a storage record with what was written.

    Raises:
        DamagedStepError: They differ.
    """
    if length != record.length or checksum != vars(record).get(CHECKSUM, checksum):
        where = f"bytes {record.offset} to {record.offset + record.length}"
        raise DamagedStepError(f"{folder / record.relative_path} is damaged: {where} do not match their checksum")
