"""An HTTP server on loopback that keeps what it was sent, and answers as it is told."""

from __future__ import annotations

import ssl
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from attrs import define, field


@define
class Request:
    path: str
    headers: dict[str, str]
    body: bytes


@define
class Reply:
    """What is answered; `wait` is an event before the answer begins, `endless` a body that never ends."""

    status: int = 204
    headers: Mapping[str, str] = field(factory=dict)
    body: bytes = b""
    wait: threading.Event | None = None
    endless: bool = False


class Receiver(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.requests: list[Request] = []
        self.replies: list[Reply] = []
        self.sent = 0
        self.names: list[str | None] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/hook?token=7"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is no news."""

    def speak_tls(self, context: ssl.SSLContext) -> None:
        context.sni_callback = lambda _socket, name, _context: self.names.append(name)
        self.socket = context.wrap_socket(self.socket, server_side=True)


class _Handler(BaseHTTPRequestHandler):
    server: Receiver
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.server.requests.append(Request(self.path, headers, body))
        reply = self.server.replies.pop(0) if self.server.replies else Reply()
        if reply.wait is not None:
            reply.wait.wait(20)
        self.send_response_only(reply.status)
        for name, value in reply.headers.items():
            self.send_header(name, value)
        if "content-length" in reply.headers:
            self.close_connection = True
        elif not reply.endless:
            self.send_header("content-length", str(len(reply.body)))
        self.end_headers()
        self.wfile.write(reply.body)
        while reply.endless:
            self.wfile.write(b"x" * 65_536)
            self.server.sent += 65_536

    do_GET = do_POST  # noqa: N815

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""


@contextmanager
def receiving() -> Iterator[Receiver]:
    receiver = Receiver()
    thread = threading.Thread(target=receiver.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield receiver
    finally:
        receiver.shutdown()
        receiver.server_close()
        thread.join(10)
