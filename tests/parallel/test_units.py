"""fla's families compute in every layout what one process computes: heads shared out, layers in stages, sequences in
parts.
"""

import pytest

from tests.parallel.parity import Train, assert_equal_runs

LAYOUTS = ["dp2", "tp2", "pp2", "cp2"]
FAMILIES = ["gla", "gated_deltanet", "hgrn2", "transformer"]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("model", FAMILIES)
def test_a_layout_equals_one_process(train: Train, model: str, layout: str) -> None:
    assert_equal_runs(train(model, layout=layout), train(model))
