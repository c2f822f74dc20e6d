"""`flame data stats`: the figures agree with what the loader gives."""

import importlib.util
import json
from collections.abc import Callable
from itertools import takewhile
from pathlib import Path
from typing import Any

import pytest
from data_stand_ins import Data, Source, document

from flame.cli import main as flame
from flame.config import Stage
from flame.data import TextEncoder
from flame.data.inspect.measure import Measurement
from flame.data.inspect.report import text_table, write_report
from flame.data.inspect.rows import Rows
from flame.data.loader import Loader
from tests.runs import Materials, write_job


@pytest.fixture
def measure(encoder: TextEncoder) -> Callable[[Loader, list[str], int], tuple[Measurement, dict[str, Any]]]:
    def measured(loader: Loader, names: list[str], steps: int) -> tuple[Measurement, dict[str, Any]]:
        rows = Rows(loader, 8)
        measurement = Measurement(rows, names, encoder)
        for placed in takewhile(lambda placed: placed.step <= steps, rows):
            measurement.add(placed)
        return measurement, measurement.figures()

    return measured


@pytest.fixture
def other(tmp_path: Path) -> Source:
    path = tmp_path / "other.jsonl"
    path.write_text("".join(json.dumps({"text": "other " + document(i) * 3}) + "\n" for i in range(50)) + "broken\n")
    return Source(str(path))


def test_shares_are_held_against_the_weights(make_loader, measure, numbered: Source, other: Source) -> None:
    numbered.weight, other.weight = 3.0, 1.0
    _, figures = measure(make_loader(numbered, other), ["numbered", "other"], 50)
    assert figures["rows"] == 400 and figures["tokens"] == 400 * 48
    assert [source["wanted"] for source in figures["sources"]] == [0.75, 0.25]
    assert figures["sources"][0]["share"] == pytest.approx(0.75, abs=0.01)
    assert sum(source["tokens"] for source in figures["sources"]) == figures["tokens"]
    assert figures["skipped"] == {"not JSON": figures["skipped"]["not JSON"]} and figures["skipped"]["not JSON"] > 0


def test_wanted_shares_follow_the_stages(make_loader, measure, numbered: Source, other: Source) -> None:
    data = Data(stages=[Stage(start=11, weights=[0.0, 1.0])])
    _, figures = measure(make_loader(numbered, other, data=data), ["numbered", "other"], 20)
    assert [source["wanted"] for source in figures["sources"]] == [0.25, 0.75]
    assert figures["sources"][1]["share"] == pytest.approx(0.75, abs=0.02)


@pytest.mark.parametrize("packing", ["stream", "best_fit", "rows"])
def test_lengths_are_those_of_whole_documents_however_rows_cut_them(
    make_loader, measure, numbered: Source, packing: Any
) -> None:
    loader = make_loader(numbered, data=Data(packing=packing, lanes_per_row=1), seq_len=32)
    measurement, figures = measure(loader, ["numbered"], 60)
    expected = sorted(len(document(i)) + 2 for i in range(60))  # with <s> and </s>
    assert sorted(measurement.lengths[0]) == expected
    assert figures["sources"][0]["lengths"]["longest"] == expected[-1]
    assert figures["sources"][0]["documents"] == figures["sources"][0]["documents_in_all"] == 60


def test_every_passing_from_row_to_row_is_counted(make_loader, measure, tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text("".join(json.dumps({"text": "x" * 70}) + "\n" for _ in range(48)))  # 72 tokens: one and a half rows
    expected: dict[Any, int] = {"stream": 3, "rows": 2}
    for packing, cut in expected.items():  # of the four rows of each of 24 lanes
        _, figures = measure(make_loader(Source(str(path)), data=Data(packing=packing)), ["x"], 12)
        assert figures["cut_by_rows"] == 24 * cut


def test_padding_is_what_rows_of_single_documents_leave(make_loader, measure, numbered: Source) -> None:
    _, figures = measure(make_loader(numbered, data=Data(packing="rows"), seq_len=64), ["numbered"], 30)
    mean = sum(len(document(i)) + 2 for i in range(60)) / 60
    assert figures["filled"] == pytest.approx(mean / 64, abs=0.03)
    assert figures["filled"] + figures["padding"] == 1
    assert figures["documents_per_row"] == 1
    assert figures["scored"] == pytest.approx((mean - 1) / 64, abs=0.03)


def test_one_pass_ends_when_all_documents_have_come(make_loader, measure, numbered: Source) -> None:
    measurement, figures = measure(make_loader(numbered, repeat=False), ["numbered"], 10**6)
    assert figures["tokens"] == sum(len(document(i)) + 2 for i in range(60)) == sum(measurement.lengths[0])


def test_the_report_has_a_table_figures_and_pictures(
    make_loader, measure, numbered: Source, other: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measurement, figures = measure(
        make_loader(numbered, other, data=Data(packing="rows", lanes_per_row=1)), ["num|bered", "other"], 20
    )
    table = text_table(figures)
    assert "wanted" in table and "50.00%" in table and "not JSON" in table
    said = write_report(tmp_path / "report", "a job", figures, measurement)
    page = (tmp_path / "report/report.md").read_text()
    assert "# Data of a job" in page and "num\\|bered" in page
    assert json.loads((tmp_path / "report/stats.json").read_text()) == json.loads(json.dumps(figures))
    if importlib.util.find_spec("matplotlib"):
        assert {path.name for path in (tmp_path / "report").glob("*.png")} == {"shares.png", "lengths.png", "fill.png"}
        assert len(said) == 1 and page.count("](") == 3
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    said = write_report(tmp_path / "plain", "a job", figures, measurement)
    assert "flame[plots]" in said[1] and not list((tmp_path / "plain").glob("*.png"))
    assert "](" not in (tmp_path / "plain/report.md").read_text()


def test_the_command_prints_a_table_and_writes_a_report(
    materials: Materials, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sources = [{"path": str(materials.train), "weight": 3}, {"path": str(materials.held_out), "weight": 1}]
    job = write_job(materials, tmp_path / "run", {"data.sources": sources})
    assert flame(["data", "stats", f"--job.config_file={job}", "--steps=20", f"--out={tmp_path}/report"]) == 0
    said = capsys.readouterr().out
    assert "75.00%" in said and "20 steps, 160 rows of 32 tokens" in said and f"report: {tmp_path}/report" in said
    (tmp_path / "file").write_text("")
    assert flame(["data", "stats", f"--job.config_file={job}", "--steps=1", f"--out={tmp_path}/file"]) == 2
    assert "cannot write the report" in capsys.readouterr().err
