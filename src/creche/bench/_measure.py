"""The measuring itself: who is started, in which order, and what is read before and after. It keeps no results.

A contestant is creche, or a rival that keeps the protocol of `_orders`: both are measured by the same lines.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from typing import Final

import anyio
from attrs import field, frozen

from creche.bench._children import OURS, Child, child
from creche.bench._figures import quantile
from creche.bench._meters import Meter, Reading
from creche.bench._orders import LULL, QUIET, Answer, Order
from creche.bench._processes import computed
from creche.errors import CrecheError

PATIENCE: Final = 600.0  # seconds from "go" to the last answer of a run
END: Final = 60.0  # seconds in which a worker that was told to end has ended


class JobsMissing(CrecheError):
    """A run ran fewer or more jobs than were dispatched: its figures would mean nothing.

    Attributes:
        name: what was measured.
        wanted: jobs.
        count: jobs that were run.
    """

    def __init__(self, name: str, wanted: int, count: int) -> None:
        self.name = name
        self.wanted = wanted
        self.count = count
        super().__init__(f"{name} ran {count} jobs of {wanted}")


@frozen(kw_only=True)
class Contestant:
    """What is measured.

    Attributes:
        name: for tables.
        command: what keeps the protocol.
        environment: more variables for it.
        patience: seconds from "go" to the last answer of a run; then it has failed.
    """

    name: str = "creche"
    command: Sequence[str] = OURS
    environment: Mapping[str, str] = field(factory=dict[str, str])
    patience: float = PATIENCE

    def child(self, order: Order) -> AbstractAsyncContextManager[Child]:
        """Start a process of it; see `child`."""
        return child(order, self.command, name=self.name, environment=self.environment)


CRECHE: Final = Contestant()


@frozen(kw_only=True)
class Work:
    """What jobs cost, whether they were dispatched or run.

    Attributes:
        jobs: how many.
        seconds: that they took.
        answers: of the processes.
        server: what it did meanwhile.
    """

    jobs: int
    seconds: float
    answers: Sequence[Answer]
    server: Reading

    @property
    def rate(self) -> float:
        """Jobs per second."""
        return self.jobs / self.seconds if self.seconds > 0 else 0.0

    @property
    def calls(self) -> float | None:
        """Python functions called per job, if they were counted."""
        counted = [answer.calls for answer in self.answers if answer.calls is not None]
        return sum(counted) / self.jobs if counted else None

    @property
    def statements(self) -> float | None:
        """Statements per job, by the server's count or the processes' own."""
        counted = [answer.statements for answer in self.answers if answer.statements is not None]
        total = sum(counted) if counted else self.server.statements
        return None if total is None else total / self.jobs

    @property
    def tail(self) -> float | None:
        """Seconds from the last handler's end to the end of the worker, with everything written; None if there were
        several workers, none of which knew what was the last.
        """
        if len(self.answers) > 1:
            return None
        return max(answer.closed for answer in self.answers) - max(answer.ended for answer in self.answers)

    def figures(self) -> dict[str, float | None]:
        """Return what was measured, by name."""
        if self.calls is not None:
            # Whoever counts them takes too long for any other figure.
            counted = {"statements/job": self.statements} if self.server.statements is None else {}
            return {**counted, "Python calls/job": self.calls}
        return {
            "jobs/s": self.rate,
            "process µs/job": sum(answer.cpu for answer in self.answers) / self.jobs * 1e6,
            "server µs/job": _share(self.server.cpu, self.jobs, 1e6),
            "statements/job": self.statements,
            "transactions/job": _share(self.server.transactions, self.jobs),
            "WAL bytes/job": _share(self.server.log, self.jobs),
            "RSS MiB": max(answer.rss for answer in self.answers) / (1 << 20),
            "tail ms": None if self.tail is None else self.tail * 1e3,
        }


def _share(total: float | None, jobs: int, unit: float = 1.0) -> float | None:
    return None if total is None else total / jobs * unit


async def dispatched(order: Order, watch: Meter, by: Contestant = CRECHE) -> Work:
    """Measure dispatching: of role `fill` in bulk, of role `dispatch` one by one.

    Raises:
        ChildFailed: the process failed.
    """
    async with by.child(order) as process:
        (answer,), server = await _run([process], watch, by.patience)
    return Work(
        jobs=order.jobs if order.limit is None else answer.count,
        seconds=answer.ended - answer.began,
        answers=[answer],
        server=server,
    )


async def drained(order: Order, watch: Meter, by: Contestant = CRECHE, *, processes: int = 1) -> Work:
    """Measure workers that run what has been dispatched, until all of it is done, or the order's limit is reached.

    The rate is that between the first handler's first line and the last one's last; what is left to be written then
    shows in `tail`, and in everything else.

    Raises:
        ChildFailed: a process failed.
        JobsMissing: fewer or more jobs were run than the order says; with a limit, none at all.
    """
    if processes > 1:
        order = order.to(order.role, lull=LULL + order.seconds)  # none of them knows what the others have run
    async with AsyncExitStack() as stack:
        each = [await stack.enter_async_context(by.child(order)) for _ in range(processes)]
        answers, server = await _run(each, watch, by.patience)
    count = sum(answer.count for answer in answers)
    if count != order.jobs if order.limit is None else not count:
        raise JobsMissing(by.name, order.jobs, count)
    worked = [answer for answer in answers if answer.count]
    began, ended = min(answer.began for answer in worked), max(answer.ended for answer in worked)
    return Work(jobs=count, seconds=ended - began, answers=answers, server=server)


async def _run(processes: Sequence[Child], watch: Meter, patience: float) -> tuple[list[Answer], Reading]:
    before = await watch.read()
    until = anyio.current_time() + patience
    for process in processes:
        await process.go()
    answers = [await process.answer(max(0.0, until - anyio.current_time())) for process in processes]
    # PostgreSQL's statistics of a session are there when the session has ended, a moment after its process.
    await anyio.sleep(0.05)
    after = await watch.read()
    return answers, after.since(before, own=watch.own)


@frozen(kw_only=True)
class Latency:
    """How long single jobs took, in seconds.

    Attributes:
        begun: from before the dispatch to the handler's first line.
        waited: from before the dispatch to the end of `wait()`; empty where nobody waited.
    """

    begun: Sequence[float]
    waited: Sequence[float] = ()

    def figures(self) -> dict[str, float | None]:
        """Return what was measured, by name, in milliseconds."""
        return {
            f"{what} {name} ms": quantile(values, share) * 1e3
            for what, values in (("handler", self.begun), ("wait()", self.waited))
            if values
            for name, share in (("p50", 0.5), ("p95", 0.95), ("p99", 0.99), ("max", 1.0))
        }


async def latency(order: Order, by: Contestant = CRECHE) -> Latency:
    """Measure how soon an idle worker begins what another process dispatches, job by job.

    Raises:
        ChildFailed: a process failed.
        JobsMissing: not every job was begun once.
    """
    async with by.child(order.to("work")) as worker, by.child(order.to("pace")) as dispatcher:
        await anyio.sleep(QUIET)
        await dispatcher.go()
        asked = await dispatcher.answer(by.patience)
        await anyio.sleep(1.0)
        await worker.go()
        told = await worker.answer(END)
    if len(told.moments) != len(asked.moments):
        raise JobsMissing(by.name, len(asked.moments), len(told.moments))
    begun = dict(told.moments)
    return Latency(begun=[begun[number] - moment for number, moment in asked.moments], waited=asked.waited)


@frozen(kw_only=True)
class Idleness:
    """What an idle worker costs, per second."""

    statements: float | None
    transactions: float | None
    worker: float | None
    server: float | None

    def figures(self) -> dict[str, float | None]:
        """Return what was measured, by name."""
        return {
            "statements/s": self.statements,
            "transactions/s": self.transactions if self.statements is None else None,
            "worker ms/s": None if self.worker is None else self.worker * 1e3,
            "server ms/s": None if self.server is None else self.server * 1e3,
        }


async def idle(order: Order, watch: Meter, by: Contestant = CRECHE, *, seconds: float = 20.0) -> Idleness:
    """Measure a worker that has nothing to do.

    Raises:
        ChildFailed: the process failed.
    """
    async with by.child(order.to("work", count_statements=True)) as worker:
        await anyio.sleep(QUIET)
        first, cpu = await watch.read(), computed(worker.pid)
        await anyio.sleep(seconds)
        last, cpu_after = await watch.read(), computed(worker.pid)
        await worker.go()
        answer = await worker.answer(END)
    server = last.since(first, own=watch.own)
    statements = server.statements
    if answer.statements is not None:  # counted by the process, while it was idle
        statements = answer.statements * seconds / (answer.ended - answer.began)
    return Idleness(
        statements=None if statements is None else statements / seconds,
        transactions=None if server.transactions is None else server.transactions / seconds,
        worker=None if cpu is None or cpu_after is None else (cpu_after - cpu) / seconds,
        server=None if server.cpu is None else server.cpu / seconds,
    )


async def memory(order: Order, by: Contestant = CRECHE) -> tuple[Answer, Answer]:
    """Have jobs dispatched in bulk, then run; return the answers of both processes, with samples of their memory.

    Raises:
        ChildFailed: a process failed.
        JobsMissing: fewer or more jobs were run than the order says.
    """
    async with by.child(order.to("fill")) as process:
        await process.go()
        producer = await process.answer(by.patience)
    async with by.child(order.to("drain")) as process:
        await process.go()
        worker = await process.answer(by.patience)
    if worker.count != order.jobs:
        raise JobsMissing(by.name, order.jobs, worker.count)
    return producer, worker
