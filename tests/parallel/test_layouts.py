"""Tensor, pipeline, context and expert parallelism and their products compute what one process computes.

The runs are those of ``test_parity``: five steps with accumulation, labels spread unevenly, rows without any.
"""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.parallel.parity import (
    EVEN_STAGES,
    RECOMPUTE,
    SCHEDULE,
    STEPS,
    Train,
    assert_equal_runs,
    assert_equal_weights,
    family,
    layout_keys,
)
from tests.runs import Materials, Pool, Run, write_job

METHOD, BALANCER = "parallelism.context_parallel_rotate_method", "parallelism.context_parallel_load_balancer"
ROWS = "training.local_batch_size"


@pytest.mark.parametrize(
    "model, layout",
    [
        ("odd", "tp2"),
        pytest.param("odd tied", "tp2", marks=pytest.mark.slow),
        pytest.param("uneven", "tp3", marks=pytest.mark.slow),
        pytest.param("odd", "pp2", marks=pytest.mark.slow),
        ("odd tied", "pp2"),
        ("odd", "cp2"),
        pytest.param("odd tied", "cp2", marks=pytest.mark.slow),
        pytest.param("odd tied", "pp2 tp2", marks=pytest.mark.slow),
        ("odd", "tp2 cp2"),
        pytest.param("odd", "rep2 tp2", marks=pytest.mark.slow),
        pytest.param("odd", "dp2 pp2", marks=pytest.mark.slow),
        pytest.param("odd tied", "dp2 tp2 pp2", marks=pytest.mark.slow),
        pytest.param("odd", "dp2 tp2 cp2", marks=pytest.mark.slow),
        pytest.param("odd", "rep2 dp2 tp2", marks=pytest.mark.slow),
        pytest.param("odd", "tp2 pp2 cp2", marks=pytest.mark.slow),
    ],
)
def test_a_layout_equals_one_process(train: Train, model: str, layout: str) -> None:
    assert_equal_runs(train(model, layout=layout), train(model))


@pytest.mark.parametrize(
    "schedule, layout",
    [
        ("GPipe", "pp2"),
        ("Interleaved1F1B", "pp2"),
        pytest.param("LoopedBFS", "pp2", marks=pytest.mark.slow),
        pytest.param("InterleavedZeroBubble", "pp2", marks=pytest.mark.slow),
        pytest.param("ZBVZeroBubble", "pp2", marks=pytest.mark.slow),
        ("DualPipeV", "pp2"),
        pytest.param("1F1B", "pp4", marks=pytest.mark.slow),
        pytest.param("Interleaved1F1B", "dp2 pp2", marks=pytest.mark.slow),
        pytest.param("ZBVZeroBubble", "dp2 pp2", marks=pytest.mark.slow),
    ],
)
def test_a_schedule_equals_one_process(train: Train, schedule: str, layout: str) -> None:
    """With a tied embedding, whose two ends lie on one rank or on two."""
    run = train("odd tied", layout=layout, **{SCHEDULE: schedule, ROWS: 4, **EVEN_STAGES})
    assert_equal_runs(run, train("odd tied"))


def test_stages_by_name_equal_one_process(train: Train) -> None:
    parts = [["embed_tokens", "layers.0"], ["model.layers.1", "layers.2", "layers.3", "layers.4", "norm", "lm_head"]]
    assert_equal_runs(train("odd", layout="pp2", **{"parallelism.module_fqns_per_model_part": parts}), train("odd"))


@pytest.mark.slow
def test_larger_microbatches_equal_one_process(train: Train) -> None:
    run = train("odd", layout="pp2", **{"parallelism.pipeline_parallel_microbatch_size": 2, ROWS: 4})
    assert_equal_runs(run, train("odd"))


@pytest.mark.parametrize("method, balancer", [("allgather", "none"), ("alltoall", "headtail")])
def test_ways_of_seeing_the_whole_sequence_equal_one_process(train: Train, method: str, balancer: str) -> None:
    assert_equal_runs(train("odd", layout="cp2", **{METHOD: method, BALANCER: balancer}), train("odd"))


@pytest.mark.parametrize("method", ["allgather", "alltoall"])
def test_packed_documents_across_parts_equal_one_process(train: Train, method: str) -> None:
    varlen = {"training.varlen": True}
    assert_equal_runs(train("odd", layout="cp2", **{METHOD: method, **varlen}), train("odd", **varlen))


@pytest.mark.slow
def test_packed_documents_in_stages_of_parts_equal_one_process(train: Train) -> None:
    varlen = {"training.varlen": True}
    assert_equal_runs(train("odd", layout="pp2 cp2", **varlen), train("odd", **varlen))


@pytest.mark.parametrize(
    "layout, mode",
    [
        ("tp2", "selective"),
        ("pp2", "full"),
        ("cp2", "selective"),
        *(
            pytest.param(*pair, marks=pytest.mark.slow)
            for pair in (("tp2", "full"), ("pp2", "selective"), ("cp2", "full"))
        ),
    ],
)
def test_recomputing_in_a_layout_equals_one_process(train: Train, layout: str, mode: str) -> None:
    option = {"activation_checkpoint.selective_ac_option": "op"}
    assert_equal_runs(train("odd", layout=layout, **{RECOMPUTE: mode, **option}), train("odd"))


@pytest.mark.parametrize(
    "layout", ["tp2", *(pytest.param(layout, marks=pytest.mark.slow) for layout in ("pp2", "cp2"))]
)
def test_compiled_layers_in_a_layout_equal_one_process(train: Train, layout: str) -> None:
    compiled = {"compile.enable": True, "compile.backend": "aot_eager"}
    assert_equal_runs(train("odd", layout=layout, **compiled), train("odd"))


@pytest.mark.parametrize(
    "layout", ["tp2", *(pytest.param(layout, marks=pytest.mark.slow) for layout in ("pp2", "dp2 tp2"))]
)
def test_logits_of_all_positions_equal_the_loss_in_the_head(train: Train, layout: str) -> None:
    off = {"task.name": "causal_lm", "task.linear_cross_entropy": "off"}
    assert_equal_runs(train("odd", layout=layout, **off), train("odd"))


@pytest.mark.slow
def test_a_loss_over_the_whole_vocabulary_equals_one_process(train: Train) -> None:
    assert_equal_runs(train("odd", layout="tp2", **{"parallelism.disable_loss_parallel": True}), train("odd"))


@pytest.mark.parametrize(
    "model, layout",
    [
        ("mixtral", "dp2 ep2"),
        pytest.param("deepseek_v3", "dp2 ep2", marks=pytest.mark.slow),
        ("qwen3_moe", "tp2"),
        pytest.param("qwen3_moe", "dp2 pp2 ep2", marks=pytest.mark.slow),
        pytest.param("deepseek_v3", "dp2 tp2 ep4", marks=pytest.mark.slow),
        pytest.param("mixtral", "dp2 cp2 ep4", marks=pytest.mark.slow),
        pytest.param("qwen3", "pp2 tp2", marks=pytest.mark.slow),
        ("nanochat", "pp2"),
        pytest.param("gemma3_text", "pp2 tp2", marks=pytest.mark.slow),
    ],
)
def test_families_with_more_to_them_equal_one_process(train: Train, model: str, layout: str) -> None:
    assert_equal_runs(train(model, layout=layout), train(model))


@pytest.mark.parametrize(
    "layout", [pytest.param("tp2", marks=pytest.mark.slow), "pp2", pytest.param("pp2 cp2", marks=pytest.mark.slow)]
)
def test_validation_in_a_layout_equals_one_process(train: Train, materials: Materials, layout: str) -> None:
    validation = {
        "validation.enable": True,
        "validation.freq": 2,
        "validation.local_batch_size": 4,
        "validation.sources": [{"path": str(materials.held_out)}],
    }
    run, alone = train("odd", layout=layout, **validation), train("odd", **validation)
    assert len(alone.series("val_loss")) == 3
    assert run.series("val_loss") == pytest.approx(alone.series("val_loss"), rel=1e-5)
    assert run.series("val_bpb") == pytest.approx(alone.series("val_bpb"), rel=1e-5)


def resumed(materials: Materials, pool: Pool, folder: Path, layouts: list[str]) -> Run:
    """Trains two steps in each layout, one after the other."""
    for index, layout in enumerate(layouts):
        keys, world = layout_keys(layout)
        values = {
            "model.config": str(materials.model(family("qwen3_moe"))),
            "training.local_batch_size": 2,
            "optimizer.eps": 1e-5,
            "training.steps": 2 * (index + 1),
            "lr_scheduler.total_steps": 8,
            **keys,
        }
        run = pool.run(write_job(materials, folder, values), folder, world=world, timeout=300)
        assert run.code == 0, run.output
    return run


@pytest.mark.slow
def test_a_run_moves_from_layout_to_layout(materials: Materials, pool: Pool, tmp_path: Path) -> None:
    """With packed experts under tensor parallelism, whole ones under expert parallelism, stages, and one process."""
    alone = resumed(materials, pool, tmp_path / "alone", ["dp1", "dp1", "dp1", "dp1"])
    moved = resumed(materials, pool, tmp_path / "moved", ["tp2", "pp2 tp2", "dp2 ep2", "dp1"])
    assert moved.series("loss") == pytest.approx(alone.series("loss"), rel=1e-5)
    assert_equal_weights(moved.weights(8), alone.weights(8))


def exported(materials: Materials, pool: Pool, folder: Path, layout: str) -> tuple[dict[str, str], dict]:
    """The folder that a job exports whose learning rate changes no weight: the texts of its files, and its tensors."""
    keys, world = layout_keys(layout)
    values = {
        "model.config": str(materials.model({**family("mixtral"), "tie_word_embeddings": True})),
        "training.steps": 1,
        "optimizer.lr": 1e-30,
        "export.enable": True,
        **keys,
    }
    run = pool.run(write_job(materials, folder, values), folder, world=world, timeout=300)
    assert run.code == 0, run.output
    found = folder / "hf" / "step-1"
    return {file.name: file.read_text() for file in found.glob("*.json")}, load_file(found / "model.safetensors")


@pytest.mark.parametrize(
    "layouts", [("dp2 ep2",), pytest.param(("tp2", "pp2", "cp2", "pp2 tp2"), marks=pytest.mark.slow)], ids=" ".join
)
def test_every_layout_exports_the_same_folder(
    materials: Materials, pool: Pool, tmp_path: Path, layouts: tuple[str, ...]
) -> None:
    """With packed experts, whole experts, stages and a tied head."""
    texts, tensors = exported(materials, pool, tmp_path / "alone" / "run", "dp1")
    assert "config.json" in texts
    for layout in layouts:
        other_texts, other_tensors = exported(materials, pool, tmp_path / layout / "run", layout)
        assert other_texts == texts, layout
        assert list(other_tensors) == list(tensors), layout
        for name, tensor in tensors.items():
            # A weight that is zero becomes one of the size of the learning rate.
            torch.testing.assert_close(other_tensors[name], tensor, rtol=0, atol=1e-25, msg=f"{layout}: {name}")


def patched(train: Train, model: str, layout: str, patch: str, **changes) -> Run:
    off = {"parallelism.preflight": "off"}
    return train(model, layout=layout, patch=f"tests.parallel.patches:{patch}", **off, **changes)


def test_parity_would_notice_a_pipeline_that_does_not_divide_its_loss(train: Train) -> None:
    wrong = patched(train, "odd", "pp2", "undivided_pipeline_loss")
    assert wrong.series("grad_norm")[0] > 50 * train("odd").series("grad_norm")[0]


@pytest.mark.parametrize("patch", ["untied_gradients", "twins_counted"])
def test_parity_would_notice_a_tied_embedding_in_two_halves(train: Train, patch: str) -> None:
    wrong = patched(train, "odd tied", "pp2", patch)
    assert wrong.series("grad_norm")[0] != pytest.approx(train("odd tied").series("grad_norm")[0], rel=1e-3)


def test_parity_would_notice_positions_that_start_over_in_every_part(train: Train) -> None:
    wrong = patched(train, "odd", "cp2", "local_positions")
    assert wrong.series("loss")[0] != pytest.approx(train("odd").series("loss")[0], rel=1e-5)


def test_parity_would_notice_gradients_of_some_heads_only(train: Train) -> None:
    wrong = patched(train, "qwen3", "tp2", "partial_gradients")
    with pytest.raises(AssertionError):
        assert_equal_weights(wrong.weights(STEPS), train("qwen3").weights(STEPS))


def test_steps_are_logged_on_the_first_rank_of_a_pipeline(train: Train) -> None:
    assert len(train("odd", layout="pp2").series("loss")) == STEPS
