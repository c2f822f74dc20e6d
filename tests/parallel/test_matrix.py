"""Every family is trained right in a layout, or refused before the first step; ``tests.parallel.matrix`` does the work.

A few families of different kinds are always tried, with what became of them; all of them with ``-m slow``.
"""

import re
from pathlib import Path
from typing import Any

import pytest

from flame.plugin import custom_families, installed_families, transformers_families
from tests.parallel.matrix import FAILURES, LAYOUTS, TOLERANCE, Bench, Cell, Log, difference, table, versions
from tests.runs import Materials, Pool, Run

# Dense, tied and windowed; experts and latent attention; convolutions for projections and no plan; a state-space
# hybrid; linear attention and experts; one weight for all norms; partial rotation and biases; sums that skip layers.
EXPECTED = {
    "gemma2": {"fsdp": "equal", "tp": "equal", "pp": "equal", "cp": "equal"},
    "deepseek_v3": {"fsdp": "equal", "tp": "equal", "pp": "equal", "ep": "equal"},
    "gpt2": {"fsdp": "equal", "tp": "refused", "pp": "equal", "cp": "equal"},
    "bamba": {"fsdp": "equal", "tp": "refused", "pp": "equal", "cp": "refused"},
    "minimax": {"fsdp": "equal", "tp": "equal", "ep": "equal", "cp_alltoall": "refused"},
    "nanochat": {"fsdp": "equal", "tp": "equal", "pp": "equal", "cp": "equal"},
    "phi": {"fsdp": "equal", "tp": "equal", "pp": "equal", "cp_alltoall": "equal"},
    "recurrent_gemma": {"fsdp": "equal", "tp": "refused", "pp": "equal", "cp": "refused"},
    "huginn_raven": {"fsdp": "equal", "tp": "equal", "pp": "refused", "cp": "equal", "resume": "equal"},
    "llada": {"fsdp": "equal", "tp": "equal", "pp": "equal", "cp_alltoall": "equal", "resume": "equal"},
    "sba": {"tp": "equal", "pp": "equal", "cp": "refused"},
    "nanochat_plus": {"fsdp": "equal", "tp": "equal", "pp": "refused"},
    "hgrn_asr": {"fsdp": "equal", "tp": "refused", "resume": "equal"},
    "hgrn_timeseries": {"fsdp": "equal", "pp": "refused", "cp": "refused"},
}


@pytest.fixture(scope="module")
def bench(materials: Materials, pool: Pool, tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(materials, pool, tmp_path_factory.mktemp("matrix"))


SELDOM = ("bamba", "minimax", "phi", "recurrent_gemma")  # which the other rows nearly say


@pytest.mark.parametrize(
    "model_type, layout",
    [
        pytest.param(model_type, layout, marks=[pytest.mark.slow] if model_type in SELDOM else [])
        for model_type, row in EXPECTED.items()
        for layout in row
    ],
)
def test_a_family_computes_the_same_or_is_refused(bench: Bench, model_type: str, layout: str) -> None:
    cell = bench.cell(model_type, layout)
    assert cell.outcome == EXPECTED[model_type][layout], f"{cell.reason}\n{cell.detail}"


@pytest.mark.parametrize(
    "changes",
    [
        {"training.local_batch_size": 2},
        {"parallelism.data_parallel_shard_degree": 2, "activation_checkpoint.mode": "full"},
        {"compile.enable": True, "compile.backend": "aot_eager"},
    ],
    ids=["accumulated", "recomputed", "compiled"],
)
@pytest.mark.parametrize("model_type", ["huginn_raven", "llada"])
def test_what_is_drawn_for_a_step_does_not_depend_on_how_it_is_run(
    bench: Bench, model_type: str, changes: dict[str, Any]
) -> None:
    """The depth of a recurrence, noise: and a core that runs many times is recomputed and compiled like any layer."""
    started = bench.start(model_type)
    assert not isinstance(started, Cell)
    values, reference = started
    world = 2 if "parallelism.data_parallel_shard_degree" in changes else 1
    run, cell = bench.train(model_type, values, "changed", changes, world=world)
    assert run is not None, f"{cell.reason}\n{cell.detail}"
    assert not difference(run, reference, TOLERANCE)


@pytest.mark.slow
@pytest.mark.parametrize("model_type", sorted({*custom_families(), *installed_families(), *transformers_families()}))
def test_no_family_does_a_third_thing(bench: Bench, model_type: str) -> None:
    for cell in bench.family(model_type, LAYOUTS):
        assert cell.outcome not in FAILURES, f"{cell.layout}: {cell.outcome}, {cell.reason}\n{cell.detail}"


def test_the_matrix_would_notice_a_wrong_loss(bench: Bench, tmp_path: Path) -> None:
    started = bench.start("gpt2")
    assert not isinstance(started, Cell)
    reference = started[1]
    wrong = Run(tmp_path)
    text = (reference.folder / "metrics.jsonl").read_text()
    (tmp_path / "metrics.jsonl").write_text(re.sub(r'"loss": (\d)', r'"loss": 1\1', text))
    assert difference(wrong, reference, 1e-4).startswith("loss off by")
    assert not difference(reference, reference, 0.0)


def test_a_log_keeps_what_is_settled_and_a_table_groups_reasons(tmp_path: Path) -> None:
    log = Log(tmp_path / "log.jsonl")
    for cell in (
        Cell("gpt2", "tp", "refused", "no plan"),
        Cell("opt", "tp", "refused", "no plan"),
        Cell("opt", "pp", "crash", "a rank died"),
        Cell("gpt2", "pp", "equal"),
        Cell("xlm", "one", "untrained", "it looks both ways"),
    ):
        log.add(cell)
    again = Log(log.path)
    assert again.left("opt", ["tp", "pp"]) == ["pp"]
    assert not again.left("gpt2", ["tp", "pp"]) and not again.left("xlm", ["tp", "pp"])
    assert Log(log.path, again=True).left("gpt2", ["tp", "pp"]) == ["tp"]
    page = table(log.cells, ["gpt2", "opt", "xlm"], ["tp", "pp"], origin="transformers")
    assert (
        "| gpt2 | – 1 | = |\n| opt | – 1 | **crash** 2 |\n| xlm | does not train here: it looks both ways | |" in page
    )
    assert "\n1. no plan\n2. a rank died\n" in page and versions()["torch"] in page
