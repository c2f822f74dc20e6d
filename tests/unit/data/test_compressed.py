"""Compressed files are read as plain bytes, and one that ends early is never taken for whole."""

import gzip
import io
import random

import pytest
import zstandard

from flame.data.compressed import DAMAGE, decompressed
from flame.data.suffixes import SUFFIXES, format_of, is_compressed, stem_of

PLAIN = random.Random(0).randbytes(300_000) + b"\0" * 1_000_000 + "é\n".encode() * 1000
WHOLE = {
    "a.jsonl": PLAIN,
    "a.jsonl.gz": gzip.compress(PLAIN[:400_000]) + gzip.compress(PLAIN[400_000:]),
    "A.JSONL.ZST": zstandard.compress(PLAIN[:400_000]) + zstandard.compress(PLAIN[400_000:]),
}


@pytest.mark.parametrize("name", WHOLE)
@pytest.mark.parametrize("size", [-1, 1000, 300_001])
def test_the_plain_bytes_come_in_pieces_of_any_size(name: str, size: int) -> None:
    stream, read = decompressed(name, io.BytesIO(WHOLE[name])), b""
    while piece := stream.read(size):
        assert size < 0 or len(piece) <= size
        read += piece
    assert read == PLAIN


def test_lines_are_those_of_the_plain_file() -> None:
    lines = b"one\ntwo\n" * 50_000 + b"three"
    stream = decompressed("a.zst", io.BytesIO(zstandard.compress(lines)))
    assert list(stream) == list(io.BytesIO(lines))


@pytest.mark.parametrize("name", [name for name in WHOLE if is_compressed(name)])
def test_damage_and_an_early_end_are_errors(name: str) -> None:
    whole = WHOLE[name]
    for stored in (whole[:-1], whole[: len(whole) // 2], whole[:100], whole + b"more", b"no such format"):
        with pytest.raises(DAMAGE):
            decompressed(name, io.BytesIO(stored)).read()


def test_names_tell_format_and_compression() -> None:
    assert format_of("x/a.b.JSONL.gz") == "jsonl" and stem_of("x/a.b.JSONL.gz") == "a.b"
    assert format_of("a.parquet") == "parquet" and not format_of("a.gz") and not format_of("README")
    assert stem_of("a.md.zst") == "a.md" and stem_of("a.md.zst", {**SUFFIXES, ".md": "txt"}) == "a"
