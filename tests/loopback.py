"""A web server on this machine that behaves as a test tells it to."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Handler(BaseHTTPRequestHandler):
    """Passes every request to the server's `answer`, which writes what it likes."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        server = self.server
        assert isinstance(server, Server)
        self.close_connection = True
        server.ranges.append(self.headers.get("Range", ""))
        server.answer(self, len(server.ranges))

    def do_HEAD(self) -> None:
        server = self.server
        assert isinstance(server, Server)
        self.start(200, len(server.content))

    def start(self, status: int, length: int | None = None, **headers: str) -> None:
        self.send_response(status)
        if length is not None:
            self.send_header("Content-Length", str(length))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()

    def send_whole(self) -> None:
        """Send the server's content as a good server does, ranges included."""
        server = self.server
        assert isinstance(server, Server)
        size = len(server.content)
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        first = int(asked[1]) if asked else 0
        if first >= size:
            return self.start(416, 0, Content_Range=f"bytes */{size}")
        if asked:
            self.start(206, size - first, Content_Range=f"bytes {first}-{size - 1}/{size}")
        else:
            self.start(200, size)
        self.wfile.write(server.content[first:])

    def log_message(self, format: str, *args: object) -> None:
        """Be quiet."""


class Server(ThreadingHTTPServer):
    daemon_threads = True
    answer: Callable[[Handler, int], None]
    ranges: list[str]
    content: bytes

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that hangs up is part of the tests."""


@dataclass
class Web:
    """The address of the server, and what it was asked for: the Range of each request."""

    server: Server
    released: threading.Event = field(default_factory=threading.Event)

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}/faces.bin"

    def serves(self, content: bytes) -> None:
        self.server.content = content

    @property
    def ranges(self) -> list[str]:
        return self.server.ranges

    def answers(self, answer: Callable[[Handler, int], None]) -> None:
        self.server.answer = answer
