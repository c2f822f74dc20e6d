"""A file server on loopback that fails in the ways that servers do."""

import hashlib
import json
import re
import resource
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit


@dataclass
class Faults:
    """What the server does wrong; counts say for how many requests of a file."""

    cut_after: int = 0
    """Bytes of a body after which the connection is closed; 0 for never."""
    cuts: int = 1_000_000
    wrong_bytes: int = 0
    """Requests answered with zeros in place of the last byte."""
    codes: list[int] = field(default_factory=list)
    """Answered before anything else, one per request."""
    ignores_ranges: bool = False
    stated_length: int | None = None
    """Said instead of the true length."""
    has_no_version: bool = False
    """No ETag is sent."""
    slow: float = 0.0
    """Seconds between pieces of 4096 bytes."""


@dataclass
class Server:
    """The server, its files, and what was asked of it."""

    url: str
    files: dict[str, bytes] = field(default_factory=dict)
    faults: dict[str, Faults] = field(default_factory=dict)
    requests: list[tuple[str, str]] = field(default_factory=list)
    """Path and Range header."""
    served: Counter[str] = field(default_factory=Counter)
    """Bytes of bodies by path."""
    hub: dict[str, list[str]] = field(default_factory=dict)
    """Datasets of a hub: repository -> paths; a file is at ``/datasets/REPO/resolve/COMMIT/PATH``."""

    def put(self, path: str, content: bytes) -> str:
        """Serves a file; returns its URL."""
        self.files[path] = content
        return f"{self.url}{path}"

    def put_dataset(self, repo: str, files: dict[str, bytes]) -> None:
        """Serves a dataset as the hub does."""
        self.hub[repo] = list(files)
        for path, content in files.items():
            self.put(f"/datasets/{repo}/resolve/{COMMIT}/{path}", content)

    def asked(self, path: str) -> list[str]:
        """The Range headers of the requests for a file, in order."""
        return [value for asked, value in self.requests if asked == path]


@contextmanager
def limited_file_size(size: int) -> Iterator[None]:
    """Files cannot grow beyond ``size`` bytes, which fails as a full disk does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


COMMIT = "0123456789abcdef0123456789abcdef01234567"


@contextmanager
def serve() -> Iterator[Server]:
    """Runs a server until the end of the block."""
    listener = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    listener.daemon_threads = True
    server = Server(f"http://127.0.0.1:{listener.server_port}")
    listener.state = server  # pyright: ignore[reportAttributeAccessIssue]
    thread = threading.Thread(target=listener.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        listener.shutdown()
        listener.server_close()


class Handler(BaseHTTPRequestHandler):
    """Answers requests, rightly or wrongly."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        pass

    def do_HEAD(self) -> None:  # noqa: N802
        self._reply(200, b"")

    def do_GET(self) -> None:  # noqa: N802
        server: Server = self.server.state  # pyright: ignore[reportAttributeAccessIssue]
        path = unquote(urlsplit(self.path).path)
        asked = self.headers.get("Range", "")
        server.requests.append((path, asked))
        if path.startswith("/api/datasets/"):
            self._answer_hub(server, path)
            return
        faults = server.faults.get(path, Faults())
        if faults.codes:
            self._reply(faults.codes.pop(0), b"not now")
        elif path not in server.files:
            self._reply(404, b"no such file")
        else:
            self._send_file(server, path, asked, faults)

    def _send_file(self, server: Server, path: str, asked: str, faults: Faults) -> None:
        content = server.files[path]
        if faults.wrong_bytes:
            faults.wrong_bytes -= 1
            content = content[:-1] + b"\0"
        tag = f'"{hashlib.md5(server.files[path]).hexdigest()}"'
        start = 0
        found = re.fullmatch(r"bytes=(\d+)-", asked)
        if found and not faults.ignores_ranges and self.headers.get("If-Range", tag) == tag:
            start = int(found[1])
        headers = {} if faults.has_no_version else {"ETag": tag}
        if start >= len(content) and start:
            self._reply(416, b"", {"Content-Range": f"bytes */{len(content)}"})
            return
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        body = content[start:]
        length = len(body) if faults.stated_length is None else faults.stated_length
        self._start(206 if start else 200, length, headers)
        if faults.cut_after and faults.cuts:
            faults.cuts -= 1
            body = body[: faults.cut_after]
        for place in range(0, len(body), 4096):
            try:
                self.wfile.write(body[place : place + 4096])
            except OSError:
                break
            server.served[path] += len(body[place : place + 4096])
            if faults.slow:
                threading.Event().wait(faults.slow)
        if len(body) != length:
            self.close_connection = True

    def _answer_hub(self, server: Server, path: str) -> None:
        repo, _, rest = path.removeprefix("/api/datasets/").partition("/revision/")
        if rest:
            found = server.hub.get(repo)
            info = {"id": repo, "sha": COMMIT, "siblings": [], "tags": [], "downloads": 0, "private": False}
            self._reply(*((200, json.dumps(info).encode()) if found is not None else (404, b"{}")))
            return
        repo, _, rest = path.removeprefix("/api/datasets/").partition("/tree/")
        folder = rest.partition("/")[2]
        entries = []
        for name in server.hub.get(repo, []):
            content = server.files[f"/datasets/{repo}/resolve/{COMMIT}/{name}"]
            lfs = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 130}
            if name.startswith(folder):
                entries.append({"type": "file", "oid": "0" * 40, "size": len(content), "path": name, "lfs": lfs})
        self._reply(200, json.dumps(entries).encode())

    def _reply(self, code: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self._start(code, len(body), headers or {})
        self.wfile.write(body)

    def _start(self, code: int, length: int, headers: dict[str, str]) -> None:
        self.send_response(code)
        for name, value in {"Content-Length": str(length), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
