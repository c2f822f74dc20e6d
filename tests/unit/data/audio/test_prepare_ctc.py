"""Preparation for CTC: the same bytes every time, nothing half done, and every recording that is left out is told."""

import json
import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
from sounds import content, cut, tone, write_tone
from transformers import AutoTokenizer

from flame.config.corpora import Source
from flame.data.audio import prepare as preparing
from flame.data.audio.collect import characters_per_second
from flame.data.audio.command import prepare_ctc
from flame.data.audio.source import open_audio
from flame.data.cli import main
from flame.errors import ConfigError, DataError


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 recordings of ten digits by three speakers."""
    folder = tmp_path_factory.mktemp("digits")
    for number in range(60):
        write_tone(folder / f"{number % 10}_{'abc'[number % 3]}_{number}.wav", 0.4 + number / 500, 8000)
    return folder


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def run(*words: object) -> None:
    assert prepare_ctc([str(word) for word in words]) == 0


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_a_bare_folder_becomes_manifests_a_tokenizer_and_a_report(digits, tmp_path, capsys):
    assert main(["prepare-ctc", str(digits), "--transcript", r"^(\d)_", "--output", str(tmp_path / "out")]) == 0
    out = tmp_path / "out"
    train, validation = lines(out / "train.jsonl"), lines(out / "validation.jsonl")
    assert len(train) + len(validation) == 60 and 2 <= len(validation) <= 12
    assert train[0] == {"audio": str(digits / "0_a_0.wav"), "duration": 0.4, "text": "zero"}
    source = open_audio(Source(str(out), split="validation"))
    assert [record["text"] for record in source.read([0]) if isinstance(record, dict)] == [validation[0]["text"]]
    assert source.lengths(np.array([0]))[0] == validation[0]["duration"]
    tokenizer = AutoTokenizer.from_pretrained(out / "tokenizer")
    ids = tokenizer("seven").input_ids
    assert tokenizer.unk_token_id not in ids and tokenizer.decode(np.repeat([0, *ids, 0], 2).tolist()) == "seven"
    report = (out / "report.md").read_text()
    assert "| train | " in report and "Nothing was left out" in report and "lengths.png" in report
    assert f'path = "{out / "train.jsonl"}"' in capsys.readouterr().out


def test_the_same_sources_and_seed_give_the_same_bytes(digits, tmp_path):
    options = ("--transcript", r"^(\d)_", "--join", 2, 4, "--vocabulary", "bpe", "--vocab-size", 30)
    outs = [tmp_path / name / "out" for name in ("a", "b", "c")]
    for out, seed in zip(outs, (1, 1, 2), strict=True):
        run(digits, "--output", out, "--seed", seed, *options)
    first, second, other = map(contents, outs)
    assert first == second and first["train.jsonl"] != other["train.jsonl"]
    assert {"train.jsonl", "validation.jsonl", "report.md", "lengths.png", "tokenizer/tokenizer.json"} <= set(first)


def test_what_is_held_out_does_not_depend_on_where_the_corpus_lies_or_what_is_added(digits, tmp_path):
    moved = tmp_path / "moved"
    moved.mkdir()
    for path in digits.iterdir():
        (moved / path.name).symlink_to(path)
    for name in ("3_z_100.wav", "1_z_101.wav"):
        write_tone(moved / name, 0.4)
    held = []
    for source, out in ((digits, tmp_path / "a"), (moved, tmp_path / "b")):
        run(source, "--output", out, "--transcript", r"^(\d)_", "--validation", 0.3)
        held.append({Path(line["audio"]).name for line in lines(out / "validation.jsonl")})
    assert held[0] == {name for name in held[1] if "_z_" not in name}


def test_groups_are_held_out_whole(digits, tmp_path):
    run(digits, "--output", tmp_path / "out", "--transcript", r"^(\d)_", "--group", r"_(\w)_")
    speakers = [
        {Path(line["audio"]).name[2] for line in lines(tmp_path / "out" / f"{part}.jsonl")}
        for part in ("train", "validation")
    ]
    assert speakers[0] | speakers[1] == set("abc") and not speakers[0] & speakers[1] and len(speakers[1]) == 1
    with pytest.raises(DataError, match="finds nothing in '0_a_0.wav'"):
        run(digits, "--output", tmp_path / "no", "--transcript", r"^(\d)_", "--group", r"speaker(\d)")
    with pytest.raises(DataError, match="all recordings are of the group '_'"):
        run(digits, "--output", tmp_path / "no", "--transcript", r"^(\d)_", "--group", "_")


def test_joined_entries_stay_in_their_part_and_sound_as_they_say(digits, tmp_path):
    options = ("--transcript", r"^(\d)_", "--join", 3, 5, "--join-count", 40, "--silence", 0.1, 0.2, "--join-apart")
    run(digits, "--output", tmp_path / "out", "--validation", 0.2, *options)
    out = tmp_path / "out"
    for part in ("train", "validation"):
        single = {line["audio"]: line["text"] for line in lines(out / f"{part}.jsonl")}
        together = lines(out / f"{part}_joined.jsonl")
        assert len(together) == (40 if part == "train" else round(40 * len(single) / (60 - len(single))))
        for line in together:
            assert 3 <= len(line["audio"]) <= 5 and len(line["silence"]) == len(line["audio"]) - 1
            assert line["text"] == " ".join(single[path] for path in line["audio"])
            assert all(0.1 <= silence <= 0.2 for silence in line["silence"])
    record = open_audio(Source(str(out / "train_joined.jsonl"))).read([0])[0]
    stated = lines(out / "train_joined.jsonl")[0]["duration"]
    assert isinstance(record, dict) and len(record["audio"].load(8000)) / 8000 == pytest.approx(stated, abs=0.001)


def test_recordings_that_cannot_be_used_are_left_out_and_told(digits, tmp_path):
    folder = tmp_path / "speech"
    for name, seconds in (("good", 2.0), ("good2", 2.0), ("long", 9.0), ("short", 0.05), ("fast", 0.2), ("mute", 1.0)):
        write_tone(folder / f"{name}.wav", seconds)
        (folder / f"{name}.txt").write_text("" if name == "mute" else "a bee sees" if name != "short" else "a")
    cut(write_tone(folder / "cut.wav", 2.0), 0.5)
    (folder / "cut.txt").write_text("cut")
    noise = tone(1.0, 16000)
    noise[5] = np.nan
    soundfile.write(folder / "nan.wav", noise, 16000, subtype="FLOAT")
    (folder / "nan.txt").write_text("a number")
    run(folder, "--output", tmp_path / "out", "--max-seconds", 8, "--decode", "--validation", 0)
    assert [Path(line["audio"]).name for line in lines(tmp_path / "out" / "train.jsonl")] == ["good.wav", "good2.wav"]
    assert not lines(tmp_path / "out" / "validation.jsonl")
    report = (tmp_path / "out" / "report.md").read_text()
    for reason in (
        "too long",
        "too short",
        "too fast",
        "empty transcript",
        "truncated audio",
        "NaN or infinity in the",
    ):
        assert re.search(rf"^{reason}.*: 1, such as", report, re.MULTILINE), reason
    assert "Left out: 6 of 8" in report and "fast.wav: 0.20 s, 'a bee sees'" in report


def test_repeated_characters_need_a_frame_more():
    assert characters_per_second("abc", 1.0) == 3 and characters_per_second("aabb", 2.0) == 3


def test_audio_in_memory_is_written_beside_the_manifests(tmp_path):
    audio = [{"bytes": content(0.5 + i / 10, kind=kind), "path": None} for i, kind in enumerate(("WAV", "FLAC"))]
    kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    (tmp_path / "rows").mkdir()
    pq.write_table(pa.table({"audio": pa.array(audio, kind), "text": ["Ab!", "cd"]}), tmp_path / "rows" / "a.parquet")
    run(tmp_path / "rows", "--output", tmp_path / "out", "--validation", 0)
    source = open_audio(Source(str(tmp_path / "out")))
    assert sorted(path.suffix for path in (tmp_path / "out" / "audio").iterdir()) == [".flac", ".wav"]
    records = [record for record in source.read([0, 1]) if isinstance(record, dict)]
    assert [record["text"] for record in records] == ["ab", "cd"] and len(records[1]["audio"].load(16000)) == 9600


def test_a_prepared_folder_may_be_moved_if_its_paths_are_relative(tmp_path):
    write_tone(tmp_path / "all" / "speech" / "a.wav")
    (tmp_path / "all" / "speech" / "a.lab").write_text("a")
    run(tmp_path / "all" / "speech", "--output", tmp_path / "all" / "out", "--relative", "--validation", 0)
    (tmp_path / "all").rename(tmp_path / "moved")
    record = open_audio(Source(str(tmp_path / "moved" / "out"))).read([0])[0]
    assert isinstance(record, dict) and len(record["audio"].load(16000)) == 8000


def test_segments_of_a_manifest_stay_segments(tmp_path):
    write_tone(tmp_path / "long.wav", 10)
    rows = [{"audio": "long.wav", "offset": i, "duration": 1.5, "text": "a b"} for i in range(3)]
    (tmp_path / "list.jsonl").write_text("\n".join(map(json.dumps, rows)))
    run(tmp_path / "list.jsonl", "--output", tmp_path / "out", "--validation", 0, "--join", 2, 2, "--join-count", 1)
    *single, together = lines(tmp_path / "out" / "train.jsonl")
    path = str(tmp_path / "long.wav")
    assert single[1] == {"audio": path, "offset": 1.0, "duration": 1.5, "text": "a b"}
    assert all(part["duration"] == 1.5 for part in together["audio"])
    source = open_audio(Source(str(tmp_path / "out")))
    lengths = [len(record["audio"].load(16000)) for record in source.read(range(4)) if isinstance(record, dict)]
    assert lengths[:3] == [24000] * 3 and lengths[3] == pytest.approx(16000 * together["duration"], abs=2)


def test_nothing_half_is_taken_for_whole(digits, tmp_path, monkeypatch):
    out = tmp_path / "out"
    options = (digits, "--output", out, "--transcript", r"^(\d)_")
    with monkeypatch.context() as patch:

        def killed(*_: object) -> None:
            raise KeyboardInterrupt

        patch.setattr(preparing, "write_report", killed)
        with pytest.raises(KeyboardInterrupt):
            run(*options)
    assert not list(tmp_path.iterdir())
    run(*options)
    with pytest.raises(ConfigError, match="holds a preparation already"):
        run(*options)
    run(*options, "--overwrite", "--seed", 5)
    (out / "preparation.json").unlink()
    with pytest.raises(ConfigError, match="exists and is no preparation"):
        run(*options, "--overwrite")


@pytest.mark.parametrize(
    "words, message",
    [
        (["--validation", "1"], "a share is at least 0"),
        (["--join", "3", "2"], "--join 3 2"),
        (["--join-count", "3"], "need --join"),
        (["--silence", "2", "1"], "--silence 2 1"),
        (["--transcript", "^(\\d"], "not a regular expression"),
        (["--transcript", "^\\d"], "has 0 groups: put what is wanted into one"),
        (["--group", "(a)(b)"], "has 2 groups"),
        (["--language", "english"], "write two letters"),
        (["--max-seconds", "0"], "--max-seconds 0"),
        (["--format", "wav"], "invalid choice: 'wav'"),
        (["--transcript", "^(x)_"], "no recording is left .empty transcript: 60; such as .*0_a_0.wav"),
        (["--transcript", "^(\\d)_", "--vocabulary", "bpe", "--vocab-size", "5"], "alone have 16 characters"),
        (["--transcript", "^(\\d)_", "--language", "xx"], "numerals of the language 'xx' are not known"),
    ],
)
def test_what_makes_no_sense_is_told_in_one_line(digits, tmp_path, words, message):
    with pytest.raises((ConfigError, DataError), match=message) as caught:
        run(digits, "--output", tmp_path / "out", *words)
    assert "\n" not in str(caught.value) and not list(tmp_path.iterdir())
