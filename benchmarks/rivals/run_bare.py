"""LISTEN, NOTIFY and a claim, written by hand over psycopg: how soon a worker on this server could begin at most."""

# pyright: basic, reportMissingImports=false

import random
import sys
import threading
import time

import psycopg
from _protocol import Tally, read_order

SCHEMA = """
CREATE TABLE IF NOT EXISTS bare_calls (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, payload text NOT NULL, status smallint NOT NULL DEFAULT 0
);
CREATE INDEX IF NOT EXISTS bare_calls_ready ON bare_calls (id) WHERE status = 0;
"""
DISPATCH = "WITH job AS (INSERT INTO bare_calls (payload) VALUES (%s)) SELECT pg_notify('bare_calls', '')"
CLAIM = """
UPDATE bare_calls SET status = 1
WHERE id = (SELECT id FROM bare_calls WHERE status = 0 ORDER BY id LIMIT 1 FOR UPDATE SKIP LOCKED)
RETURNING id, payload
"""


def work(order, tally):
    with psycopg.connect(order.dsn, autocommit=True, prepare_threshold=0) as connection:
        connection.execute(SCHEMA, prepare=False)
        connection.execute("LISTEN bare_calls", prepare=False)
        over = threading.Event()

        def wait():
            tally.go()
            over.set()

        threading.Thread(target=wait, daemon=True).start()
        while not over.is_set():
            if list(connection.notifies(timeout=0.5, stop_after=1)):
                while (row := connection.execute(CLAIM).fetchone()) is not None:
                    tally.noted(int(row[1]))
                    connection.execute("DELETE FROM bare_calls WHERE id = %s", row[:1])
        tally.answer("one connection, statements prepared")


def pace(order, tally):
    draw = random.Random(order.jobs)
    with psycopg.connect(order.dsn, autocommit=True, prepare_threshold=0) as connection:
        connection.execute(SCHEMA, prepare=False)
        tally.go()
        for number in range(order.jobs):
            time.sleep(draw.uniform(0.5, 1.5) * order.pause)
            began = time.monotonic()
            connection.execute(DISPATCH, (str(number),))
            tally.moments.append((number, began))
        tally.dispatched(order.jobs)
        tally.answer("")


order = read_order()
{"work": work, "pace": pace}[order.role](order, Tally(order))
sys.stdout.flush()
