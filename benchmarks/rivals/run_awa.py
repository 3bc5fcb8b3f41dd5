"""awa-pg, whose core is written in Rust: COPY for bulk, everything else as it comes."""

# pyright: basic, reportMissingImports=false

import json
from dataclasses import dataclass

from _protocol import chunks, nothing, paced, serve, singles, until_over
from awa import AsyncClient

PACKAGES = ("awa-pg",)


@dataclass
class Noop:
    text: str


@dataclass
class Noted:
    number: int


async def opened(order, size=10):
    client = AsyncClient(order.dsn, max_connections=size)
    await client.migrate()
    if json.loads(await client.storage_status())["active_engine"] != "queue_storage":
        await client.install_queue_storage(schema="awa")  # what the documentation calls the engine of fresh installs
    return client


async def fill(order, tally):
    client = await opened(order)
    await tally.gone()
    for size in chunks(order):
        await client.enqueue_many_copy([Noop(tally.text) for _ in range(size)], queue="bench")
    tally.dispatched(order.jobs)
    tally.answer("enqueue_many_copy(lists of 10,000)", *PACKAGES)


async def dispatch(order, tally):
    client = await opened(order, max(order.callers, 2))
    await singles(tally, lambda text: client.insert(Noop(text), queue="bench"))
    tally.answer(f"max_connections={max(order.callers, 2)}", *PACKAGES)


async def worker(order, tally, until, ready=nothing):
    client = await opened(order, min(order.concurrency + 5, 20))

    @client.task(Noop, queue="bench")
    async def noop(job):
        tally.note()

    @client.task(Noted, queue="bench")
    async def noted(job):
        tally.noted(job.args.number)

    await ready()
    await client.start([("bench", order.concurrency)])
    await until()
    await client.shutdown()
    tally.answer(f"start([(bench, {order.concurrency})]), max_connections = c + 5, at most 20", *PACKAGES)


async def drain(order, tally):
    await worker(order, tally, lambda: until_over(tally), ready=tally.gone)


async def work(order, tally):
    await worker(order, tally, tally.gone)


async def pace(order, tally):
    client = await opened(order, 2)
    await paced(tally, lambda number: client.insert(Noted(number), queue="bench"))
    tally.answer("", *PACKAGES)


if __name__ == "__main__":
    serve(globals())
