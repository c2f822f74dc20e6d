"""How fast tokenizers are trained and used: `python tests/benchmarks/tokenizer_speed.py`.

Prints, as medians over interleaved runs on Python's standard library, repeated to about 30 MB:

- the time of `flame tokenizer train` (reading, learning, saving) divided by that of bare ``tokenizers`` over the same
  texts in memory, with either backend (goal: at most 1.2), and of bare ``rustbpe``;
- tokens/s of ``tiktoken`` divided by those of ``tokenizers``, with the same ids, ids as arrays in both cases.
"""

import argparse
import contextlib
import io
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import rustbpe
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from flame.data.tiktoken_encoding import tiktoken_encoding
from flame.tokenizer.byte_bpe import BytePairTraining
from flame.tokenizer.cli import main as tokenizer_command
from flame.tokenizer.corpus import corpus_files
from flame.tokenizer.patterns import PATTERNS, splitter

VOCABULARY = 32768
TEXTS_PER_CALL = 64
PATTERN = PATTERNS["gpt4"]


def seconds(action: Callable[[], Any]) -> float:
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def bare_tokenizers(texts: list[str]) -> None:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = splitter(PATTERN)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=VOCABULARY, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(iter(texts), trainer)


def bare_rustbpe(texts: list[str]) -> None:
    tokenizer = rustbpe.Tokenizer()  # pyright: ignore[reportAttributeAccessIssue]
    tokenizer.train_from_iterator(iter(texts), VOCABULARY, pattern=PATTERN)


def command(folder: Path, backend: str) -> None:
    words = ["--data", str(folder / "corpus"), "--format", "txt", "--max_chars", "0", "--backend", backend]
    with contextlib.redirect_stdout(io.StringIO()):
        tokenizer_command(["train", str(folder / "tokenizer"), *words, "--vocab_size", str(VOCABULARY), "--overwrite"])


def write_corpus(folder: Path, megabytes: float) -> list[str]:
    """Repeats the standard library, each time with other names, so that new words keep coming."""
    sources = [path.read_text(encoding="utf-8") for path in corpus_files("python-stdlib", "train")]
    texts, size, turn = [], 0, 0
    folder.mkdir()
    while size < megabytes * 1e6:
        for text in sources:
            texts.append(text.replace("self", f"self{turn}") if turn else text)
            size += len(texts[-1].encode())
        turn += 1
    for number, text in enumerate(texts):
        (folder / f"{number:06}.txt").write_text(text, encoding="utf-8", newline="")
    print(f"{os.cpu_count()} cores, {size / 1e6:.1f} MB in {len(texts)} files, vocabulary {VOCABULARY}")
    return texts


def training(folder: Path, texts: list[str], runs: int) -> None:
    ways: dict[str, Callable[[], None]] = {
        "bare tokenizers": lambda: bare_tokenizers(texts),
        "flame, tokenizers": lambda: command(folder, "tokenizers"),
        "bare rustbpe": lambda: bare_rustbpe(texts),
        "flame, rustbpe": lambda: command(folder, "rustbpe"),
    }
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(runs):
        for name, action in ways.items():
            times[name].append(seconds(action))
    reference = statistics.median(times["bare tokenizers"])
    for name, found in times.items():
        taken = statistics.median(found)
        print(f"training, {name:<18} {taken:6.2f} s, {taken / reference:.2f} of bare tokenizers (goal 1.20)")


def encoding(texts: list[str], runs: int) -> None:
    tokenizer = BytePairTraining(VOCABULARY, "gpt4", ["<|bos|>"]).run(iter(texts))
    fast = tiktoken_encoding(tokenizer)
    assert fast is not None
    batches = [texts[start : start + TEXTS_PER_CALL] for start in range(0, len(texts), TEXTS_PER_CALL)]

    def by_tokenizers() -> list[np.ndarray]:
        encodings = (tokenizer.encode_batch_fast(batch, add_special_tokens=False) for batch in batches)
        return [np.fromiter(ids, np.int32, len(ids)) for batch in encodings for ids in (each.ids for each in batch)]

    def by_tiktoken() -> list[np.ndarray]:
        return [ids for batch in batches for ids in fast.encode_batch(batch)]

    pairs = zip(by_tokenizers(), by_tiktoken(), strict=True)
    assert all(np.array_equal(a, b) for a, b in pairs), "the ids differ"
    tokens = sum(map(len, by_tiktoken()))
    for cores in ("true", "false"):
        os.environ["TOKENIZERS_PARALLELISM"] = cores
        times = [(seconds(by_tokenizers), seconds(by_tiktoken)) for _ in range(runs)]
        slow, quick = (tokens / statistics.median(found) / 1e6 for found in zip(*times, strict=True))
        where = "all cores" if cores == "true" else "one core"
        print(f"encoding, {where}: tokenizers {slow:.2f}M tokens/s, tiktoken {quick:.2f}M, {quick / slow:.2f} times")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--megabytes", type=float, default=30)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        texts = write_corpus(Path(name) / "corpus", options.megabytes)
        training(Path(name), texts, options.runs)
        encoding(texts[: len(texts) // 3], options.runs)


if __name__ == "__main__":
    main()
