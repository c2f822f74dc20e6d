"""How fast recordings become features: `python tests/benchmarks/audio.py`.

Prints, for files of several formats and rates that it makes itself, how many seconds of audio one core decodes,
resamples to 16 kHz and turns into 80 log-mel channels in a second (goal: 200), and flame's speed over that of librosa
and torchaudio doing the same in the same run, where they are installed. Medians over interleaved rounds.

`--features MODULE:FUNCTION` measures another extractor in place of flame's own: `function(audio, rate)` takes
float32 `[samples]` and gives `[T, F]`.
"""

import os

for _name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS"):
    os.environ[_name] = "1"  # before numpy: figures are per core

import argparse  # noqa: E402
import functools  # noqa: E402
import importlib  # noqa: E402
import statistics  # noqa: E402
import tempfile  # noqa: E402
import time  # noqa: E402
from collections.abc import Callable  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Any  # noqa: E402

import numpy as np  # noqa: E402
import soundfile  # noqa: E402
from transformers import AutoConfig  # noqa: E402

from flame.data.audio.cache import FeatureCache  # noqa: E402
from flame.data.audio.recording import Part, Recording  # noqa: E402
from flame.plugin import load_plugin  # noqa: E402

RATE, WINDOW, HOP, CHANNELS, FFT = 16000, 400, 160, 80, 512
KINDS = [("wav", 16000), ("flac", 16000), ("mp3", 16000), ("flac", 44100), ("mp3", 48000), ("wav", 8000)]
Features = Callable[[np.ndarray, int], np.ndarray]
Way = Callable[[str], object]


def log_mel(audio: np.ndarray, rate: int) -> np.ndarray:
    """flame's own extractor: float32 [T, CHANNELS]."""
    return extractor(rate).raw_features(audio)


@functools.cache
def extractor(rate: int) -> Any:
    """The feature extractor of the family of speech."""
    plugin = load_plugin("hgrn_asr")
    assert plugin.features is not None
    return plugin.features(AutoConfig.for_model("hgrn_asr", sampling_rate=rate, num_mel_bins=CHANNELS))


def write_files(folder: Path, suffix: str, rate: int, files: int, seconds: float) -> list[str]:
    """Files of something like speech: noise in bands, swelling syllable by syllable."""
    rng = np.random.default_rng(0)
    paths = []
    for number in range(files):
        noise = rng.standard_normal(round(seconds * rate)).astype(np.float32)
        place = np.arange(len(noise)) / rate
        voiced = np.sin(2 * np.pi * 140 * place) + 0.5 * np.sin(2 * np.pi * 700 * place) + 0.05 * noise
        path = folder / f"{suffix}_{rate}_{number}.{suffix}"
        soundfile.write(path, 0.2 * voiced * np.abs(np.sin(2 * np.pi * 2.5 * place)), rate)
        paths.append(str(path))
    return paths


def ways(features: Features) -> dict[str, Way]:
    """What is compared, by name; each takes a path."""
    found: dict[str, Way] = {
        "flame, decoded": lambda path: recording(path).load(RATE),
        "flame": lambda path: features(recording(path).load(RATE), RATE),
    }
    try:
        librosa = importlib.import_module("librosa")

        def by_librosa(path: str) -> object:
            audio, _ = librosa.load(path, sr=RATE)
            mel = librosa.feature.melspectrogram(
                y=audio, sr=RATE, n_fft=FFT, win_length=WINDOW, hop_length=HOP, n_mels=CHANNELS
            )
            return librosa.power_to_db(mel)

        found["librosa"] = by_librosa
    except ImportError:
        print("without librosa, which is not installed")
    try:
        torch, torchaudio = map(importlib.import_module, ("torch", "torchaudio"))

        torch.set_num_threads(1)
        transform = torchaudio.transforms.MelSpectrogram(
            RATE, n_fft=FFT, win_length=WINDOW, hop_length=HOP, n_mels=CHANNELS
        )

        def by_torchaudio(path: str) -> object:
            audio, rate = soundfile.read(path, dtype="float32")  # its own loading has gone
            resampled = torchaudio.functional.resample(torch.from_numpy(audio), rate, RATE)
            return torch.log(transform(resampled) + 1e-10)

        found["torchaudio"] = by_torchaudio
    except (ImportError, OSError) as error:
        print(f"without torchaudio, which cannot be imported ({str(error).splitlines()[0]})")
    return found


def recording(path: str) -> Recording:
    """The whole of a file."""
    return Recording((Part(path),))


def measure(paths: list[str], compared: dict[str, Way], rounds: int) -> dict[str, float]:
    """Seconds of this core's time for all files, by way: medians over interleaved rounds."""
    times: dict[str, list[float]] = {name: [] for name in compared}
    for turn in range(rounds + 1):
        for name, way in compared.items():
            start = time.process_time()
            for path in paths:
                way(path)
            if turn:  # the first round warms up
                times[name].append(time.process_time() - start)
    return {name: statistics.median(found) for name, found in times.items()}


def cached(folder: Path, paths: list[str], features: Features) -> Way:
    """Features from a cache that has them."""
    cache = FeatureCache(folder)
    for path in paths:
        one = recording(path)
        cache.put(one.key, features(one.load(RATE), RATE).astype(np.float16))
    return lambda path: cache.get(recording(path).key)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--features", default="", help="MODULE:FUNCTION in place of the plain extractor")
    parser.add_argument("--files", type=int, default=20, help="of every kind (20)")
    parser.add_argument("--seconds", type=float, default=10, help="of a file (10)")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    module, _, function = options.features.partition(":")
    features: Features = getattr(importlib.import_module(module), function) if module else log_mel
    compared = ways(features)
    total = options.files * options.seconds
    print(f"times real time on one core, files of {options.seconds:g} s; in brackets, flame's speed over it")
    with tempfile.TemporaryDirectory() as name:
        for suffix, rate in KINDS:
            paths = write_files(Path(name), suffix, rate, options.files, options.seconds)
            own = compared | {"flame, cached": cached(Path(name) / "cache", paths, features)}
            taken = measure(paths, own, options.rounds)
            cells = [f"{way} {total / found:,.0f} ({found / taken['flame']:.2f})" for way, found in taken.items()]
            print(f"{suffix:>4} {rate:>5} Hz: {', '.join(cells)}", flush=True)


if __name__ == "__main__":
    main()
