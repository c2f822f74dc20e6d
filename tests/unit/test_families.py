import json

import pytest
import torch

from flame import families
from flame.errors import ConfigError


def test_json_lists_what_can_be_trained(capsys: pytest.CaptureFixture[str]) -> None:
    assert families.main(["--json"]) == 0
    found = {entry["model_type"]: entry for entry in json.loads(capsys.readouterr().out)}
    assert found["llama"] == {
        "model_type": "llama",
        "origin": "transformers",
        "heads": ["causal_lm"],
        "trains_here": True,
        "note": "",
    }
    assert (found["gla"]["origin"], found["gla"]["trains_here"]) == ("fla", True)
    assert found["mamba3"]["trains_here"] is torch.accelerator.is_available()
    assert found["mamba3"]["trains_here"] or found["mamba3"]["note"].startswith("needs a GPU: its kernels")
    assert len(found) > 150


def test_a_name_found_twice_is_listed_where_it_is_loaded_from(capsys: pytest.CaptureFixture[str]) -> None:
    from flame.plugin import load_plugin

    families.main(["--json"])
    entries = json.loads(capsys.readouterr().out)
    names = [entry["model_type"] for entry in entries]
    assert len(names) == len(set(names))
    (mamba,) = [entry for entry in entries if entry["model_type"] == "mamba2"]
    assert mamba["origin"] == load_plugin("mamba2").origin == "fla"


def test_the_list_for_people_is_short_unless_all_is_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    families.main([])
    short = capsys.readouterr().out
    families.main(["--all"])
    full = capsys.readouterr().out
    assert "transformers:" in short and "\n  llama" not in short
    assert "\n  llama" in full
    assert "\n  gla" in short


def test_a_word_it_does_not_know_is_an_error() -> None:
    with pytest.raises(ConfigError, match="--jsn"):
        families.main(["--jsn"])
