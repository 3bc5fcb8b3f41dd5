"""Who has still a use for a job that has succeeded, so that it stays where nothing is kept: by what was sent, not by
what any storage says. It judges nobody.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from uuid import UUID

from creche._job import NewJob, Retention
from creche.testing._machine_rows import StoredJob


class Uses:
    """Knows for which jobs something was asked that is to be had after their end only."""

    def __init__(self) -> None:
        self._answering: set[UUID] = set()
        self._kept: dict[str, Retention] = {}
        self._watched: dict[UUID, set[str]] = {}
        self._told: dict[str, set[UUID]] = {}
        self._followed: set[UUID] = set()  # since the last look

    def dispatched(self, jobs: Iterable[NewJob]) -> None:
        """Jobs were sent, and some are to answer for their fingerprint."""
        self._answering |= {job.id for job in jobs if job.result_ttl is not None}

    def followed(self, job_ids: Iterable[UUID]) -> None:
        """Dispatches that came at once with other things may have brought callbacks to these jobs."""
        self._followed.update(job_ids)

    def keeps(self, queue_name: str, retention: Retention | None) -> None:
        """A queue has a retention of its own, or none any more."""
        if retention is None:
            self._kept.pop(queue_name, None)
        else:
            self._kept[queue_name] = retention

    def watches(self, watcher: str, jobs: Collection[UUID], over: Collection[UUID]) -> None:
        """Somebody watches these jobs, of which each runs or waits; those that are over no longer."""
        for job_id in over:
            self._watched.get(job_id, set()).discard(watcher)
        for job_id in jobs:
            self._watched.setdefault(job_id, set()).add(watcher)

    def ended(self, job_id: UUID) -> None:
        """A job is over or gone, or may have been in between: whoever watched it was told."""
        for watcher in self._watched.pop(job_id, ()):
            self._told.setdefault(watcher, set()).add(job_id)

    def told(self) -> dict[str, set[UUID]]:
        """Return who was told of which jobs, and is to let go of them now: until then they may be watched, or not."""
        told, self._told = self._told, {}
        return told

    def looked(self) -> None:
        """What is recorded by now is to be seen."""
        self._followed.clear()

    def of(self, job: StoredJob) -> bool:
        """Whether anybody has a use for a job that succeeds."""
        record = job.record
        own = self._kept.get(record.queue_name)
        asked = bool(job.callbacks) or record.id in self._followed or record.id in self._answering
        return asked or (own is not None and own.completed > 0) or bool(self._watched.get(record.id))
