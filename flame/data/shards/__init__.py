"""Token shards: documents as token ids on disk, made once and read by training as they are.

A folder holds ``shard_00000.bin`` (ids, little-endian, separators included), ``shard_00000.idx`` (uint64 offsets of its
documents in tokens, [documents + 1]), further such pairs, and ``tokens.json``, which is written last: without it,
nothing in the folder counts.
"""

from flame.data.shards.manifest import ShardEntry, TokenizerIdentity, TokenManifest, read_manifest, write_manifest
from flame.data.shards.writer import TokenShardWriter

__all__ = [
    "ShardEntry",
    "TokenManifest",
    "TokenShardWriter",
    "TokenizerIdentity",
    "read_manifest",
    "write_manifest",
]
