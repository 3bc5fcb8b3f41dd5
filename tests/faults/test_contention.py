"""Rivals in many processes on one backlog: each job is reserved once, and nobody leaves a full queue empty-handed."""

from __future__ import annotations

from benchmarks.contention import Load, contend


def test_rivals_share_no_job_lose_none_and_find_work_while_there_is_any(shared_dsn: str) -> None:
    outcome = contend([shared_dsn], Load(backlog=1_000, dispatched=200, reservers=4, dispatchers=2))
    assert outcome.sound, outcome
    assert outcome.jobs == 1_200
