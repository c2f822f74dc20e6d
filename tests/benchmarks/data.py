"""How fast the data path is, how well it packs, how large its state is: `python tests/benchmarks/data.py [PART ...]`.

Every part prints ratios of figures from the same run; all parts together take some minutes.

- ``text``: tokens/s of the whole path (files, order, encoding, packing, batches) divided by those of what encodes in
  it, bare ``tiktoken`` (goal: at least 0.9), and of bare ``tokenizers``, on the same text and cores, without and with
  worker processes, and the share of a training step spent waiting for data while a small Llama trains on the same cores
  (goal: at most 2%);
- ``bin``: tokens/s of processor time from token shards through the loader (goal: at least 50M), beside a copy of the
  same memory map by numpy;
- ``packing``: padding, cut documents and lost tokens of every way of packing, beside nanochat's cropping rule;
- ``size``: time per token and memory from 10 MB to 1 GB of text (goal: flat);
- ``state``: bytes in a checkpoint for 1,000 ranks (goal: below 1 MB).
"""

import argparse
import functools
import gc
import json
import os
import statistics
import tempfile
import time
from bisect import bisect_right, insort
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import tiktoken
import torch
from tokenizers import Tokenizer
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
from torch.distributed.checkpoint.state_dict_saver import save
from transformers import LlamaConfig, LlamaForCausalLM

from flame.config import Data, Source, Training
from flame.data import TextEncoder
from flame.data.lane_states import pack_states, unpack_states
from flame.data.loader import Loader, build_loader
from flame.data.shards import TokenizerIdentity, TokenShardWriter, write_manifest
from flame.tokenizer.byte_level import ranks_and_pattern
from flame.tokenizer.corpus import corpus_files
from flame.tokenizer.load import load_tokenizer

SEQ_LEN, BATCH = 512, 4
WORKERS = (0, 2)
RANKS, LANES_PER_RANK, SOURCES = 1000, 16, 4


def make_loader(encoder: TextEncoder, source: Source, data: Data, seq_len=SEQ_LEN, batch=BATCH, workers=0) -> Loader:
    return build_loader(
        sources=[source],
        data=data,
        encoder=encoder,
        seq_len=seq_len,
        context_len=0,
        varlen=False,
        global_batch_size=batch,
        local_batch_size=batch,
        dp_rank=0,
        dp_world_size=1,
        seed=42,
        dataloader=type(Training().dataloader)(num_workers=workers),
    )


def bare_speed(encode_batch: Callable[[list[str]], list[Any]], texts: list[str]) -> float:
    """Tokens/s of encoding alone, ids not even looked at; calls of 256 texts are faster than one of them all."""
    tokens = 0
    start = time.perf_counter()
    for first in range(0, len(texts), 256):
        tokens += sum(map(len, encode_batch(texts[first : first + 256])))
    return tokens / (time.perf_counter() - start)


def bare_encoders(backend: Tokenizer) -> dict[str, Callable[[list[str]], list[Any]]]:
    """The peers by name, as fast as they are used without flame."""
    found = ranks_and_pattern(backend)
    assert found is not None
    encoding = tiktoken.Encoding("bare", pat_str=found[1], mergeable_ranks=found[0], special_tokens={})
    return {
        "tiktoken": functools.partial(encoding.encode_ordinary_batch, num_threads=os.cpu_count() or 1),
        "encode_batch": functools.partial(backend.encode_batch, add_special_tokens=False),
        "encode_batch_fast": functools.partial(backend.encode_batch_fast, add_special_tokens=False),
    }


def speed(loader: Loader, batches: int, clock: Callable[[], float] = time.perf_counter) -> float:
    """Tokens/s of a loader in its steady state: workers have started and the first batches are out."""
    iterator = iter(loader)
    # What is already made when the clock starts must not count, so let pass more than can be read ahead.
    for _ in islice(iterator, batches // 5):
        pass
    start, tokens = clock(), 0
    for _, labels in islice(iterator, batches):
        tokens += labels.numel()
    seconds = clock() - start
    loader.close()
    return tokens / seconds


def waiting_share(loader: Loader, vocab_size: int, steps: int) -> tuple[float, float]:
    """The share of the steps' time spent in ``next``, and the median seconds of a step."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=256,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=688,
    )
    model = LlamaForCausalLM(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    iterator = iter(loader)
    waits, times = [], []
    for _ in range(steps):
        start = time.perf_counter()
        inputs, labels = next(iterator)
        waits.append(time.perf_counter() - start)
        logits = model(**inputs).logits
        torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten()).backward()
        optimizer.step()
        optimizer.zero_grad()
        times.append(time.perf_counter() - start)
    loader.close()
    # The first step waits for the workers to start.
    return sum(waits[1:]) / sum(times[1:]), statistics.median(times)


def measure_text(options: argparse.Namespace) -> None:
    tokenizer = load_tokenizer("builtin:python-stdlib-8k")
    encoder = TextEncoder(tokenizer)
    source = Source(path="builtin:python-stdlib")
    texts = [path.read_text(encoding="utf-8") for path in corpus_files("python-stdlib", "train")]
    peers = bare_encoders(tokenizer.backend_tokenizer)
    kinds = [("stream", length, workers) for length in (SEQ_LEN, 2048) for workers in WORKERS] + [("best_fit", 2048, 0)]
    bare, path = {name: [] for name in peers}, {kind: [] for kind in kinds}
    for _ in range(options.runs):
        for name, encode_batch in peers.items():
            bare[name].append(bare_speed(encode_batch, texts))
        for packing, length, workers in kinds:
            section = Data(on_bad_row="error", packing=packing)  # pyright: ignore[reportArgumentType]
            loader = make_loader(encoder, source, section, length, workers=workers)
            path[packing, length, workers].append(speed(loader, options.batches * SEQ_LEN // length))
    references = {name: statistics.median(found) for name, found in bare.items()}
    print(f"{os.cpu_count()} cores; {', '.join(f'{name} {found:,.0f} tokens/s' for name, found in references.items())}")
    for (packing, length, workers), speeds in path.items():
        median = statistics.median(speeds)
        ratios = ", ".join(f"{median / reference:.2f} of {name}" for name, reference in references.items())
        print(
            f"data path, {packing}, rows of {length}, {workers} workers: {median:,.0f} tokens/s, {ratios} (goal 0.90)"
        )
    for workers in WORKERS:
        loader = make_loader(encoder, source, Data(), workers=workers)
        share, seconds = waiting_share(loader, len(tokenizer), options.steps)
        print(f"waiting, {workers} workers: {share:.2%} of a step of {seconds * 1000:.0f} ms (goal 2%)")


def web_lengths() -> Iterator[int]:
    """Lengths of documents like those of a web corpus, in tokens: log-normal, mean about 700."""
    rng = np.random.default_rng(0)
    while True:
        yield from np.maximum(20, rng.lognormal(np.log(420), 1.0, 1000)).astype(int).tolist()


def write_shards(folder: Path, tokens: int) -> None:
    """Token shards of random ids in documents of ``web_lengths``."""
    rng = np.random.default_rng(0)
    identity = TokenizerIdentity("", "random", 1 << 16)
    with TokenShardWriter(folder, dtype="uint16", tokenizer=identity, tokens_per_shard=1 << 26) as writer:
        for length in web_lengths():
            writer.add(rng.integers(0, 1 << 16, length).astype(np.uint16))
            tokens -= length
            if tokens < 0:
                break
        write_manifest(folder, "uint16", identity, writer.close())


def copy_speed(path: Path, dtype: type) -> float:
    """Tokens/s of processor time of copying a memory map of uint16 in pieces of 64K."""
    data = np.memmap(path, np.uint16, "r")
    start, tokens = time.process_time(), 0
    while time.process_time() - start < 0.5:
        for first in range(0, len(data), 1 << 16):
            tokens += len(data[first : first + (1 << 16)].astype(dtype))
    return tokens / (time.process_time() - start)


def measure_bin(options: argparse.Namespace) -> None:
    encoder = TextEncoder(load_tokenizer("builtin:python-stdlib-8k"))
    encoder.fingerprint = ""  # random ids are no tokenizer's
    encoder.vocab_size = 0
    with tempfile.TemporaryDirectory() as folder:
        write_shards(Path(folder), 1 << 25)
        file = min(Path(folder).glob("*.bin"))
        plain, wide = copy_speed(file, np.uint16), copy_speed(file, np.int64)
        print(f"copy of the memory map: {plain / 1e6:,.0f}M tokens/s as it is, {wide / 1e6:,.0f}M to int64")
        for packing, seq_len in (("stream", 2048), ("stream", 8192), ("best_fit", 2048)):
            found, section = [], Data(packing=packing)  # pyright: ignore[reportArgumentType]
            for _ in range(options.runs):
                loader = make_loader(encoder, Source(folder, format="bin"), section, seq_len, 32)
                found.append(speed(loader, (1 << 24) // (32 * seq_len), time.process_time))
            median = statistics.median(found)
            goal = " (goal 50M)" if packing == "stream" else ""
            print(
                f"token shards, {packing}, rows of {seq_len}: {median / 1e6:,.0f}M tokens/s{goal}, "
                f"{median / plain:.1%} of the copy, {median / wide:.1%} of that to int64"
            )


def crop_rows(lengths: Iterator[int], length: int, rows: int) -> tuple[float, float]:
    """nanochat's rule: of 1,000 documents the longest that fits, else the shortest, cropped.

    Returns documents cropped per document and the share of tokens lost, once the documents that are longer than a row
    have gathered among the 1,000, which takes thousands of rows."""
    waiting = sorted(islice(lengths, 1000))
    taken = cropped = lost = 0
    warm_up = 20_000
    for row in range(warm_up + rows):
        if row == warm_up:
            taken = cropped = lost = 0
        room = length + 1
        while room:
            place = max(bisect_right(waiting, room) - 1, 0)
            size = waiting.pop(place)
            insort(waiting, next(lengths))
            taken, cropped, lost = taken + 1, cropped + (size > room), lost + max(size - room, 0)
            room -= min(size, room)
    return cropped / taken, lost / (rows * (length + 1) + lost)


def measure_packing(options: argparse.Namespace) -> None:
    encoder = TextEncoder(load_tokenizer("builtin:python-stdlib-8k"))
    encoder.fingerprint = ""
    encoder.vocab_size = 0
    with tempfile.TemporaryDirectory() as folder:
        write_shards(Path(folder), 1 << 23)
        for seq_len in (512, 2048, 8192):
            print(f"rows of {seq_len}: padding, cuts per document, tokens lost")
            for packing in ("stream", "best_fit", "rows"):
                loader = make_loader(encoder, Source(folder, format="bin"), Data(packing=packing), seq_len)
                cut, tokens, seen, rows = 0, 0, set(), (1 << 22) // seq_len
                maker = loader.traced_rows()
                for row in islice(maker, rows):
                    assert row.spans
                    tokens += row.spans[-1].stop
                    for span in row.spans:
                        cut += span.document in seen
                        seen.add(span.document)
                lost = maker.tally["tokens left out"] / tokens
                print(f"  {packing:<10} {1 - tokens / (rows * seq_len):7.2%} {cut / len(seen):7.2%} {lost:7.2%}")
            cropped, lost = crop_rows(web_lengths(), seq_len, (1 << 22) // seq_len)
            long = np.mean(np.fromiter(islice(web_lengths(), 10_000), int) > seq_len)
            print(f"  {'crop':<10} {0:7.2%} {cropped:7.2%} {lost:7.2%}   (documents longer than a row: {long:.2%})")


def write_text(path: Path, megabytes: int, texts: list[str]) -> None:
    """A JSON Lines file of documents of about 4 KB."""
    written, number = 0, 0
    with open(path, "w", encoding="utf-8") as file:
        while written < megabytes * 1_000_000:
            text = texts[number % len(texts)]
            start = number * 4099 % max(len(text) - 4096, 1)
            written += file.write(json.dumps({"text": f"{number} {text[start : start + 4096]}"}) + "\n")
            number += 1


def measure_size(options: argparse.Namespace) -> None:
    encoder = TextEncoder(load_tokenizer("builtin:python-stdlib-8k"))
    texts = [path.read_text(encoding="utf-8") for path in corpus_files("python-stdlib", "train")]
    for megabytes in options.megabytes:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "text.jsonl"
            write_text(path, megabytes, texts)
            start = time.perf_counter()
            loader = make_loader(encoder, Source(str(path)), Data())
            opening = time.perf_counter() - start
            rate = speed(loader, options.batches, time.process_time)
            gc.collect()
            resident = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
            print(
                f"{megabytes:>5} MB of text: {1e6 / rate:.3f} µs of processor time per token, opened in "
                f"{opening:.2f} s, {resident / 2**20:,.0f} MiB resident"
            )


def measure_state(options: argparse.Namespace) -> None:
    rng = np.random.default_rng(0)
    lanes = RANKS * LANES_PER_RANK
    shape = (lanes, SOURCES)
    # Lanes have read about as many documents each, and are anywhere in one and in a block.
    table = np.stack([rng.normal(30_000, 150, shape), rng.integers(0, 2000, shape), rng.integers(0, 32, shape)], axis=2)
    given = np.full((lanes, 1), 100_000)
    states = dict(enumerate(np.concatenate([given, table.reshape(lanes, -1)], axis=1).astype(np.int64)))
    start = time.perf_counter()
    state = {"dataloader": {"layout": "{}" * 100, "lanes": pack_states(states)}}
    restored = unpack_states(state["dataloader"]["lanes"])
    seconds = time.perf_counter() - start
    assert all(np.array_equal(restored[lane], value) for lane, value in states.items())
    plans = []
    for rank in range(RANKS):
        planner = DefaultSavePlanner()
        planner.set_up_planner(state, is_coordinator=rank == 0)
        plans.append(planner.create_local_plan())
    planner = DefaultSavePlanner()
    planner.set_up_planner(state, is_coordinator=True)
    plans, _ = planner.create_global_plan(plans)
    with tempfile.TemporaryDirectory() as folder:
        save(state, checkpoint_id=folder, no_dist=True)
        size = sum(path.stat().st_size for path in Path(folder).iterdir())
    print(
        f"state of {RANKS} ranks x {LANES_PER_RANK} lanes x {SOURCES} sources: {size:,} bytes on disk, metadata "
        f"included (goal 1,000,000), {sum(len(plan.items) for plan in plans)} records written by "
        f"{sum(bool(plan.items) for plan in plans)} of {RANKS} ranks; packed and unpacked in {seconds:.2f} s"
    )


PARTS = {
    "text": measure_text,
    "bin": measure_bin,
    "packing": measure_packing,
    "size": measure_size,
    "state": measure_state,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], default=list(PARTS))
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--batches", type=int, default=1000)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--megabytes", type=int, nargs="+", default=[10, 100, 1000])
    options = parser.parse_args()
    for part in options.parts:
        PARTS[part](options)


if __name__ == "__main__":
    main()
