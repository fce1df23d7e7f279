"""A local server that speaks the hub's protocol, as far as downloads need it; faults on request."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"
PAGE = 3  # entries of a listing, so that paging is met
LARGE = 4_096  # larger files are LFS, with a hash in the listing


@dataclass
class Hub:
    """What the server serves and what it has been asked for."""

    repo: str
    root: Path
    url: str = ""
    downloads: Counter[str] = field(default_factory=Counter)
    cut_once: set[str] = field(default_factory=set)  # file names whose first download breaks off
    damaged: set[str] = field(default_factory=set)  # file names that arrive with a wrong byte
    token: str | None = None


@contextmanager
def serve(repo: str, root: Path) -> Iterator[Hub]:
    """Serve the files below `root` as a dataset repository, for the time of a `with` block."""
    hub = Hub(repo, root)

    class Handler(_Handler):
        served = hub

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    served: Hub

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, *, body: bool) -> None:
        address = urlsplit(self.path)
        path = unquote(address.path)
        if self.served.token and self.headers.get("Authorization") != f"Bearer {self.served.token}":
            self._refuse(401, "RepoNotFound", body)
        elif path.startswith("/cdn/"):
            self._send_file(path.removeprefix("/cdn/"), body)
        elif found := re.fullmatch(r"/api/datasets/(.+)/revision/(.+)", path):
            if self._known(found[1], found[2], body):
                self._send_json({"id": found[1], "sha": COMMIT, "siblings": []})
        elif found := re.fullmatch(r"/api/datasets/(.+)/tree/([^/]+)/(.+)", path):
            if self._known(found[1], found[2], body):
                self._list(found[3], parse_qs(address.query))
        elif found := re.fullmatch(r"/datasets/(.+)/resolve/([^/]+)/(.+)", path):
            if self._known(found[1], found[2], body):
                self._resolve(found[3], body)
        else:
            self._refuse(404, "RepoNotFound", body)

    def _known(self, repo: str, revision: str, body: bool) -> bool:
        if repo != self.served.repo:
            self._refuse(401, "RepoNotFound", body)
        elif revision not in ("main", COMMIT):
            self._refuse(404, "RevisionNotFound", body)
        else:
            return True
        return False

    def _list(self, folder: str, query: dict[str, list[str]]) -> None:
        root = self.served.root
        if not (root / folder).is_dir():
            self._refuse(404, "EntryNotFound", True)
            return
        entries = [self._entry(path) for path in sorted((root / folder).iterdir())]
        start = int(query.get("cursor", ["0"])[0])
        headers = {}
        if start + PAGE < len(entries):
            here = self.path.partition("?")[0]
            headers["Link"] = f'<{self.served.url}{here}?cursor={start + PAGE}>; rel="next"'
        self._send_json(entries[start : start + PAGE], headers)

    def _entry(self, path: Path) -> dict[str, object]:
        place = path.relative_to(self.served.root).as_posix()
        if path.is_dir():
            return {"type": "directory", "path": place, "oid": "0" * 40}
        size = path.stat().st_size
        entry: dict[str, object] = {"type": "file", "path": place, "size": size, "oid": "0" * 40}
        if size > LARGE:
            entry["lfs"] = {"oid": _sha256(path), "size": size, "pointerSize": 130}
        return entry

    def _resolve(self, name: str, body: bool) -> None:
        path = self.served.root / name
        if not path.is_file():
            self._refuse(404, "EntryNotFound", body)
        elif path.stat().st_size > LARGE:
            self._send(
                302,
                b"",
                {
                    "Location": f"{self.served.url}/cdn/{name}",
                    "X-Repo-Commit": COMMIT,
                    "X-Linked-Size": str(path.stat().st_size),
                    "X-Linked-Etag": f'"{_sha256(path)}"',
                },
            )
        else:
            self._send_file(name, body)

    def _send_file(self, name: str, body: bool) -> None:
        path, served = self.served.root / name, self.served
        data = path.read_bytes()
        headers = {"X-Repo-Commit": COMMIT, "ETag": f'"{_sha256(path)}"', "Accept-Ranges": "bytes"}
        if not body:
            self._send(200, b"", headers | {"Content-Length": str(len(data))})
            return
        served.downloads[path.name] += 1
        if path.name in served.damaged:
            data = data[:-1] + bytes([data[-1] ^ 1])
        status = 200
        asked = self.headers.get("Range")
        if asked:
            start = int(asked.removeprefix("bytes=").split("-")[0])
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
            data, status = data[start:], 206
        if path.name in served.cut_once:
            served.cut_once.remove(path.name)
            self.send_response(status)
            for key, value in (headers | {"Content-Length": str(len(data))}).items():
                self.send_header(key, value)
            self.end_headers()
            self.wfile.write(data[: len(data) // 2])
            self.wfile.flush()
            self.close_connection = True
            return
        self._send(status, data, headers)

    def _send_json(self, value: object, headers: dict[str, str] | None = None) -> None:
        self._send(
            200, json.dumps(value).encode(), {"Content-Type": "application/json"} | (headers or {})
        )

    def _refuse(self, status: int, code: str, body: bool) -> None:
        text = json.dumps({"error": code}).encode() if body else b""
        self._send(status, text, {"X-Error-Code": code, "X-Error-Message": code})

    def _send(self, status: int, data: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for key, value in ({"Content-Length": str(len(data))} | headers).items():
            self.send_header(key, value)
        self.end_headers()
        self.wfile.write(data)


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
