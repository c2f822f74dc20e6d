"""HuggingFace folder <-> DCP step: the same bits both ways, in little memory, and only the model's bytes are read."""

import json
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from checkpoint_stand_ins import flip_byte
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from flame.checkpoint.hf_export import export_hf, parse_size
from flame.checkpoint.hf_import import import_hf
from flame.checkpoint.layout import DamagedStepError, check_step, remove_step
from flame.checkpoint.storage import StepWriter
from flame.checkpoint.stored import StoredStep
from flame.errors import CheckpointError

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")

ODD_TENSORS = {
    "matrix": torch.randn(5, 7),
    "bf16": torch.randn(33, 3).bfloat16(),
    "fp16": torch.randn(3).half(),
    "nan": torch.tensor([float("nan"), float("-inf"), -0.0]),
    "scalar": torch.tensor(3.5),
    "bf16_scalar": torch.tensor(1.25).bfloat16(),
    "empty": torch.zeros(0, 3),
    "cube": torch.randn(2, 3, 5),
    "bytes": torch.arange(5, dtype=torch.uint8),
    "flags": torch.tensor([True, False, True]),
    "long": torch.tensor([2**40, -1]),
    "fp8": torch.randn(3, 3).to(torch.float8_e4m3fn),
    "larger_than_a_piece": torch.randn(300, 1001),
}


def _bits(tensor: torch.Tensor) -> tuple:
    return tensor.dtype, tuple(tensor.shape), bytes(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)


def _save_step(folder: Path, state: dict) -> Path:
    save(state, storage_writer=StepWriter(folder), no_dist=True)
    return folder


@pytest.fixture
def assets(tmp_path) -> Path:
    """What belongs beside the weights."""
    folder = tmp_path / "assets"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "torch_dtype": "float16"}))
    (folder / "tokenizer.json").write_text("{}")
    (folder / "modeling_x.py").write_text("x = 1\n")
    (folder / "model.safetensors").write_text("weights of something else")
    return folder


@pytest.mark.parametrize("max_shard_size", ["5GB", "1KB"])
def test_the_round_trip_keeps_every_bit(tmp_path, assets, max_shard_size):
    source = tmp_path / "source"
    source.mkdir()
    save_file(ODD_TENSORS, source / "model.safetensors")
    step = import_hf(source, tmp_path / "checkpoint", progress=False)
    assert step == tmp_path / "checkpoint" / "step-0"
    check_step(step)
    out = export_hf(step, assets, tmp_path / "out", max_shard_size=max_shard_size, progress=False)
    files = sorted(out.glob("*.safetensors"))
    assert len(files) == (1 if max_shard_size == "5GB" else 3)
    exported = {name: tensor for file in files for name, tensor in load_file(file).items()}
    assert exported.keys() == ODD_TENSORS.keys()
    assert all(_bits(exported[name]) == _bits(tensor) for name, tensor in ODD_TENSORS.items())
    if len(files) > 1:
        index = json.loads((out / "model.safetensors.index.json").read_text())
        assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in ODD_TENSORS.values())
        assert all(name in load_file(out / file) for name, file in index["weight_map"].items())


def test_an_imported_step_is_what_dcp_itself_would_load(tmp_path):
    save_file(ODD_TENSORS, tmp_path / "model.safetensors")
    step = import_hf(tmp_path, tmp_path / "step-7", progress=False)
    loaded = {name: torch.empty_like(tensor) for name, tensor in ODD_TENSORS.items()}
    load(loaded, checkpoint_id=step, no_dist=True)
    assert all(_bits(loaded[name]) == _bits(tensor) for name, tensor in ODD_TENSORS.items())
    with pytest.raises(CheckpointError, match="exists already"):
        import_hf(tmp_path, step, progress=False)


def test_an_export_holds_weights_assets_and_the_type_it_was_cast_to(tmp_path, assets):
    state = {"weight": torch.randn(4, 4), "count": torch.tensor([7])}
    step = _save_step(tmp_path / "run" / "checkpoint" / "step-12", state)
    out = export_hf(
        step,
        assets,
        tmp_path / "run" / "hf" / "step-12",
        dtype="bfloat16",
        card={"data": ["a", "b"], "loss": 1.5},
        progress=False,
    )
    weights = load_file(out / "model.safetensors")
    assert _bits(weights["weight"]) == _bits(state["weight"].bfloat16())
    assert _bits(weights["count"]) == _bits(state["count"])
    with safe_open(out / "model.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}
    assert json.loads((out / "config.json").read_text()) == {"model_type": "llama", "dtype": "bfloat16"}
    assert {"tokenizer.json", "modeling_x.py", "README.md"} <= {path.name for path in out.iterdir()}
    card = (out / "README.md").read_text()
    assert "| step | 12 |" in card and "| data | a, b |" in card and "| loss | 1.5 |" in card


def test_an_export_replaces_an_older_one_but_nothing_else(tmp_path, assets):
    step = _save_step(tmp_path / "step-1", {"weight": torch.ones(2)})
    out = export_hf(step, assets, tmp_path / "out", progress=False)
    (out / "old.txt").write_text("")
    export_hf(step, assets, tmp_path / "out", progress=False)
    assert not (out / "old.txt").exists()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("")
    with pytest.raises(CheckpointError, match="is not a HuggingFace folder"):
        export_hf(step, assets, tmp_path / "mine", progress=False)
    assert (tmp_path / "mine" / "thesis.txt").exists()


def test_a_damaged_tensor_ends_the_export_and_leaves_no_folder(tmp_path, assets):
    step = _save_step(tmp_path / "step-1", {"weight": torch.randn(1000)})
    flip_byte(step / "__0_0.distcp")
    with pytest.raises(DamagedStepError, match="__0_0.distcp is damaged"):
        export_hf(step, assets, tmp_path / "out", progress=False)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("tie", [True, False])
def test_a_config_with_tied_embeddings_stores_the_head_once(tmp_path, assets, tie):
    (assets / "config.json").write_text(json.dumps({"tie_word_embeddings": tie}))
    weight = torch.randn(3, 2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        state = {"model.embed_tokens.weight": weight, "lm_head.weight": weight}
        save(state, checkpoint_id=tmp_path / "step-1", no_dist=True)  # by another writer: there is no manifest
    out = export_hf(tmp_path / "step-1", assets, tmp_path / "out", progress=False)
    names = set(load_file(out / "model.safetensors"))
    assert names == ({"model.embed_tokens.weight"} if tie else set(state))


def test_names_decide_what_is_the_model(tmp_path, assets):
    """Flat keys and keys that upstream nested under ``model`` both begin with ``model.``."""
    model = {"model.norm.weight": torch.randn(3), "lm_head.weight": torch.randn(2, 3)}
    training = {
        "optimizer": {"state.model.norm.weight.exp_avg": torch.randn(3)},
        "train_state": {"step": torch.ones(1)},
    }
    for folder, state in (("flat", model | training), ("nested", {"model": model} | training)):
        step = _save_step(tmp_path / folder / "step-1", state)
        out = export_hf(step, assets, tmp_path / folder / "out", progress=False)
        exported = load_file(out / "model.safetensors")
        assert exported.keys() == model.keys()
        assert all(torch.equal(exported[name], tensor) for name, tensor in model.items())


def test_names_can_be_changed_on_the_way(tmp_path, assets):
    step = _save_step(tmp_path / "step-1", {"a": torch.ones(2)})
    out = export_hf(step, assets, tmp_path / "out", progress=False, rename=lambda name: f"model.{name}")
    assert set(load_file(out / "model.safetensors")) == {"model.a"}


def test_a_tensor_saved_in_another_memory_order_is_put_in_order(tmp_path, assets):
    transposed = torch.randn(6, 4).t()
    step = _save_step(tmp_path / "step-1", {"weight": transposed})
    out = export_hf(step, assets, tmp_path / "out", progress=False)
    assert torch.equal(load_file(out / "model.safetensors")["weight"], transposed)


def test_a_step_that_is_being_read_is_not_removed(tmp_path):
    step = _save_step(tmp_path / "step-1", {"weight": torch.ones(2)})
    with StoredStep(step):
        assert not remove_step(step)
    assert remove_step(step)
    assert not step.exists()


@pytest.mark.parametrize(("text", "size"), [("5GB", 5 * 10**9), ("2GiB", 2**31), ("1.5kb", 1500), (7, 7)])
def test_sizes_are_read(text, size):
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "GB", "5XB", "0", "-1GB", "1.2.3GB"])
def test_other_sizes_are_refused(text):
    with pytest.raises(CheckpointError, match="is not a size"):
        parse_size(text)


CONVERSION = """
import resource, sys
from pathlib import Path
from flame.checkpoint.hf_export import export_hf
from flame.checkpoint.hf_import import import_hf

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

def read():
    return int(open("/proc/self/io").readline().split()[1])

folder = Path(sys.argv[1])
baseline, before = peak(), read()
out = export_hf(folder / "step-1", folder / "assets", folder / "out", progress=False)
exported = read() - before
import_hf(out, folder / "imported", progress=False)
print(peak() - baseline, exported)
"""


@pytest.mark.skipif(not Path("/proc/self/io").exists(), reason="counts the bytes read with Linux's /proc")
def test_memory_stays_small_and_only_the_model_is_read(tmp_path, assets):
    model_bytes = 192 * 2**20
    model = {f"layer.{i}": torch.randn(4096, 1024) for i in range(model_bytes // (4096 * 1024 * 4))}
    _save_step(tmp_path / "step-1", model | {"optimizer": {name: tensor + 1 for name, tensor in model.items()}})
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", CONVERSION, str(tmp_path)], check=True, capture_output=True, text=True
    )
    memory, bytes_read = map(int, run.stdout.split())
    assert memory < 64 * 2**20
    assert bytes_read < 2.2 * model_bytes, "each byte of the model is read to be checked and to be copied"
