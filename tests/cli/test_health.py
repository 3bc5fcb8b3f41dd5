"""How a worker is, over HTTP and from a shell: also while its event loop is blocked."""

from __future__ import annotations

import re
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from commands import PATIENCE, Command, application, asked, executed, jobs_in, started
from creche import Health
from creche.cli._health import served
from creche.cli._problems import Trouble
from processes import eventually
from sockets import closed_port

FINE = Health(live=True, ready=True)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return application(tmp_path)


@pytest.fixture
def port() -> int:
    return closed_port()


# --- the server -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("health", "live", "ready"),
    [
        (Health(live=True, ready=True), 200, 200),
        (Health(live=True, ready=False, reason="the database does not answer"), 200, 503),
        (Health(live=False, ready=False, reason="the event loop is blocked"), 503, 503),
    ],
)
def test_live_and_ready_answer_with_a_code_and_the_reason(port: int, health: Health, live: int, ready: int) -> None:
    body = {"live": health.live, "ready": health.ready, "reason": health.reason}
    with served(lambda: health, "127.0.0.1", port):
        assert asked(port, "/live") == (live, body)
        assert asked(port, "/ready?verbose") == (ready, body)
        assert asked(port, "/ready", "HEAD") == (ready, None)
        assert asked(port, "/")[0] == 404


def test_each_question_is_answered_as_things_are_then(port: int) -> None:
    answers = iter([FINE, Health(live=True, ready=False)])
    with served(lambda: next(answers), "127.0.0.1", port):
        assert [asked(port, "/ready")[0] for _ in range(2)] == [200, 503]


def test_a_client_that_says_nothing_keeps_nobody_waiting(port: int) -> None:
    with served(lambda: FINE, "127.0.0.1", port), socket.create_connection(("127.0.0.1", port)):
        assert asked(port, "/live")[0] == 200


def test_it_is_gone_with_the_block(port: int) -> None:
    with served(lambda: FINE, "127.0.0.1", port):
        pass
    with pytest.raises(ConnectionRefusedError):
        asked(port, "/live")
    with served(lambda: FINE, "127.0.0.1", port):
        assert asked(port, "/live")[0] == 200


def test_it_can_be_served_over_ipv6(port: int) -> None:
    with served(lambda: FINE, "::1", port):
        assert asked(port, "/live", host="::1")[0] == 200


def test_without_a_port_nothing_is_served() -> None:
    with served(lambda: FINE, "nowhere", None):
        pass


def test_a_port_that_is_taken_is_one_line(port: int) -> None:
    taken = pytest.raises(Trouble, match=f"port {port}: Address already in use")
    with served(lambda: FINE, "127.0.0.1", port), taken, served(lambda: FINE, "127.0.0.1", port):
        pass


# --- a worker's -------------------------------------------------------------------------------------


@pytest.fixture(params=[(), ("--processes", "2")], ids=["one process", "two processes"])
def worker(request: pytest.FixtureRequest, folder: Path, port: int) -> Iterator[Command]:
    words = ("worker", "app:queue", "--lease", "1s", "--health-port", str(port), *request.param)
    with started(folder, *words) as worker:
        worker.says("health: http://127.0.0.1")
        assert eventually(lambda: asked(port, "/ready")[0] == 200, PATIENCE)
        yield worker


def test_a_blocked_event_loop_answers_that_it_is_not_live_and_recovers(
    folder: Path, port: int, worker: Command
) -> None:
    jobs_in(folder).dispatch("blocking", {"seconds": 4.0})
    assert eventually(lambda: asked(port, "/live")[0] == 503, PATIENCE), worker.told
    assert "blocked" in asked(port, "/live")[1]["reason"]
    assert eventually(lambda: asked(port, "/live")[0] == 200, PATIENCE)


def test_a_closed_port_is_found_and_told(folder: Path) -> None:
    with started(folder, "worker", "app:queue", "--health-port", "0") as worker:
        worker.says("health: http://127.0.0.1:")
        found = re.search(r"http://127.0.0.1:(\d+)", worker.told)
        assert found is not None
        assert asked(int(found[1]), "/live")[0] == 200


# --- the command ------------------------------------------------------------------------------------


def test_the_command_says_in_one_line_and_its_code_how_the_worker_is(folder: Path, port: int) -> None:
    health = Health(live=True, ready=False, reason="it is\x1b[31m quiet")
    with served(lambda: health, "127.0.0.1", port):
        ready = executed(folder, "health", "--port", str(port))
        live = executed(folder, "health", "--live", CRECHE_WORKER_HEALTH_PORT=str(port))
    assert (ready.returncode, ready.stdout, ready.stderr) == (1, "not ready: it is\\u001b[31m quiet\n", "")
    assert (live.returncode, live.stdout.split(":")[0]) == (0, "live")


def test_nobody_there_is_one_line_and_1(folder: Path, port: int) -> None:
    done = executed(folder, "health", "--port", str(port))
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    assert f"no answer from 127.0.0.1 port {port}" in done.stderr


def test_somebody_else_there_is_not_a_healthy_worker(folder: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.listen()
        port = server.getsockname()[1]
        with started(folder, "health", "--port", str(port)) as command:
            connection, _ = server.accept()
            with connection:
                connection.recv(1000)
                connection.sendall(b"SSH-2.0-OpenSSH\r\n")
            assert command.ended() == 1


def test_a_port_has_to_be_said(folder: Path) -> None:
    done = executed(folder, "health")
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "CRECHE_WORKER_HEALTH_PORT" in done.stderr
