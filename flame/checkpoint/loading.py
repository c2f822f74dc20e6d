"""How the tensors of a step or of a HuggingFace folder get into a model that is spread over ranks."""

import pickle
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load

from flame.checkpoint.agreement import causes, decided_by_all
from flame.checkpoint.hf_folder import check_fit, fill, open_weights
from flame.checkpoint.layout import DCP_METADATA, MANIFEST, DamagedStepError, check_step, find_steps
from flame.checkpoint.storage import StepReader
from flame.checkpoint.stored import TRAINING_STATES, model_keys, read_metadata
from flame.checkpoint.tied import resolve_tied
from flame.convert import renamer
from flame.errors import CheckpointError

# What a broken file makes DCP raise; everything else says that step and job do not belong together.
READ_ERRORS = (DamagedStepError, OSError, EOFError, pickle.UnpicklingError)


def load_step(states: dict[str, Any], model: Mapping[str, Tensor], folder: Path, tied: Mapping[str, str]) -> None:
    """Loads a DCP step in place, on every rank what it asks for, whatever the number of ranks that saved it.

    Args:
        states: What to load, by key: the model's tensors and, beside them, the training states.
        model: The part of ``states`` that is the model.
        folder: The step.
        tied: Name -> name of the tensor it shares storage with.

    Raises:
        DamagedStepError: A file of the step is not what was written.
        CheckpointError: The step is another model's or another kind of job's.
    """
    decided_by_all(lambda: _check_states(states, model, folder, tied))
    stored = model_keys(read_metadata(folder))
    resolved = resolve_tied(model, tied, stored)
    wanted = {key: state for key, state in states.items() if key not in model}
    wanted |= {stored[name]: tensor for name, tensor in resolved.items()}
    try:
        load(wanted, storage_reader=StepReader(folder))
    except CheckpointException as error:
        found = causes(error)
        damage = next((cause for cause in found if isinstance(cause, READ_ERRORS)), None)
        if isinstance(damage, DamagedStepError):
            raise damage from None
        if damage is not None:
            raise DamagedStepError(f"{folder} cannot be read: {damage}") from None
        reason = str(found[0]).splitlines()[0]
        raise CheckpointError(f"{folder} does not fit this job: {reason}") from error


def _check_states(
    states: Mapping[str, Any], model: Mapping[str, Tensor], folder: Path, tied: Mapping[str, str]
) -> None:
    """Checks, without reading a tensor, that this rank will find what it needs."""
    metadata = read_metadata(folder)
    entries = metadata.state_dict_metadata
    stored = model_keys(metadata)
    shapes = {name: tuple(_tensor(entries[key]).size) for name, key in stored.items()}
    wanted = {name: tuple(tensor.shape) for name, tensor in resolve_tied(model, tied, stored).items()}
    check_fit(wanted, {name: shapes[name] for name in wanted.keys() & shapes.keys()}, folder)
    if "dataloader" in states and any(key.startswith("dataloader.lane_") for key in entries):
        raise CheckpointError(
            f"{folder} keeps the state of the data in an older form: resume without it, so that the data start over, "
            "with checkpoint.exclude_from_loading = ['dataloader']"
        )
    if states.keys() - model.keys() and not any(key.split(".")[0] in TRAINING_STATES for key in entries):
        raise CheckpointError(
            f"{folder} holds only a model, so no run can resume from it: start a new one from it with "
            f"checkpoint.initial_load_path"
        )


def _tensor(entry: Any) -> TensorStorageMetadata:
    assert isinstance(entry, TensorStorageMetadata)
    return entry


def load_hf(
    model: Mapping[str, Tensor], model_parts: Iterable[nn.Module], folder: Path, tied: Mapping[str, str]
) -> None:
    """Loads the weights of a HuggingFace folder in place, cast to the types the model has.

    Args:
        model: Name -> tensor, on this rank.
        model_parts: The modules these belong to; they say which stored tensors may be left over, and what else the
            family's weights may be called (``checkpoint_names``).
        folder: The folder.
        tied: Name -> name of the tensor it shares storage with.

    Raises:
        CheckpointError: The folder cannot be read or is another model's.
    """
    weights = decided_by_all(lambda: open_weights(folder))[0].renamed(renamer(_other_names(model_parts)))
    resolved = resolve_tied(model, tied, weights.tensors)
    shapes = decided_by_all(lambda: {name: tuple(tensor.shape) for name, tensor in resolved.items()})
    ignored = {p for part in model_parts for p in getattr(part, "_keys_to_ignore_on_load_unexpected", None) or ()}
    # With pipeline stages no rank knows all names, so the stages' names together are compared with the folder's.
    wanted = {name: shape for rank in shapes for name, shape in rank.items()}
    check_fit(wanted, {name: info.shape for name, info in weights.tensors.items()}, folder, ignored | set(tied))
    fill(resolved, weights)


def _other_names(model_parts: Iterable[nn.Module]) -> dict[str, str]:
    """Names that the family's weights have in another layout -> the model's."""
    return {other: own for part in model_parts for other, own in getattr(part, "checkpoint_names", {}).items()}


def check_initial(folder: Path) -> None:
    """Checks that ``checkpoint.initial_load_path`` names a DCP step.

    Raises:
        CheckpointError: It does not; the message says what to name instead.
    """
    key = f"checkpoint.initial_load_path = '{folder}'"
    if not folder.is_dir():
        raise CheckpointError(f"{key} is not a folder: name a step folder such as .../checkpoint/step-1000")
    if (folder / MANIFEST).is_file():
        check_step(folder)
    elif not (folder / DCP_METADATA).is_file():
        if any(folder.glob("*.safetensors")):
            raise CheckpointError(f"{key} is a HuggingFace folder: set checkpoint.initial_load_in_hf = true as well")
        inside = next((parent for parent in (folder, folder / "checkpoint") if find_steps(parent)), None)
        hint = f"name one of its steps, such as {inside / f'step-{find_steps(inside)[-1]}'}" if inside else "look again"
        raise CheckpointError(f"{key} holds no DCP step: {hint}")
