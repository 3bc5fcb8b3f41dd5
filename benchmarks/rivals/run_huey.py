"""huey on SQLite with threads, every write synchronous as creche's are; the shortest polls that make sense to it."""

# pyright: basic, reportMissingImports=false

import logging
import random
import threading
import time

from _protocol import Tally, read_order
from huey import SqliteHuey
from huey.consumer import Consumer

PACKAGES = ("huey",)
logging.getLogger("huey").setLevel(logging.ERROR)

order = read_order()
tally = Tally(order)
lock = threading.Lock()
huey = SqliteHuey("bench", filename=order.dsn.removeprefix("sqlite:///"), fsync=True, results=False)


@huey.task(name="noop")
def noop(text):
    with lock:
        tally.note()


@huey.task(name="noted")
def noted(number):
    tally.noted(number)


def enqueue(count):
    for _ in range(count):
        noop(tally.text)


def fill():
    tally.go()
    enqueue(order.jobs)
    tally.dispatched(order.jobs)
    tally.answer("no bulk dispatch: one at a time", *PACKAGES)


def dispatch():
    for _ in range(order.callers):
        noop(tally.text)
    tally.go()
    threads = [threading.Thread(target=enqueue, args=(order.jobs // order.callers,)) for _ in range(order.callers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    tally.dispatched(order.jobs // order.callers * order.callers)
    tally.answer(f"{order.callers} threads", *PACKAGES)


def worker(until):
    consumer = Consumer(
        huey,
        workers=order.concurrency,
        worker_type="thread",
        periodic=False,
        initial_delay=0.01,
        max_delay=0.1,
        check_worker_health=False,
    )
    consumer._set_signal_handlers = lambda: None
    consumer.start()
    until()
    consumer.stop(graceful=True)
    tally.answer(f"workers={order.concurrency} threads, fsync=True, initial_delay=0.01, max_delay=0.1", *PACKAGES)


def drain():
    def until():
        while not tally.over:
            time.sleep(0.01)

    tally.go()
    worker(until)


def work():
    worker(tally.go)


def pace():
    draw = random.Random(order.jobs)
    tally.go()
    for number in range(order.jobs):
        time.sleep(draw.uniform(0.5, 1.5) * order.pause)
        began = time.monotonic()
        noted(number)
        tally.moments.append((number, began))
    tally.dispatched(order.jobs)
    tally.answer("", *PACKAGES)


{"fill": fill, "dispatch": dispatch, "drain": drain, "work": work, "pace": pace}[order.role]()
