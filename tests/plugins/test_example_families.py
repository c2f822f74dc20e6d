"""What every family keeps that reads recordings or series; one in ``custom_models/`` is tested by being there."""

import os
import pickle
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.tensor import DTensor
from transformers import AutoFeatureExtractor, PreTrainedConfig

from flame.checkpoint.hf_export import export_hf
from flame.config import JobConfig
from flame.data.batch import Batch, rows_of
from flame.losses import IGNORE_INDEX
from flame.models.build import build_model, model_class, plain_model
from flame.models.config import load_config, tiny_config
from flame.parallel.layout import Layout
from flame.parallel.parallelize import parallelize
from flame.plugin import ModelPlugin, custom_families, load_plugin, load_task, tasks
from flame.spec import Job, write_assets
from flame.tasks.base import Task
from flame.tokenizer.characters import character_tokenizer
from tests.runs import ROOT

FAMILIES = [name for name in custom_families() if "causal_lm" not in load_plugin(name).auto_classes]
BERT = {
    "model_type": "bert",
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 64,
}
HGRN = {"model_type": "hgrn", "num_hidden_layers": 2, "intermediate_size": 64}

_PROGRAM = """
import sys
sys.modules["flame"] = sys.modules["custom_models"] = None  # importing them is an error now
import torch, transformers
folder, auto, given, found = sys.argv[1:]
model = getattr(transformers, auto).from_pretrained(folder, trust_remote_code=True).eval()
features = transformers.AutoFeatureExtractor.from_pretrained(folder, trust_remote_code=True)
with torch.no_grad():
    torch.save([model(**torch.load(given)).logits, features.to_dict()], found)
"""


class Member:
    """A tiny model of a family, and the task that trains it."""

    def __init__(self, plugin: ModelPlugin, config: PreTrainedConfig):
        self.plugin, self.config = plugin, config
        (self.head,) = plugin.auto_classes
        name = next(name for name in tasks() if plugin.objective in load_task(name).objectives)  # type: ignore[attr-defined]
        task_class: Any = load_task(name)
        self.job = JobConfig()
        self.job.task = task_class.Options()
        needs = task_class.Options.needs_tokenizer
        self.tokenizer = character_tokenizer("abcdefghij ") if needs else None
        self.task: Task = task_class(self.job.task, tokenizer=self.tokenizer, config=self.job)
        assert plugin.features is not None
        self.task.features = plugin.features(config)
        self.cls = model_class(plugin, config, self.head)

    def model(self) -> Any:
        return plain_model(self.cls, self.config, seed=1)

    def batch(self, rows: int = 3, length: int = 20) -> Batch:
        return self.task.sample(self.config, rows, length, torch.Generator().manual_seed(0))


def member(name: str, backbone: dict[str, Any] | None = None, **values: Any) -> Member:
    plugin = load_plugin(name)
    config = tiny_config(plugin)
    for key, value in values.items():
        setattr(config, key, value)
    if backbone is not None:
        config.backbone = {**backbone, "hidden_size": config.hidden_size}
        for inner in plugin.inner(config):
            load_plugin(inner) if inner != "bert" else None
    return Member(plugin, config)


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> Member:
    return member(request.param)


@pytest.fixture(params=[(name, inner) for name in FAMILIES for inner in (None, BERT, HGRN)], ids=str)
def any_encoder(request: pytest.FixtureRequest) -> Member:
    return member(*request.param)


def logits(model: Any, inputs: dict[str, Any]) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(**inputs).logits


def test_config_survives_a_round_trip(family, tmp_path: Path) -> None:
    family.config.save_pretrained(tmp_path)
    again, found = load_config(str(tmp_path))
    assert found.model_type == family.plugin.model_type
    assert again.to_dict() == family.config.to_dict()


def test_meta_init_equals_plain_init(any_encoder, process_group) -> None:
    any_encoder.cls.init_seed = 1
    with torch.device("meta"):
        model = build_model(any_encoder.cls, any_encoder.config)
    job = JobConfig()
    job.training.mixed_precision_param = "float32"
    model: Any = parallelize(model, Layout(1, 1, 1, 1, 1, 1, 1, world_size=1), job)
    model.to_empty(device="cpu")
    with torch.no_grad():
        model.init_weights(buffer_device=None)
    weights = dict(any_encoder.model().named_parameters())
    for name, parameter in model.named_parameters():
        assert isinstance(parameter, DTensor)
        assert torch.equal(parameter.full_tensor(), weights.pop(name)), name
    assert not weights


def test_every_weight_learns(any_encoder) -> None:
    model = any_encoder.model().train()
    inputs, labels = any_encoder.batch()
    if any_encoder.head == "ctc":
        labels = labels[:, :4]
        any_encoder.task.extend(any_encoder.cls, any_encoder.config)
    loss = any_encoder.task.loss_sum(model, inputs, labels)
    loss.backward()
    assert loss.isfinite()
    missing = [name for name, parameter in model.named_parameters() if parameter.grad is None]
    assert not [name for name in missing if "pooler" not in name], missing  # BERT's, which is left out of the encoder


def test_padding_behind_a_row_changes_nothing(any_encoder) -> None:
    model = any_encoder.model()
    inputs, _ = any_encoder.batch(rows=2, length=20)
    name = any_encoder.cls.main_input_name
    alone = logits(model, {name: inputs[name][1:, :13], "attention_mask": inputs["attention_mask"][1:, :13]})
    inputs["attention_mask"][1, 13:] = 0
    inputs[name][1, 13:] = 7.0  # whatever stands there
    together = logits(model, inputs)[1:]
    steps = alone.shape[1] if any_encoder.head == "ctc" else None
    torch.testing.assert_close(together[:, :steps], alone, rtol=1e-4, atol=1e-5)


def test_both_directions_are_heard_only_if_the_config_says_so(family) -> None:
    if family.head != "ctc":
        pytest.skip("a class has no direction")
    for bidirectional in (True, False):
        config = type(family.config)(**{**family.config.to_dict(), "bidirectional": bidirectional, "normalise": "none"})
        model = plain_model(family.cls, config, seed=1)
        inputs, _ = family.batch(rows=1, length=21)  # the last frame begins a step
        before = logits(model, inputs)
        inputs[family.cls.main_input_name][:, -1] += 1
        after = logits(model, inputs)
        assert torch.equal(before[:, 0], after[:, 0]) is not bidirectional
        assert not torch.equal(before[:, -1], after[:, -1])


def test_exported_folder_gives_the_same_without_flame(family, process_group, tmp_path: Path) -> None:
    model = family.model()
    family.job.job.dump_folder = str(tmp_path)
    write_assets(
        Job(family.job, family.plugin, family.config, family.cls, family.tokenizer, family.task, grown_vocabulary=False)
    )
    save(dict(model.state_dict()), checkpoint_id=tmp_path / "step-1")
    folder = export_hf(tmp_path / "step-1", tmp_path / "model", tmp_path / "hf", progress=False)
    inputs, _ = family.batch()
    torch.save(inputs, tmp_path / "given.pt")
    command = [sys.executable, "-c", _PROGRAM, folder, family.plugin.auto_classes[family.head].__name__]
    environment = {
        **os.environ,
        "HF_MODULES_CACHE": str(tmp_path / "modules"),
        "PYTHONPATH": "",
        "OMP_NUM_THREADS": "1",
    }
    files = [str(tmp_path / "given.pt"), str(tmp_path / "found.pt")]
    done = subprocess.run([*map(str, command), *files], cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    found, features = torch.load(tmp_path / "found.pt")
    torch.testing.assert_close(found, logits(model, inputs))
    for loaded in (AutoFeatureExtractor.from_pretrained(folder).to_dict(), features):
        assert loaded["feature_size"] == family.task.features.feature_size


def scored(family: Member) -> Batch:
    """A batch that the task has been made ready for; the transcripts are short enough for it."""
    if family.head == "ctc":
        family.task.extend(family.cls, family.config)
    inputs, labels = family.batch(rows=4)
    return inputs, labels[:, :4]


def test_the_loss_is_a_finite_float32_sum_over_rows(family) -> None:
    inputs, labels = scored(family)
    labels[0] = IGNORE_INDEX
    model = family.model().eval()
    with torch.no_grad():
        whole = family.task.loss_sum(model, inputs, labels)
        parts = [family.task.loss_sum(model, *rows_of((inputs, labels), slice(row, row + 1))) for row in range(4)]
    assert whole.dtype == torch.float32 and whole.shape == ()
    assert parts[0] == 0
    torch.testing.assert_close(whole, torch.stack(parts).sum())


def test_rows_without_labels_count_nothing(family) -> None:
    inputs, labels = scored(family)
    blank = torch.full_like(labels, IGNORE_INDEX)
    loss = family.task.loss_sum(model := family.model(), inputs, blank)
    loss.backward()
    assert loss.item() == 0
    assert not any(parameter.grad.any() for parameter in model.parameters() if parameter.grad is not None)
    assert family.task.scored(inputs, blank) == 0 and family.task.positions(inputs, blank) == 0
    assert family.task.scored(inputs, labels) > 0 and family.task.positions(inputs, labels) == 4 * 20


def test_what_is_tallied_adds_up_over_rows_and_is_reported(family) -> None:
    inputs, labels = scored(family)
    model = family.model().eval()

    def tallied(rows: slice) -> dict[str, torch.Tensor]:
        with torch.no_grad():
            family.task.loss_sum(model, *rows_of((inputs, labels), rows))
        return dict(family.task.tally())

    whole, parts = tallied(slice(4)), [tallied(slice(row, row + 1)) for row in range(4)]
    assert whole
    for name, value in whole.items():
        torch.testing.assert_close(sum(part[name] for part in parts), value)
    figures = family.task.report(1.0, 4.0, {**family.task.counts(labels), **whole})
    assert figures and all(isinstance(value, float) or value.dim() == 0 for value in figures.values())


def test_the_encoder_travels_to_worker_processes_without_models(family) -> None:
    """Each of them would import torch else, and hold the models beside the feature extractor."""
    program = (
        "import sys, pickle; encoder = pickle.load(open(sys.argv[1], 'rb')); encoder.blank(); "
        "encoder.features.features; assert not {'torch', 'datasets'} & set(sys.modules), 'too much is imported'"
    )
    if family.head == "ctc":
        family.task.extend(family.cls, family.config)
    with tempfile.NamedTemporaryFile() as file:
        pickle.dump(family.task.encoder(), file)
        file.flush()
        command = [sys.executable, "-c", program, file.name]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.parametrize("name", FAMILIES)
def test_a_backbone_that_cannot_be_is_named(name) -> None:
    for backbone, message in (({"model_type": "no_such"}, "known to neither"), ({**BERT}, "make them equal")):
        config = tiny_config(load_plugin(name))
        config.backbone = {**backbone, "hidden_size": 48}
        with pytest.raises(ValueError, match=message):
            plain_model(model_class(load_plugin(name), config, next(iter(load_plugin(name).auto_classes))), config, 0)
