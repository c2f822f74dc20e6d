"""Every layout of recordings gives the same records, and every fault of a row or a source is named."""

import json
import pickle
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pytest
from sounds import content, cut, write_tone

from flame.config.corpora import Source
from flame.data.audio import durations
from flame.data.audio.source import AudioSource, audio_format, open_audio
from flame.data.sources.records import BadRow
from flame.errors import DataError

AUDIO = pa.struct({"bytes": pa.binary(), "path": pa.string()})
TEXTS = ["ONE", "two words", "Three, with a comma"]


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """Recordings of 0.2, 0.3 and 0.4 s in tmp_path/corpus/audio."""
    for number in range(3):
        write_tone(tmp_path / "corpus" / "audio" / f"r{number}.wav", 0.2 + number / 10)
    return tmp_path / "corpus"


def manifest(path: Path, *rows: object) -> Path:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def assert_holds(source: AudioSource, texts: list[str] = TEXTS) -> None:
    source = pickle.loads(pickle.dumps(source))
    assert len(source) == 3 and source.block == 1 and not source.tokenized
    np.testing.assert_allclose(source.lengths(np.arange(3)), [0.2, 0.3, 0.4])
    records = source.read([2, 0, 1])
    assert [record["text"] for record in records if isinstance(record, dict)] == [texts[2], texts[0], texts[1]]
    loaded = [len(record["audio"].load(8000)) for record in records if isinstance(record, dict)]
    assert loaded == [3200, 1600, 2400] and all(source.where(row) for row in range(3))


def bad(source: AudioSource) -> list[str]:
    return [row.reason if isinstance(row, BadRow) else "" for row in source.read(range(len(source)))]


@pytest.mark.parametrize("audio", ["audio", "audio_filepath", "path"])
@pytest.mark.parametrize("text", ["text", "transcript", "sentence"])
def test_a_manifest_is_read_by_its_usual_names(corpus, audio, text):
    rows = [{audio: f"audio/r{i}.wav", text: TEXTS[i]} for i in range(3)]
    assert_holds(open_audio(Source(str(manifest(corpus / "list.jsonl", *rows)))))


def test_a_manifest_is_read_by_names_of_its_own_and_chosen_by_split(corpus):
    rows = [{"wav": str(corpus / f"audio/r{i}.wav"), "said": TEXTS[i], "text": "no"} for i in range(3)]
    manifest(corpus / "test.jsonl", *rows)
    source = Source(str(corpus), split="test", audio_column="wav", text_column="said")
    assert audio_format(source) == "jsonl"
    assert_holds(open_audio(source))


def test_manifests_of_several_folders_each_know_their_own(corpus):
    write_tone(corpus / "more" / "r2.wav", 0.4)
    manifest(corpus / "a.jsonl", *[{"audio": f"audio/r{i}.wav", "text": TEXTS[i]} for i in range(2)])
    manifest(corpus / "more" / "b.jsonl", {"audio": "r2.wav", "text": TEXTS[2]})
    assert_holds(open_audio(Source(str(corpus), format="jsonl")))
    assert_holds(open_audio(Source(str(corpus), data_files=["a.jsonl", "more/*.jsonl"])))


def test_a_line_may_be_a_segment_or_join_several(corpus):
    path = manifest(
        corpus / "list.jsonl",
        {"audio": "audio/r2.wav", "offset": 0.1, "duration": 0.2, "text": "a"},
        {"audio": "audio/r2.wav", "start": 0.1, "stop": 0.25, "text": "b"},
        {"audio": ["audio/r0.wav", "audio/r1.wav"], "silence": 0.5, "text": "c"},
        {
            "audio": ["audio/r0.wav", {"audio": "audio/r2.wav", "start": 0.1, "duration": 0.1}, "audio/r1.wav"],
            "silence": [0.1, 0.2],
            "duration": 0.9,
            "text": "d",
        },
        {"audio": "audio/r1.wav", "duration": -1, "offset": 0.1, "text": "e"},
    )
    source = open_audio(Source(str(path)))
    assert bad(source) == [""] * 5
    expected = [0.2, 0.15, 1.0, 0.9, 0.2]
    np.testing.assert_allclose(source.lengths(np.arange(5)), expected)
    for record, seconds in zip(source.read(range(5)), expected, strict=True):
        assert isinstance(record, dict) and len(record["audio"].load(16000)) == round(16000 * seconds)


def test_librispeech(tmp_path):
    for number, name in enumerate(["84/121/84-121-0000", "84/121/84-121-0001", "84/99/84-99-0000"]):
        write_tone(tmp_path / "Libri" / "dev-clean" / f"{name}.flac", 0.2 + number / 10)
    (tmp_path / "Libri/dev-clean/84/121/84-121.trans.txt").write_text("84-121-0000 ONE\n84-121-0001 two words\n")
    (tmp_path / "Libri/dev-clean/84/99/84-99.trans.txt").write_text("84-99-0000 Three, with a comma\n")
    assert_holds(open_audio(Source(str(tmp_path / "Libri"))))
    assert_holds(open_audio(Source(str(tmp_path / "Libri"), split="dev-clean", format="librispeech")))
    with pytest.raises(DataError, match="no folder 'dev'"):
        open_audio(Source(str(tmp_path / "Libri"), split="dev"))


def test_common_voice(tmp_path):
    for number in range(3):
        write_tone(tmp_path / "cv" / "clips" / f"c{number}.mp3", 0.2 + number / 10)
    lines = [f'x\tc{i}{".mp3" if i else ""}\t{text}"\t' for i, text in enumerate(TEXTS)]
    (tmp_path / "cv" / "dev.tsv").write_text("client_id\tpath\tsentence\tage\n" + "\n".join(lines) + "\n")
    texts = [f'{text}"' for text in TEXTS]
    assert_holds(open_audio(Source(str(tmp_path / "cv"), split="dev")), texts)
    assert_holds(open_audio(Source(str(tmp_path / "cv" / "dev.tsv"))), texts)
    (tmp_path / "cv" / "clip_durations.tsv").write_text("clip\tduration[ms]\nc0.mp3\t5000\n")
    assert open_audio(Source(str(tmp_path / "cv"), split="dev")).lengths(np.array([0, 1])).tolist() == [5.0, 0.3]
    with pytest.raises(DataError, match="has no devel.tsv, only clip_durations, dev: set split. Did you mean 'dev'"):
        open_audio(Source(str(tmp_path / "cv"), split="devel"))
    with pytest.raises(DataError, match="no column 'text', only client_id, path"):
        open_audio(Source(str(tmp_path / "cv"), split="dev", text_column="text"))


@pytest.mark.parametrize("suffix", [".txt", ".lab"])
def test_a_folder_with_a_text_beside_every_recording(corpus, suffix):
    for number, text in enumerate(TEXTS):
        (corpus / "audio" / f"r{number}{suffix}").write_text(f"{text}\n")
    assert_holds(open_audio(Source(str(corpus))))


@pytest.mark.parametrize(
    "name, line",
    [
        ("metadata.csv", "r{}|{}|normalised"),
        ("transcripts.txt", "audio/r{}.wav\t{}"),
        ("transcripts.txt", "r{}.wav\t{}"),
    ],
)
def test_a_folder_with_a_table(corpus, name, line):
    (corpus / name).write_text("\n".join(line.format(i, text) for i, text in enumerate(TEXTS)))
    assert_holds(open_audio(Source(str(corpus), format="folder")))


def test_a_folder_with_a_table_that_has_a_header(corpus):
    rows = [f'audio/r{i}.wav,"{text}"' for i, text in enumerate(TEXTS)]
    (corpus / "metadata.csv").write_text("\n".join(["file_name,transcription", *rows]))
    assert_holds(open_audio(Source(str(corpus))))


def with_audio(columns: dict, name: str) -> datasets.Dataset:
    """A table whose column of that name is audio; encoding it would take a package more."""
    dataset = datasets.Dataset(pa.table(columns))
    return dataset.cast_column(name, datasets.Audio())


def table(corpus: Path, in_memory: bool) -> datasets.Dataset:
    files = [corpus / "audio" / f"r{i}.wav" for i in range(3)]
    audio = [{"bytes": file.read_bytes() if in_memory else None, "path": str(file)} for file in files]
    return with_audio({"speech": pa.array(audio, AUDIO), "sentence": TEXTS, "duration": [200, 300, 400]}, "speech")


@pytest.mark.parametrize("in_memory", [True, False])
def test_a_saved_dataset_and_a_parquet_file_with_audio(corpus, tmp_path, in_memory):
    dataset = table(corpus, in_memory)
    dataset.save_to_disk(str(tmp_path / "saved"))
    assert_holds(open_audio(Source(str(tmp_path / "saved"))))
    dataset.to_parquet(str(tmp_path / "rows" / "rows.parquet"))
    assert_holds(open_audio(Source(str(tmp_path / "rows"), text_column="sentence", audio_column="speech")))


def test_faults_of_rows_are_told_by_row(corpus, tmp_path):
    cut(write_tone(corpus / "cut.wav"), 0.5)
    (corpus / "text.wav").write_text("no audio")
    good = {"audio": "audio/r0.wav", "text": "good"}
    faults = {
        "": good,
        "empty transcript": {"audio": "audio/r0.wav", "text": " "},
        "not a string": {"audio": "audio/r0.wav", "text": 7},
        "missing column": {"text": "a"},
        "unreadable audio": good | {"audio": "gone.wav"},
        "truncated audio": good | {"audio": "cut.wav"},
        "not an audio file": good | {"audio": "text.wav"},
        "segment outside the file": good | {"offset": 3},
        "not a number": good | {"offset": "3"},
        "no path of audio": good | {"audio": 7},
        "no audio": good | {"audio": []},
        "wrong silence": good | {"audio": ["audio/r0.wav"] * 3, "silence": [0.1]},
        "not JSON": "{",
        "not a JSON object": "[1]",
    }
    source = open_audio(Source(str(manifest(corpus / "list.jsonl", *faults.values()))))
    assert bad(source) == list(faults)
    lengths = source.lengths(np.arange(len(source)))
    assert lengths[0] == 0.2 and np.isfinite(lengths).all()
    rows = source.read(range(len(source)))
    assert all(f"row {number + 1}" in row.where for number, row in enumerate(rows) if isinstance(row, BadRow))
    no_text = open_audio(Source(str(corpus / "list.jsonl")), text_required=False)
    assert bad(no_text)[:3] == ["", "", "not a string"]


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda folder: Source(""), "has no path"),
        (lambda folder: Source(str(folder / "none")), "no file or folder"),
        (lambda folder: Source(str(folder / "audio" / "r0.wav")), "is a single recording: name a folder"),
        (lambda folder: Source(str(folder), format="wav"), "no format 'wav' of recordings: it is one of jsonl"),
        (lambda folder: Source("s3://bucket/a.jsonl"), "recordings are read from this machine"),
        (lambda folder: Source(str(folder), streaming=True), "streaming = true has no effect"),
        (lambda folder: Source(str(folder), layout="messages"), "layout = 'messages' has no effect on a folder"),
        (lambda folder: Source(str(folder), text_column="a"), "text_column = 'a' has no effect on a folder of record"),
        (lambda folder: Source(str(folder), split="test"), "has no split 'test'"),
        (lambda folder: Source(str(folder), format="librispeech"), "no \\*.trans.txt in"),
        (lambda folder: Source(str(folder), format="common_voice"), "has no train.tsv"),
        (lambda folder: Source(str(manifest(folder / "e.jsonl"))), "holds no recordings"),
        (lambda folder: Source(str(manifest(folder / "e.jsonl", {"a": 1}))), "none of the columns audio, audio_filep"),
        (lambda folder: Source(str(manifest(folder / "e.jsonl", {"audio": "a"}))), "no column of transcripts"),
        (lambda folder: Source(str(manifest(folder / "e.jsonl", {"audio": "a"})), text_column="b"), "no column 'b'"),
        (lambda folder: Source(str(folder / "audio" / "..") + "/../empty"), "holds no recordings, manifests or tables"),
    ],
)
def test_what_is_wrong_with_a_source_is_an_error_at_opening(corpus, make, message):
    (corpus.parent / "empty").mkdir()
    with pytest.raises(DataError, match=message) as caught:
        open_audio(make(corpus))
    assert "\n" not in str(caught.value)


def test_lengths_are_read_once_per_version_of_a_file(corpus, monkeypatch):
    read: list[str] = []
    own = durations.read_header

    def counted(source, where):
        read.append(Path(where).name)
        return own(source, where)

    monkeypatch.setattr(durations, "read_header", counted)
    source = Source(str(corpus))
    for _ in range(2):
        assert open_audio(source, text_required=False).lengths(np.array([1]))[0] == 0.3
    assert sorted(read) == ["r0.wav", "r1.wav", "r2.wav"]
    write_tone(corpus / "audio" / "r1.wav", 0.7)
    (corpus / "audio" / "r2.wav").write_bytes(b"")
    assert open_audio(source, text_required=False).lengths(np.array([0, 1, 2])).tolist() == [0.2, 0.7, 0.0]
    assert sorted(read[3:]) == ["r1.wav", "r2.wav"]


def test_a_damaged_record_of_lengths_is_made_again(corpus, own_cache):
    open_audio(Source(str(corpus)), text_required=False)
    (record,) = (own_cache / "durations").glob("*.json")
    for damage in (b"", b"[]", b'{"a": 1}'[:5], b"\xff"):
        record.write_bytes(damage)
        assert open_audio(Source(str(corpus)), text_required=False).lengths(np.array([0]))[0] == 0.2


def test_hub_rows_in_memory_have_faults_too(tmp_path):
    audio = [{"bytes": content(), "path": None}, {"bytes": b"none", "path": "x.wav"}, None]
    dataset = with_audio({"audio": pa.array(audio, AUDIO), "text": ["a", "b", "c"]}, "audio")
    dataset.save_to_disk(str(tmp_path / "saved"))
    source = open_audio(Source(str(tmp_path / "saved")))
    assert bad(source) == ["", "not an audio file", "no path of audio"]
    assert source.lengths(np.arange(3)).tolist() == [0.5, 0, 0]
