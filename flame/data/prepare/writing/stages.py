"""The stages that shuffle, split and write what is left."""

import functools

from flame.data.encoder import TextEncoder
from flame.data.prepare.builder import Builder
from flame.data.prepare.dedup.drop_list import DropListed, FilteredDocuments
from flame.data.prepare.writing.gather import Complete, Gather
from flame.data.prepare.writing.scatter import Scatter
from flame.data.prepare.writing.shard_plan import PlanShards
from flame.data.prepare.writing.split import HeldOut, SplitHashes, SplitThreshold
from flame.data.prepare.writing.tokens import Tokens
from flame.data.shards import TokenizerIdentity
from flame.tokenizer.load import load_tokenizer

_EXPANSION = 4  # bytes of text per byte of input: compressed files give that or less, plain ones 1
_PARTITION_BYTES = 32 << 20
_PARTITIONS_PER_SHARD = 8
_LEAST_PARTITIONS, _MOST_PARTITIONS = 64, 8192
_MOST_TASKS = 256
_SMALL_BYTES = 64 << 20  # of inputs: their documents are hashed once more, so that a small share is not none by chance


def add_writing(builder: Builder) -> None:
    """Adds shuffling, splitting and writing.

    Raises:
        ConfigError: Keys of ``[output]`` do not go together.
        DataError: The tokenizer cannot be loaded, or lacks a separator that is asked for; before anything has run.
    """
    output, documents = builder.job.output, builder.documents
    output.check()
    tokens = load_tokens(output.tokenizer, output.add_bos, output.add_eos) if output.tokenizer else None
    held_out = _add_split(builder)
    folder = builder.folder("shuffle")
    partitions = partitions_for(builder.plan.bytes, output.shard_bytes) if builder.job.shuffle.enable else 0
    scatter = Scatter(folder, builder.job.seed, partitions, held_out, output.columns)
    builder.stage("scatter", [documents.reader(), scatter], documents.tasks, "drop, split and shuffle")
    plan = PlanShards(folder, documents.tasks, not partitions, output, builder.job.split)
    builder.stage("plan-shards", [plan], 1, "plan shards")
    gather = Gather(folder, documents.tasks, partitions, output, tokens, builder.published, builder.notes("written"))
    expected = -(-builder.plan.bytes * _EXPANSION // output.shard_bytes)
    builder.stage("write-shards", [gather], max(1, min(_MOST_TASKS, expected)), f"write {output.format}")
    filters = documents.filters if isinstance(documents, FilteredDocuments) else ()
    lists = [step for step in filters if isinstance(step, DropListed)]
    pairs = [(step.drops, step.shown, builder.notes(f"{step.name}_pairs")) for step in lists]
    builder.stage("complete", [Complete(folder, output, tokens, builder.published, pairs)], 1, "complete the result")


@functools.lru_cache(1)
def load_tokens(path: str, add_bos: bool | None, add_eos: bool) -> Tokens:
    """Loads a tokenizer, with the separators that a job asks for.

    Raises:
        DataError: It cannot be found, or lacks a separator that is asked for.
    """
    tokenizer = load_tokenizer(path)
    encoder = TextEncoder(tokenizer, add_bos=add_bos, add_eos=add_eos)
    return Tokens(encoder, TokenizerIdentity(encoder.fingerprint, path, len(tokenizer)))


def partitions_for(stored_bytes: int, shard_bytes: int) -> int:
    """How many partitions to shuffle by: small enough to sort in memory, and several to a shard."""
    text = stored_bytes * _EXPANSION
    wanted = max(text // _PARTITION_BYTES, text * _PARTITIONS_PER_SHARD // shard_bytes)
    return min(max(wanted, _LEAST_PARTITIONS), _MOST_PARTITIONS)


def _add_split(builder: Builder) -> HeldOut:
    """Adds the stages that count exactly what is held out, where a number is asked for or a share of little."""
    split, documents = builder.job.split, builder.documents
    is_small = split.validation > 0 and builder.plan.bytes < _SMALL_BYTES
    if not (split.validation_documents or is_small):
        return HeldOut(split.validation)
    folder = builder.folder("split")
    hashing = SplitHashes(folder / "hashes", split.validation_documents, builder.job.seed)
    builder.stage("split-hashes", [documents.reader(), hashing], documents.tasks, "hash for the split")
    target = folder / "threshold.npy"
    choosing = SplitThreshold(folder / "hashes", documents.tasks, split, target)
    builder.stage("split-threshold", [choosing], 1, "choose what is held out")
    return HeldOut(0, target)
