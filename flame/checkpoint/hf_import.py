"""HuggingFace folder -> DCP step, streaming: memory does not grow with the model.

    python -m flame.utils.convert_hf_to_dcp --model path/to/folder --checkpoint exp/run/checkpoint/step-0

The step starts a run: as ``step-0`` of its checkpoint folder, or as ``checkpoint.initial_load_path``.
"""

import json
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import torch
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.checkpoint.storage import WriteResult
from torch.futures import Future

from flame.checkpoint.hf_folder import HfWeights, open_weights
from flame.checkpoint.jobs import WORKERS, run_jobs
from flame.checkpoint.layout import step_folder, step_of
from flame.checkpoint.safetensors_file import PIECE_BYTES, TensorInfo, read_into, write_all
from flame.checkpoint.storage import StepWriter, seal
from flame.checkpoint.stored import data_offset
from flame.convert import renamer
from flame.errors import CheckpointError

JOB_BYTES = 32 * 1024 * 1024
DATA_FILE = "__0_0.distcp"


def import_hf(
    model: str | Path,
    checkpoint: Path,
    progress: bool = True,
    rename: Callable[[str], str] | None = None,
) -> Path:
    """Writes the weights of a HuggingFace folder as a DCP step that holds the model only.

    Args:
        model: A local folder, or a hub id, which is downloaded.
        checkpoint: The step folder ``.../step-N``; of any other folder, its ``step-0``.
        progress: Whether to show a progress bar.
        rename: Turns a parameter's name in the folder into its name in the step; default: by ``checkpoint_names`` of
            the family, where it is one of ``custom_models``.

    Returns:
        The step folder.

    Raises:
        CheckpointError: The weights or the config cannot be read, or the step exists already.
    """
    step = checkpoint if step_of(checkpoint) >= 0 else step_folder(checkpoint, 0)
    if step.exists():
        raise CheckpointError(f"{step} exists already: remove it or name another folder")
    folder = local_folder(model)
    weights, rename = open_weights(folder), rename or renamer(_other_names(folder))
    sources = {rename(name): name for name in weights.tensors}
    state = {
        name: torch.empty(weights.tensors[source].shape, dtype=weights.tensors[source].dtype, device="meta")
        for name, source in sources.items()
    }
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        save(state, storage_writer=_CopyingWriter(step, weights, sources, progress), no_dist=True)
    return step


def _other_names(folder: Path) -> Mapping[str, str]:
    """Names that the weights of the folder's family have in another layout -> the model's."""
    path = folder / "config.json"
    try:
        family = str(json.loads(path.read_text(encoding="utf-8")).get("model_type", "")) if path.is_file() else ""
    except (ValueError, AttributeError) as error:
        raise CheckpointError(f"{path} is no HuggingFace config ({error}): copy or download it again") from None
    if not family.isidentifier() or find_spec("custom_models") is None or find_spec(f"custom_models.{family}") is None:
        return {}
    # transformers would count against the memory of every other conversion.
    from flame.models.config import tiny_config
    from flame.plugin import load_plugin

    plugin = load_plugin(family)
    config = type(tiny_config(plugin))
    heads = [auto._model_mapping for auto in plugin.auto_classes.values()]  # type: ignore[attr-defined]
    return next((getattr(head[config], "checkpoint_names", {}) for head in heads if config in head), {})


def local_folder(model: str | Path, patterns: Sequence[str] = ("*.safetensors", "*.json")) -> Path:
    """Returns the folder of a model, downloading the files of a hub id that match ``patterns`` first.

    Raises:
        CheckpointError: It is neither a folder nor a model that the hub can deliver now.
    """
    folder = Path(model).expanduser()
    if folder.is_dir():
        return folder
    # Only a hub id needs these, and they would count against the memory of every other conversion.
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(str(model), allow_patterns=list(patterns)))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise CheckpointError(f"'{model}' is neither a folder nor a model the hub can deliver now: {reason}") from None


class _CopyingWriter(StepWriter):
    """Writes a step whose tensors are copied from files, a piece at a time, instead of from memory.

    ``torch.save`` lays out each archive with a hole where the tensor belongs; threads fill the holes.
    """

    def __init__(self, folder: Path, weights: HfWeights, sources: dict[str, str], progress: bool) -> None:
        super().__init__(folder)
        self._weights = weights
        self._sources = sources
        self._progress = progress

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        path = Path(self.path) / DATA_FILE
        results = []
        with open(path, "wb") as file, torch.serialization.skip_data():
            for item in plan.items:
                info = self._weights.tensors[self._sources[item.index.fqn]]
                begin = file.tell()
                torch.save(torch.empty(info.shape, dtype=info.dtype), file)
                storage = _StorageInfo(DATA_FILE, begin, file.tell() - begin)
                results.append(WriteResult(item.index, storage.length, storage))
        self._fill(path, results)
        seal(path.parent, results)
        future: Future[list[WriteResult]] = Future()
        future.set_result(results)
        return future

    def _fill(self, path: Path, results: list[WriteResult]) -> None:
        target = os.open(path, os.O_WRONLY)
        sources = {file: os.open(file, os.O_RDONLY) for file in set(self._weights.files.values())}
        total = sum(info.nbytes for info in self._weights.tensors.values())

        def jobs() -> Iterator[Callable[[], int]]:
            for result in results:
                name = self._sources[result.index.fqn]
                info, record = self._weights.tensors[name], result.storage_data
                start = data_offset(path, record.offset, record.length)
                yield from _copy_jobs(sources[self._weights.files[name]], target, info, start)

        try:
            run_jobs(jobs(), WORKERS, total, f"{self.final.name}/", self._progress)
        finally:
            for descriptor in (target, *sources.values()):
                os.close(descriptor)


def _copy_jobs(source: int, target: int, info: TensorInfo, start: int) -> Iterator[Callable[[], int]]:
    for begin in range(0, info.nbytes, JOB_BYTES):
        length = min(JOB_BYTES, info.nbytes - begin)
        yield partial(_copy, source, info.offset + begin, target, start + begin, length)


def _copy(source: int, source_offset: int, target: int, target_offset: int, length: int) -> int:
    buffer = memoryview(bytearray(min(PIECE_BYTES, length)))
    for begin in range(0, length, PIECE_BYTES):
        piece = buffer[: min(PIECE_BYTES, length - begin)]
        read_into(source, piece, source_offset + begin)
        write_all(target, piece, target_offset + begin)
    return length
