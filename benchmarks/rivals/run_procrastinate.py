"""procrastinate, as its documentation has it for throughput: concurrency, and deletion of what is done.

Deleting successful jobs is what it recommends against a table that grows; `keep` in the order leaves them.
"""

# pyright: basic, reportMissingImports=false

import asyncio

import procrastinate
from _protocol import chunks, nothing, paced, serve, singles, until_over

PACKAGES = ("procrastinate", "psycopg")


def make_app(order, tally, connections):
    app = procrastinate.App(
        connector=procrastinate.PsycopgConnector(conninfo=order.dsn, min_size=connections, max_size=connections)
    )

    @app.task(name="noop")
    async def noop(text):
        tally.note()

    @app.task(name="noted")
    async def noted(number):
        tally.noted(number)

    return app, noop, noted


async def install(app):
    if not await app.check_connection_async():
        await app.schema_manager.apply_schema_async()


async def fill(order, tally):
    app, noop, _ = make_app(order, tally, 1)
    async with app.open_async():
        await install(app)
        await tally.gone()
        for size in chunks(order):
            await noop.batch_defer_async(*({"text": tally.text} for _ in range(size)))
        tally.dispatched(order.jobs)
        tally.answer("batch_defer_async(lists of 10,000)", *PACKAGES)


async def dispatch(order, tally):
    app, noop, _ = make_app(order, tally, order.callers)
    async with app.open_async():
        await install(app)
        await singles(tally, lambda text: noop.defer_async(text=text))
        tally.answer(f"a pool with {order.callers} connections", *PACKAGES)


async def worker(order, tally, until, ready=nothing):
    app, _, _ = make_app(order, tally, min(order.concurrency + 2, 20))
    async with app.open_async():
        await install(app)
        await ready()
        running = asyncio.create_task(
            app.run_worker_async(
                concurrency=order.concurrency,
                delete_jobs="never" if order.keep else "successful",
                install_signal_handlers=False,
            )
        )
        await until()
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
    deleted = "never" if order.keep else "successful"
    tally.answer(f"concurrency={order.concurrency}, delete_jobs={deleted}, a pool of c + 2, at most 20", *PACKAGES)


async def drain(order, tally):
    await worker(order, tally, lambda: until_over(tally), ready=tally.gone)


async def work(order, tally):
    await worker(order, tally, tally.gone)


async def pace(order, tally):
    app, _, noted = make_app(order, tally, 1)
    async with app.open_async():
        await install(app)
        await paced(tally, lambda number: noted.defer_async(number=number))
        tally.answer("", *PACKAGES)


if __name__ == "__main__":
    serve(globals())
