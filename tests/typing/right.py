"""Right uses: mypy and pyright find nothing here, and every `assert_type` says what a user's editor will know."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, TypedDict, assert_type
from uuid import UUID

import anyio
from attrs import frozen

from creche import (
    AsyncTask,
    Call,
    Callback,
    Callbacks,
    CancelReason,
    ExponentialBackoff,
    Health,
    Job,
    Origin,
    Progress,
    Queue,
    Receipt,
    Retention,
    Stats,
    Status,
    StopReason,
    Summary,
    SyncTask,
    Task,
    Tasks,
    Worker,
    current_job,
)
from creche.abc import Backoff, Serializer, Storage
from creche.events import Hooks, JobFailed, JobSucceeded, WorkerEvent
from creche.storage import open_storage
from creche.storage.memory import MemoryStorage

queue = Queue("memory://")
tasks = Tasks()


class Report(TypedDict):
    pages: int


@frozen
class Address:
    street: str
    city: str


# --- tasks keep their function's signature ----------------------------------------------------------


@queue.task("report.generate", result_ttl=3600)
async def generate_report(year: int, format: str = "csv") -> Report:
    return {"pages": year + len(format)}


@queue.task("thumbnail.make", queue="images", priority=-5, max_attempts=5, unique=True, backoff=ExponentialBackoff())
def make_thumbnail(path: str, *, width: int) -> bytes:
    return path.encode() * width


@queue.task("ledger.post")
async def post(job: Job, amount: float) -> None:
    assert_type(job.id, UUID)
    assert_type(job.attempt, int)
    assert_type(await job.extend(60 * amount), None)


@queue.task("ledger.audit")
def audit(job: Job, since: datetime) -> list[str]:
    return [job.type, since.isoformat()]


@tasks.task("letter.send", result_ttl=timedelta(hours=1))
async def send_letter(to: Address, /, copies: int = 1, *, express: bool = False) -> str:
    return f"{to.city} {copies} {express} {current_job().id}"


@queue.callback("report.tell", on="always", queue="mail")
async def tell(job: Job, result: Report | None, to: str = "everybody") -> None:
    assert_type(job.origin, Origin | None)
    await job.progress(0.5, f"{to} {result}")
    async with job.transaction() as connection:
        await connection.execute("INSERT INTO told VALUES (1)")
        job.set_result(None)


@tasks.callback("report.log")
def log(result: Report) -> None: ...


async def with_callbacks(session: object) -> None:
    callbacks: Callbacks = [
        tell,
        "report.elsewhere",
        Callback(log, on="failure"),
        count_letters.call(),
        [tell, log],
        (make_thumbnail, log),
    ]
    receipt = await generate_report.options(callbacks=callbacks, refresh=True, connection=session).dispatch(2024)
    assert_type(receipt, Receipt[Report])
    assert_type(receipt.progress, Progress | None)
    again = await queue.dispatch(generate_report.call(2024), callbacks=[Callback(tell, arguments={"to": "me"})])
    assert_type(again, Receipt[Report])


@tasks.task("letters.count")
async def count_letters() -> int:
    return 0


@tasks.task("letters.burn")
def burn_letters() -> None:
    return None


queue.include(tasks)


async def dispatching() -> None:
    assert_type(await generate_report.dispatch(2024, "xlsx"), Receipt[Report])
    assert_type(await generate_report.dispatch(year=2024, format="xlsx"), Receipt[Report])
    assert_type(await generate_report.dispatch(2024), Receipt[Report])
    assert_type(await make_thumbnail.dispatch("a.png", width=3), Receipt[bytes])
    assert_type(await post.dispatch(amount=1.5), Receipt[None])
    assert_type(await post.dispatch(1), Receipt[None])
    assert_type(await audit.dispatch(datetime.now(UTC)), Receipt[list[str]])
    assert_type(await send_letter.dispatch(Address("Elm", "Ulm"), 2, express=True), Receipt[str])
    assert_type(await count_letters.dispatch(), Receipt[int])
    assert_type(await burn_letters.dispatch(), Receipt[None])


async def options() -> None:
    later = generate_report.options(
        queue="slow",
        priority=10,
        delay=60,
        max_attempts=5,
        idempotency_key="report:2024",
        result_ttl=timedelta(hours=1),
        unique=True,
    )
    assert_type(await later.dispatch(2024, format="xlsx"), Receipt[Report])
    assert_type(later.call(2024), Call[Report])
    assert_type(await generate_report.options(delay=timedelta(minutes=1)).dispatch(2024), Receipt[Report])
    assert_type(await post.options(available_at=datetime.now(UTC)).dispatch(amount=2), Receipt[None])
    assert_type(await audit.options(priority=1).dispatch(since=datetime.now(UTC)), Receipt[list[str]])


async def calls() -> None:
    assert_type(generate_report.call(2024), Call[Report])
    assert_type(post.call(2.5), Call[None])
    assert_type(await queue.dispatch(generate_report.call(2024)), Receipt[Report])
    assert_type(await queue.dispatch(generate_report.call(2024), priority=10), Receipt[Report])
    assert_type(await queue.dispatch("report.generate", {"year": 2024}), Receipt[Any])
    assert_type(
        await queue.dispatch(
            "document.ocr", {"file": 1}, queue="ocr", priority=10, max_attempts=5, idempotency_key="ocr:1"
        ),
        Receipt[Any],
    )
    assert_type(await queue.dispatch("letters.burn"), Receipt[Any])
    reports = await queue.dispatch_many(generate_report.call(year) for year in range(2020, 2025))
    assert_type(reports, Sequence[Receipt[Report]])
    mixed: list[Call[object]] = [generate_report.call(2024), post.call(1.0)]
    assert_type(await queue.dispatch_many(mixed), Sequence[Receipt[object]])


async def receipts() -> None:
    receipt = await generate_report.dispatch(2024)
    assert_type(receipt.job_id, UUID)
    assert_type(receipt.status, Status)
    assert_type(receipt.inserted, bool)
    assert_type(receipt.fingerprint, bytes | None)
    assert_type(receipt.result, Report | None)
    assert_type(await receipt.wait(), Report)
    assert_type((await receipt.wait(timeout=30))["pages"], int)
    assert_type(await receipt.wait(timedelta(minutes=1)), Report)
    assert_type(await receipt.refresh(), Receipt[Report])
    assert_type(await (await make_thumbnail.dispatch("a.png", width=3)).wait(1.5), bytes)
    wider: list[Receipt[object]] = [receipt, await post.dispatch(1)]
    assert_type(await wider[0].wait(), object)


# --- a task is still its function -------------------------------------------------------------------


async def direct_calls() -> None:
    assert_type(await generate_report(2024, "csv"), Report)
    assert_type(make_thumbnail("a.png", width=3), bytes)
    assert_type(await post(amount=1.0), None)
    assert_type(audit(datetime.now(UTC)), list[str])
    assert_type(await send_letter(Address("Elm", "Ulm"), express=True), str)


def kinds(anything: Task[[int, str], Report]) -> tuple[type[object], ...]:
    asynchronous: Task[..., Report] = generate_report
    synchronous: Task[..., bytes] = make_thumbnail
    counted: AsyncTask[[], int] = count_letters
    burned: SyncTask[[], None] = burn_letters
    return tuple(map(type, (anything, asynchronous, synchronous, counted, burned)))


# --- the queue and the worker -----------------------------------------------------------------------


async def looking_after() -> None:
    async with queue as opened:
        assert_type(opened, Queue)
        receipt = await queue.receipt("0190163d-8694-739b-aea5-966c26f8ad91")
        assert_type(receipt, Receipt[Any])
        assert_type(await queue.cancel(receipt.job_id), Status)
        assert_type(await queue.retry(str(receipt.job_id)), Status)
        assert_type(await queue.migrate(), Sequence[str])
        for record in await queue.jobs(queues=["default"], statuses={Status.FAILED}, limit=10):
            assert_type(record.id, UUID)
        stats = await queue.stats()
        assert_type(stats, Stats)
        for counted in stats.queues:
            assert_type(counted.queue_name, str)
        for worker in stats.workers:
            assert_type(worker.jobs[0].lease_left, float)
        assert_type(await queue.delete(receipt.job_id), Status)
        assert_type(await queue.cancel_all(queues=["default"], older_than=timedelta(days=1)), int)
        assert_type(await queue.retry_all(types={"report.generate"}), int)
        assert_type(await queue.delete_all(statuses=[Status.FAILED]), int)
        await queue.pause("images", "mail")
        await queue.resume("images")
        await queue.set_retention("images", Retention(completed=60))
        await queue.set_retention("images", None)
        for letter in await queue.dead_letters(limit=10):
            assert_type(letter.errors[0].attempt, int)


async def handle(job: Job) -> None:
    assert_type(job.payload, Any)
    await job.extend(60)


async def on_event(event: WorkerEvent) -> None:
    if isinstance(event, JobFailed):
        assert_type(event.error.message, str)
        assert_type(event.retry_in, float | None)


def on_success(event: JobSucceeded) -> None:
    assert_type(event.seconds, float)


class Every:
    def delay(self, attempt: int) -> float | None:
        return 1.5 if attempt < 3 else None


async def working() -> None:
    worker = Worker(
        queue,
        queues=["images", "default"],
        concurrency=4,
        lease=timedelta(seconds=30),
        grace=10,
        backoff=Every(),
        poll_interval=0.5,
        retention=Retention(completed=60),
        hooks=[on_event, on_success, print],
        name="one",
    )
    by_hand = Worker(Queue(MemoryStorage()), handler=handle)
    async with queue, worker as running, by_hand:
        assert_type(running, Worker)
    async with anyio.create_task_group() as group:
        await group.start(worker.run)
        assert_type(worker.health, Health)
        assert_type(worker.health.ready, bool)
        assert_type(worker.quiet(), None)
        assert_type(worker.stop(), None)
    limited = Worker(
        queue,
        queues={"ocr": 8, "mail": None},
        weights={"ocr": 3},
        job_timeout=timedelta(minutes=5),
        max_jobs=1_000,
        max_memory=1 << 30,
        burst=True,
        hooks=[Counter()],
    )
    summary = await limited.run(signals=False)
    assert_type(summary, Summary)
    assert_type(summary.reason, StopReason)


class Counter(Hooks):
    """A hook with a method for each event that it wants."""

    def job_failed(self, event: JobFailed) -> None: ...

    async def job_succeeded(self, event: JobSucceeded) -> None: ...


@queue.task("image.shrink", cpu=True, job_timeout=5)
def shrink(path: str) -> bytes:
    return path.encode()


async def why(job: Job) -> None:
    assert_type(job.cancel_reason, CancelReason | None)
    assert_type(await shrink.dispatch("cat"), Receipt[bytes])


def main() -> None:
    anyio.run(Worker(queue).run, backend="trio")


def protocols(storage: Storage, serializer: Serializer) -> tuple[Storage, Backoff, Queue]:
    assert_type(open_storage("sqlite:///jobs.db"), Storage)
    return MemoryStorage(), Every(), Queue(storage, serializer=serializer)
