"""A stand-in for the Hugging Face Hub on loopback: it stores what is uploaded, and serves it."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

COMMIT = "0123456789abcdef0123456789abcdef01234567"
TOKEN = "hf_of_the_test"


class Hub(ThreadingHTTPServer):
    """The models on the stand-in, as file contents by model and name, and which of them are private."""

    daemon_threads = True
    files: dict[tuple[str, str], bytes]
    private: dict[str, bool]
    requests: list[str]

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    """Answers as the Hub's interface is documented at https://huggingface.co/docs/hub/api."""

    protocol_version = "HTTP/1.1"

    @property
    def hub(self) -> Hub:
        assert isinstance(self.server, Hub)
        return self.server

    def do_POST(self) -> None:
        """Create a model, say how to upload files, or store them."""
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.hub.requests.append(f"POST {self.path}")
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self.send_json({"error": "Invalid username or password."}, 401)
        if self.path == "/api/repos/create":
            wanted = json.loads(body)
            name = f"{wanted.get('organization', 'user')}/{wanted['name']}"
            self.hub.private.setdefault(name, bool(wanted.get("private") or wanted.get("visibility") == "private"))
            return self.send_json({"url": f"{self.hub.address}/{name}", "name": name, "id": name})
        if self.path == "/api/validate-yaml":
            return self.send_json({"errors": [], "warnings": []})
        if "/preupload/" in self.path:
            wanted = json.loads(body)["files"]
            modes = [{"path": file["path"], "uploadMode": "regular", "shouldIgnore": False} for file in wanted]
            return self.send_json({"files": modes})
        match = re.fullmatch(r"/api/models/([^/]+/[^/]+)/commit/main", self.path.partition("?")[0])
        assert match, self.path
        for line in body.splitlines():
            entry = json.loads(line)
            if entry["key"] == "file":
                content = base64.b64decode(entry["value"]["content"])
                self.hub.files[match[1], entry["value"]["path"]] = content
        return self.send_json({"commitUrl": f"{self.hub.address}/{match[1]}/commit/{COMMIT}", "commitOid": COMMIT})

    def do_GET(self) -> None:
        """Send a file of a model, or the model's description."""
        self.hub.requests.append(f"{self.command} {self.path}")
        match = re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", self.path)
        if match and match[2] in ("main", COMMIT) and (match[1], match[3]) in self.hub.files:
            content = self.hub.files[match[1], match[3]]
            headers = {"ETag": f'"{hashlib.sha1(content).hexdigest()}"', "X-Repo-Commit": COMMIT}
            return self.send(200, content, **headers)
        code = "RepoNotFound" if match and match[1] not in {name for name, _ in self.hub.files} else "EntryNotFound"
        return self.send(404, b"", **{"X-Error-Code": code, "X-Repo-Commit": COMMIT})

    do_HEAD = do_GET

    def send_json(self, value: object, status: int = 200) -> None:
        """Send a JSON value."""
        self.send(status, json.dumps(value).encode(), **{"Content-Type": "application/json"})

    def send(self, status: int, content: bytes, **headers: str) -> None:
        """Send an answer; to HEAD without its content."""
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        """Print nothing."""


@contextmanager
def running_hub(cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A stand-in to which the Hub's client speaks inside the block, with its cache in the folder `cache`."""
    constants = pytest.importorskip("huggingface_hub.constants")
    server = Hub(("127.0.0.1", 0), Handler)
    server.files, server.private, server.requests = {}, {}, []
    template = server.address + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "ENDPOINT", server.address)  # The client reads HF_ENDPOINT only when it is imported.
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
