import json
import re
from pathlib import Path

import pytest
import torch

from flame import families
from flame.errors import ConfigError
from flame.inference.decoders.base import objectives as decoders
from flame.plugin import load_plugin
from tests.parallel.matrix import Cell, table


@pytest.fixture(scope="module")
def listed() -> dict[str, families.Family]:
    return {family.model_type: family for family in families.families()}


def test_json_lists_what_can_be_trained(capsys: pytest.CaptureFixture[str]) -> None:
    assert families.main(["--json"]) == 0
    found = {entry["model_type"]: entry for entry in json.loads(capsys.readouterr().out)}
    works = {"works": True, "reason": ""}
    assert found["llama"] == {
        "model_type": "llama",
        "origin": "transformers",
        "heads": ["causal_lm"],
        "trains_here": True,
        "note": "",
        "objective": "autoregressive",
        "tasks": ["causal_lm", "sft"],
        "decodes_with_cache": True,
        "supports": {
            **dict.fromkeys(("data", "tensor", "pipeline", "context"), works),
            **dict.fromkeys(("expert", "varlen"), {"works": None, "reason": ""}),
        },
    }
    assert (found["gla"]["origin"], found["gla"]["trains_here"]) == ("fla", True)
    assert found["mamba3"]["trains_here"] is torch.accelerator.is_available()
    assert found["mamba3"]["trains_here"] or found["mamba3"]["note"].startswith("needs a GPU: its kernels")
    assert len(found) > 150


def test_every_objective_has_a_task_and_a_decoder(listed: dict[str, families.Family]) -> None:
    objectives = {family.objective for family in listed.values()}
    of_examples = {family.objective for family in listed.values() if family.decodes_with_cache is None}
    assert of_examples == {"ctc", "classification"}
    assert {"autoregressive", "recurrent_depth", "masked_diffusion"} <= objectives - of_examples <= set(decoders())
    assert all(family.tasks for family in listed.values())
    assert listed["llada"].tasks == ["masked_diffusion"]


def test_families_of_speech_and_series_are_listed_by_head_and_task(
    listed: dict[str, families.Family], capsys: pytest.CaptureFixture[str]
) -> None:
    speech, series = listed["hgrn_asr"], listed["hgrn_timeseries"]
    assert (speech.heads, speech.tasks) == (["ctc"], ["ctc"])
    assert (series.heads, series.tasks) == (["sequence_classification"], ["classification"])
    for family in (speech, series):
        assert family.trains_here and family.supports["data"].works
        assert all(family.supports[what].reason for what in ("tensor", "pipeline", "context"))
    families.main([])
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("  hgrn_timeseries")]
    assert re.fullmatch(
        r"  hgrn_timeseries +classification +classification +sequence_classification  yes +no \d +no \d +no \d", line
    )


def test_what_a_family_refuses_has_its_reason(listed: dict[str, families.Family]) -> None:
    plugin = load_plugin("huginn_raven")
    assert plugin.refuses["pipeline"]
    assert listed["huginn_raven"].supports["pipeline"] == families.Support(False, plugin.refuses["pipeline"])
    assert listed["cat"].supports["tensor"].works is False and "wte" in listed["cat"].supports["tensor"].reason
    assert listed["gla"].supports["varlen"].works
    assert not listed["stickbreaking_attn"].decodes_with_cache


def test_a_family_that_no_process_trains_says_why(listed: dict[str, families.Family]) -> None:
    assert listed["xmod"].note.startswith("does not train here: ValueError")
    assert listed["xmod"].supports["tensor"].works is False


def test_a_page_is_read_as_it_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names, layouts = ["a", "b", "c"], ["fsdp", "tp", "cp", "cp_alltoall", "ep"]
    cells = [Cell(name, layout, "equal") for name in "ab" for layout in layouts]
    cells += [
        Cell("a", "tp", "refused", "no plan"),
        Cell("a", "ep", "none"),
        Cell("c", "one", "untrained", "it | breaks"),
    ]
    text = table({(cell.family, cell.layout): cell for cell in cells}, names, layouts, "transformers")
    (tmp_path / "page.md").write_text(text)
    monkeypatch.setattr(families, "_DOCUMENTS", (tmp_path,))
    found = families.measured("page.md")
    works = families.Support(True)
    assert found["a"] == {
        "data": works,
        "tensor": families.Support(False, "no plan"),
        "context": works,
        "expert": families.Support(None),
    }
    assert set(found["b"].values()) == {works}
    assert set(found["c"].values()) == {families.Support(False, "does not train here: it / breaks")}
    assert families.measured("absent.md") == {}


def test_a_name_found_twice_is_listed_where_it_is_loaded_from(capsys: pytest.CaptureFixture[str]) -> None:
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
    assert "transformers:" in short and "\n  bloom" not in short
    assert "\n  bloom" in full
    assert "\n  gla" in short and "\n  llama" in short  # which has named shapes
    llada = next(line for line in short.splitlines() if line.startswith("  llada"))
    assert llada.split()[1:4] == ["masked_diffusion", "masked_diffusion", "causal_lm"]  # objective, task, head


def test_a_word_it_does_not_know_is_an_error() -> None:
    with pytest.raises(ConfigError, match="--jsn"):
        families.main(["--jsn"])
