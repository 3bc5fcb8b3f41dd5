"""What the asker gets back: where a job stood when it was asked for, and a way to ask again. It runs nothing."""

from __future__ import annotations

import math
from datetime import timedelta
from typing import Any, Final, Generic, Protocol, TypeVar, cast
from uuid import UUID

import anyio
from attrs import field, frozen

from creche._job import End, Insertion, JobRecord, Progress, Status, seconds
from creche._payload import Refused
from creche.abc import Serializer
from creche.errors import (
    JobCancelled,
    JobFailed,
    JobNotFound,
    NotCommitted,
    ResultInvalid,
    StorageError,
    WaitTimeout,
)

_LAST_LOOK: Final = 1.0  # seconds, after a wait's own time is over

R_co = TypeVar("R_co", covariant=True)


class Office(Protocol):
    """Where receipts ask."""

    @property
    def serializer(self) -> Serializer:
        """Turns stored results into values."""
        ...

    async def look_up(self, job_id: UUID) -> JobRecord | None:
        """Return a job's row now."""
        ...

    async def wait_for(self, job_id: UUID) -> End | None:
        """Return how a job ended, once it is over; None if there is no such job."""
        ...


@frozen(kw_only=True)
class Receipt(Generic[R_co]):
    """The answer to a dispatch. Frozen: it says how things stood then.

    Attributes:
        job_id: of the job that answers for this dispatch; somebody else's, if this dispatch joined it.
        status: of that job at that moment.
        inserted: whether this dispatch made a new job.
        fingerprint: 32 bytes, if the dispatch was single-flight.
        progress: how far it had come, if its handler says and this receipt is younger than the dispatch: see `refresh`.
    """

    job_id: UUID
    status: Status
    inserted: bool
    fingerprint: bytes | None = field(default=None, repr=lambda value: value.hex()[:12] if value else "None")
    progress: Progress | None = None
    _data: bytes | None = field(alias="data", default=None, repr=False)
    _borrowed: bool = field(alias="borrowed", default=False, repr=False, eq=False)
    _office: Office = field(alias="office", repr=False, eq=False)
    _returns: Any = field(alias="returns", default=Any, repr=False, eq=False)

    @property
    def result(self) -> R_co | None:
        """The handler's return value, if the job was completed already (a cached result); else None.

        Raises:
            ResultInvalid: what is stored doesn't fit the handler's annotation: it was another one then.
        """
        return None if self._data is None else self._decode(self._data)

    async def wait(self, timeout: float | timedelta | None = None) -> R_co:
        """Wait until the job is over, in whatever process it runs, and return the handler's result.

        Args:
            timeout: seconds; None waits for ever.

        Raises:
            JobFailed: it used its last attempt; has the last error's type, message and traceback text.
            JobCancelled: it was cancelled.
            JobNotFound: its row is gone: its retention was over.
            NotCommitted: it was dispatched with `connection=…`, and that transaction was not committed.
            ResultInvalid: the result doesn't fit the annotation that it is read for.
            WaitTimeout: it is not over yet, or nobody can tell; it goes on. `wait(0)` looks once.
            QueueNotOpen: the queue was closed meanwhile.

        Cancelling the wait, or letting it time out, never touches the job.
        """
        limit = math.inf if timeout is None else seconds("timeout", timeout)
        with anyio.move_on_after(limit):
            return self._value(await self._office.wait_for(self.job_id))
        record = None
        with anyio.move_on_after(_LAST_LOOK):
            try:
                record = await self._office.look_up(self.job_id)
            except StorageError as error:
                raise WaitTimeout(self.job_id, limit, None) from error
            if record is None or not record.status.active:
                return self._value(None if record is None else _end_of(record))
        raise WaitTimeout(self.job_id, limit, record and record.status)

    async def refresh(self) -> Receipt[R_co]:
        """Return a new receipt that says how things stand now.

        Raises:
            JobNotFound: the job's row is gone.
            StorageUnavailable: try again later.
        """
        record = await self._office.look_up(self.job_id)
        if record is None:
            raise self._not_found()
        return issue_again(record, self._office, self._returns, inserted=self.inserted)

    def _not_found(self) -> JobNotFound:
        return NotCommitted(self.job_id) if self._borrowed else JobNotFound(self.job_id)

    def _value(self, end: End | None) -> R_co:
        if end is None:
            raise self._not_found()
        if end.status is Status.CANCELLED:
            raise JobCancelled(self.job_id)
        if end.status is Status.FAILED:
            error = end.error
            raise JobFailed(
                self.job_id,
                type=error.type if error else "unknown",
                message=error.message if error else "no error was recorded",
                traceback=error.traceback if error else "",
            )
        return self._decode(end.result or b"null")

    def _decode(self, data: bytes) -> R_co:
        try:
            return cast("R_co", self._office.serializer.decode(data, self._returns))
        except Refused as refused:
            raise ResultInvalid(refused.reason, path=refused.path) from None


def _end_of(record: JobRecord) -> End:
    return End(status=record.status, result=record.result, error=record.last_error)


def issue(insertion: Insertion, office: Office, returns: Any, *, borrowed: bool = False) -> Receipt[Any]:
    """Return the receipt for what a storage answered.

    Args:
        insertion: the storage's answer.
        office: where the receipt asks later.
        returns: what the handler's result is decoded as.
        borrowed: whether the job was written in a transaction of the caller's.
    """
    return Receipt(
        job_id=insertion.job_id,
        status=insertion.status,
        inserted=insertion.inserted,
        fingerprint=insertion.fingerprint,
        data=insertion.result,
        borrowed=borrowed,
        office=office,
        returns=returns,
    )


def issue_again(record: JobRecord, office: Office, returns: Any, *, inserted: bool = False) -> Receipt[Any]:
    """Return a receipt that says how a job stands now."""
    return Receipt(
        job_id=record.id,
        status=record.status,
        inserted=inserted,
        fingerprint=record.fingerprint,
        progress=record.progress,
        data=record.result if record.status is Status.COMPLETED else None,
        office=office,
        returns=returns,
    )
