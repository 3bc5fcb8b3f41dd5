"""What a torture run is like: how much is dispatched, what the jobs do, who takes part, how often something breaks.

It is read by everybody, and does nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from attrs import frozen

ENGINES: Final = ("sqlite", "postgresql", "mariadb", "mysql")

# What jobs do, each a job type of its own, and how many of a thousand are of it.
MIX: Final[Mapping[str, int]] = {
    "brief": 560,  # up to 20 ms
    "flight": 200,  # up to 300 ms, of which at most one per fingerprint is active
    "long": 80,  # for longer than a lease, which is renewed meanwhile
    "effect": 50,  # writes a row in the transaction that ends the attempt
    "fail": 50,  # raises, at its first attempt or at each
    "thread": 30,  # for longer than a lease, in a thread
    "swallow": 12,  # goes on for two seconds after it was cancelled
    "exit": 10,  # ends its process, at its first attempt or at each
    "block": 3,  # blocks the event loop for longer than a lease
    "call": 5,  # asks for its lease to be extended itself
}

# How many of a hundred are cancelled, shortly after they were dispatched.
CANCELLED: Final[Mapping[str, int]] = {"brief": 2, "flight": 3, "long": 30, "thread": 15, "swallow": 60}

# What may run beside a worker that is to grow old: nothing that ends its process.
GENTLE: Final = frozenset({"brief", "flight", "long", "effect", "thread", "swallow", "fail", "call"})


@frozen(kw_only=True)
class Plan:
    """What a run is like. Times are in seconds.

    Attributes:
        engine: the database.
        seconds: for which jobs are dispatched, and things break.
        seed: of what the conductor and the dispatchers draw; when a fault meets a process is still up to the machine.
        rate: dispatches per second, of all dispatchers together, whether or not anybody answers.
        dispatchers: processes that dispatch.
        workers: processes that work, and are killed.
        elders: processes that work, and are spared what would end them, so that leaks have time to show.
        concurrency: jobs at once in each.
        answer: that dispatchers give a server; a file has the time that its storage gives it.
        lease: of each job.
        attempts: that a job has at most.
        fingerprints: that dispatches of single-flight jobs draw from.
        hasty: of a hundred dispatches, those whose caller gives up within milliseconds, and asks again.
        hoard: jobs that workers always reserve ahead of their slots, if there are any; 0: as many as they are likely to
            run.
        borrowed: of a hundred, those in a transaction of the caller's, half of which are rolled back.
        every: from the beginning of a fault to that of the next one, in the first half; in the second they overlap.
        only: words, of which a fault's name must have one; they come in this order first. Empty: all that can be.
        patience: after the last fault, in which no job ends, and it is not waited any longer.
        loop: "asyncio", "trio", or "both" by turns.
        pgbouncer: whether a PgBouncer in transaction mode stands before PostgreSQL.
        durable: whether commits wait for the disk; if not, a killed server may lose some, and that is only counted.
    """

    engine: str = "sqlite"
    seconds: float = 600.0
    seed: int = 0
    rate: float = 40.0
    dispatchers: int = 3
    workers: int = 4
    elders: int = 2
    concurrency: int = 8
    answer: float = 3.0
    lease: float = 2.0
    attempts: int = 5
    fingerprints: int = 20
    hasty: int = 6
    hoard: int = 0
    borrowed: int = 10
    every: float = 4.0
    only: tuple[str, ...] = ()
    patience: float = 60.0
    loop: str = "both"
    pgbouncer: bool = False
    durable: bool = True

    @property
    def margin(self) -> float:
        """By which a worker's own deadline comes before the database's: what docs/architecture.md says."""
        return min(self.lease / 10, 2.0)
