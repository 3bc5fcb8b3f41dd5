"""chancy, as its documentation has it for throughput: handlers on its event loop, and eager polling."""

# pyright: basic, reportMissingImports=false

import logging

from _chancy_jobs import HERE, noop, noted
from _protocol import chunks, nothing, paced, serve, singles, until_over
from chancy import Chancy, Queue, Worker

PACKAGES = ("chancy", "psycopg")
logging.getLogger("chancy").setLevel(logging.ERROR)


def make_app(order, tally, size):
    HERE["tally"] = tally
    return Chancy(
        order.dsn,
        min_connection_pool_size=size,
        max_connection_pool_size=size,
        log=logging.getLogger("chancy"),
    )


async def install(order, chancy):
    await chancy.migrate()
    await chancy.declare(
        Queue(
            "bench",
            concurrency=order.concurrency,
            executor=Chancy.Executor.Async,
            polling_interval=1,
            eager_polling=True,
        ),
        upsert=True,
    )


async def fill(order, tally):
    async with make_app(order, tally, 2) as chancy:
        await install(order, chancy)
        await tally.gone()
        for size in chunks(order):
            jobs = [noop.job.with_kwargs(text=tally.text) for _ in range(size)]
            async for _ in chancy.push_many(jobs, batch_size=size):
                pass
        tally.dispatched(order.jobs)
        tally.answer("push_many(batch_size=10,000)", *PACKAGES)


async def dispatch(order, tally):
    async with make_app(order, tally, max(order.callers, 2)) as chancy:
        await install(order, chancy)
        await singles(tally, lambda text: chancy.push(noop.job.with_kwargs(text=text)))
        tally.answer(f"a pool with {max(order.callers, 2)} connections", *PACKAGES)


async def worker(order, tally, until, ready=nothing):
    async with make_app(order, tally, 10) as chancy:
        await install(order, chancy)
        await ready()
        async with Worker(chancy, register_signal_handlers=False):
            await until()
    tally.answer(f"concurrency={order.concurrency}, AsyncExecutor, polling_interval=1, eager_polling=True", *PACKAGES)


async def drain(order, tally):
    await worker(order, tally, lambda: until_over(tally), ready=tally.gone)


async def work(order, tally):
    await worker(order, tally, tally.gone)


async def pace(order, tally):
    async with make_app(order, tally, 2) as chancy:
        await install(order, chancy)
        await paced(tally, lambda number: chancy.push(noted.job.with_kwargs(number=number)))
        tally.answer("", *PACKAGES)


if __name__ == "__main__":  # chancy starts processes that import it anew
    serve(globals())
