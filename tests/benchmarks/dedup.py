"""How fast duplicates are removed and shards written: `python tests/benchmarks/dedup.py`.

Everything runs on one core. Prints medians of processor time over interleaved runs, as ratios against a peer on the
same text:

- exact removal of equal documents, from documents on disk to what is left of them, divided by ``sort | uniq`` of the
  same documents with one per line, for long documents (4 KB, as web pages are) and short ones (300 bytes); goal: 0.5;
- writing token shards, from sorted documents to ``.bin`` files, divided by bare ``encode_batch``; goal: 0.9;
- MinHash signatures, with datatrove's own loop over the same n-grams for comparison.
"""

import argparse
import json
import os
import random
import shutil
import statistics
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
from datatrove.data import Document
from datatrove.pipeline.dedup.minhash import MinhashConfig, MinhashDedupSignature
from loguru import logger

from flame.data.prepare.dedup.drop_list import DropList, DropListed, FilteredDocuments
from flame.data.prepare.dedup.exact import ExactFind, ExactSignatures
from flame.data.prepare.dedup.minhash import MinhashSignatures
from flame.data.prepare.documents import Documents, DocumentWriter
from flame.data.prepare.reporting.tally import Counting
from flame.data.prepare.writing.stages import load_tokens
from flame.data.prepare.writing.tokens import write_tokens
from flame.data.prepare.writing.written import Written
from flame.tokenizer.corpus import corpus_files
from flame.tokenizer.load import load_tokenizer

TOKENIZER = "builtin:python-stdlib-8k"
REPEATED = 0.2


def make_documents(size: int, total: int) -> list[str]:
    """The standard library in pieces of about ``size`` characters without line feeds, a fifth of them twice.

    Text beyond its length is the same once more, with the number of the round before each piece.
    """
    text = "".join(path.read_text(encoding="utf-8") for path in corpus_files("python-stdlib", "train"))
    text = text.replace("\n", " ")[:total]
    starts = range(0, len(text), size)
    pieces = [f"{number} {text[start : start + size]}" for number in range(total // len(text)) for start in starts]
    drawn = random.Random(0)
    pieces += drawn.sample(pieces, int(REPEATED * len(pieces)))
    drawn.shuffle(pieces)
    return pieces


def seconds(work: Callable[[], object]) -> float:
    """Seconds of processor time, of this process and those it starts: others on the machine do not count."""
    start = os.times()
    work()
    return sum(os.times()[:4]) - sum(start[:4])


def exact(folder: Path, documents: Documents) -> int:
    """Runs the stages as a preparation does, and reads what is left."""
    shutil.rmtree(folder, ignore_errors=True)
    signatures, drops = folder / "signatures", DropList(folder / "drops")
    ExactSignatures(documents.folder, signatures, normalise=True).run()
    ExactFind(signatures, drops, folder / "clusters").run()
    step = DropListed(Counting("exact", folder / "notes"), drops, "copy", folder / "shown")
    return sum(1 for _ in FilteredDocuments.of(documents, step).reader().run(None))


def compare_exact(folder: Path, size: int, total: int, runs: int) -> None:
    pieces = make_documents(size, total)
    lines, left = folder / "lines.txt", folder / "left.txt"
    lines.write_text("".join(piece + "\n" for piece in pieces), encoding="utf-8")
    documents = Documents(folder / "documents", 1)
    rows = (Document(piece, str(row), metadata={"source": "stdlib"}) for row, piece in enumerate(pieces))
    for _ in DocumentWriter(documents.folder).run(rows):
        pass
    command = f"sort --parallel=1 {lines} | uniq > {left}"
    environment = {"LC_ALL": "C", "PATH": os.environ["PATH"]}
    peer, own = [], []
    for _ in range(runs):
        peer.append(seconds(lambda: subprocess.run(command, shell=True, check=True, env=environment)))
        own.append(seconds(lambda: exact(folder / "exact", documents)))
    mb = lines.stat().st_size / 1e6
    ratio = statistics.median(p / o for p, o in zip(peer, own, strict=True))
    kept = exact(folder / "exact", documents)
    print(
        f"exact, documents of {size} characters ({mb:.0f} MB, {len(pieces) - kept} copies): "
        f"{mb / statistics.median(own):.0f} MB/s, sort | uniq {mb / statistics.median(peer):.0f} MB/s: "
        f"{ratio:.2f} (goal 0.50)"
    )


def compare_tokens(folder: Path, total: int, runs: int) -> None:
    texts = make_documents(4000, total)
    backend = load_tokenizer(TOKENIZER).backend_tokenizer
    tokens = load_tokens(TOKENIZER, None, True)
    metadata = [json.dumps({"source": "stdlib"})] * len(texts)
    batch = pa.RecordBatch.from_arrays([pa.array(texts, pa.large_string()), pa.array(metadata)], ["text", "metadata"])

    def bare() -> None:
        for first in range(0, len(texts), 256):
            backend.encode_batch(texts[first : first + 256], add_special_tokens=False)

    def shards() -> None:
        write_tokens(folder / "tokens", 0, iter([batch]), tokens, "train", Written())

    times = [(seconds(bare), seconds(shards)) for _ in range(runs)]
    count = sum(len(ids) for ids in tokens.encoder.encode([{"text": text} for text in texts]))
    ratio = statistics.median(peer / own for peer, own in times)
    speed = count / statistics.median(own for _, own in times)
    print(f"token shards: {speed:,.0f} tokens/s, {ratio:.2f} of encode_batch (goal 0.90)")


def compare_minhash(folder: Path, total: int, runs: int) -> None:
    texts = make_documents(4000, total // 8)
    step = MinhashSignatures(folder / "minhash", MinhashConfig())

    def own() -> None:
        for text in texts:
            step.get_signature(step.get_shingles(text))

    def peer() -> None:
        for text in texts:
            MinhashDedupSignature.get_signature(step, np.asarray(step.get_shingles(text)))

    times = [(seconds(own), seconds(peer)) for _ in range(runs)]
    mb = sum(map(len, texts)) / 1e6
    print(
        f"MinHash signatures: {mb / statistics.median(o for o, _ in times):.1f} MB/s, "
        f"with datatrove's loop {mb / statistics.median(p for _, p in times):.1f} MB/s"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--characters", type=int, default=100_000_000, help="of text, as far as there is that much")
    options = parser.parse_args()
    logger.remove()
    os.environ["RAYON_NUM_THREADS"] = "1"
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    with tempfile.TemporaryDirectory() as folder:
        for size in (4000, 300):
            compare_exact(Path(folder), size, options.characters, options.runs)
        compare_tokens(Path(folder), options.characters // 8, options.runs)
        compare_minhash(Path(folder), options.characters, options.runs)


if __name__ == "__main__":
    main()
