"""How fast the data path is: `python tests/benchmarks/data.py`.

Prints two figures, medians over interleaved runs:

- tokens/s of the whole path (files, order, encoding, packing, batches) divided by bare ``tokenizers`` ``encode_batch``
  on the same text and cores, without and with worker processes (goal: at least 0.9);
- the share of a training step spent waiting for data, while a small Llama trains on the same cores (goal: at most 2%).
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable
from itertools import islice

import torch
from tokenizers import Encoding
from transformers import LlamaConfig, LlamaForCausalLM

from flame.config import Data, Source, Training
from flame.data import TextEncoder
from flame.data.loader import Loader, build_loader
from flame.tokenizer import load_tokenizer
from flame.tokenizer.corpus import corpus_files

SEQ_LEN = 512
BATCH = 4
WORKERS = (0, 2)


def make_loader(encoder: TextEncoder, workers: int, varlen: bool = False) -> Loader:
    return build_loader(
        sources=[Source(path="builtin:python-stdlib")],
        data=Data(on_bad_row="error"),
        encoder=encoder,
        seq_len=SEQ_LEN,
        context_len=0,
        varlen=varlen,
        global_batch_size=BATCH,
        local_batch_size=BATCH,
        dp_rank=0,
        dp_world_size=1,
        seed=42,
        dataloader=type(Training().dataloader)(num_workers=workers),
    )


def bare_speed(encode_batch: Callable[..., list[Encoding]], texts: list[str]) -> float:
    """Tokens/s of encoding alone, ids not even looked at; calls of 256 texts are faster than one of them all."""
    tokens = 0
    start = time.perf_counter()
    for first in range(0, len(texts), 256):
        tokens += sum(map(len, encode_batch(texts[first : first + 256], add_special_tokens=False)))
    return tokens / (time.perf_counter() - start)


def path_speed(encoder: TextEncoder, workers: int, batches: int) -> float:
    """Tokens/s of a loader in its steady state: workers have started and the first batches are out."""
    loader = make_loader(encoder, workers)
    iterator = iter(loader)
    # What is already made when the clock starts must not count, so let pass more than can be read ahead.
    for _ in islice(iterator, batches // 5):
        pass
    start = time.perf_counter()
    for _ in islice(iterator, batches):
        pass
    seconds = time.perf_counter() - start
    loader.close()
    return batches * BATCH * SEQ_LEN / seconds


def waiting_share(encoder: TextEncoder, vocab_size: int, workers: int, steps: int) -> tuple[float, float]:
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
    loader = make_loader(encoder, workers)
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--batches", type=int, default=1000)
    parser.add_argument("--steps", type=int, default=40)
    options = parser.parse_args()
    tokenizer = load_tokenizer("builtin:python-stdlib-8k")
    encoder = TextEncoder(tokenizer)
    texts = [path.read_text(encoding="utf-8") for path in corpus_files("python-stdlib", "train")]
    backend = tokenizer.backend_tokenizer
    bare, fast, path = [], [], {workers: [] for workers in WORKERS}
    for _ in range(options.runs):
        bare.append(bare_speed(backend.encode_batch, texts))
        fast.append(bare_speed(backend.encode_batch_fast, texts))
        for workers in WORKERS:
            path[workers].append(path_speed(encoder, workers, options.batches))
    reference, stricter = statistics.median(bare), statistics.median(fast)
    print(f"{os.cpu_count()} cores; encode_batch {reference:,.0f} tokens/s, encode_batch_fast {stricter:,.0f}")
    for workers, speeds in path.items():
        speed = statistics.median(speeds)
        ratios = f"{speed / reference:.2f} of encode_batch (goal 0.90), {speed / stricter:.2f} of encode_batch_fast"
        print(f"data path, {workers} workers: {speed:,.0f} tokens/s, {ratios}")
    for workers in WORKERS:
        share, seconds = waiting_share(encoder, len(tokenizer), workers, options.steps)
        print(f"waiting, {workers} workers: {share:.2%} of a step of {seconds * 1000:.0f} ms (goal 2%)")


if __name__ == "__main__":
    main()
