"""Wrong uses: both type checkers find fault with each line that ends in `# wrong`, and with no other line."""

from __future__ import annotations

from datetime import UTC, datetime

import anyio

from creche import Call, Callback, Job, Queue, Receipt, Retention, Tasks, Worker
from creche.events import JobFailed

queue = Queue("memory://")
tasks = Tasks()


@queue.task("report.generate")
async def generate_report(year: int, format: str = "csv") -> dict[str, int]:
    return {format: year}


@queue.task("thumbnail.make")
def make_thumbnail(path: str, *, width: int) -> bytes:
    return path.encode() * width


@queue.task("ledger.post")
async def post(job: Job, amount: float) -> None:
    await job.extend(amount)


@tasks.task("letters.burn")
def burn_letters() -> None: ...


# --- arguments --------------------------------------------------------------------------------------


async def arguments() -> None:
    await generate_report.dispatch("2024")  # wrong
    await generate_report.dispatch(2024, 1)  # wrong
    await generate_report.dispatch()  # wrong
    await generate_report.dispatch(format="csv")  # wrong
    await generate_report.dispatch(2024, "csv", "more")  # wrong
    await generate_report.dispatch(2024, fromat="csv")  # wrong
    await generate_report.dispatch(2024, year=2024)  # wrong
    await make_thumbnail.dispatch("a.png", 3)  # wrong
    await make_thumbnail.dispatch("a.png")  # wrong
    await make_thumbnail.dispatch(b"a.png", width=3)  # wrong
    await burn_letters.dispatch(1)  # wrong
    await post.dispatch(post, 1.0)  # wrong
    await post.dispatch("much")  # wrong
    await post.dispatch(job=None, amount=1.0)  # wrong
    generate_report.call("2024")  # wrong
    generate_report.call(fromat="csv", year=2024)  # wrong
    await generate_report("2024")  # wrong
    make_thumbnail("a.png")  # wrong


# --- options ----------------------------------------------------------------------------------------


async def options() -> None:
    generate_report.options(dealy=60)  # wrong
    generate_report.options(10)  # wrong
    generate_report.options(delay="60")  # wrong
    generate_report.options(priority=1.5)  # wrong
    generate_report.options(available_at="2024-01-01")  # wrong
    generate_report.options(idempotency_key=5)  # wrong
    generate_report.options(unique="yes")  # wrong
    generate_report.options(max_attempts="3")  # wrong
    generate_report.options(year=2024)  # wrong
    await generate_report.dispatch(2024, delay=60)  # wrong
    await generate_report.dispatch(2024, priority=10, format="csv")  # wrong
    await generate_report.options(delay=60).dispatch("2024")  # wrong
    await generate_report.options(delay=60).dispatch()  # wrong
    generate_report.options(delay=60).call(2024, fromat="csv")  # wrong
    generate_report.options(delay=60)(2024)  # wrong
    queue.task("a", prioritiy=10)  # wrong
    queue.task()  # wrong
    queue.task("a", delay=60)  # wrong
    queue.task("a", backoff=3)  # wrong
    queue.task("a")(5)  # wrong
    tasks.task("a", result_ttl="3600")  # wrong


@queue.task  # wrong
async def without_a_type() -> None: ...


# --- what comes back --------------------------------------------------------------------------------


async def results() -> None:
    receipt = await generate_report.dispatch(2024)
    generate_report.dispatch(2024)  # wrong
    queue.dispatch(generate_report.call(2024))  # wrong
    receipt.wait()  # wrong
    generate_report.dispatch(2024).job_id  # wrong
    text: str = await receipt.wait()  # wrong
    pages: dict[str, int] = receipt.wait()  # wrong
    first: int = receipt.result["pages"]  # wrong
    other: Receipt[bytes] = receipt  # wrong
    call: Call[bytes] = generate_report.call(2024)  # wrong
    report: dict[str, int] = generate_report(2024)  # wrong
    await make_thumbnail("a.png", width=3)  # wrong
    await receipt.wait(timeout="30")  # wrong
    await receipt.wait(1, 2)  # wrong
    await receipt.wait(deadline=30)  # wrong
    receipt.inserted = True  # wrong
    receipt.results  # wrong


# --- the queue --------------------------------------------------------------------------------------


async def facade() -> None:
    await queue.dispatch(generate_report)  # wrong
    await queue.dispatch(generate_report, 2024)  # wrong
    await queue.dispatch(generate_report.call(2024), priority="10")  # wrong
    await queue.dispatch(generate_report.call(2024), {"year": 2024})  # wrong
    await queue.dispatch("report.generate", year=2024)  # wrong
    await queue.dispatch("report.generate", {"year": 2024}, dealy=60)  # wrong
    await queue.dispatch("report.generate", {"year": 2024}, delay="60")  # wrong
    await queue.dispatch_many(generate_report.call(2024))  # wrong
    await queue.dispatch_many([generate_report])  # wrong
    await queue.dispatch_many([("report.generate", {"year": 2024})])  # wrong
    await queue.cancel(5)  # wrong
    await queue.retry(await generate_report.dispatch(2024))  # wrong
    await queue.receipt(None)  # wrong
    await queue.jobs(statuses=["failed"])  # wrong
    await queue.jobs(limit="10")  # wrong
    queue.include([generate_report])  # wrong
    Queue(5)  # wrong
    Queue("memory://", serialiser=None)  # wrong
    with queue:  # wrong
        pass


# --- the worker -------------------------------------------------------------------------------------


async def sync_or_argumentless() -> None: ...


def not_async(job: Job) -> None:
    raise NotImplementedError(job)


def worker() -> None:
    Worker()  # wrong
    Worker("memory://")  # wrong
    Worker(queue, 4)  # wrong
    Worker(queue, concurrency="4")  # wrong
    Worker(queue, concurency=4)  # wrong
    Worker(queue, handler=sync_or_argumentless)  # wrong
    Worker(queue, handler=not_async)  # wrong
    Worker(queue, hooks=print)  # wrong
    Worker(queue, hooks=[lambda: None])  # wrong
    Worker(queue, lease=datetime.now(UTC))  # wrong
    Worker(queue, retention=60)  # wrong
    Worker(queue, retention=Retention(complete=60))  # wrong
    anyio.run(Worker(queue))  # wrong
    Worker(queue, queues={"ocr": "8"})  # wrong
    Worker(queue, weights=["ocr"])  # wrong
    Worker(queue, job_timeout="5 minutes")  # wrong
    Worker(queue, max_memory="512MB")  # wrong
    Worker(queue, max_job=5)  # wrong
    Worker(queue, burst="yes")  # wrong
    queue.task("image.shrink", cpu="yes")  # wrong
    queue.task("image.shrink", timeout=5)  # wrong
    queue.callback("image.shrunk", cpu=True)  # wrong


async def inside(job: Job) -> None:
    job.attempt = 1  # wrong
    await job.extend("60")  # wrong
    await job.extend()  # wrong
    job.attempts  # wrong
    job.cancel_reason = None  # wrong
    await queue.stats()[0]  # wrong
    await queue.pause(["images"])  # wrong
    await queue.set_retention("images", 60)  # wrong
    await queue.cancel_all("images")  # wrong


def hook(event: JobFailed) -> None:
    event.attempt = 1  # wrong
    event.err  # wrong


# --- callbacks --------------------------------------------------------------------------------------


async def callbacks() -> None:
    generate_report.options(callbacks=make_thumbnail)  # wrong
    generate_report.options(callbacks=[17])  # wrong
    generate_report.options(refresh="yes")  # wrong
    Callback(make_thumbnail, on="sometimes")  # wrong
    Callback(make_thumbnail, after="failure")  # wrong
    queue.callback("told", on="never")  # wrong
    await queue.dispatch("report.generate", {}, callback=[make_thumbnail])  # wrong


async def within(job: Job) -> None:
    await job.progress("half")  # wrong
    with job.transaction():  # wrong
        pass
