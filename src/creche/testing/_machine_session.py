"""What the state machine stands on: a storage and the oracle side by side, asked the same, and compared step by step.

It draws nothing.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, ExitStack, asynccontextmanager
from datetime import datetime, timedelta
from inspect import isawaitable
from typing import Any, ClassVar, Final, TypeAlias, TypeVar, cast
from uuid import UUID

from anyio import create_task_group
from anyio.from_thread import start_blocking_portal
from attrs import evolve, frozen
from hypothesis.stateful import RuleBasedStateMachine

from creche._job import FollowUp, JobFilter, Lease, NewJob, Reservation, ReservedJob, Retention, Settlement, Upkeep
from creche.abc import Storage
from creche.errors import SchemaOutdated, StorageUnavailable
from creche.testing._machine_draws import MICROSECOND, START, Draft, Limit, Lost, bits
from creche.testing._machine_oracle import Oracle
from creche.testing._machine_promises import Promises, Reach
from creche.testing._machine_rows import StoredJob, StoredRows, differences, ids_of

Call: TypeAlias = Callable[[Storage], Awaitable[Any]]
T = TypeVar("T")
Heed: TypeAlias = Callable[[str], None]

ALL: Final = 10_000
DECIDED: Final = ("recovered", "buried", "promoted", "pruned")
UNKNOWN: Final = UUID(int=1)
NOBODYS: Final = Lease(job_id=UNKNOWN, token=1, nonce=0)
LONGEST_STEP: Final = timedelta(hours=1)


@frozen(kw_only=True)
class Subject:
    """What is examined; see `creche.testing.store_machine`."""

    open_storage: Callable[[], Storage | Awaitable[Storage]]
    backend: str
    rows: Callable[[], StoredRows] | None
    also: Callable[[Storage, Storage], AbstractAsyncContextManager[Heed]] | None


class Session(RuleBasedStateMachine):
    """A storage, and the oracle beside it."""

    subject: ClassVar[Subject]

    def __init__(self) -> None:
        super().__init__()
        self.now = START
        self.oracle = Oracle()
        self.sent: dict[UUID, NewJob] = {}
        self.followed: list[FollowUp] = []
        self._jobs: list[UUID] = []
        self._leases: list[Lease] = []
        self.promises = Promises()
        self._drawn = 0
        storage = self.subject.open_storage()
        with ExitStack() as stack:
            self._portal = stack.enter_context(start_blocking_portal(self.subject.backend))
            opened = self._portal.wrap_async_context_manager(self._opened(storage))
            self.storage, self._heed = stack.enter_context(opened)
            self._closing = stack.pop_all()

    def teardown(self) -> None:
        """Close what was opened."""
        self._closing.close()

    @asynccontextmanager
    async def _opened(self, made: Storage | Awaitable[Storage]) -> AsyncGenerator[tuple[Storage, Heed]]:
        storage = await made if isawaitable(made) else made
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(self.oracle)
            try:
                await stack.enter_async_context(storage)
            except SchemaOutdated:  # looked for at last, for to migrate takes a connection of its own
                await storage.migrate()
                await stack.enter_async_context(storage)
            if self.subject.also is None:
                yield storage, _heed_nothing
            else:
                yield storage, await stack.enter_async_context(self.subject.also(self.oracle, storage))

    # --- what there was so far ----------------------------------------------------------------------

    def take_over(self, jobs: Iterable[ReservedJob]) -> None:
        """Remember leases that were given out, in an order that rivals don't decide."""
        self._leases += sorted((job.lease for job in jobs), key=lambda lease: lease.job_id)

    def job(self, place: int) -> UUID:
        """Return a job, counted from the newest; one that nobody knows, if there was none."""
        return self._jobs[-1 - place % len(self._jobs)] if self._jobs else UNKNOWN

    def jobs(self, places: Iterable[int]) -> list[UUID]:
        """Return jobs; the same may come twice."""
        return [self.job(place) for place in places]

    def lease(self, place: int) -> Lease:
        """Return a lease, counted from the newest; one that nobody ever had, if there was none."""
        return self._leases[-1 - place % len(self._leases)] if self._leases else NOBODYS

    # --- time, and names ----------------------------------------------------------------------------

    def pass_time(self, after: float | Limit) -> None:
        """Let so much time pass, or as much as there is until something changes by itself."""
        if not isinstance(after, Limit):
            self.now += timedelta(seconds=after)
        elif limits := self.oracle.limits(self.now):
            limit = min(limits[min(after.number, len(limits) - 1)], self.now + LONGEST_STEP)
            self.now = max(self.now, limit + after.off * MICROSECOND)

    def moment(self, seconds: float) -> datetime:
        """Return the moment that is this far from now."""
        return self.now + timedelta(seconds=seconds)

    def new_id(self) -> UUID:
        """Return an id that no job has. Of each eighth, a recovery makes the job due at once."""
        self._drawn += 1
        number = bits(self._drawn)
        return UUID(int=number >> 48 << 48 if self._drawn % 8 == 0 else number)

    def new_nonce(self) -> int:
        """Return 64 bits that no reservation had."""
        self._drawn += 1
        return (bits(self._drawn) & (1 << 64) - 1) - (1 << 63)

    def new_jobs(self, drafts: Sequence[Draft]) -> list[NewJob]:
        """Return the jobs that drafts describe. One that stands twice in a batch is the same job twice, with nothing in
        between that could take its place.
        """
        return [job for draft in drafts for job in [self.new_job(draft)] * (1 + ("twice" in draft))]

    def new_job(self, draft: Draft) -> NewJob:
        """Return the job that a draft describes."""
        options: Draft = {"id": self.new_id(), "type": "t", "queue_name": "a", "payload": b"{}", **draft}
        options.pop("twice", None)
        options["callbacks"] = tuple(map(self.new_callback, options.get("callbacks", ())))
        if (seconds := options.pop("due", None)) is not None:
            options.pop("delay", None)
            options["available_at"] = self.moment(seconds)
        job = NewJob(**options)
        self.sent[job.id] = job
        self._jobs += [job.id, *ids_of(job.callbacks)]
        self.promises.dispatched([job])
        return job

    def new_callback(self, draft: Draft) -> FollowUp:
        """Return the callback that a draft describes."""
        fields = dict(draft)
        if fields.pop("again", False) and (written := [each for each in self.followed if self.oracle.has(each.id)]):
            return written[-1]
        head, tail = fields.pop("text")
        then = tuple(map(self.new_callback, fields.pop("then", ())))
        callback = FollowUp(id=self.new_id(), head=head, tail=tail, then=then, **fields)
        self.followed.append(callback)
        return callback

    # --- asking, and comparing ----------------------------------------------------------------------

    def ask(self, call: Call, *, lost: Lost = Lost.NOTHING, repeats: bool = True) -> list[Any]:
        """Ask both the same, and again if the answer is lost; return what the storage answered each time.

        Args:
            call: what is asked.
            lost: what is lost of it.
            repeats: whether it has no second effect when it is sent again.
        """
        return self._portal.call(self._ask, call, lost, repeats)

    def run(self, function: Callable[..., Awaitable[T]], *arguments: Any) -> T:
        """Call a function in the event loop in which both are."""
        return self._portal.call(function, *arguments)

    def keep(self, doing: str, reach: Reach) -> None:
        """Look at what is kept now: is it what was promised, and is it what the oracle keeps?"""
        expected, found = self.expected(), self.completed(self.seen(), self.oracle)
        self.promises.keep(found, reach, self.now)
        agree(f"after {doing}, what is kept", expected, found)
        for watcher, over in self.promises.uses.told().items():
            self.ask(asking("watch", [], watcher=watcher, over=over))
        self._heed(doing)

    def expected(self, oracle: Oracle | None = None) -> StoredRows:
        """Return what is to be kept."""
        return self._read((oracle or self.oracle).rows())

    def seen(self) -> StoredRows:
        """Return what is kept: as the database says, if somebody can ask it, else what the storage shows of it."""
        if self.subject.rows is not None:
            return self._read(self.subject.rows())
        return self._read(self._portal.call(self._listed))

    def completed(self, seen: StoredRows, oracle: Oracle) -> StoredRows:
        """Return what was seen; what no storage shows is taken to be as the oracle has it."""
        if self.subject.rows is not None:
            return seen
        hidden = self.expected(oracle).jobs
        shown = {job_id: job.record for job_id, job in seen.jobs.items()}
        jobs = {each: evolve(hidden.get(each, seen.jobs[each]), record=record) for each, record in shown.items()}
        return evolve(seen, jobs=jobs)

    def _read(self, rows: StoredRows) -> StoredRows:
        return evolve(rows, jobs={job_id: job.at(self.now) for job_id, job in rows.jobs.items()})

    async def _listed(self) -> StoredRows:
        return StoredRows(
            jobs={record.id: StoredJob(record=record) for record in await self.storage.list(JobFilter(), ALL)},
            letters={letter.job_id: letter for letter in await self.storage.dead_letters(ALL)},
        )

    async def _ask(self, call: Call, lost: Lost, repeats: bool) -> list[Any]:
        expected = [await call(self.oracle)]
        if lost is Lost.ANSWER:
            once = self.oracle.rows()
            expected.append(await call(self.oracle))
            if repeats:
                agree(f"what {call} has done when it is sent again", once, self.oracle.rows())
        found = [await call(self.storage) for _ in expected]
        agree(f"the answer of {call}", expected, found)
        return found


def agree(what: str, expected: object, found: object) -> None:
    """Compare; say where the two differ."""
    if expected != found:
        lines = [*differences(expected, found)] or [f": {expected!r} is right, {found!r} was found"]
        raise AssertionError("\n  ".join([f"{what}, is not as the oracle says", *lines]))


async def at_once(calls: Sequence[Call], storage: Storage) -> list[Any]:
    """Ask several things at once; return the answers, in the order of the calls."""
    answers: list[Any] = [None] * len(calls)

    async def ask(place: int, call: Call) -> None:
        answers[place] = await call(storage)

    async with create_task_group() as rivals:
        for place, call in enumerate(calls):
            rivals.start_soon(ask, place, call)
    return answers


def _heed_nothing(doing: str) -> None:
    """There is nothing else to look at."""


# --- what is asked ----------------------------------------------------------------------------------


@frozen
class Ask:
    """A method of a storage, with its arguments; it answers the same words for the same answer."""

    method: str
    arguments: tuple[Any, ...]
    options: dict[str, Any]

    async def __call__(self, storage: Storage) -> Any:
        """Ask it."""
        answer = await getattr(storage, self.method)(*self.arguments, **self.options)
        # A sequence is a sequence: that one is a list and the other a tuple means nothing.
        if isinstance(answer, Reservation):
            return evolve(answer, jobs=tuple(answer.jobs))
        return tuple(cast("list[object]", answer)) if isinstance(answer, list) else answer

    def __str__(self) -> str:
        return self.method


def asking(method: str, *arguments: Any, **options: Any) -> Ask:
    """Return the call of a storage's method."""
    return Ask(method, arguments, options)


async def upkeep(limit: int, retention: Retention, now: datetime, storage: Storage) -> Upkeep:
    """Maintain until there is nothing more to do, for which of many come first is nobody's promise; return the sums.

    Once more without a limit for the dead letters, which no count tells of.
    """
    found = await storage.maintain(limit, retention=retention, now=now)
    done = decided(found)
    if limit < ALL:
        while any(counts := decided(found).values()):
            assert max(counts) <= limit, f"at most {limit} of each kind: {found}"
            found = await storage.maintain(limit, retention=retention, now=now)
            done = {name: count + getattr(found, name) for name, count in done.items()}
        found = await storage.maintain(ALL, retention=retention, now=now)
    return Upkeep(
        recovered=done["recovered"],
        buried=done["buried"],
        promoted=done["promoted"],
        pruned=done["pruned"],
        next_due_in=found.next_due_in,
        next_expiry_in=found.next_expiry_in,
    )


def decided(*upkeeps: Upkeep) -> dict[str, int]:
    """Return how many jobs upkeep had something to do with, all told; how long it is until the next, whoever comes
    second sees otherwise.
    """
    return {name: sum(getattr(upkeep, name) for upkeep in upkeeps) for name in DECIDED}


async def settle_in_one(settlement: Settlement, now: datetime, lost: Lost, storage: Storage) -> list[bool]:
    """End an attempt in a transaction; where the line is cut before the commit, nothing of it stays.

    Return what was answered: nothing, where nothing was done.
    """
    try:
        async with storage.transaction() as transaction:
            held = await transaction.settle(settlement, now=now)
            if lost is Lost.REQUEST:
                raise _CutOff("before the commit was sent")  # noqa: TRY301 - the block is what it has to leave
    except _CutOff:
        return []
    return [held]


class _CutOff(StorageUnavailable):
    """What leaves the block of a transaction whose connection is gone."""
