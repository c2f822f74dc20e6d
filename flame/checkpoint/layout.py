"""The files of a run folder, and what makes a saved step complete.

A step is written to ``.step-N.partial`` and renamed to ``step-N`` as its last act, so a killed run leaves either
the whole step or none. ``manifest.json`` inside it lists every file with its size; checksums of the tensors live in
DCP's own ``.metadata``, whose checksum is in the manifest. This module needs neither torch nor torchtitan.
"""

import fcntl
import json
import logging
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import xxhash

import flame
from flame.errors import CheckpointError

logger = logging.getLogger(__name__)

MANIFEST = "manifest.json"
DCP_METADATA = ".metadata"
STEP_NAME = re.compile(r"step-(\d+)")
LEFTOVER_NAME = re.compile(r"\.(?P<name>step-\d+)\.(?P<kind>partial|replaced)")


class DamagedStepError(CheckpointError):
    """A step that is incomplete or whose files are not what was written."""


@dataclass(frozen=True)
class RunFolder:
    """The paths of one run.

    Args:
        root: The run's ``job.dump_folder``.
        checkpoint_name: Its ``checkpoint.folder``.
    """

    root: Path
    checkpoint_name: str = "checkpoint"

    @property
    def config_file(self) -> Path:
        """The resolved job file."""
        return self.root / "config.toml"

    @property
    def model_assets(self) -> Path:
        """Everything of a HuggingFace folder except the weights."""
        return self.root / "model"

    @property
    def checkpoint(self) -> Path:
        """Holds ``step-N`` folders in DCP's format."""
        return self.root / self.checkpoint_name

    @property
    def hf(self) -> Path:
        """Holds ``step-N`` folders in HuggingFace's format and the link ``latest``."""
        return self.root / "hf"

    @property
    def metrics_file(self) -> Path:
        """One JSON object for each logged step."""
        return self.root / "metrics.jsonl"

    @property
    def tensorboard(self) -> Path:
        """Holds TensorBoard's event files."""
        return self.root / "tb"


def step_folder(parent: Path, step: int) -> Path:
    """Returns where step ``step`` lives inside ``parent``."""
    return parent / f"step-{step}"


def step_of(folder: Path) -> int:
    """Returns ``N`` of a folder called ``step-N``, or -1."""
    match = STEP_NAME.fullmatch(folder.name)
    return int(match[1]) if match else -1


def partial_folder(final: Path) -> Path:
    """Returns the folder beside ``final`` that is filled before it becomes ``final``."""
    return final.with_name(f".{final.name}.partial")


def find_steps(parent: Path) -> list[int]:
    """Returns the steps in ``parent``, ascending, damaged ones included; folders still being written are not steps."""
    if not parent.is_dir():
        return []
    return sorted(step_of(path) for path in parent.iterdir() if step_of(path) >= 0 and path.is_dir())


def checksum(data: Any) -> str:
    """Returns the checksum of bytes (or a buffer) as the manifest and ``.metadata`` record it."""
    return f"xxh3_64:{xxhash.xxh3_64_hexdigest(data)}"


def write_manifest(folder: Path, step: int, names: Iterable[str], tied: Mapping[str, str]) -> None:
    """Writes ``manifest.json``, the last file of a step.

    Args:
        folder: The step's folder (still under its partial name).
        step: The training step.
        names: The files that make up the step, relative to ``folder``.
        tied: Parameter names that share storage with another, and that other's name.
    """
    metadata = folder / DCP_METADATA
    manifest = {
        "step": step,
        "files": {name: (folder / name).stat().st_size for name in sorted(names)},
        "metadata_checksum": checksum(metadata.read_bytes()) if metadata.is_file() else "",
        "tied": dict(tied),
        "versions": {"flame": flame.__version__, "torch": version("torch")},
    }
    with open(folder / MANIFEST, "w", encoding="utf-8") as file:
        json.dump(manifest, file, indent=1)
        file.flush()
        os.fsync(file.fileno())


def read_manifest(folder: Path) -> dict[str, Any]:
    """Returns the manifest of a step.

    Raises:
        DamagedStepError: It is absent or cannot be read.
    """
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DamagedStepError(
            f"{folder} has no {MANIFEST}: its save never finished, or flame did not write it"
        ) from None
    except (OSError, ValueError) as error:
        raise DamagedStepError(f"{folder / MANIFEST} cannot be read: {error}") from None
    if not isinstance(manifest, dict) or not isinstance(manifest.get("files"), dict):
        raise DamagedStepError(f"{folder / MANIFEST} lists no files")
    return manifest


def check_step(folder: Path) -> None:
    """Checks that a step is all there. Costs one ``stat`` per file; the tensors are checked when they are read.

    Raises:
        DamagedStepError: It is incomplete or damaged; the message says how.
    """
    manifest = read_manifest(folder)
    for name, size in manifest["files"].items():
        path = folder / name
        if not path.is_file():
            raise DamagedStepError(f"{path} is missing")
        if path.stat().st_size != size:
            raise DamagedStepError(f"{path} has {path.stat().st_size} bytes instead of {size}")
    metadata = folder / DCP_METADATA
    if not metadata.is_file():
        raise DamagedStepError(f"{folder} holds no {DCP_METADATA}, so training cannot be resumed from it")
    if checksum(metadata.read_bytes()) != manifest.get("metadata_checksum"):
        raise DamagedStepError(f"{metadata} does not match its checksum")


def publish(partial: Path, final: Path) -> None:
    """Gives a finished folder its name in one rename; a folder already there is replaced."""
    sync_folder(partial)
    replaced = final.with_name(f".{final.name}.replaced")
    shutil.rmtree(replaced, ignore_errors=True)
    if final.exists():
        final.rename(replaced)
    partial.rename(final)
    sync_folder(final.parent)
    shutil.rmtree(replaced, ignore_errors=True)


def remove_leftovers(parent: Path) -> None:
    """Removes what killed runs left half written in ``parent``; a save that lacked only its rename is finished."""
    for path in sorted(parent.iterdir()) if parent.is_dir() else ():
        match = LEFTOVER_NAME.fullmatch(path.name)
        if match is None:
            continue
        final = parent / match["name"]
        if match["kind"] == "partial" and (path / MANIFEST).is_file() and not final.exists():
            publish(path, final)
        shutil.rmtree(path, ignore_errors=True)


@contextmanager
def in_use(folder: Path) -> Iterator[None]:
    """While this lasts no process removes the step, where the file system has locks."""
    with open(folder / MANIFEST, "rb") as file:
        with suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        yield


def remove_step(folder: Path) -> bool:
    """Removes a step unless it is being read; it is gone at once for whoever looks, then its files go.

    Returns:
        Whether it was removed.
    """
    with open(folder / MANIFEST, "rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError:
            pass  # this file system has no locks
        doomed = folder.with_name(f".{folder.name}.replaced")
        folder.rename(doomed)
    shutil.rmtree(doomed, ignore_errors=True)
    return True


def remove_old_steps(parent: Path, keep: int) -> None:
    """Removes all complete steps but the latest ``keep``; those being read stay until the next time."""
    complete = [step for step in find_steps(parent) if (step_folder(parent, step) / MANIFEST).is_file()]
    for step in complete[:-keep]:
        removed = remove_step(step_folder(parent, step))
        logger.info("%s step-%d of %s.", "Removed" if removed else "Kept, because it is being read,", step, parent)


def set_aside_newer(parent: Path, step: int) -> list[Path]:
    """Renames steps after ``step`` to ``step-N.superseded``, so that a resumed run never continues from them.

    They are there when a run went back to an older step, or skipped a damaged one, and has now saved again.

    Returns:
        The folders under their new names.
    """
    aside = []
    for newer in find_steps(parent):
        if newer > step:
            folder = step_folder(parent, newer)
            target = folder.with_name(f"{folder.name}.superseded")
            shutil.rmtree(target, ignore_errors=True)
            aside.append(folder.rename(target))
    return aside


def update_latest(parent: Path, step: int) -> None:
    """Points the relative link ``parent/latest`` at ``step-N``; at no moment is it absent."""
    link = parent / ".latest.partial"
    link.unlink(missing_ok=True)
    link.symlink_to(f"step-{step}")
    os.replace(link, parent / "latest")


def sync_folder(folder: Path) -> None:
    """Makes the names inside ``folder`` survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
