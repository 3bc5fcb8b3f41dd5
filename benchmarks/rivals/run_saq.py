"""saq on PostgreSQL, with a pool that has a connection for each slot, at most 20, which is its default."""

# pyright: basic, reportMissingImports=false

import asyncio
import logging

from _protocol import chunks, nothing, paced, serve, singles, until_over
from psycopg_pool import AsyncConnectionPool
from saq import Job, Worker
from saq.queue.postgres import PostgresQueue

PACKAGES = ("saq", "psycopg")
logging.getLogger("saq").setLevel(logging.ERROR)


async def opened(order, size):
    pool = AsyncConnectionPool(order.dsn, min_size=size, max_size=size, open=False, kwargs={"autocommit": True})
    await pool.open()
    queue = PostgresQueue(pool=pool, name="bench", min_size=size, max_size=size)
    await queue.connect()
    return queue


async def fill(order, tally):
    queue = await opened(order, 10)
    await tally.gone()
    for size in chunks(order):  # it has no bulk dispatch; ten at a time are its best
        left = size

        async def caller():
            nonlocal left
            while left > 0:
                left -= 1
                await queue.enqueue(Job("noop", kwargs={"text": tally.text}))

        await asyncio.gather(*(caller() for _ in range(10)))
    tally.dispatched(order.jobs)
    tally.answer("no bulk dispatch: enqueue, 10 at once", *PACKAGES)


async def dispatch(order, tally):
    queue = await opened(order, order.callers)
    await singles(tally, lambda text: queue.enqueue(Job("noop", kwargs={"text": text})))
    tally.answer(f"a pool with {order.callers} connections", *PACKAGES)


async def worker(order, tally, until, ready=nothing):
    size = min(order.concurrency + 2, 20)
    queue = await opened(order, size)

    async def noop(context, *, text):
        tally.note()

    async def noted(context, *, number):
        tally.noted(number)

    running = Worker(queue, functions=[("noop", noop), ("noted", noted)], concurrency=order.concurrency)
    running.SIGNALS = []
    await ready()
    task = asyncio.create_task(running.start())
    await until()
    await running.stop()
    await asyncio.gather(task, return_exceptions=True)
    tally.answer(f"concurrency={order.concurrency}, a pool of c + 2, at most 20", *PACKAGES)


async def drain(order, tally):
    await worker(order, tally, lambda: until_over(tally), ready=tally.gone)


async def work(order, tally):
    await worker(order, tally, tally.gone)


async def pace(order, tally):
    queue = await opened(order, 2)
    await paced(tally, lambda number: queue.enqueue(Job("noted", kwargs={"number": number})))
    tally.answer("", *PACKAGES)


if __name__ == "__main__":
    serve(globals())
