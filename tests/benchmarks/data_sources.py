"""How fast sources are: `python tests/benchmarks/data_sources.py`.

Prints ratios, medians over interleaved runs:

- tokens of token shards through the whole loader (order, packing, batches) per second of one core's time, and what
  fraction that is of copying the same tokens out of a ``numpy`` memmap (goal: at least 50 million tokens/s);
- tokens/s of the loader on files whose every read takes 200 ms longer, divided by those of the same files without that
  delay (goal: at least 0.9 in the steady state).
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from fsspec.implementations.dirfs import DirFileSystem
from fsspec.implementations.local import LocalFileSystem

from flame.config import Data, Source, Training
from flame.data import TextEncoder
from flame.data.loader import Loader, build_loader
from flame.data.shards import TokenizerIdentity, TokenShardWriter, write_manifest
from flame.tokenizer.corpus import corpus_files
from flame.tokenizer.load import load_tokenizer

BATCH = 8
DELAY = 0.2


class SlowFiles(DirFileSystem):
    """Local files whose every read takes as long as one from another continent."""

    protocol = "slow"

    def __init__(self, root: str = "/", delay: float = DELAY, **options: Any):
        super().__init__(path=root, fs=LocalFileSystem(), **options)
        self.delay = delay

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **options: Any) -> bytes:
        """Reads a range, slowly."""
        time.sleep(self.delay)
        return super().cat_file(path, start=start, end=end, **options)


class NearFiles(SlowFiles):
    """The same files, read by the same way without the delay."""

    protocol = "near"

    def __init__(self, **options: Any):
        super().__init__(delay=0.0, **options)


def make_loader(source: Source, encoder: TextEncoder, seq_len: int, packing: Any = "stream") -> Loader:
    return build_loader(
        sources=[source],
        data=Data(on_bad_row="error", packing=packing),
        encoder=encoder,
        seq_len=seq_len,
        context_len=0,
        varlen=packing != "stream",
        global_batch_size=BATCH,
        local_batch_size=BATCH,
        dp_rank=0,
        dp_world_size=1,
        seed=42,
        dataloader=type(Training().dataloader)(num_workers=0),
    )


def loader_speed(
    loader: Loader, batches: int, seq_len: int, warm: int, clock: Callable[[], float] = time.perf_counter
) -> float:
    """Tokens/s after ``warm`` batches."""
    iterator = iter(loader)
    for _ in islice(iterator, warm):
        pass
    start = clock()
    for _ in islice(iterator, batches):
        pass
    seconds = clock() - start
    loader.close()
    return batches * BATCH * seq_len / seconds


def copy_speed(files: Sequence[Path], batches: int, seq_len: int) -> float:
    """Tokens/s of copying rows out of memory-mapped files into int64 inputs and labels, as training needs them."""
    data = [np.memmap(file, "<u2", "r") for file in files]
    tokens = 0
    start = time.process_time()
    for number in range(batches):
        own = data[number % len(data)]
        first = number * BATCH * seq_len % (len(own) - BATCH * seq_len - 1)
        rows = own[first : first + BATCH * seq_len + 1].astype(np.int64)
        np.stack([rows[:-1], rows[1:]])
        tokens += BATCH * seq_len
    return tokens / (time.process_time() - start)


def write_shards(folder: Path, identity: TokenizerIdentity, millions: int) -> list[Path]:
    """Token shards of documents as long as those of web text."""
    generator = np.random.default_rng(0)
    folder.mkdir()
    with TokenShardWriter(folder, dtype="uint16", tokenizer=identity, tokens_per_shard=20_000_000) as writer:
        left = millions * 1_000_000
        while left > 0:
            size = int(np.clip(generator.lognormal(6.3, 1.0), 20, 50_000))
            writer.add(generator.integers(0, identity.vocab_size, size))
            left -= size
        write_manifest(folder, "uint16", identity, writer.close())
    return sorted(folder.glob("*.bin"))


def write_texts(folder: Path, megabytes: int) -> None:
    """The same documents as jsonl and as parquet."""
    texts = [path.read_text(encoding="utf-8")[:8000] for path in corpus_files("python-stdlib", "train")]
    repeats = max(1, megabytes * 1_000_000 // sum(map(len, texts)))
    documents = [f"# {number}\n{text}" for number in range(repeats) for text in texts]
    for kind in ("jsonl", "parquet"):
        (folder / kind).mkdir()
    with open(folder / "jsonl" / "a.jsonl", "w") as file:
        file.writelines(json.dumps({"text": text}) + "\n" for text in documents)
    pq.write_table(pa.table({"text": documents}), folder / "parquet" / "a.parquet", row_group_size=500)


def compare_streaming(folder: Path, encoder: TextEncoder, options: argparse.Namespace) -> None:
    """Prints the speed of token shards."""
    identity = TokenizerIdentity(encoder.fingerprint, encoder.tokenizer_name, encoder.vocab_size)
    files = write_shards(folder / "shards", identity, options.millions)
    for seq_len in (2048, 4096):
        copies, speeds = [], []
        for _ in range(options.runs):
            copies.append(copy_speed(files, options.batches, seq_len))
            loader = make_loader(Source(path=str(folder / "shards")), encoder, seq_len)
            speed = loader_speed(loader, options.batches, seq_len, options.batches // 5, time.process_time)
            speeds.append(speed)
        speed, copy = statistics.median(speeds), statistics.median(copies)
        print(
            f"token shards, seq_len {seq_len}: {speed / 1e6:,.1f}M tokens/s (goal 50M), {speed / copy:.2f} of copying "
            f"from a memmap ({copy / 1e6:,.1f}M)"
        )


def compare_latency(folder: Path, encoder: TextEncoder, options: argparse.Namespace) -> None:
    """Prints how much of the speed is left when every read takes 200 ms."""
    write_texts(folder, options.megabytes)
    for kind in ("jsonl", "parquet", "shards"):
        speeds: dict[str, list[float]] = {"near": [], "slow": []}
        batches, seq_len = (options.batches, 2048) if kind == "shards" else (options.text_batches, 512)
        for _ in range(options.runs):
            for protocol, found in speeds.items():
                source = Source(path=f"{protocol}://{folder}/{kind}")
                found.append(loader_speed(make_loader(source, encoder, seq_len), batches, seq_len, batches // 4))
        near, slow = (statistics.median(found) for found in speeds.values())
        print(f"{kind}, 200 ms per read: {slow:,.0f} tokens/s, {slow / near:.2f} of no delay (goal 0.90)")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--batches", type=int, default=1000, help="batches of token shards per run (1000)")
    parser.add_argument("--text-batches", type=int, default=400, help="batches of text per run (400)")
    parser.add_argument("--millions", type=int, default=100, help="million tokens of shards (100)")
    parser.add_argument("--megabytes", type=int, default=120, help="megabytes of text (120)")
    options = parser.parse_args()
    for kind in (SlowFiles, NearFiles):
        fsspec.register_implementation(kind.protocol, kind)
    encoder = TextEncoder(load_tokenizer("builtin:python-stdlib-8k"))
    with tempfile.TemporaryDirectory() as folder:
        compare_streaming(Path(folder), encoder, options)
        compare_latency(Path(folder), encoder, options)


if __name__ == "__main__":
    main()
