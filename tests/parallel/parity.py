"""Trains a tiny job in any layout and compares runs; what the parity tests share."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import AutoConfig

from flame.models.config import shrink
from flame.plugin import load_plugin
from tests.runs import LLAMA, UNEVEN_LLAMA, Materials, Pool, Run, write_job

STEPS = 5
MASKED = "tests.parallel.patches:masked_labels"
TIED_LLAMA = {**LLAMA, "tie_word_embeddings": True}
# Vocabulary, feed-forward width and number of layers that 2 does not divide; heads that it does.
ODD_LLAMA = {**LLAMA, "vocab_size": 321, "intermediate_size": 95, "num_hidden_layers": 5}
# Options of fla's families that bring parameters of their own.
OPTIONS: dict[str, dict[str, Any]] = {
    "forgetting, normed and gated": {
        "model_type": "forgetting_transformer",
        "qk_norm": True,
        "use_output_gate": True,
    },
    "wall, normed and gated": {
        "model_type": "wall_transformer",
        "qk_norm": True,
        "use_output_gate": True,
        "use_scalar_gate": True,
    },
    "gla, grouped and convolved": {
        "model_type": "gla",
        "num_kv_heads": 2,
        "use_short_conv": True,
        "conv_bias": True,
        "tie_word_embeddings": True,
    },
    "gated_deltanet, hybrid": {
        "model_type": "gated_deltanet",
        "num_heads": 2,
        "num_v_heads": 4,
        "attn": {"layers": [1], "num_heads": 4, "num_kv_heads": 2, "qkv_bias": True, "window_size": 16},
    },
}
MODELS = {
    "plain": LLAMA,
    "uneven": UNEVEN_LLAMA,
    "tied": TIED_LLAMA,
    "odd": ODD_LLAMA,
    "odd tied": {**ODD_LLAMA, "tie_word_embeddings": True},
}
SHARD, REPLICATE = "parallelism.data_parallel_shard_degree", "parallelism.data_parallel_replicate_degree"
RESHARD, RECOMPUTE = "parallelism.fsdp_reshard_after_forward", "activation_checkpoint.mode"
SCHEDULE = "parallelism.pipeline_parallel_schedule"
DEGREES = {
    "rep": REPLICATE,
    "dp": SHARD,
    "tp": "parallelism.tensor_parallel_degree",
    "pp": "parallelism.pipeline_parallel_degree",
    "cp": "parallelism.context_parallel_degree",
    "ep": "parallelism.expert_parallel_degree",
}
# The embedding and the head of a tiny model must not count for a layer where there are as many stages as layers.
EVEN_STAGES = {
    "parallelism.pipeline_parallel_first_stage_less_layers": 0,
    "parallelism.pipeline_parallel_last_stage_less_layers": 0,
}


def _options(model: str) -> dict[str, Any]:
    return OPTIONS.get(model, {"model_type": model})


Train = Callable[..., Run]


def layout_keys(layout: str) -> tuple[dict[str, int], int]:
    """``"pp2 tp2"`` -> the keys of a job, and the number of processes; experts share those of the rest."""
    degrees = {word.rstrip("0123456789"): int(word.lstrip("abcdefghijklmnopqrstuvwxyz")) for word in layout.split()}
    keys = {DEGREES[name]: degree for name, degree in degrees.items()}
    return keys, math.prod(degree for name, degree in degrees.items() if name != "ep")


@pytest.fixture(scope="session")
def train(materials: Materials, pool: Pool, tmp_path_factory: pytest.TempPathFactory) -> Train:
    """Runs the tiny job of a model with changes; equal runs are made once."""
    made: dict[str, Run] = {}

    def run(model: str = "plain", world: int = 1, patch: str = MASKED, layout: str = "", **changes) -> Run:
        name = repr((model, world, patch, layout, changes))
        if name not in made:
            folder = tmp_path_factory.mktemp("parity") / "run"
            keys, processes = layout_keys(layout) if layout else ({}, world)
            values = {
                "model.config": str(materials.model(MODELS[model] if model in MODELS else family(**_options(model)))),
                "training.local_batch_size": 1 if world == 4 else 2,
                "training.max_norm": 0.5,
                # Adam makes full steps of gradients that are nothing but rounding; this keeps them small.
                "optimizer.eps": 1e-5,
                "training.steps": STEPS,
                **keys,
                **changes,
            }
            job = write_job(materials, folder, values)
            made[name] = pool.run(job, folder, world=processes, patch=patch, timeout=300)
            assert made[name].code == 0, made[name].output
        return made[name]

    return run


def family(model_type: str, **options: Any) -> dict[str, Any]:
    """The values of a small ``config.json`` of a family of transformers or fla."""
    load_plugin(model_type)
    values = shrink(AutoConfig.for_model(model_type, **options), layers=4, divisor=2).to_dict()
    dropped = ("transformers_version", "dtype")
    return {**{name: value for name, value in values.items() if name not in dropped}, "vocab_size": 320}


def assert_equal_runs(run: Run, reference: Run, tolerance: float = 1e-4) -> None:
    assert len(run.series("loss")) == STEPS
    assert run.series("loss") == pytest.approx(reference.series("loss"), rel=tolerance / 10)
    assert run.series("grad_norm") == pytest.approx(reference.series("grad_norm"), rel=tolerance)
    assert run.series("tokens") == reference.series("tokens")
    assert run.series("bpb") == pytest.approx(reference.series("bpb"), rel=tolerance / 10)
    assert_equal_weights(run.weights(STEPS), reference.weights(STEPS), tolerance)


def assert_equal_weights(
    weights: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], tolerance: float = 1e-4
) -> None:
    assert weights.keys() == expected.keys()
    for name, weight in expected.items():
        assert (weights[name] - weight).norm() <= tolerance * weight.norm(), name
