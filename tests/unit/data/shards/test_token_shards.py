"""Token shards: what was written comes back, the same bytes every time, and never half a shard."""

import errno
import json
import os
import signal
import subprocess
import sys

import numpy as np
import pytest

from flame.data.shards import ShardEntry, TokenizerIdentity, TokenShardWriter, read_manifest, write_manifest
from flame.errors import DataError
from flame.files import Draft

IDENTITY = TokenizerIdentity("f" * 32, "some/tokenizer", 1000)
DOCUMENTS = [np.arange(size, dtype=np.int32) % 1000 for size in (3, 40, 1, 25, 70, 2)]


def write(folder, documents=DOCUMENTS, tokens_per_shard=50, **options):
    options = {"dtype": "uint16", "tokenizer": IDENTITY, **options}
    with TokenShardWriter(folder, tokens_per_shard=tokens_per_shard, **options) as writer:
        for document in documents:
            writer.add(document)
        entries = writer.close()
    return write_manifest(folder, options["dtype"], options["tokenizer"], entries)


def read_back(folder):
    documents = []
    for entry in read_manifest(folder).shards:
        ids = np.fromfile(folder / entry.file, "<u2")
        offsets = np.fromfile(folder / entry.index, "<u8").astype(int)
        documents += [ids[start:stop] for start, stop in zip(offsets, offsets[1:], strict=False)]
    return documents


def test_documents_come_back_whole_and_in_order(tmp_path):
    manifest = write(tmp_path, [*DOCUMENTS, np.empty(0, np.int32)])
    assert manifest == read_manifest(tmp_path)
    assert [(entry.file, entry.tokens, entry.documents) for entry in manifest.shards] == [
        ("shard_00000.bin", 44, 3),
        ("shard_00001.bin", 25, 1),
        ("shard_00002.bin", 70, 1),
        ("shard_00003.bin", 2, 1),
    ]
    for ours, theirs in zip(read_back(tmp_path), DOCUMENTS, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_equal_documents_give_equal_bytes(tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        write(tmp_path / folder)
    names = sorted(os.listdir(tmp_path / "a"))
    assert names == sorted(os.listdir(tmp_path / "b")) and len(names) == 9
    assert all((tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes() for name in names)


def test_writers_share_a_folder_by_prefix_or_number(tmp_path):
    for prefix, first in (("left", 0), ("shard", 7)):
        with TokenShardWriter(
            tmp_path, dtype="uint32", tokenizer=IDENTITY, tokens_per_shard=9, prefix=prefix, first=first
        ) as writer:
            writer.add(np.array([5]))
    assert {path.name for path in tmp_path.glob("*.bin")} == {"left_00000.bin", "shard_00007.bin"}


@pytest.mark.parametrize(
    ("ids", "message"),
    [([3, -1], "document 0 has the id -1"), ([1000], "document 0 has the id 1000, outside the vocabulary of 1,000")],
)
def test_ids_that_are_none_are_refused(tmp_path, ids, message):
    with pytest.raises(DataError, match=message):
        write(tmp_path, [np.array(ids)])
    assert not list(tmp_path.iterdir())


def test_a_vocabulary_that_does_not_fit_the_type_is_refused(tmp_path):
    large = TokenizerIdentity("", "large", 65_537)
    with pytest.raises(DataError, match="65,537 ids do not fit uint16: use uint32"):
        write(tmp_path, tokenizer=large)
    assert write(tmp_path, dtype="uint32", tokenizer=large).dtype == "uint32"


@pytest.mark.parametrize("broken", [*range(1, 8)])
def test_a_full_disk_is_one_clear_line_and_leaves_no_half_shard(tmp_path, monkeypatch, broken):
    """The ``broken``-th write that reaches the disk fails: at the first shard, its index, the second shard, ..."""
    syncs, real = [0], os.fsync

    def full(descriptor):
        syncs[0] += 1
        if syncs[0] == broken:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DataError, match="cannot write .*No space left on device.*room on its disk"):
        write(tmp_path)
    assert not (tmp_path / "tokens.json").exists()
    assert not list(tmp_path.glob(".*.draft"))
    monkeypatch.undo()
    for path in tmp_path.glob("*.bin"):
        number = int(path.stem[-5:])
        whole = [DOCUMENTS[:3], DOCUMENTS[3:4], DOCUMENTS[4:5], DOCUMENTS[5:]][number]
        np.testing.assert_array_equal(np.fromfile(path, "<u2"), np.concatenate(whole))


def test_a_really_full_disk_is_an_error_too(tmp_path, monkeypatch):
    if not os.path.exists("/dev/full"):
        pytest.skip("no /dev/full on this system")
    draft = Draft(tmp_path / "a.bin")
    draft._file.close()
    draft._file = open("/dev/full", "wb")  # noqa: SIM115
    with pytest.raises(DataError, match="No space left on device"):
        draft.write(b"x" * (1 << 21))
        draft.commit()
    draft.discard()
    assert not list(tmp_path.iterdir())


def test_a_killed_writer_leaves_nothing_that_counts(tmp_path):
    code = (
        "import os, sys, numpy as np\n"
        "from flame.data.shards import *\n"
        "writer = TokenShardWriter(sys.argv[1], dtype='uint16', tokenizer=TokenizerIdentity('', '', 9), "
        "tokens_per_shard=10)\n"
        "for _ in range(5): writer.add(np.ones(4, np.int32))\n"
        f"os.kill(os.getpid(), {int(signal.SIGKILL)})\n"
    )
    assert subprocess.run([sys.executable, "-c", code, str(tmp_path)]).returncode == -signal.SIGKILL
    assert sorted(path.name for path in tmp_path.glob("shard*")) == [
        *("shard_00000.bin", "shard_00000.idx", "shard_00001.bin", "shard_00001.idx")
    ]
    with pytest.raises(DataError, match="tokens.json cannot be read .* is not finished"):
        read_manifest(tmp_path)
    write(tmp_path)
    assert not list(tmp_path.glob(".*"))


def set_key(*keys, value):
    def change(folder):
        content = json.loads((folder / "tokens.json").read_text())
        inner = content
        for key in keys[:-1]:
            inner = inner[key]
        inner[keys[-1]] = value
        (folder / "tokens.json").write_text(json.dumps(content))

    return change


def set_offsets(offsets):
    return lambda folder: np.array(offsets, "<u8").tofile(folder / "shard_00000.idx")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "tokens.json").write_text("{"), "tokens.json is damaged"),
        (lambda folder: (folder / "tokens.json").write_bytes(b"\xff"), "tokens.json is damaged"),
        (lambda folder: (folder / "tokens.json").write_text("[]"), "tokens.json is damaged"),
        (set_key("version", value=2), "is flame.tokens 2, not flame.tokens 1"),
        (set_key("dtype", value="int8"), "dtype 'int8' is none of uint16, uint32"),
        (set_key("tokenizer", value={"name": ""}), "tokens.json is damaged .*fingerprint"),
        (set_key("tokenizer", "vocab_size", value="9"), "tokens.json is damaged .*vocab_size is '9'"),
        (set_key("shards", 0, "file", value="../x.bin"), "tokens.json is damaged"),
        (set_key("shards", 0, "tokens", value=-1), "tokens.json is damaged"),
        (lambda folder: os.truncate(folder / "shard_00001.bin", 49), "shard_00001.bin has 49 bytes, .* says 50"),
        (lambda folder: os.truncate(folder / "shard_00001.idx", 8), "shard_00001.idx has 8 bytes, .* says 16"),
        (lambda folder: (folder / "shard_00002.bin").unlink(), "shard_00002.bin cannot be read"),
        (set_offsets([0, 3, 2, 44]), "shard_00000.idx is damaged: offset 2 is 2, below the one before"),
        (set_offsets([0, 3, 43, 45]), "its offsets go from 0 to 45, not from 0 to 44"),
        (set_offsets([1, 3, 43, 44]), "its offsets go from 1 to 44, not from 0 to 44"),
    ],
)
def test_what_does_not_fit_is_named(tmp_path, damage, message):
    write(tmp_path)
    damage(tmp_path)
    with pytest.raises(DataError, match=message) as caught:
        read_manifest(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_manifest_of_shards_that_are_not_there_is_not_written(tmp_path):
    with pytest.raises(DataError, match="shard_00000.bin cannot be read"):
        write_manifest(tmp_path, "uint16", IDENTITY, [ShardEntry("shard_00000.bin", 1, 1, "0" * 16)])
    assert not list(tmp_path.iterdir())
