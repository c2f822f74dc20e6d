"""fla's families compute in every layout what one process computes: heads shared out, layers in stages, sequences in
parts.
"""

import pytest

from tests.parallel.parity import OPTIONS, RECOMPUTE, Train, assert_equal_runs, family
from tests.runs import Materials, Pool, write_job

FAMILIES = ["gla", "gated_deltanet", "hgrn2", "transformer"]
LAYOUTS = ["dp2", "tp2", "pp2", "cp2"]
# The matrix has these too; in the default suite those that differ from GLA's in kind.
QUICK = {("gla", layout) for layout in LAYOUTS}
QUICK |= {
    ("gated_deltanet", "cp2"),
    ("hgrn2", "pp2"),
    ("transformer", "cp2"),
}
VARLEN = {"training.varlen": True}


@pytest.mark.parametrize(
    "model, layout",
    [
        pytest.param(model, layout, marks=() if (model, layout) in QUICK else pytest.mark.slow)
        for model in FAMILIES
        for layout in LAYOUTS
    ],
)
def test_a_layout_equals_one_process(train: Train, model: str, layout: str) -> None:
    assert_equal_runs(train(model, layout=layout), train(model))


@pytest.mark.parametrize(
    "model, layout",
    [
        pytest.param("hgrn2", "tp2 cp2", marks=pytest.mark.slow),
        pytest.param("mamba2", "tp2 cp2", marks=pytest.mark.slow),
        pytest.param("gated_deltanet", "tp2 pp2", marks=pytest.mark.slow),
        pytest.param("mamba", "tp2 cp2", marks=pytest.mark.slow),
        pytest.param("hgrn2", "pp2 cp2", marks=pytest.mark.slow),
        pytest.param("gla", "dp2 tp2", marks=pytest.mark.slow),
        pytest.param("hgrn2", "tp2 pp2 cp2", marks=pytest.mark.slow),
        pytest.param("retnet", "dp2 tp2 cp2", marks=pytest.mark.slow),
    ],
)
def test_a_product_of_layouts_equals_one_process(train: Train, model: str, layout: str) -> None:
    assert_equal_runs(train(model, layout=layout), train(model))


@pytest.mark.parametrize(
    "model, layout",
    [
        pytest.param(model, layout, marks=[] if (number, layout) == (0, "tp2") else [pytest.mark.slow])
        for layout in ("tp2", "cp2")
        for number, model in enumerate(OPTIONS)
    ],
)
def test_options_of_mixers_equal_one_process(train: Train, model: str, layout: str) -> None:
    assert_equal_runs(train(model, layout=layout), train(model))


@pytest.mark.parametrize(
    "model, layout",
    [
        pytest.param("gla", "cp2", marks=pytest.mark.slow),
        pytest.param("rwkv7", "cp2", marks=pytest.mark.slow),
        *(pytest.param(model, "pp2 cp2", marks=pytest.mark.slow) for model in ("gla", "transformer")),
    ],
)
def test_packed_documents_across_parts_equal_one_process(train: Train, model: str, layout: str) -> None:
    assert_equal_runs(train(model, layout=layout, **VARLEN), train(model, **VARLEN))


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["tp2", "cp2"])
def test_recomputation_equals_one_process(train: Train, layout: str) -> None:
    assert_equal_runs(train("gated_deltanet", layout=layout, **{RECOMPUTE: "full"}), train("gated_deltanet"))


@pytest.mark.slow
def test_recomputation_of_packed_parts_in_stages_equals_one_process(train: Train) -> None:
    """The backward pass of a micro-batch comes after the forward pass of the next."""
    assert_equal_runs(train("gla", layout="pp2 cp2", **{RECOMPUTE: "full", **VARLEN}), train("gla", **VARLEN))


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["dp2", "tp2", "cp2"])
def test_compiled_layers_equal_one_process(train: Train, layout: str) -> None:
    assert_equal_runs(train("gla", layout=layout, **{"compile.enable": True}), train("gla"))


def test_a_family_whose_heads_cannot_be_shared_is_refused(materials: Materials, pool: Pool, tmp_path) -> None:
    model = materials.model(family("bitnet"))
    job = write_job(materials, tmp_path / "run", {"model.config": model, "parallelism.context_parallel_degree": 2})
    run = pool.run(job, tmp_path / "run", world=2)
    assert run.code == 1
    assert "BitAttention, the 'attn' of family 'bitnet', cannot be split by heads; set the degree to 1" in run.output
