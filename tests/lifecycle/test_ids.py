"""Job ids: version 7, rising in this process, one by one or many at a time."""

from __future__ import annotations

from uuid import RFC_4122, UUID

import pytest

from creche._ids import new_job_id, new_job_ids


def test_ids_rise_however_they_are_drawn() -> None:
    drawn: list[UUID] = []
    for _ in range(50):
        drawn += [new_job_id(), *new_job_ids(100), new_job_id()]
    assert drawn == sorted(drawn)
    assert len(set(drawn)) == len(drawn)


def test_ids_rise_when_the_clock_goes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    before = new_job_ids(10)
    monkeypatch.setattr("time.time_ns", lambda: 0)
    drawn = [*before, new_job_id(), *new_job_ids(10)]
    assert drawn == sorted(drawn)


def test_an_id_is_a_uuid_of_version_7() -> None:
    for job_id in [new_job_id(), *new_job_ids(3)]:
        assert job_id.version == 7
        assert job_id.variant == RFC_4122


def test_ids_of_one_draw_have_nothing_random_in_common() -> None:
    assert len({job_id.int & (1 << 62) - 1 for job_id in new_job_ids(1_000)}) == 1_000


def test_no_ids_are_no_ids() -> None:
    assert new_job_ids(0) == []
