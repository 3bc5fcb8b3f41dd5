"""What a line in the log says of its job besides its text: fields for whoever collects logs. It logs nothing itself.

Never arguments, results or payloads: they are nobody's business. The names are documented in docs/events.md.
"""

from __future__ import annotations

from typing import Protocol
from uuid import UUID


class Attempt(Protocol):
    """A job that runs, as the engine or its handler sees it."""

    @property
    def id(self) -> UUID:
        """The job's id."""
        ...

    @property
    def type(self) -> str:
        """The job type."""
        ...

    @property
    def queue_name(self) -> str:
        """The queue that it was reserved from."""
        ...

    @property
    def attempt(self) -> int:
        """The number of this attempt, from 1."""
        ...


def about(job: Attempt, worker: str | None = None) -> dict[str, object]:
    """Return the fields of an attempt, for `extra=`."""
    known = fields(job.id, job.type, job.queue_name, job.attempt)
    return known if worker is None else {"worker": worker, **known}


def fields(job_id: UUID, type: str, queue_name: str, attempt: int) -> dict[str, object]:
    """Return the same from its parts. Strings and integers only: what collects logs need not know our types."""
    return {"job_id": str(job_id), "job_type": type, "queue_name": queue_name, "attempt": attempt}
