"""Sources behind real protocols: an S3 server and HTTP servers of this machine."""

import json
import re
import socket
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import islice
from pathlib import Path
from threading import Thread

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from data_stand_ins import Source

from flame.data.shards import TokenizerIdentity, TokenShardWriter, write_manifest
from flame.data.sources.open import open_source
from flame.data.sources.remote import shape, storage
from flame.errors import DataError

TEXTS = [f"[{number}]" + "." * (number * 7 % 40) for number in range(400)]
IDENTITY = TokenizerIdentity("", "bytes", 258)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus")
    for name in ("lines", "rows", "tokens"):
        (folder / name).mkdir()
    (folder / "lines" / "a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    pq.write_table(pa.table({"text": TEXTS}), folder / "rows" / "a.parquet", row_group_size=64)
    with TokenShardWriter(folder / "tokens", dtype="uint16", tokenizer=IDENTITY, tokens_per_shard=5000) as writer:
        for text in TEXTS:
            writer.add(np.frombuffer(text.encode(), np.uint8).astype(np.int32))
        write_manifest(folder / "tokens", "uint16", IDENTITY, writer.close())
    return folder


@pytest.fixture(scope="module")
def s3(corpus) -> Iterator[str]:
    """The corpus in a bucket; the way to it is in the environment, as a user's would be."""
    s3fs = pytest.importorskip("s3fs")
    server_module = pytest.importorskip("moto.server")
    server = server_module.ThreadedMotoServer("127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    variables = {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "somebody",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in variables.items():
            patch.setenv(name, value)
        s3fs.S3FileSystem.clear_instance_cache()
        filesystem = s3fs.S3FileSystem()
        filesystem.mkdir("bucket")
        filesystem.put(f"{corpus}/", "bucket/corpus/", recursive=True)
        yield "s3://bucket/corpus"
        s3fs.S3FileSystem.clear_instance_cache()
    server.stop()


class Files(BaseHTTPRequestHandler):
    """Serves the files of a folder, by ranges."""

    folder: Path
    has_ranges = True
    failing = 0

    def do_HEAD(self):
        self.answer(body=False)

    def do_GET(self):
        self.answer(body=True)

    def answer(self, body):
        kind = type(self)
        path = kind.folder / self.path.lstrip("/")
        if not path.is_file():
            return self.send_error(404)
        if kind.failing:
            kind.failing -= 1
            return self.send_error(503)
        data, status = path.read_bytes(), 200
        found = re.match(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        if found and kind.has_ranges:
            data, status = data[int(found[1]) : int(found[2]) + 1], 206
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("Accept-Ranges", "bytes" if kind.has_ranges else "none")
        self.end_headers()
        if body:
            self.wfile.write(data)

    def log_message(self, *_):
        """Says nothing."""


@pytest.fixture
def http(corpus) -> Iterator[tuple[str, type[Files]]]:
    handler = type("Handler", (Files,), {"folder": corpus})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", handler
    server.shutdown()
    server.server_close()


def open_(path, **fields):
    return open_source(Source(path, **fields), ("text",), 1 << 20, IDENTITY)


def read_all(source):
    records = source.read(range(len(source)))
    if source.tokenized:
        return [bytes(record["input_ids"].astype(np.uint8)).decode() for record in records]
    return [record["text"] for record in records]


@pytest.mark.parametrize("path", ["lines", "rows", "tokens", "lines/a.jsonl", "*s/a.parquet", "tokens/*.bin"])
def test_documents_of_a_bucket_are_those_that_were_put_there(s3, path, monkeypatch):
    monkeypatch.setattr(shape, "PAGE_BYTES", 1 << 10)
    assert sorted(read_all(open_(f"{s3}/{path}"))) == sorted(TEXTS)


def test_a_worker_reads_a_bucket_and_gives_the_batches_of_one_process(s3, make_loader, encoder):
    encoder.fingerprint = ""
    ids = []
    for workers in (0, 1):
        loader = make_loader(*(Source(f"{s3}/{kind}") for kind in ("lines", "rows", "tokens")), workers=workers)
        ids.append([inputs["input_ids"].numpy() for inputs, _ in islice(loader, 12)])
    np.testing.assert_array_equal(*ids)


def test_a_bucket_that_is_not_there_or_not_ours_is_one_clear_line(s3, monkeypatch):
    with pytest.raises(DataError, match="no file or folder 's3://bucket/corpse'"):
        open_("s3://bucket/corpse")
    with pytest.raises(DataError, match="no file or folder 's3://pail/corpus'"):
        open_("s3://pail/corpus")


@pytest.mark.parametrize("path", ["lines/a.jsonl", "rows/a.parquet"])
def test_files_of_a_web_server_are_read_by_ranges(http, path, monkeypatch):
    monkeypatch.setattr(storage, "_DELAYS", (0.0, 0.0))
    url, handler = http
    handler.failing = 2
    assert sorted(read_all(open_(f"{url}/{path}"))) == sorted(TEXTS)
    with pytest.raises(DataError, match="no file or folder 'http://127.0.0.1:.*/none.jsonl'"):
        open_(f"{url}/none.jsonl")


def test_a_web_server_without_ranges_is_an_error_and_not_other_text(http, monkeypatch):
    monkeypatch.setattr(storage, "_CHUNK", 1000)
    url, handler = http
    handler.has_ranges = False
    with pytest.raises(DataError, match="gives no ranges; download it first"):
        read_all(open_(f"{url}/lines/a.jsonl"))


def test_a_server_that_does_not_answer_is_one_clear_line(monkeypatch):
    monkeypatch.setattr(storage, "_DELAYS", (0.0, 0.0))
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}/a.jsonl"
        with pytest.raises(DataError, match="a.jsonl cannot be read after 3 attempts .*check the network"):
            open_(url)
