"""`flame data show`, `stats` and `fingerprint` of jobs on recordings and series."""

import importlib.util
import json
import re
from pathlib import Path

import numpy as np
import pytest
from example_jobs import ctc_job, series_job

from flame.cli import main as flame
from flame.data.inspect.examples.sketch import WIDTH, sketch
from tests.examples import recordings, series
from tests.runs import Materials

Capture = pytest.CaptureFixture[str]


def with_one_broken(folder: Path, count: int) -> Path:
    """Recordings of which the last is none."""
    recordings(folder, count)
    (folder / f"{count - 1:02}.wav").write_bytes(b"no audio at all")
    return folder


def said(capsys: Capture, *words: str) -> str:
    assert flame(["data", *words]) == 0
    return capsys.readouterr().out


def test_a_recording_is_shown_with_its_place_length_and_transcript(
    materials: Materials, tmp_path: Path, capsys: Capture
) -> None:
    job = ctc_job(materials, tmp_path / "run", recordings(tmp_path / "audio", 12))
    shown = said(capsys, "show", f"--job.config_file={job}", "-n", "3", "--step=2", "--tokens")
    rows = shown.strip().split("\n\n")
    assert [re.match(r"━━ step 2, micro-batch 0, row (\d): (\d+) steps", row)[1] for row in rows] == ["0", "1", "2"]  # type: ignore[index]
    lines = rows[0].split("\n")
    number = int(re.findall(r"example (\d+) of", lines[1])[0])
    assert lines[1].endswith(f"{1 + number / 10:.2f}".rstrip("0").rstrip(".") + " seconds")
    assert f"audio/{number:02}.wav" in lines[2]
    transcript = (tmp_path / "audio" / f"{number:02}.txt").read_text()
    assert lines[3] == f"   {len(transcript)} labels: {transcript}"
    assert re.findall(r"'(.)'", lines[4]) == list(transcript)
    assert len(lines) == 5 + 8 + 1 and lines[-1].startswith("   16 channels, values from ")


def test_training_shows_examples_as_they_are_altered_and_validation_as_they_are(
    materials: Materials, tmp_path: Path, capsys: Capture
) -> None:
    folder = recordings(tmp_path / "audio", 5)
    changes = {"task.speeds": [0.5], "validation.sources": [{"path": str(folder)}], "validation.enable": True}
    job = ctc_job(materials, tmp_path / "run", folder, changes)
    slow, plain = (said(capsys, "show", f"--job.config_file={job}", "-n1", *word) for word in ([], ["--validation"]))
    frames = [int(re.findall(r"(\d+) steps", text)[0]) for text in (slow, plain)]
    seconds = [float(re.findall(r"([\d.]+) seconds", text)[0]) for text in (slow, plain)]
    assert frames[0] / seconds[0] == pytest.approx(200, rel=0.02)
    assert frames[1] / seconds[1] == pytest.approx(100, rel=0.03)


@pytest.mark.parametrize(
    "labels, changes, label",
    [(["cat", "dog"] * 6, {}, "cat|dog"), (np.arange(12) / 8, {"task.regression": True}, r"[\d.]+")],
)
def test_a_series_is_shown_with_a_curve_for_every_channel(
    labels, changes, label: str, materials: Materials, tmp_path: Path, capsys: Capture
) -> None:
    job = series_job(materials, tmp_path / "run", series(tmp_path / "x.npz", labels), changes)
    shown = said(capsys, "show", f"--job.config_file={job}", "-n", "1")
    lines = shown.strip().split("\n")
    steps = int(re.findall(r": (\d+) steps", lines[0])[0])
    assert re.fullmatch(f"   label: ({label})", lines[3])
    assert all(re.fullmatch(f"   [▁-█]{{{steps}}}", line) for line in lines[4:6]) and len(lines) == 7


def test_recordings_are_counted_by_source(materials: Materials, tmp_path: Path, capsys: Capture) -> None:
    sources = [
        {"path": str(with_one_broken(tmp_path / "many", 12)), "weight": 3.0},
        {"path": str(with_one_broken(tmp_path / "few", 5))},
    ]
    job = ctc_job(materials, tmp_path / "run", tmp_path, {"data.sources": sources, "task.speeds": [1.0]})
    report = tmp_path / "report"
    shown = said(capsys, "stats", f"--job.config_file={job}", "--steps=40", f"--out={report}")
    assert "labels/second" in shown and "75.00%" in shown and "not an audio file, such as" in shown
    figures = json.loads((report / "stats.json").read_text())
    many, few = figures["sources"]
    assert many["share"] == pytest.approx(0.75, abs=0.05) and [one["wanted"] for one in (many, few)] == [0.75, 0.25]
    assert (many["seen"], many["in_all"], few["seen"], few["in_all"]) == (11, 12, 4, 5)
    assert many["mean_length"] == pytest.approx(np.mean(1 + np.arange(11) / 10))
    assert few["lengths"]["longest"] == pytest.approx(1.3)
    assert figures["examples"] == many["examples"] + few["examples"] <= 320
    assert 0 < figures["padding"] < 0.2 and not figures["classes"]
    page = (report / "report.md").read_text()
    assert "labels/second" in page
    if importlib.util.find_spec("matplotlib"):
        assert {path.name for path in report.glob("*.png")} == {"shares.png", "lengths.png", "padding.png"}


def test_classes_and_numbers_are_counted(materials: Materials, tmp_path: Path, capsys: Capture) -> None:
    classes = series_job(materials, tmp_path / "run", series(tmp_path / "x.npz", ["cat", "cat", "dog", "cat"] * 4))
    shown = said(capsys, "stats", f"--job.config_file={classes}", "--steps=4", f"--out={tmp_path / 'report'}")
    assert "2 classes: cat 24, dog 8" in shown and "labels/step" not in shown
    assert not importlib.util.find_spec("matplotlib") or (tmp_path / "report/classes.png").is_file()
    numbers = series(tmp_path / "y.npz", np.arange(16) / 10)
    job = series_job(materials, tmp_path / "numbers", numbers, {"task.regression": True})
    shown = said(capsys, "stats", f"--job.config_file={job}", "--steps=4", f"--out={tmp_path / 'numbers'}")
    assert "labels from 0 to 1.5, mean 0.75," in shown
    assert not importlib.util.find_spec("matplotlib") or (tmp_path / "numbers/labels.png").is_file()


def test_two_ranks_have_the_fingerprints_of_one(materials: Materials, tmp_path: Path, capsys: Capture) -> None:
    changes = {"task.steps_per_batch": 1000, "task.time_masks": 1, "task.speeds": [0.9, 1.1]}
    job = ctc_job(materials, tmp_path / "run", recordings(tmp_path / "audio", 30), changes)
    alone = said(capsys, "fingerprint", f"--job.config_file={job}", "--steps=4")
    assert len(set(alone.split())) == 8
    assert said(capsys, "fingerprint", f"--job.config_file={job}", "--steps=4", "--world=2") == alone


def test_a_sketch_fits_and_spans_its_characters() -> None:
    ramp = np.linspace(0, 1, 1000)[:, None]
    (line,) = sketch(ramp)
    assert len(line) == WIDTH and (line[0], line[-1]) == ("▁", "█") and list(line) == sorted(line)
    shades = sketch(ramp + np.arange(80))
    assert len(shades) == 8 and set(shades[0]) == {"█"} and set(shades[-1]) == {" "}
    assert sketch(np.zeros((3, 1))) == ["▁▁▁"]
