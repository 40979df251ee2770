"""A local web server whose answers each test defines."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Handler(BaseHTTPRequestHandler):
    """Passes every request to the server's `answer`, which may write any bytes."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        """Record the requested range, and let the test answer."""
        server = self.server
        assert isinstance(server, Server)
        self.close_connection = True
        server.ranges.append(self.headers.get("Range", ""))
        server.answer(self, len(server.ranges))

    def do_HEAD(self) -> None:
        """Report the size of the content."""
        server = self.server
        assert isinstance(server, Server)
        self.start(200, len(server.content))

    def start(self, status: int, length: int | None = None, **headers: str) -> None:
        """Send the status line and headers; an underscore in a header's name stands for a hyphen."""
        self.send_response(status)
        if length is not None:
            self.send_header("Content-Length", str(length))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()

    def send_whole(self) -> None:
        """Send the server's content, or the requested range of it, as a correct server does."""
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
        """Print nothing."""


class Server(ThreadingHTTPServer):
    """A server with the content that it serves, the ranges it was asked for, and a function that answers requests."""

    daemon_threads = True
    answer: Callable[[Handler, int], None]
    ranges: list[str]
    content: bytes

    def handle_error(self, request: object, client_address: object) -> None:
        """Ignore errors: some tests close the connection on purpose."""


@dataclass
class Web:
    """What a test sees of the server.

    Attributes:
        server: the running server.
        released: an event that answers may wait for; it is set at the end of the test.
    """

    server: Server
    released: threading.Event = field(default_factory=threading.Event)

    @property
    def address(self) -> str:
        """The URL of the served file."""
        return f"http://127.0.0.1:{self.server.server_port}/faces.bin"

    def serves(self, content: bytes) -> None:
        """Set the content that `Handler.send_whole` sends."""
        self.server.content = content

    @property
    def ranges(self) -> list[str]:
        """The Range header of each request so far; "" where it had none."""
        return self.server.ranges

    def answers(self, answer: Callable[[Handler, int], None]) -> None:
        """Set the function that answers requests; it gets the handler and the number of the request, from 1."""
        self.server.answer = answer
