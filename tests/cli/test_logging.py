"""What a worker writes to stderr: lines for people, JSON for machines, and never a password."""

from __future__ import annotations

import io
import json
import logging
import multiprocessing
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest

from creche.cli._logging import JSONFormatter, TextFormatter, set_up_logging

Log = Callable[..., str]


def logged(formatter: logging.Formatter) -> tuple[logging.Logger, Callable[[], str]]:
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(formatter)
    logger = logging.Logger("creche.test", logging.DEBUG)  # noqa: LOG001 - one that nobody else has
    logger.addHandler(handler)
    return logger, stream.getvalue


def as_json(message: object, *arguments: object, **extra: object) -> dict[str, Any]:
    logger, written = logged(JSONFormatter())
    logger.info(message, *arguments, extra=extra)
    line = written()
    assert line.count("\n") == 1
    return dict(json.loads(line))


class Unspeakable:
    def __repr__(self) -> str:
        raise RuntimeError("not even that")


def test_a_record_is_one_line_of_json_with_its_extras() -> None:
    line = as_json("job %s\nis done", 7, job_id="0198", attempt=2, queue_name="mail")
    assert datetime.fromisoformat(line.pop("time")).tzinfo == UTC
    assert line == {
        "level": "info",
        "logger": "creche.test",
        "message": "job 7\nis done",
        "job_id": "0198",
        "attempt": 2,
        "queue_name": "mail",
    }


def test_nothing_in_a_line_of_json_turns_a_terminal_or_ends_the_line_for_somebody() -> None:
    logger, written = logged(JSONFormatter())
    message = "right\u202eleft\u2028next\x9b31m\x7f"
    logger.info(message)
    assert written().isascii()
    assert json.loads(written())["message"] == message


def test_an_exception_is_one_member_with_its_traceback() -> None:
    logger, written = logged(JSONFormatter())
    try:
        raise ValueError("no such customer")  # noqa: TRY301
    except ValueError:
        logger.exception("it failed")
    line = json.loads(written())
    assert (line["level"], line["message"]) == ("error", "it failed")
    assert line["exception"].startswith("Traceback")
    assert line["exception"].endswith("ValueError: no such customer")


def test_what_json_can_not_hold_is_written_as_text() -> None:
    circle: list[object] = []
    circle.append(circle)
    line = as_json(
        "x",
        when=datetime(2026, 1, 2, tzinfo=UTC),
        error=KeyError("k"),
        nothing=float("nan"),
        keys={(1, 2): 3},
        surrogate="\ud800",
        circle=circle,
        unspeakable=Unspeakable(),
        items={"a"},
    )
    assert line["when"] == "2026-01-02T00:00:00Z"
    assert line["error"] == "'k'"
    assert line["nothing"] is None
    assert line["keys"] == {"(1, 2)": 3}
    assert line["surrogate"] == "\\ud800"
    assert line["circle"] == "[[...]]"
    assert line["unspeakable"] == "<Unspeakable without a repr>"
    assert line["items"] == ["a"]


def test_an_extra_does_not_take_the_place_of_a_member_of_ours() -> None:
    line = as_json("x", level="loud", time="never")
    assert (line["level"], line["extra_level"], line["extra_time"]) == ("info", "loud", "never")


@pytest.mark.parametrize("formatter", [JSONFormatter(), TextFormatter()])
def test_a_record_with_the_wrong_number_of_arguments_is_written_all_the_same(formatter: logging.Formatter) -> None:
    logger, written = logged(formatter)
    logger.info("one %s, two %s", 1)  # noqa: PLE1206 - that is it
    assert "one %s, two %s (1,)" in written()


def test_passwords_of_dsns_are_masked_wherever_they_stand() -> None:
    dsn = "postgresql://bob:secret@db/reports"
    line = as_json("can't reach %s", dsn, dsn=dsn, inside={"dsn": [dsn]}, error=ValueError(dsn), after="kept@here")
    assert "secret" not in json.dumps(line)
    assert line["message"] == "can't reach postgresql://bob:***@db/reports"
    assert line["inside"] == {"dsn": ["postgresql://bob:***@db/reports"]}
    assert line["after"] == "kept@here"
    logger, written = logged(TextFormatter())
    try:
        raise ValueError(dsn)  # noqa: TRY301
    except ValueError:
        logger.exception("no answer from %s", dsn)
    assert "secret" not in written()
    assert written().count("bob:***@db") == 2


def test_a_line_for_people_holds_nothing_that_a_terminal_obeys() -> None:
    logger, written = logged(TextFormatter())
    logger.info("a job says \x1b[31mred")
    assert "\x1b" not in written()
    assert "\\u001b[31mred" in written()


def test_several_processes_can_be_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(multiprocessing.current_process(), "name", "worker-2")
    assert as_json("x")["process"] == "worker-2"
    monkeypatch.setattr(logging.root, "handlers", [])
    monkeypatch.setattr(logging.root, "level", logging.WARNING)
    set_up_logging("text", "debug", processes=True)
    (handler,) = logging.root.handlers
    assert logging.root.level == logging.DEBUG
    assert " worker-2 creche: x" in handler.format(logging.makeLogRecord({"name": "creche", "msg": "x"}))


def test_an_application_that_has_set_up_logging_keeps_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = logging.NullHandler()
    monkeypatch.setattr(logging.root, "handlers", [theirs])
    level = logging.root.level
    set_up_logging("json", "debug")
    assert logging.root.handlers == [theirs]
    assert logging.root.level == level
