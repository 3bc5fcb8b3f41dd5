"""Values refuse nonsense at birth; ids and nonces fit their columns."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from creche import _ids
from creche._ids import new_job_id, new_nonce, new_worker_name
from creche._job import (
    ACTIVE,
    DELAY_LIMIT,
    FINISHED,
    KEY_LIMIT,
    MAX_ATTEMPTS_LIMIT,
    NAME_LIMIT,
    PRIORITY_LIMIT,
    Event,
    Lease,
    NewJob,
    Retention,
    Settlement,
    Status,
    check_aware,
    check_integer,
    check_name,
    check_seconds,
)
from creche.errors import OptionInvalid

NAN, INF = float("nan"), float("inf")
NAIVE = datetime(2030, 1, 1)  # noqa: DTZ001 - the mistake that is meant
AWARE = datetime(2030, 1, 1, tzinfo=UTC)


def new_job(**options: Any) -> NewJob:
    return NewJob(**{"id": new_job_id(), "type": "t", "payload": b"{}", **options})


BAD_NAMES = ["", "a\nb", "\0", "\x1f", "\x7f", "\ud800", "n" * (NAME_LIMIT + 1), "é" * (NAME_LIMIT // 2 + 1), 7, b"q"]


@pytest.mark.parametrize("field", ["type", "queue_name"])
@pytest.mark.parametrize("value", BAD_NAMES)
def test_a_bad_name_is_refused(field: str, value: object) -> None:
    with pytest.raises(OptionInvalid) as caught:
        new_job(**{field: value})
    assert caught.value.option == field


@pytest.mark.parametrize("value", ["", "a\nb", "\ud800", "k" * (KEY_LIMIT + 1), 7])
def test_a_bad_key_is_refused(value: object) -> None:
    with pytest.raises(OptionInvalid) as caught:
        new_job(idempotency_key=value)
    assert caught.value.option == "idempotency_key"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("priority", PRIORITY_LIMIT + 1),
        ("priority", -PRIORITY_LIMIT - 1),
        ("priority", 1.0),
        ("priority", True),
        ("priority", "1"),
        ("max_attempts", 0),
        ("max_attempts", -1),
        ("max_attempts", MAX_ATTEMPTS_LIMIT + 1),
        ("max_attempts", None),
        ("delay", -1),
        ("delay", -1e-9),
        ("delay", NAN),
        ("delay", INF),
        ("delay", DELAY_LIMIT * 1.01),
        ("delay", "60"),
        ("delay", True),
        ("delay", timedelta(seconds=1)),
        ("result_ttl", -1),
        ("result_ttl", NAN),
        ("result_ttl", INF),
        ("available_at", NAIVE),
        ("available_at", "2030-01-01"),
        ("available_at", 1_900_000_000),
        ("fingerprint", b""),
        ("fingerprint", b"x" * 31),
        ("fingerprint", b"x" * 33),
    ],
)
def test_a_bad_option_of_a_job_is_refused_by_its_name(field: str, value: object) -> None:
    with pytest.raises(OptionInvalid) as caught:
        new_job(**{field: value})
    assert caught.value.option == field
    assert field in str(caught.value)


def test_delay_and_moment_together_are_refused() -> None:
    with pytest.raises(OptionInvalid, match="not both"):
        new_job(delay=1, available_at=AWARE)


@pytest.mark.parametrize(
    "options",
    [
        {"type": "n" * NAME_LIMIT, "queue_name": "é" * (NAME_LIMIT // 2), "idempotency_key": "k" * KEY_LIMIT},
        {"priority": PRIORITY_LIMIT, "max_attempts": MAX_ATTEMPTS_LIMIT, "delay": DELAY_LIMIT},
        {"priority": -PRIORITY_LIMIT, "max_attempts": 1, "delay": 0, "result_ttl": 0},
        {"available_at": AWARE, "fingerprint": bytes(32)},
    ],
)
def test_what_stands_on_a_limit_is_taken(options: dict[str, Any]) -> None:
    job = new_job(**options)
    assert {name: getattr(job, name) for name in options} == options


@pytest.mark.parametrize("options", [{"delay": -1}, {"delay": NAN}, {"delay": INF}, {"available_at": NAIVE}])
def test_a_settlement_that_makes_no_sense_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(OptionInvalid):
        Settlement(lease=Lease(job_id=new_job_id(), token=1, nonce=1), event=Event.SNOOZE, **options)


@pytest.mark.parametrize("field", ["completed", "failed", "cancelled"])
@pytest.mark.parametrize("value", [-1, NAN, INF])
def test_a_retention_that_makes_no_sense_is_refused(field: str, value: float) -> None:
    with pytest.raises(OptionInvalid):
        Retention(**{field: value})


def test_the_checks_return_what_they_let_through() -> None:
    assert check_name("queue", "q") == "q"
    assert check_integer("limit", 3, 1, 3) == 3
    assert check_aware("at", AWARE) is AWARE
    assert check_seconds("lease", 30) == 30.0
    assert isinstance(check_seconds("lease", 30), float)
    with pytest.raises(OptionInvalid, match="more than zero"):
        check_seconds("lease", 0, positive=True)


def test_a_job_is_either_active_or_finished() -> None:
    assert set(Status) == ACTIVE | FINISHED
    assert not ACTIVE & FINISHED
    assert all(status.active == (status in ACTIVE) for status in Status)


# --- what a client draws ----------------------------------------------------------------------------


def test_a_job_id_is_a_uuid_of_version_7() -> None:
    before = time.time_ns() // 1_000_000
    job_id = new_job_id()
    assert (job_id.version, job_id.variant) == (7, "specified in RFC 4122")
    assert before <= job_id.int >> 80 <= time.time_ns() // 1_000_000 + 10_000


def test_job_ids_rise_within_a_process() -> None:
    ids = [new_job_id() for _ in range(20_000)]
    assert ids == sorted(set(ids))


def test_job_ids_rise_also_when_the_clock_goes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    first = new_job_id()
    monkeypatch.setattr(time, "time_ns", lambda: 0)
    second, third = new_job_id(), new_job_id()
    assert first < second < third
    assert second.version == third.version == 7


@given(st.integers(0, (1 << 48) * 1_000_000 - 1))
def test_a_job_id_is_well_formed_at_any_moment(nanoseconds: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_ids, "_last", 0)
        patch.setattr(time, "time_ns", lambda: nanoseconds)
        job_id = new_job_id()
        assert (job_id.version, job_id.variant) == (7, "specified in RFC 4122")
        assert job_id.int >> 80 in {nanoseconds // 1_000_000, 0}


def test_nonces_fit_a_signed_64_bit_column_and_use_all_of_it() -> None:
    nonces = [new_nonce() for _ in range(1_000)]
    assert all(-(1 << 63) <= nonce < 1 << 63 for nonce in nonces)
    assert min(nonces) < -(1 << 61)
    assert max(nonces) > 1 << 61
    assert len(set(nonces)) == 1_000


def test_a_workers_name_is_a_name_and_never_the_same() -> None:
    names = {new_worker_name() for _ in range(100)}
    assert len(names) == 100
    assert all(check_name("worker", name) for name in names)
