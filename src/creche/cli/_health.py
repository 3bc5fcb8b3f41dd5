"""`--health-port` and `creche health`: how a worker is, over HTTP, for platforms and for shells. It changes nothing.

It is served from threads of its own, and so it answers while the event loop is blocked.
"""

from __future__ import annotations

import http.client
import logging
import socketserver
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import IPv6Address, ip_address
from socket import AF_INET6
from typing import Any, Final

import click
import msgspec

from creche import Health
from creche.cli._display import plain_text
from creche.cli._problems import ExitCode, Trouble

_log = logging.getLogger("creche")

HOST: Final = "127.0.0.1"
PORT: Final = "CRECHE_WORKER_HEALTH_PORT"
_PATIENCE: Final = 5.0  # seconds for a client that takes its time, and for a server that does


# --- the server -------------------------------------------------------------------------------------


@contextmanager
def served(health: Callable[[], Health], host: str, port: int | None) -> Generator[None]:
    """Answer /live and /ready until the block is left; not at all without a port.

    Raises:
        Trouble: nobody can listen there.
    """
    if port is None:
        yield
        return
    try:
        server = _Server(health, host, port)
    except OSError as error:
        raise Trouble(f"--health-port: {host} port {port}: {error.strerror or error}") from error
    with server:
        threading.Thread(target=server.serve_forever, args=(0.1,), name="creche health", daemon=True).start()
        _log.info("health: %s", server.url)
        try:
            yield
        finally:
            server.shutdown()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False  # a client that hangs keeps no worker from its end

    def __init__(self, health: Callable[[], Health], host: str, port: int) -> None:
        self.health = health
        if _is_ipv6(host):
            self.address_family = AF_INET6
        super().__init__((host, port), _Answer)

    def server_bind(self) -> None:
        """Bind without a look-up of our own name, which the base class makes: DNS may take its time."""
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])

    @property
    def url(self) -> str:
        host = f"[{self.server_name}]" if self.address_family == AF_INET6 else self.server_name
        return f"http://{host}:{self.server_port}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing: a client that went away is its own business."""


class _Answer(BaseHTTPRequestHandler):
    server: _Server  # pyright: ignore[reportIncompatibleVariableOverride] - the one that made it
    server_version = "creche"
    sys_version = ""
    timeout = _PATIENCE

    def do_GET(self) -> None:
        """Answer 200 or 503, with the reason as JSON."""
        health = self.server.health()
        match self.path.partition("?")[0]:
            case "/live":
                self._answer(HTTPStatus.OK if health.live else HTTPStatus.SERVICE_UNAVAILABLE, health)
            case "/ready":
                self._answer(HTTPStatus.OK if health.ready else HTTPStatus.SERVICE_UNAVAILABLE, health)
            case _:
                self._answer(HTTPStatus.NOT_FOUND, {"reason": "ask for /live or /ready"})

    do_HEAD = do_GET  # noqa: N815 - as the base class looks it up

    def _answer(self, status: HTTPStatus, answer: object) -> None:
        body = msgspec.json.encode(answer) + b"\n"
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing: probes come every few seconds."""


def _is_ipv6(host: str) -> bool:
    try:
        return isinstance(ip_address(host), IPv6Address)
    except ValueError:
        return False


# --- the command ------------------------------------------------------------------------------------


@click.command(epilog="Exit codes: 0 it is, 1 it is not, or nobody answers.")
@click.option("--host", default=HOST, show_default=True, metavar="HOST", help="Where the worker serves it.")
@click.option(
    "--port",
    type=click.IntRange(1, 65_535),
    envvar=PORT,
    show_envvar=True,
    metavar="PORT",
    help="The worker's --health-port.",
)
@click.option(
    "--ready/--live", default=True, help="Whether it takes jobs, or only that it is not stuck.  [default: ready]"
)
@click.pass_context
def health(context: click.Context, *, host: str, port: int | None, ready: bool) -> None:
    """Ask a worker how it is, over its --health-port.

    Says so in one line. For Docker's HEALTHCHECK and the like. Who restarts what is unhealthy should ask for --live: a
    worker that is not ready for want of a database gets no better by a restart.
    """
    if port is None:
        raise Trouble(f"which port? Say --port, or set {PORT}, as for the worker")
    status, reason = _ask(host, port, "/ready" if ready else "/live")
    word = "ready" if ready else "live"
    good = status == HTTPStatus.OK
    click.echo(f"{'' if good else 'not '}{word}{f': {reason}' if reason else ''}")
    context.exit(ExitCode.OK if good else ExitCode.TROUBLE)


def _ask(host: str, port: int, path: str) -> tuple[int, str]:
    connection = http.client.HTTPConnection(host, port, timeout=_PATIENCE)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        body = answer.read(65_536)
    except (OSError, http.client.HTTPException) as error:
        why = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise Trouble(f"no answer from {host} port {port}: {why}; is a worker up, with that --health-port?") from error
    finally:
        connection.close()
    return answer.status, plain_text(" ".join(_reason(body).split()))


def _reason(body: bytes) -> str:
    try:
        return str(msgspec.json.decode(body, type=dict[str, Any]).get("reason", ""))
    except msgspec.DecodeError:
        return "whoever answers there is no worker"
