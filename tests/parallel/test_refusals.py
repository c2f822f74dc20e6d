"""Layouts that would compute something else are refused before the first step, with the reason and what to do."""

from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import pytest
from transformers import AutoConfig

from flame.config import JobConfig
from flame.errors import ConfigError
from flame.models.build import model_class
from flame.models.config import shrink
from flame.parallel.checks import check_layout
from flame.parallel.split import Inlet, Placeholder
from flame.plugin import load_plugin
from flame.tasks.base import Task
from flame.tasks.causal_lm import CausalLM, CausalLMOptions
from flame.tokenizer.load import load_tokenizer
from flame.train import prepare
from tests.parallel.parity import SCHEDULE, layout_keys
from tests.runs import FAMILIES, LLAMA, Materials, Pool, Run, write_job

EMA = {"model_type": "ema_lm", "vocab_size": 320, "hidden_size": 32, "num_hidden_layers": 2}
PATCHES = "tests.parallel.patches"


def job_file(materials: Materials, folder: Path, model: dict, layout: str, **changes) -> tuple[Path, int]:
    keys, world = layout_keys(layout)
    values = {
        "model.config": str(materials.model(model)),
        "model.plugin_path": str(FAMILIES),
        "training.local_batch_size": 2,
        "training.steps": 1,
        **keys,
        **changes,
    }
    return write_job(materials, folder, values), world


def refusal(materials: Materials, folder: Path, model: dict, layout: str, **changes) -> str:
    """What ``prepare`` says, before any process group exists."""
    job, world = job_file(materials, folder, model, layout, **changes)
    with pytest.raises(ConfigError) as error:
        prepare(["--job.config_file", str(job)], world)
    return str(error.value)


def trained(
    materials: Materials, pool: Pool, folder: Path, model: dict, layout: str, patch: str = "", **changes
) -> Run:
    job, world = job_file(materials, folder, model, layout, **changes)
    return pool.run(job, folder, world=world, patch=patch)


@pytest.mark.parametrize(
    "model, layout, said",
    [
        (LLAMA, "tp4", "tensor_parallel_degree = 4 does not divide num_key_value_heads = 2"),
        (EMA, "tp2", "family 'ema_lm' has no tensor-parallel plan"),
        (LLAMA, "dp2 ep2", "family 'llama' has no expert-parallel plan"),
        (LLAMA, "pp4", "2 layers cannot be shared out over 4 pipeline stages"),
        (
            {**LLAMA, "model_type": "mixtral", "num_local_experts": 3},
            "dp2 ep2",
            "= 3 of the model",
        ),
    ],
)
def test_what_does_not_divide_or_has_no_plan(
    materials: Materials, tmp_path: Path, model: dict, layout: str, said: str
) -> None:
    rows = {"training.local_batch_size": 4} if layout == "pp4" else {}
    assert said in refusal(materials, tmp_path / "run", model, layout, **rows)


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"parallelism.pipeline_parallel_schedule": "2F2B"}, "must be one of 1F1B, GPipe"),
        ({"parallelism.pipeline_parallel_layers_per_stage": 2}, "wants one stage per rank"),
        (
            {"parallelism.pipeline_parallel_layers_per_stage": 1, SCHEDULE: "ZBVZeroBubble"},
            "wants two stages per rank",
        ),
        (
            {"parallelism.module_fqns_per_model_part": [["layers.0"], ["layers.2"]]},
            "names layers.2 where layer 1 is due",
        ),
        ({"parallelism.module_fqns_per_model_part": [["layers.0", "norm"], ["layers.1"]]}, "'norm', which cannot be"),
        ({"parallelism.module_fqns_per_model_part": [["layers.0", "layers.1"], []]}, "at least one"),
    ],
)
def test_pipelines_that_do_not_fit_together(materials: Materials, tmp_path: Path, changes: dict, said: str) -> None:
    deep = {**LLAMA, "num_hidden_layers": 4} if "parallelism.pipeline_parallel_layers_per_stage" in changes else LLAMA
    assert said in refusal(materials, tmp_path / "run", deep, "pp2", **changes)


def test_a_family_that_mixes_positions_outside_attention(materials: Materials, pool: Pool, tmp_path: Path) -> None:
    run = trained(materials, pool, tmp_path / "run", EMA, "cp2")
    assert run.output.startswith("ConfigError: family 'ema_lm' under context 2 d")
    assert "something in it but attention looks along the sequence" in run.output


def test_a_family_that_mixes_positions_trains_in_stages(materials: Materials, pool: Pool, tmp_path: Path) -> None:
    alone = trained(materials, pool, tmp_path / "alone", EMA, "dp1")
    staged = trained(materials, pool, tmp_path / "staged", EMA, "pp2")
    assert staged.code == 0, staged.output
    assert staged.series("loss") == pytest.approx(alone.series("loss"), rel=1e-5)


@pytest.mark.parametrize(
    "model, layout, patch, said",
    [
        (LLAMA, "cp2", "local_positions", "under context 2 differs from one device: the gradient of model."),
        (LLAMA, "pp2", "undivided_pipeline_loss", "under pipeline 2 differs from one device"),
        ({**LLAMA, "tie_word_embeddings": True}, "pp2", "untied_gradients", "gradient of model.embed_tokens.weight"),
        ({**LLAMA, "model_type": "qwen3"}, "tp2", "partial_gradients", "self_attn.q_norm.weight"),
    ],
)
def test_the_preflight_finds_known_faults(
    materials: Materials, pool: Pool, tmp_path: Path, model: dict, layout: str, patch: str, said: str
) -> None:
    always = {"parallelism.preflight": "always"}
    run = trained(materials, pool, tmp_path / "run", model, layout, f"{PATCHES}:{patch}", **always)
    assert run.output.startswith("ConfigError: family")
    assert said in run.output
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_the_preflight_is_remembered_by_layout(materials: Materials, pool: Pool, tmp_path: Path) -> None:
    broken = f"{PATCHES}:failing_comparison"
    model = {**LLAMA, "num_hidden_layers": 3}

    def run(name: str, layout: str, patch: str = "", **changes) -> str:
        return trained(materials, pool, tmp_path / name, model, layout, patch, **changes).output

    assert "compared" in run("first", "tp2", broken)
    assert run("proven", "tp2") == ""
    assert run("again", "tp2", broken) == ""
    assert "compared" in run("always", "tp2", broken, **{"parallelism.preflight": "always"})
    assert "compared" in run("other", "cp2", broken)
    assert run("off", "cp2", broken, **{"parallelism.preflight": "off"}) == ""


@pytest.fixture
def task(materials: Materials) -> Task:
    """A causal LM task with its loss outside the head, as for nanochat."""
    return CausalLM(CausalLMOptions(), load_tokenizer(str(materials.tokenizer)), JobConfig())


@pytest.fixture
def naive_cut() -> Iterator[None]:
    """Lets what the model does before its layers happen again on every stage."""
    with mock.patch.object(Inlet, "forward", Placeholder.forward):
        yield


def pipelined(task: Task, family: str) -> None:
    config = JobConfig()
    config.parallelism.pipeline_parallel_degree = 2
    model_config = shrink(AutoConfig.for_model(family), layers=4)
    check_layout(model_class(load_plugin(family), model_config, "causal_lm"), model_config, config, task)


@pytest.mark.parametrize("family", ["nanochat", "gemma2", "gpt2", "opt", "bloom"])
def test_families_that_change_their_embeddings_can_be_cut(task: Task, family: str) -> None:
    pipelined(task, family)


def test_a_naive_cut_would_be_noticed(task: Task, naive_cut: None) -> None:
    with pytest.raises(ConfigError, match="cannot be cut into stages: the (loss|gradient)"):
        pipelined(task, "nanochat")


@pytest.mark.slow
def test_the_loss_of_a_layout_starts_from_imported_weights(materials: Materials, pool: Pool, tmp_path: Path) -> None:
    """A HuggingFace folder fills packed, split and staged weights alike."""
    export = {"export.enable": True, "training.steps": 3}
    source = trained(materials, pool, tmp_path / "source", LLAMA, "dp1", **export)
    assert source.code == 0, source.output
    load = {
        "checkpoint.initial_load_path": str(tmp_path / "source" / "hf" / "step-3"),
        "checkpoint.initial_load_in_hf": True,
    }
    losses = []
    for layout in ("dp1", "tp2", "pp2", "dp2 tp2"):
        run = trained(materials, pool, tmp_path / layout.replace(" ", "-"), LLAMA, layout, **load)
        assert run.code == 0, run.output
        losses += run.series("loss")
    assert losses == pytest.approx([losses[0]] * 4, rel=1e-5)
    assert losses[0] != pytest.approx(source.series("loss")[0], rel=1e-3)
