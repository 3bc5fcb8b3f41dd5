"""oban, with a pool as large as its slots allow; oban Pro, which acknowledges in batches, is not measured."""

# pyright: basic, reportMissingImports=false

from _protocol import chunks, nothing, paced, serve, singles, until_over
from oban import Oban, worker
from oban.schema import install as install_schema
from psycopg_pool import AsyncConnectionPool

PACKAGES = ("oban", "psycopg", "uvloop")
HERE = {}


@worker(queue="bench")
class Noop:
    async def process(self, job):
        HERE["tally"].note()


@worker(queue="bench")
class Noted:
    async def process(self, job):
        HERE["tally"].noted(job.args["number"])


async def opened(order, tally, size):
    HERE["tally"] = tally
    pool = AsyncConnectionPool(order.dsn, min_size=size, max_size=size, open=False)
    await pool.open()
    async with pool.connection() as connection:
        there = await (await connection.execute("SELECT to_regclass('oban_jobs')")).fetchone()
    if there[0] is None:
        await install_schema(pool)
    return pool


async def fill(order, tally):
    pool = await opened(order, tally, 1)
    oban = Oban(pool=pool)
    await tally.gone()
    for size in chunks(order):
        await oban.enqueue_many([Noop.new({"text": tally.text}) for _ in range(size)])
    tally.dispatched(order.jobs)
    tally.answer("enqueue_many(lists of 10,000)", *PACKAGES)


async def dispatch(order, tally):
    pool = await opened(order, tally, order.callers)
    oban = Oban(pool=pool)
    await singles(tally, lambda text: oban.enqueue(Noop.new({"text": text})))
    tally.answer(f"a pool with {order.callers} connections", *PACKAGES)


async def run_worker(order, tally, until, ready=nothing):
    size = min(order.concurrency + 5, 20)
    pool = await opened(order, tally, size)
    await ready()
    async with Oban(pool=pool, queues={"bench": order.concurrency}):
        await until()
    tally.answer(f"queues={{bench: {order.concurrency}}}, a pool of c + 5, at most 20", *PACKAGES)


async def drain(order, tally):
    await run_worker(order, tally, lambda: until_over(tally), ready=tally.gone)


async def work(order, tally):
    await run_worker(order, tally, tally.gone)


async def pace(order, tally):
    pool = await opened(order, tally, 2)
    oban = Oban(pool=pool)
    await paced(tally, lambda number: oban.enqueue(Noted.new({"number": number})))
    tally.answer("", *PACKAGES)


if __name__ == "__main__":
    serve(globals())
