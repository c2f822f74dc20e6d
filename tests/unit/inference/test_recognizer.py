"""Words do not depend on how a recording comes in pieces."""

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from custom_models.hgrn_asr import HgrnAsrConfig, HgrnAsrForCTC, features
from flame.ctc.beam import BeamOptions
from flame.inference.recognizer import Recognizer, TimedWord

CHARACTERS = ["", "", "a", "b", " "]
WORD_PIECES = ["", "", " a", "b", " ba", " "]


class InPieces(Recognizer):
    """Hears a path of labels, cut at some steps."""

    def hear(self, path: list[int], cuts: list[int]) -> list[TimedWord]:
        shares = np.full((len(path), len(self.pieces)), 0.01, np.float32)
        shares[np.arange(len(path)), path] = 1 - 0.01 * (len(self.pieces) - 1)
        self._parts = np.split(np.log(shares), cuts)
        return list(self.transcribe("a file"))

    def _segments(self, path: str) -> Iterator[np.ndarray]:
        yield from self._parts


def recognizer(pieces: list[str], beam: BeamOptions | None = None) -> InPieces:
    config = SimpleNamespace(bidirectional=True, backbone=None, inputs_to_logits_ratio=800)
    model: Any = SimpleNamespace(config=config)
    return InPieces(model, SimpleNamespace(sampling_rate=8000), pieces, 0, beam)


@pytest.mark.parametrize("beam", [None, BeamOptions()], ids=["greedy", "beam"])
@pytest.mark.parametrize("pieces", [CHARACTERS, WORD_PIECES], ids=["characters", "word pieces"])
def test_words_are_the_same_wherever_the_recording_is_cut(pieces: list[str], beam: BeamOptions | None) -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        labels = rng.choice([0, *range(2, len(pieces))], 8)
        path = np.repeat(labels, rng.integers(1, 4, 8)).tolist()
        whole = recognizer(pieces, beam).hear(path, [])
        for cut in range(1, len(path)):
            assert recognizer(pieces, beam).hear(path, [cut]) == whole, (path, cut)
        assert recognizer(pieces, beam).hear(path, list(range(1, len(path)))) == whole, path


def test_times_are_those_of_the_steps() -> None:
    first, second = recognizer(CHARACTERS).hear([0, 2, 3, 3, 4, 0, 2], [5])
    assert (first.text, second.text) == ("ab", "a")
    assert (first.start, first.stop, second.start, second.stop) == pytest.approx((0.1, 0.3, 0.6, 0.7))


def test_a_word_ends_at_a_long_pause() -> None:
    path = [2, 3, *[0] * 30, 2]
    assert [word.text for word in recognizer(CHARACTERS).hear(path, [20])] == ["ab", "a"]


def test_nothing_is_held_of_a_long_silence() -> None:
    assert recognizer(CHARACTERS).hear([0] * 500, list(range(50, 500, 50))) == []


@pytest.mark.parametrize("subsampling", [1, 2, 8])
@pytest.mark.parametrize("segment, overlap", [(0.5, 0.0), (0.5, 0.1), (0.31, 0.2), (9.0, 0.0)])
def test_segments_have_a_step_for_every_step_of_the_whole(
    tmp_path: Path, subsampling: int, segment: float, overlap: float
) -> None:
    config = HgrnAsrConfig(
        vocab_size=5, sampling_rate=8000, num_mel_bins=8, hidden_size=8, num_hidden_layers=1, subsampling=subsampling
    )
    heard = Recognizer(HgrnAsrForCTC(config).eval(), features(config), CHARACTERS, 0, None, segment, overlap)
    for seconds in (0.02, 0.5, 1.0, 1.001, 2.23, 2.51):
        samples = np.random.default_rng(0).standard_normal(round(8000 * seconds)).astype(np.float32)
        soundfile.write(tmp_path / "noise.wav", 0.1 * samples.clip(-3, 3), 8000)
        with torch.no_grad():
            whole = heard.model(torch.from_numpy(heard.features.features(samples))[None]).logits.shape[1]
        assert sum(map(len, heard._segments(str(tmp_path / "noise.wav")))) == whole
