"""The stages that remove documents which are there more than once, or in an evaluation set."""

from datatrove.pipeline.dedup.minhash import MinhashConfig, MinhashDedupBuckets

from flame.data.prepare.builder import Builder
from flame.data.prepare.dedup.decontaminate import Decontaminated
from flame.data.prepare.dedup.drop_list import DropList, DropListed, FilteredDocuments
from flame.data.prepare.dedup.evaluation_sets import CollectTexts, texts_of
from flame.data.prepare.dedup.exact import ExactFind, ExactSignatures
from flame.data.prepare.dedup.minhash import MinhashClusters, MinhashSignatures

_BYTES_PER_FINDER = 64 << 30  # of inputs: a task looks at the hashes of some 30 million documents


def add_exact(builder: Builder) -> None:
    """Adds the removal of equal documents: hash all, sort the hashes, leave out what is listed."""
    options = builder.job.dedup.exact
    if not options.enable:
        return
    folder = builder.folder("exact")
    signatures, drops = folder / "signatures", DropList(folder / "drops")
    documents = builder.documents
    assert not isinstance(documents, FilteredDocuments), "the hashes are of all documents of the files"
    hashing = ExactSignatures(documents.folder, signatures, options.normalise, builder.spared("exact"))
    builder.stage("exact-signatures", [hashing], documents.tasks, "hash documents")
    finding = ExactFind(signatures, drops, builder.notes("exact_clusters"))
    builder.stage("exact-find", [finding], 1 + builder.plan.bytes // _BYTES_PER_FINDER, "find equal documents")
    _leave_out(builder, "exact", drops, "copy of another document")


def add_minhash(builder: Builder) -> None:
    """Adds the removal of near duplicates: datatrove's stages, and flame's choice of what stays."""
    options = builder.job.dedup.minhash
    if not options.enable:
        return
    config = MinhashConfig(
        n_grams=options.n_grams,
        num_buckets=options.buckets,
        hashes_per_bucket=options.hashes_per_bucket,
        seed=builder.job.seed % (1 << 32),
    )
    folder = builder.folder("minhash")
    signatures, pairs, drops = folder / "signatures", folder / "pairs", DropList(folder / "drops")
    hashing = MinhashSignatures(signatures, config, builder.spared("minhash"))
    builder.stage("minhash-signatures", [builder.documents.reader(), hashing], builder.documents.tasks, "MinHash")
    comparing = MinhashDedupBuckets(str(signatures), str(pairs), config=config, lines_to_buffer=1024)
    builder.stage("minhash-buckets", [comparing], options.buckets, "find near duplicates")
    joining = MinhashClusters(pairs, drops, builder.notes("minhash_clusters"))
    builder.stage("minhash-clusters", [joining], 1, "cluster near duplicates")
    _leave_out(builder, "minhash", drops, "near duplicate of another document")


def add_decontamination(builder: Builder) -> None:
    """Adds the removal of documents that contain evaluation texts, if the job names any.

    Raises:
        DataError: A set cannot be read or lacks a column; before anything has run.
    """
    options = builder.job.decontaminate
    if not options.sources:
        return
    for path in options.sources:
        next(texts_of(path, options.columns), None)
    texts = builder.folder("contamination") / "texts.jsonl"
    builder.stage("contamination-texts", [CollectTexts(options, texts)], 1, "read evaluation sets")
    counting, notes = builder.counting("decontaminate"), builder.notes("contamination")
    step = Decontaminated(counting, options, texts, notes, builder.spared("decontaminate"))
    builder.documents = FilteredDocuments.of(builder.documents, step)


def _leave_out(builder: Builder, name: str, drops: DropList, reason: str) -> None:
    step = DropListed(builder.counting(name), drops, reason, shown=drops.folder.with_name("shown"))
    builder.documents = FilteredDocuments.of(builder.documents, step)
