"""The contract: what a storage, a listener, a serializer, a back-off and a fingerprint promise.

The docstrings here are the law; `creche.testing` has the suite that holds every implementation to them. Nothing
here does anything.

Rules that hold for every operation of a `Storage`:

- **Sequences in, sequences out.** One is a batch of one; an empty batch does nothing and costs no round trip. Of
  equal keys or fingerprints within one batch the first inserts.
- **Time is the database's.** Due times, leases and expiries are decided by the database's clock, in the statement
  itself. `now`, an aware datetime, takes its place in tests; in production it is None. Limits belong to what comes
  after: at exactly `available_at` a job is due, at exactly `locked_until` a lease has run out, at exactly
  `result_expires_at` a result is stale.
- **Atomic.** An operation takes effect whole or not at all, and what it answered is durable.
- **Fenced.** A write about a running job compares the whole lease (id, token, nonce) with the row's and changes
  nothing if they differ.
- **Repeatable.** Each operation may be sent again when its answer was lost, with no second effect (a repeated
  `reserve` takes other jobs; those of the lost answer come back when their lease runs out; a repeated `insert` knows
  its jobs by their rows, while those are there).
- **Errors.** A driver's exceptions stop at the adapter: `StorageUnavailable` (reach it later; what was sent may or
  may not have taken effect), `StatementRejected` (never send it again). Conflicts that the database resolves by
  rolling one side back are retried inside the adapter, bounded, with jitter.
- **Cancellation.** Each operation is a checkpoint. Cancelled, it raises the event loop's cancellation; its effect
  is then unknown, and no connection is left half-read. No cancel request is ever sent to a database while a
  write is in flight.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from datetime import datetime, timedelta
from types import TracebackType
from typing import Any, Protocol, Self, runtime_checkable
from uuid import UUID

from attrs import frozen

from creche._job import (
    DeadLetter,
    End,
    Extension,
    Finding,
    Insertion,
    JobFilter,
    JobRecord,
    Lease,
    NewJob,
    Presence,
    Progress,
    QueueStats,
    Reservation,
    Retention,
    Settled,
    Settlement,
    Status,
    Upkeep,
    WorkerRecord,
)

__all__ = ["Backoff", "Capabilities", "Fingerprint", "Listener", "Serializer", "Storage", "Transaction"]


@frozen(kw_only=True)
class Capabilities:
    """What a storage can do beyond the contract's core. What it can't, the engine makes up for by polling.

    Attributes:
        listen: `Storage.listen` hears of new work by itself; False: it hears of what this process does, or of nothing.
        shared: several processes can use it at once.
        durable: what was answered survives the process.
    """

    listen: bool
    shared: bool
    durable: bool


@runtime_checkable
class Backoff(Protocol):
    """From an attempt's number to the delay before the next one."""

    def delay(self, attempt: int) -> float | timedelta | None:
        """Return how long to wait after attempt number `attempt` (from 1), in seconds or as a timedelta, zero or
        more; None gives up for good.
        """
        ...


@runtime_checkable
class Serializer(Protocol):
    """Values to JSON text and back. The text is stored, and handed to the handler's side, byte for byte."""

    def encode(self, value: object) -> bytes:
        """Return JSON text in UTF-8."""
        ...

    def decode(self, data: bytes, type: Any) -> Any:
        """Return the value of `data`, shaped as the annotation `type` says."""
        ...


class Fingerprint(Protocol):
    """Names a unique piece of work."""

    def __call__(self, type: str, arguments: object) -> bytes:
        """Return 32 bytes, equal if and only if the job type and the plain arguments are."""
        ...


class Listener(Protocol):
    """Hears that there may be work. A hint: it may be late, lost or false."""

    async def wait(self) -> frozenset[str]:
        """Wait until something may have become ready; return the queues it concerns, empty for "any of them".
        "Any" stands for no name by which `Storage.cancel` wakes a holder: that one is told, or it was not meant.

        Wakes that come while nobody waits are kept, merged into one. Cancelling it loses nothing.

        Raises:
            StorageUnavailable: the listener's connection broke; open another one, and reserve once, for wakes
                may have been missed.
        """
        ...


class Transaction(Protocol):
    """A transaction that a handler shares with the end of its attempt."""

    @property
    def connection(self) -> Any:
        """What the handler writes through. None, if the storage is no database.

        What it raises is the driver's own. Neither COMMIT nor ROLLBACK may be sent through it.
        """
        ...

    async def settle(self, settlement: Settlement, *, now: datetime | None = None) -> bool:
        """End an attempt within this transaction, as `Storage.settle` does; the last thing that is done in it.

        Returns:
            False if the lease is lost, or the attempt was ended before, if only by this transaction's holder: nothing
            was written, and the block must be left by an exception, or the handler's writes would be made twice.
        """
        ...


class Storage(Protocol):
    """A place where jobs are kept. See the module's docstring for the rules that hold for every operation.

    `async with storage:` opens and closes it, in one task. Opening checks the schema: SchemaOutdated if it is
    older than this adapter needs (an embedded database is migrated instead), StorageUnavailable if the
    database can't be reached. Cancelled, it closes what it had opened.
    """

    @property
    def capabilities(self) -> Capabilities:
        """What this storage can do."""
        ...

    @property
    def conflicts(self) -> int:
        """How often, since it was made, the database undid a transaction in favour of another and it was run again.
        It only grows; 0 for ever where that can't happen.
        """
        ...

    async def __aenter__(self) -> Self: ...

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> bool | None: ...

    async def migrate(self) -> Sequence[str]:
        """Bring the schema to this version, under a lock, all or nothing; return the names of what was applied.

        Works on a storage that is not open. A schema that is newer than this version is left alone.
        """
        ...

    async def pending_migrations(self) -> Sequence[tuple[str, str]]:
        """Return the (name, SQL) of what `migrate` would apply. Works on a storage that is not open."""
        ...

    async def check(self, *, concurrency: int | None = None) -> Sequence[Finding]:
        """Look at the database with a doctor's eyes; return what was looked at, the healthy too, in a sensible
        order.

        Works on a storage that is not open, changes nothing, and answers within seconds. What it can't look at (for
        lack of a privilege, say) is a finding, not an error; so is a database that can't be reached: the only one.

        Args:
            concurrency: how many jobs a worker runs at once, to be held against the number of connections.
        """
        ...

    def twin(self) -> Storage | None:
        """Return another storage on the same jobs, not open, with as few connections as it needs: for another thread
        with an event loop of its own. None if there can be none.
        """
        ...

    async def insert(
        self, jobs: Sequence[NewJob], *, now: datetime | None = None, connection: object = None
    ) -> Sequence[Insertion]:
        """Write jobs, or find those that stand in their place; answer each in order.

        For each job, the first that applies: a row with this id is here (the job was sent before): that row,
        `inserted=True`. A row of this queue has this idempotency key: that row, `inserted=False`. A job with
        this fingerprint is active, or is completed with its result still fresh: that one, `inserted=False`.
        Otherwise a new row: `scheduled` if it is due later, else `pending`.

        Of any number of callers at once with the same key or fingerprint, exactly one inserts, and the others
        get its row, also when several stand in one batch. A fingerprint is held from the insert until the job is
        failed, cancelled, or completed and `result_ttl` seconds have passed (at once without a `result_ttl`). It
        reaches across queues. A dispatch that joins leaves its own key unused. To one that says `refresh` a cached
        result is never fresh: it lets go of its fingerprint, and an active job goes on answering.

        Callbacks are recorded with the job that answers, in the same transaction: they are added to those that an
        active one has; where it is over already, those that its end calls for are written now, as if they had been
        recorded before. A callback whose id is recorded with that job already, or written and not pruned since, is left
        out: the dispatch was sent twice.

        Listeners of a queue are woken, after the commit, when one of its jobs is ready or will be within half
        a minute; also when a job that waits in it was given callbacks, for it could not be reserved meanwhile.

        Args:
            jobs: which.
            now: stands in for the database's clock.
            connection: a handle of the caller's on the same database, in a transaction of its own (also that of a
                `Transaction`): all this is then done through it, and is committed or rolled back by the caller.
                Nothing is committed here, and nothing is tried again: what its driver raises goes to the caller as it
                is, and how long it may take is the caller's to say. Which handles it takes, an adapter says;
                OptionInvalid for any other.
        """
        ...

    async def reserve(
        self,
        queues: Sequence[str],
        limit: int,
        *,
        lease: float,
        worker: str,
        nonce: int,
        types: Collection[str] | None = None,
        now: datetime | None = None,
    ) -> Reservation:
        """Take up to `limit` pending jobs under a lease.

        Each becomes `processing`, its attempts are counted up by one, its token rises, its progress is gone, and no
        other caller gets it while the lease lasts. Never more than `limit`, and never fewer while there are jobs that
        no rival is taking at the same moment. Queues are served in the order given; within a queue the higher
        priority first, then the earlier due, then the older. A queue that is paused is as if it had not been named.

        Args:
            queues: names, at least one.
            limit: at least 1.
            lease: seconds, counted from the database's now.
            worker: who takes them, for people to read.
            nonce: 64 fresh random bits (signed), drawn for this call; they become part of each lease.
            types: only jobs of these types; None takes all.
            now: stands in for the database's clock.
        """
        ...

    async def extend(
        self,
        leases: Collection[Lease],
        seconds: float,
        *,
        progress: Mapping[Lease, Progress] | None = None,
        now: datetime | None = None,
    ) -> Extension:
        """Push the deadline of leases out to `seconds` from now, never in; say which are still held.

        A lease that has run out but was not taken over or recovered is still held. Of those that are held, the jobs in
        `progress` have come that far. In one statement.
        """
        ...

    async def settle(
        self, settlements: Sequence[Settlement], *, retention: Retention | None = None, now: datetime | None = None
    ) -> Settled:
        """End attempts, each in one transaction with all that follows from it; each lease at most once in a batch.

        A batch may be ended in several transactions, jobs that have callbacks in the last: what is cut off in between
        is held still, and sent again.

        The states that follow are `creche._lifecycle.TRANSITIONS`. RELEASE and SNOOZE restore the attempt; a
        released job stands in its queue where it stood. RETRY, FAIL and DISCARD keep the error (of a job, the
        last ERRORS_KEPT errors are kept); FAIL and DISCARD write a dead letter with them. What would go on
        (RETRY, RELEASE, SNOOZE) ends as cancelled if cancellation was asked for. A lease that was settled
        before, and whose job nobody touched since, is accepted again with no effect. Jobs with a `result_ttl`
        go on answering for their fingerprint when they succeed; all other finished jobs stop.

        Whatever ends a job (this, `maintain`, `cancel`) writes, in the same transaction, the callbacks that this end
        calls for: `FollowUp.after`, each once, ready now. Those that it does not call for stay, for a job that is made
        ready again may end in another way. Whoever watches the job is woken, and so are the listeners of their queues.

        With a `retention` whose `completed` is 0, jobs that succeed are deleted, instead of being written for the next
        `maintain` to delete: of those that have no `result_ttl` and no callbacks, that nobody watches (as far as this
        storage can see: SQLite knows who watches in its own process), and whose queue has no retention of its own by
        which it is kept. Sent again, their leases are `lost`, and among the `gone`.

        What is decided is written. That attempts are limited is the business of who decides,
        `creche._lifecycle.decide`, which says FAIL at the end of the last one: a RETRY is let through there too, and
        gives the job one attempt more. Only `maintain`, where nobody decided, counts for itself.
        """
        ...

    async def maintain(
        self,
        limit: int,
        *,
        retention: Retention,
        now: datetime | None = None,
    ) -> Upkeep:
        """Take back what no lease holds any more, promote what is due, prune what is past its retention.

        A job whose lease has run out gets a new token. It is cancelled if that was asked for; it is `scheduled`, due
        a little later, if attempts are left; otherwise it is buried: failed, with a dead letter. Each keeps an error
        of the type `LeaseExpired` that names the attempt.

        How much later is `creche._backoff.recovery_delay`, to the microsecond: a part of 1, 2, 4 … 64 seconds, by the
        attempt, that differs from job to job and is drawn from the id. For one of these jobs may have killed their
        worker: if they came back together they would be taken together, and it would take the others along until
        their attempts are spent. So they do not stand where they stood: as after RETRY, that moment is their place.

        In this order: recover, bury, promote, prune; a recovered job that is due at once (one in 65,536) is thus
        promoted in the same call, and `next_due_in` knows the others. At most `limit` of each kind. Safe to run
        anywhere, any number of times, at the same time; rivals skip each other's rows. Dead letters are pruned with the
        retention of failed jobs. A queue that has a retention of its own is pruned by that one; what it keeps longer is
        not walked over each time; where `limit` is too little for all, the queue comes first that is most overdue, so
        that none waits for ever behind one in which much ends. Paused queues are looked after as the others are.
        Workers that have not been seen for as long as they had said are forgotten.

        A storage that wakes listeners and says what is `ready` spares workers their polls: they look at the queues that
        this names.
        """
        ...

    async def cancel(self, job_ids: Collection[UUID], *, now: datetime | None = None) -> Mapping[UUID, Status]:
        """Cancel jobs; return the status of each that exists: `cancelled` if it was waiting, `processing` if
        its holder has been asked (it learns it from `extend`), else the status in which it had ended before. If the
        holder succeeds or fails all the same, that end stands.

        After the commit, the listeners of the name under which the holder reserved (`worker`) are woken: a hint that it
        may ask now, not with its next renewal. Where a storage can't tell which process that is, it wakes none.
        """
        ...

    async def retry(self, job_ids: Collection[UUID], *, now: datetime | None = None) -> Mapping[UUID, Status]:
        """Make failed, cancelled and scheduled jobs ready now; return the status of each that exists.

        A failed or cancelled job gets its full number of attempts again and its dead letter goes; its errors
        stay. It takes its fingerprint back; where another job holds that now, it is left as it is. Jobs in any
        other state are left as they are.
        """
        ...

    async def delete(self, job_ids: Collection[UUID]) -> Mapping[UUID, Status]:
        """Delete jobs that are over, with their dead letters and cached results; return the status of each that
        existed. One that is active is left as it is: cancel it first. What is deleted can be dispatched anew, with the
        same id too.
        """
        ...

    async def find(self, job_ids: Collection[UUID]) -> Mapping[UUID, JobRecord]:
        """Return the rows of those jobs that exist."""
        ...

    async def watch(
        self, job_ids: Collection[UUID], *, watcher: str | None = None, over: Collection[UUID] = ()
    ) -> Mapping[UUID, End | None]:
        """Return how those jobs ended that exist; None for one that is still active.

        From now on the end of each that is still active wakes the listeners of the name `watcher`, a queue's name that
        belongs to nobody else. As every wake it is a hint: an end that is being written just now may be missed, and a
        watch that was not repeated for an hour is forgotten, by `maintain`. It may outlast the end, until it is `over`.

        Args:
            job_ids: which.
            watcher: who wants to be woken; None: nobody.
            over: jobs whose watches of this watcher can go.
        """
        ...

    async def list(self, where: JobFilter, limit: int, *, before: UUID | None = None) -> Sequence[JobRecord]:
        """Return jobs by id, newest first.

        Args:
            where: which.
            limit: how many at most.
            before: only jobs older than this one: the last of the page before.
        """
        ...

    async def dead_letters(self, limit: int, *, before: UUID | None = None) -> Sequence[DeadLetter]:
        """Return dead letters by the job's id, newest first."""
        ...

    async def stats(self, *, now: datetime | None = None) -> Sequence[QueueStats]:
        """Return how each queue stands that has jobs, is paused, or has a retention of its own, by the queue's name. It
        may count every row: for people who look now and then, not for a loop.
        """
        ...

    # --- queues, and who serves them ----------------------------------------------------------------

    async def pause(self, queues: Collection[str], *, now: datetime | None = None) -> None:
        """Hand out no more jobs of these queues, to anybody, until `resume`; what runs goes on, what is dispatched
        waits. One that is paused already stays so since then.
        """
        ...

    async def resume(self, queues: Collection[str]) -> None:
        """Hand out jobs of these queues again, and wake who listens to them."""
        ...

    async def set_retention(self, queue_name: str, retention: Retention | None) -> None:
        """Give a queue a retention of its own, whatever workers say; None: take it away. Other queues' finished jobs
        are kept as long as `maintain` is told.
        """
        ...

    async def announce(self, presence: Presence, ttl: float, *, now: datetime | None = None) -> None:
        """Note that a worker is there, and is to be forgotten if it is not announced again within `ttl` seconds.

        Repeated, it replaces what was said before; `started_at` stays.
        """
        ...

    async def withdraw(self, name: str) -> None:
        """Forget a worker; one that is unknown is no error."""
        ...

    async def workers(self, *, now: datetime | None = None) -> Sequence[WorkerRecord]:
        """Return the workers whose time has not run out, by name, with the jobs that they hold."""
        ...

    def transaction(self) -> AbstractAsyncContextManager[Transaction]:
        """Begin a transaction for a handler's own writes, on a connection that no other call uses.

        It is committed when the block is left, and rolled back when it is left by an exception: then nothing of it
        stays. Wakes go out after the commit. Nothing in it is tried again.

        Raises:
            StorageUnavailable: no connection; or the commit was not answered, so that nobody knows its outcome. It is
                decided when an `extend` of the lease has been answered, for that waits until the transaction is over.
        """
        ...

    def listen(self, queues: Collection[str]) -> AbstractAsyncContextManager[Listener]:
        """Listen for work in these queues until the block is left.

        Inserts from any process wake it, so do callbacks when they are written, and jobs that `settle` gives back or
        puts off for less than half a minute, or that `maintain` or `retry` make ready: a recovered one when it is
        promoted. A job that is over wakes those who `watch` it.

        Raises:
            StorageUnavailable: no connection could be had; try again later.
            ListenerDeaf: a connection could be had, but it hears nothing: poll.
        """
        ...
