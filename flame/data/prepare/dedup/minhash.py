"""Near duplicates: datatrove's MinHash signatures and buckets, and clusters of which the first document stays.

Signatures and buckets are datatrove's own files (Broder 1997; bands as in Leskovec, Rajaraman & Ullman, chapter 3). Its
third stage keeps whichever document its union by size puts on top, which depends on how files were shared out; the one
here keeps the first in corpus order, and needs 16 bytes per pair instead of Python objects.
"""

from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from datatrove.data import Document
from datatrove.pipeline.base import PipelineStep
from datatrove.pipeline.dedup.minhash import MinhashConfig, MinhashDedupSignature
from datatrove.utils.text import simplify_text

from flame.data.prepare.cleaning.words import WORDS
from flame.data.prepare.dedup.drop_list import POSITION_BITS, DropList, cluster_sizes
from flame.data.prepare.dedup.n_grams import n_gram_hashes
from flame.data.prepare.documents import write_json

_PRIME = np.uint64((1 << 61) - 1)
_BLOCK = (
    1024  # shingles hashed at once: [1024, 112] hashes fit a core's cache, and memory does not grow with a document
)


class MinhashSignatures(MinhashDedupSignature):
    """Writes the signatures of a rank's documents, in datatrove's format.

    Args:
        folder: Where to write.
        config: Bands, hashes and seed.
        spared: Sources whose documents are never dropped and drop no other.
    """

    def __init__(self, folder: Path, config: MinhashConfig, spared: frozenset[str] = frozenset()) -> None:
        super().__init__(str(folder), config, language=WORDS)  # pyright: ignore[reportArgumentType]
        self.spared = spared

    def run(self, data: Any, rank: int = 0, world_size: int = 1) -> None:
        """Hashes the documents; yields none."""
        super().run(self._without_spared(data), rank, world_size)

    def get_shingles(self, text: str) -> np.ndarray:
        """Hashes the n-grams of a text that datatrove's ``simplify_text`` has made plain.

        datatrove hashes every n-gram as a string of its own, for which its xxhash fails with version 4 of that library.

        Returns:
            uint64 [n-grams that differ, 1].
        """
        words = self.word_tokenizer.word_tokenize(simplify_text(text, self.config.norm_config))
        hashes = [xxhash.xxh3_64_intdigest(word.encode("utf-8", "surrogatepass")) for word in words]
        return np.unique(n_gram_hashes(np.array(hashes, np.uint64), self.config.n_grams))[:, None]

    def get_signature(self, shingles: np.ndarray) -> list[list[int]]:
        """The same hashes as datatrove's, without [shingles, hashes] in memory.

        Args:
            shingles: Hashed n-grams, uint64 [shingles, 1].

        Returns:
            The smallest hashes by band.
        """
        factors, offsets = self.parameters
        least = np.full(self.num_hashes, np.iinfo(np.uint64).max, np.uint64)
        for start in range(0, len(shingles), _BLOCK):
            hashes = shingles[start : start + _BLOCK] * factors + offsets  # [block, hashes], modulo 2^64
            hashes = (hashes & _PRIME) + (hashes >> np.uint64(61))  # the same modulo 2^61 - 1 but for one subtraction
            np.subtract(hashes, _PRIME, out=hashes, where=hashes >= _PRIME)
            np.minimum(least, hashes.min(axis=0), out=least)
        return [band.tolist() for band in np.split(least, self.config.num_buckets)]

    def _without_spared(self, documents: Iterator[Document]) -> Iterator[Document]:
        """Empties spared documents, which keep their positions: a text without shingles has no signature."""
        for document in documents:
            if document.metadata.get("source", "") in self.spared:
                yield Document("", document.id)
            else:
                yield document


class MinhashClusters(PipelineStep):
    """Joins pairs to clusters and lists all but the first document of each; a single task.

    Memory: some 50 bytes per pair.

    Args:
        pairs: Where datatrove's ``MinhashDedupBuckets`` wrote.
        drops: The list to write.
        clusters: Folder of notes: how large clusters are.
    """

    type = "DEDUP"
    name = "near-duplicate clusters"

    def __init__(self, pairs: Path, drops: DropList, clusters: Path) -> None:
        super().__init__()
        self.pairs = pairs
        self.drops = drops
        self.clusters = clusters

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> None:
        """Reads all pairs."""
        raw = array("I")
        for path in sorted(self.pairs.glob("*.dups")):
            raw.frombytes(path.read_bytes())
        columns = np.frombuffer(raw, "<u4").reshape(-1, 4).astype(np.uint64)
        numbers = columns[:, 0::2] << np.uint64(POSITION_BITS) | columns[:, 1::2]  # [pairs, 2]
        firsts, documents = clusters(numbers)
        is_first = firsts == documents
        kept, dropped = firsts[~is_first], documents[~is_first]
        self.drops.save(0, kept, dropped)
        _, sizes = np.unique(firsts, return_counts=True)
        write_json(self.clusters / "00000.json", cluster_sizes(sizes))


def clusters(pairs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Finds connected components.

    Args:
        pairs: Numbers of alike documents, uint64 [pairs, 2].

    Returns:
        The smallest number of its cluster for every document, and the documents, in order; uint64 [documents] both.
    """
    documents, ends = np.unique(pairs, return_inverse=True)
    ends = ends.reshape(-1, 2)
    labels = np.arange(len(documents))
    while True:
        # Every root hooks onto the smallest root next to it, then all labels follow their roots.
        joined = labels[ends]
        low, high = joined.min(axis=1), joined.max(axis=1)
        if (low == high).all():
            return documents[labels], documents
        np.minimum.at(labels, high, low)
        while (labels[labels] != labels).any():
            labels = labels[labels]
