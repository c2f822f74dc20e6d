"""A run that starts from a HuggingFace folder: what fits is loaded, what does not is named."""

import json

import pytest
import torch
from checkpoint_stand_ins import Run, TinyModel, truncate
from safetensors.torch import save_file

from flame.checkpoint.tied import tied_names
from flame.errors import CheckpointError

pytestmark = pytest.mark.usefixtures("process_group")


def _weights(**changes) -> dict[str, torch.Tensor]:
    torch.manual_seed(3)
    weights = {name: tensor.clone() for name, tensor in TinyModel().state_dict().items()} | changes
    return {name: tensor for name, tensor in weights.items() if tensor is not None}


def _folder(path, weights):
    path.mkdir(exist_ok=True)
    save_file(weights, path / "model.safetensors")
    return path


def _load(tmp_path, folder, tied=False) -> TinyModel:
    run = Run(tmp_path / "run", TinyModel(tied), initial_load_in_hf=True, initial_load_path=str(folder))
    assert run.manager.load()
    return run.model


def test_sharded_weights_are_found_by_their_index_and_cast(tmp_path):
    weights = _weights()
    half = {name: tensor.bfloat16() for name, tensor in weights.items()}
    names = sorted(half)
    files = {"a.safetensors": names[:2], "b.safetensors": names[2:]}
    for file, inside in files.items():
        save_file({name: half[name] for name in inside}, tmp_path / file)
    index = {"weight_map": {name: file for file, inside in files.items() for name in inside}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    model = _load(tmp_path, tmp_path)
    assert all(torch.equal(tensor, half[name].float()) for name, tensor in model.state_dict().items())
    (tmp_path / "b.safetensors").unlink()
    with pytest.raises(CheckpointError, match="b.safetensors is missing"):
        _load(tmp_path, tmp_path)


def test_a_tied_weight_may_be_stored_once_or_twice(tmp_path):
    embedding = _weights()["embedding.weight"]
    for head in (None, embedding.clone()):
        folder = _folder(tmp_path / "hf", _weights(**{"head.weight": head}))
        assert torch.equal(_load(tmp_path, folder, tied=True).head.weight, embedding)


def test_an_untied_head_must_be_there(tmp_path):
    folder = _folder(tmp_path / "hf", _weights(**{"head.weight": None}))
    with pytest.raises(CheckpointError, match="lacks head.weight"):
        _load(tmp_path, folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"extra.weight": torch.zeros(2)}, "has unexpected extra.weight"),
        ({"body.bias": torch.zeros(3)}, r"wrong shape of body.bias \[3\] instead of \[8\]"),
        ({f"x{i}": torch.zeros(1) for i in range(5)}, "x0, x1, x2 and 2 more"),
    ],
)
def test_tensors_that_do_not_fit_are_named_in_one_line(tmp_path, changes, message):
    folder = _folder(tmp_path / "hf", _weights(**changes))
    with pytest.raises(CheckpointError, match=message) as error:
        _load(tmp_path, folder)
    assert "\n" not in str(error.value)


def test_folders_without_usable_weights_say_what_to_do(tmp_path):
    (tmp_path / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(CheckpointError, match="save_pretrained"):
        _load(tmp_path, tmp_path)
    truncate(_folder(tmp_path / "cut", _weights()) / "model.safetensors")
    with pytest.raises(CheckpointError, match="bytes instead of"):
        _load(tmp_path, tmp_path / "cut")
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "model.safetensors").write_text("no safetensors file at all, as git-lfs pointers are not")
    with pytest.raises(CheckpointError, match="not a safetensors file"):
        _load(tmp_path, tmp_path / "text")


def test_only_parameters_that_are_one_count_as_tied():
    assert tied_names([TinyModel(tied=True)]) == {"head.weight": "embedding.weight"}
    assert tied_names([TinyModel()]) == {}
    declared = TinyModel()
    declared.all_tied_weights_keys = {"head.weight": "embedding.weight"}  # type: ignore[assignment]
    assert tied_names([declared]) == {}, "declared, but two parameters"
    last_stage = torch.nn.Module()
    last_stage.head = torch.nn.Linear(2, 2)
    last_stage.all_tied_weights_keys = {"head.weight": "embedding.weight"}  # type: ignore[assignment]
    assert tied_names([last_stage]) == {"head.weight": "embedding.weight"}, "the other one is on another stage"
