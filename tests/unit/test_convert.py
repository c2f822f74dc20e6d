"""Names in other layouts turn into the model's and back."""

import pytest

from flame.convert import inverted, renamer

NAMES = {"blocks.*.experts.*.w": "layers.*.mlp.*.weight", "wte.weight": "embed.weight"}


def test_numbers_keep_their_places() -> None:
    rename = renamer(NAMES)
    assert rename("blocks.3.experts.12.w") == "layers.3.mlp.12.weight"
    assert rename("wte.weight") == "embed.weight"


@pytest.mark.parametrize("name", ["embed.weight", "my.wte.weight", "wte_weight", "blocks.x.experts.1.w"])
def test_a_name_the_table_does_not_have_stays(name: str) -> None:
    assert renamer(NAMES)(name) == name


def test_the_same_table_leads_back() -> None:
    there, back = renamer(NAMES), renamer(inverted(NAMES))
    for name in ("blocks.3.experts.12.w", "wte.weight", "other"):
        assert back(there(name)) == name


def test_names_that_become_one_have_no_way_back() -> None:
    with pytest.raises(ValueError, match="2 names become 1"):
        inverted({"a": "c", "b": "c"})
