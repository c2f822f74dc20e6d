"""Speech recognition from sounds to text: a language of four tones is learnt, exported and transcribed."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import soundfile
import torch

from flame import cli
from flame.data.audio.decoding import resample
from flame.inference import transcribe
from flame.inference.recognizer import load_recognizer
from flame.tokenizer.characters import character_tokenizer
from tests.e2e.tones import LETTER, RATE, random_text, say, write_corpus, write_said
from tests.runs import Materials, Pool, Run, environment, write_job

MODEL: dict[str, Any] = {
    "model_type": "hgrn_asr",
    "vocab_size": 7,
    "sampling_rate": RATE,
    "num_mel_bins": 20,
    "subsampling": 4,
    "hidden_size": 48,
    "num_hidden_layers": 2,
    "dropout": 0.0,
}
MODELS = {
    "both ways": {**MODEL, "bidirectional": True, "normalise": "utterance"},
    "one way": {**MODEL, "bidirectional": False, "normalise": "global"},
}
STEP = 0.04  # seconds of the model's output
TEXT = "abd cca"

PIPELINE = """
import json, sys
import numpy as np
from transformers import pipeline
folder, file, rate = sys.argv[1:]
made = pipeline("automatic-speech-recognition", model=folder, trust_remote_code=True, device="cpu")
samples = np.load(file)
found = made({"raw": samples, "sampling_rate": int(rate)})
assert not [name for name in sys.modules if name.split(".")[0] in ("flame", "torchtitan")]
print(json.dumps(found))
"""


class Corpus(NamedTuple):
    """What is learnt and what is held out."""

    train: Path
    held_out: Path
    tokenizer: Path


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    folder = tmp_path_factory.mktemp("tones")
    character_tokenizer(" abcd").save_pretrained(folder / "tokenizer")
    return Corpus(
        write_corpus(folder / "train", 60, seed=1), write_corpus(folder / "held_out", 10, seed=2), folder / "tokenizer"
    )


def trained(corpus: Corpus, materials: Materials, pool: Pool, folder: Path, name: str) -> Run:
    values = {
        "model.config": str(materials.model(MODELS[name])),
        "model.tokenizer_path": str(corpus.tokenizer),
        "task.name": "ctc",
        "data.sources": [{"path": str(corpus.train)}],
        "training.seq_len": 300,
        "training.local_batch_size": 16,
        "training.global_batch_size": 16,
        "training.steps": 280,
        "optimizer.lr": 1e-2,
        "lr_scheduler.warmup_steps": 20,
        "lr_scheduler.decay_ratio": 0.3,
        "metrics.log_freq": 10,
        "validation.enable": True,
        "validation.freq": 140,
        "validation.sources": [{"path": str(corpus.held_out)}],
        "export.enable": True,
    }
    run = pool.run(write_job(materials, folder, values), folder, timeout=200)
    assert run.code == 0, run.output
    return run


@pytest.fixture(scope="module")
def both_ways(corpus: Corpus, materials: Materials, pool: Pool, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return trained(corpus, materials, pool, tmp_path_factory.mktemp("speech") / "run", "both ways")


@pytest.fixture(scope="module")
def one_way(corpus: Corpus, materials: Materials, pool: Pool, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return trained(corpus, materials, pool, tmp_path_factory.mktemp("speech") / "run", "one way")


@pytest.fixture(scope="module", params=MODELS)
def run(request: pytest.FixtureRequest) -> Run:
    return request.getfixturevalue(request.param.replace(" ", "_"))


class Transcript(NamedTuple):
    code: int
    out: str
    err: str


class Transcriber:
    """``flame transcribe`` with a run's newest model."""

    def __init__(self, capsys: pytest.CaptureFixture[str]):
        self.capsys = capsys

    def __call__(self, run: Run, *words: str | Path) -> Transcript:
        self.capsys.readouterr()
        arguments = ["--model", str(run.folder / "hf" / "latest"), *map(str, words)]
        code = cli.run(transcribe.main, arguments)
        captured = self.capsys.readouterr()
        return Transcript(code, captured.out, captured.err)


@pytest.fixture
def heard(capsys: pytest.CaptureFixture[str]) -> Transcriber:
    return Transcriber(capsys)


def test_a_language_of_tones_is_learnt(run: Run) -> None:
    assert run.series("val_cer")[-1] < 0.2
    assert run.series("val_loss")[-1] < run.series("val_loss")[0]
    assert run.series("loss_per_label")[-1] < run.series("loss_per_label")[0] / 4
    assert {"val_wer", "val_cer", "val_loss_per_label"} <= run.records[-1].keys() | run.records[-2].keys()


def test_tokens_are_frames_of_the_recordings(run: Run, corpus: Corpus) -> None:
    per_step = np.diff(run.series("tokens")) / 10
    frames = [soundfile.info(file).duration * 100 - 2 for file in corpus.train.parent.glob("*.wav")]
    assert per_step.mean() == pytest.approx(16 * np.mean(frames), rel=0.05)


def test_a_recording_never_heard_is_transcribed(run: Run, heard: Transcriber, tmp_path: Path) -> None:
    found = heard(run, write_said(tmp_path / "new.wav", TEXT, seed=99))
    assert found.code == 0 and found.out.split() == TEXT.split()
    assert "real-time factor" in found.err and len(found.err.splitlines()) == 1


def test_the_command_line_transcribes(one_way: Run, tmp_path: Path) -> None:
    file = write_said(tmp_path / "new.wav", TEXT, seed=98)
    command = [sys.executable, "-m", "flame.cli", "transcribe", "--model", str(one_way.folder / "hf" / "latest")]
    done = subprocess.run([*command, str(file)], capture_output=True, text=True, env=environment(), timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == TEXT.split()


def test_beam_search_with_a_language_model_prefers_its_words(run: Run, heard: Transcriber, tmp_path: Path) -> None:
    file = write_said(tmp_path / "new.wav", TEXT, seed=97)
    assert heard(run, file, "--decoder", "beam").out.split() == TEXT.split()
    arpa = tmp_path / "words.arpa"
    arpa.write_text("\\1-grams:\n-1\t<s>\n-1\t</s>\n-0.3\tabd\n-0.3\tccb\n-9\t<unk>\n\\end\\\n")
    options = ("--decoder", "beam", "--language_model", str(arpa), "--language_model_weight", "20")
    assert heard(run, file, *options).out.split()[0] == "abd"
    assert heard(run, file, *options[2:]).code == 2


def test_words_lie_within_their_tones(run: Run, both_ways: Run, heard: Transcriber, tmp_path: Path) -> None:
    times = say(TEXT, seed=96).times
    found = heard(run, write_said(tmp_path / "new.wav", TEXT, seed=96), "--timestamps")
    rows = [line.split() for line in found.out.splitlines()]
    assert [word for _, _, word in rows] == TEXT.split()
    # A label may be said somewhat after its tone, and later by a model that cannot hear where the tone ends.
    delay = LETTER if run is both_ways else 2 * LETTER
    for (start, stop, _), (first, last) in zip(rows, times, strict=True):
        assert first - STEP <= float(start) < float(stop) <= last + delay + 2 * STEP


def test_json_has_an_object_for_each_recording(run: Run, heard: Transcriber, tmp_path: Path) -> None:
    files = [write_said(tmp_path / f"{number}.wav", text, seed=90) for number, text in enumerate((TEXT, "bad"))]
    records = [json.loads(line) for line in heard(run, "--json", *files).out.splitlines()]
    assert [record["text"] for record in records] == [TEXT, "bad"]
    assert [record["file"] for record in records] == list(map(str, files))
    for record in records:
        assert record["seconds"] == pytest.approx(soundfile.info(record["file"]).duration)
        assert record["real_time_factor"] > 0
        assert " ".join(word["text"] for word in record["words"]) == record["text"]
        assert all(0 <= word["start"] < word["stop"] for word in record["words"])


@pytest.mark.parametrize("as_json", [False, True])
def test_bad_files_are_named_and_the_others_transcribed(
    one_way: Run, heard: Transcriber, tmp_path: Path, as_json: bool
) -> None:
    good = [write_said(tmp_path / f"{number}.wav", text, seed=80) for number, text in enumerate((TEXT, "bad"))]
    noise, cut, empty = tmp_path / "noise.wav", tmp_path / "cut.wav", tmp_path / "empty.wav"
    noise.write_bytes(b"this is no sound" * 100)
    cut.write_bytes(good[0].read_bytes()[: 3 * good[0].stat().st_size // 4])
    empty.write_bytes(b"")
    files = [good[0], tmp_path / "absent.wav", noise, cut, empty, tmp_path, good[1]]
    found = heard(one_way, *(["--json"] if as_json else []), *files)
    assert found.code == 2
    errors = [line for line in found.err.splitlines() if "real-time factor" not in line]
    assert len(errors) == 5 and all(line.startswith("flame: error: ") for line in errors)
    for line, name in zip(errors, ("absent.wav", "noise.wav", "cut.wav", "empty.wav", tmp_path.name), strict=True):
        assert name in line
    lines = found.out.splitlines()
    said = (
        [json.loads(line)["text"] for line in lines]
        if as_json
        else [line.rpartition(": ")[2].strip() for line in lines]
    )
    assert said == [TEXT, "bad"]


def test_a_pipeline_of_transformers_hears_the_same(both_ways: Run, heard: Transcriber, tmp_path: Path) -> None:
    samples = say(TEXT, seed=70).samples
    np.save(tmp_path / "samples.npy", samples)
    command = [sys.executable, "-c", PIPELINE, str(both_ways.folder / "hf" / "latest"), "samples.npy", str(RATE)]
    without_flame = {**environment(), "PYTHONPATH": "", "HF_MODULES_CACHE": str(tmp_path / "modules")}
    done = subprocess.run(command, capture_output=True, text=True, env=without_flame, cwd=tmp_path, timeout=120)
    assert done.returncode == 0, done.stderr
    soundfile.write(tmp_path / "same.wav", samples, RATE, subtype="FLOAT")
    ours = json.loads(heard(both_ways, "--json", tmp_path / "same.wav").out)
    assert json.loads(done.stdout.splitlines()[-1])["text"] == ours["text"] == TEXT


@pytest.mark.parametrize("seconds, rate", [(0.01, RATE), (0.51, RATE), (2.0, RATE), (3.337, RATE), (2.5, 44100)])
def test_listening_block_by_block_is_hearing_the_whole(one_way: Run, tmp_path: Path, seconds: float, rate: int) -> None:
    recognizer = load_recognizer(str(one_way.folder / "hf" / "latest"), device="cpu")
    assert recognizer.listens
    samples = say("abc dab acc bda", rate).samples[: round(seconds * rate)]
    soundfile.write(tmp_path / "new.wav", samples, rate, subtype="FLOAT")
    block_by_block = np.concatenate(list(recognizer._listen(str(tmp_path / "new.wav"))))
    whole = torch.from_numpy(recognizer.features.features(resample(samples, rate, RATE)))[None]
    with torch.no_grad():
        at_once = recognizer.model(whole).logits[0].log_softmax(-1).numpy()
    assert block_by_block.shape == at_once.shape
    assert np.abs(block_by_block - at_once).max() < (1e-4 if rate == RATE else 1e-2)


@pytest.mark.parametrize(
    "segment, overlap",
    [
        (2.0, 0.7),
        (2.0, 0.0),
        pytest.param(3.3, 1.0, marks=pytest.mark.slow),
        pytest.param(1.0, 0.5, marks=pytest.mark.slow),
    ],
)
def test_segments_of_a_long_file_join_to_its_text(
    both_ways: Run, heard: Transcriber, tmp_path: Path, segment: float, overlap: float
) -> None:
    rng = np.random.default_rng(5)
    text = " ".join(random_text(rng) for _ in range(8))
    said = say(text, seed=60)
    file = write_said(tmp_path / "long.wav", text, seed=60)
    options = ("--segment", str(segment), "--overlap", str(overlap), "--json")
    found = json.loads(heard(both_ways, file, *options).out)
    assert found["seconds"] > 10
    if overlap:
        assert found["text"] == text
        pairs = zip(found["words"], said.times, strict=True)
        assert all(first - STEP <= word["start"] < word["stop"] <= last + 0.2 for word, (first, last) in pairs)
    else:  # letters are cut, but those at the end are where they were
        assert found["words"][-1]["text"].endswith(text.split()[-1])
        assert abs(found["words"][-1]["stop"] - said.times[-1][1]) < LETTER


def test_a_long_silence_says_nothing(one_way: Run, heard: Transcriber, tmp_path: Path) -> None:
    silence = 0.003 * np.random.default_rng(0).standard_normal(30 * RATE).astype(np.float32)
    soundfile.write(tmp_path / "silence.wav", silence, RATE, subtype="FLOAT")
    assert json.loads(heard(one_way, "--json", tmp_path / "silence.wav").out)["text"] == ""
    said = say(TEXT, seed=50).samples
    soundfile.write(tmp_path / "late.wav", np.concatenate([silence, said, silence]), RATE, subtype="FLOAT")
    found = json.loads(heard(one_way, "--json", tmp_path / "late.wav").out)
    assert found["text"] == TEXT and 30 < found["words"][0]["start"] < 30.5


@pytest.mark.parametrize(
    "samples", [1, pytest.param(80, marks=pytest.mark.slow), pytest.param(30 * RATE, marks=pytest.mark.slow)]
)
def test_digital_silence_of_any_length_is_no_error(run: Run, heard: Transcriber, tmp_path: Path, samples: int) -> None:
    soundfile.write(tmp_path / "zeros.wav", np.zeros(samples), RATE)
    found = heard(run, "--json", tmp_path / "zeros.wav")
    assert found.code == 0 and json.loads(found.out)["seconds"] == pytest.approx(samples / RATE)
    assert not found.err


@pytest.mark.parametrize("rate", [44100, *(pytest.param(rate, marks=pytest.mark.slow) for rate in (16000, 48000))])
def test_other_rates_and_channels_are_heard(run: Run, heard: Transcriber, tmp_path: Path, rate: int) -> None:
    samples = say(TEXT, rate, seed=40).samples
    soundfile.write(tmp_path / "stereo.flac", np.stack([samples, samples], 1), rate)
    assert heard(run, tmp_path / "stereo.flac").out.split() == TEXT.split()


def test_unusable_options_are_one_line(one_way: Run, heard: Transcriber, tmp_path: Path) -> None:
    file = write_said(tmp_path / "new.wav", "a")
    for options in (("--segment", "0"), ("--beam_width", "0"), ("--overlap", "-1"), ("--language_model", "x")):
        found = heard(one_way, file, *options)
        assert found.code == 2 and len(found.err.splitlines()) == 1 and options[0] in found.err
