"""pgqueuer, as its documentation has it for throughput: asyncpg, its own autovacuum settings, and as many jobs at once
as batches allow. Its batches are never smaller than its default, for it knows no concurrency besides.
"""

# pyright: basic, reportMissingImports=false

import asyncio

import asyncpg
from _protocol import chunks, nothing, paced, serve, singles, until_over
from pgqueuer import PgQueuer
from pgqueuer.db import AsyncpgDriver, AsyncpgPoolDriver
from pgqueuer.queries import Queries

PACKAGES = ("pgqueuer", "asyncpg", "uvloop")


BATCH = 10  # its default


async def install(queries):
    """Make the schema, if it is not there; its durability is the default, everything logged."""
    if not await queries.schema_is_installed():
        await queries.install()
        await queries.optimize_autovacuum()


async def fill(order, tally):
    connection = await asyncpg.connect(order.dsn)
    queries = Queries(AsyncpgDriver(connection))
    await install(queries)
    await tally.gone()
    for size in chunks(order):
        payloads = [tally.text.encode() for _ in range(size)]
        await queries.enqueue(["noop"] * size, payloads, [0] * size)
    tally.dispatched(order.jobs)
    tally.answer("enqueue(lists of 10,000)", *PACKAGES)


async def dispatch(order, tally):
    if order.callers == 1:
        driver = AsyncpgDriver(await asyncpg.connect(order.dsn))
    else:
        driver = AsyncpgPoolDriver(await asyncpg.create_pool(order.dsn, min_size=order.callers, max_size=order.callers))
    queries = Queries(driver)
    await install(queries)
    await singles(tally, lambda text: queries.enqueue("noop", text.encode(), 0))
    tally.answer("one connection" if order.callers == 1 else "a pool with a connection for each caller", *PACKAGES)


async def worker(order, tally, until, ready=nothing):
    """Run a worker until `until()` returns."""
    pgq = PgQueuer(AsyncpgDriver(await asyncpg.connect(order.dsn)))
    batch = max(BATCH, order.concurrency)

    @pgq.entrypoint("noop")
    async def noop(job):
        tally.note()

    @pgq.entrypoint("noted")
    async def noted(job):
        tally.noted(int(job.payload))

    async def stop():
        await until()
        pgq.shutdown.set()

    await ready()
    watch = asyncio.create_task(stop())
    # The least that it takes is twice the batch.
    await pgq.run(batch_size=batch, max_concurrent_tasks=2 * batch)
    await watch
    tally.answer(f"batch_size={batch}, max_concurrent_tasks={2 * batch}, pgq autovac", *PACKAGES)


async def drain(order, tally):
    await worker(order, tally, lambda: until_over(tally), ready=tally.gone)


async def work(order, tally):
    connection = await asyncpg.connect(order.dsn)
    await install(Queries(AsyncpgDriver(connection)))
    await connection.close()
    await worker(order, tally, tally.gone)


async def pace(order, tally):
    queries = Queries(AsyncpgDriver(await asyncpg.connect(order.dsn)))
    await install(queries)
    await paced(tally, lambda number: queries.enqueue("noted", str(number).encode(), 0))
    tally.answer("", *PACKAGES)


if __name__ == "__main__":
    serve(globals())
