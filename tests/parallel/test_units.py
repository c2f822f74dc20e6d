"""fla's families compute in every layout what one process computes: heads shared out, layers in stages, sequences in
parts.
"""

import pytest

from tests.parallel.parity import RECOMPUTE, Train, assert_equal_runs, family
from tests.runs import Materials, Pool, write_job

FAMILIES = ["gla", "gated_deltanet", "hgrn2", "transformer"]
VARLEN = {"training.varlen": True}


@pytest.mark.parametrize("layout", ["dp2", "tp2", "pp2", "cp2"])
@pytest.mark.parametrize("model", FAMILIES)
def test_a_layout_equals_one_process(train: Train, model: str, layout: str) -> None:
    assert_equal_runs(train(model, layout=layout), train(model))


@pytest.mark.parametrize(
    "model, layout",
    [
        ("hgrn2", "tp2 cp2"),
        ("mamba2", "tp2 cp2"),
        pytest.param("mamba", "tp2 cp2", marks=pytest.mark.slow),
        ("gated_deltanet", "tp2 pp2"),
        ("hgrn2", "pp2 cp2"),
        ("gla", "dp2 tp2"),
        pytest.param("hgrn2", "tp2 pp2 cp2", marks=pytest.mark.slow),
        pytest.param("retnet", "dp2 tp2 cp2", marks=pytest.mark.slow),
    ],
)
def test_a_product_of_layouts_equals_one_process(train: Train, model: str, layout: str) -> None:
    assert_equal_runs(train(model, layout=layout), train(model))


@pytest.mark.parametrize("model", ["gla", "transformer"])
@pytest.mark.parametrize("layout", ["cp2", "pp2 cp2"])
def test_packed_documents_across_parts_equal_one_process(train: Train, model: str, layout: str) -> None:
    assert_equal_runs(train(model, layout=layout, **VARLEN), train(model, **VARLEN))


@pytest.mark.parametrize("layout", ["tp2", "cp2"])
def test_recomputation_equals_one_process(train: Train, layout: str) -> None:
    assert_equal_runs(train("gated_deltanet", layout=layout, **{RECOMPUTE: "full"}), train("gated_deltanet"))


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
