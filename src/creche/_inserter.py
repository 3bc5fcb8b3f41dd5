"""The inserter: writes what callers ask for at the same moment in one statement, and gives each its own answer.

It makes no job, and lets nobody wait for the sake of company: what is asked for while nothing is being written is
written at once, and what comes meanwhile goes into the next statement. It never puts together what may have to wait for
somebody: an idempotency key, or a fingerprint, may stand in a caller's transaction that is not committed yet, and who
waits for that must not make others wait, least of all that caller.
"""

from __future__ import annotations

import os
import threading
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from contextvars import copy_context
from copy import copy
from functools import partial
from typing import Final

import anyio
from anyio import move_on_after
from anyio.abc import TaskGroup
from anyio.lowlevel import checkpoint
from attrs import define, field

from creche._job import Insertion, NewJob
from creche._nursery import background
from creche.abc import Storage
from creche.errors import CrecheError, QueueNotOpen, StatementRejected, StorageUnavailable

# What one statement has at most: jobs, and bytes of payload (of a single job, as many as it has).
MOST_JOBS: Final = 500
MOST_BYTES: Final = 1 << 20

# Seconds. What is not answered by then holds up nobody: it may be a connection that is dead, or a database far away.
HELD_UP: Final = 0.05

# Seconds that closing waits for statements that are on their way.
FAREWELL: Final = 2.0


@define(eq=False)
class _Turn:
    """A statement on its way, until it is over. At most one waits for its end: what is gathered to come next."""

    over: bool = False
    _bell: anyio.Event | None = None

    async def wait(self) -> None:
        if not self.over:
            self._bell = anyio.Event()
            await self._bell.wait()

    def end(self) -> None:
        self.over = True
        if self._bell is not None:
            self._bell.set()


@define(eq=False)
class _Asked:
    """A job, and what became of it."""

    job: NewJob
    left: bool = False  # whether its caller has gone, and asks no more
    answer: Insertion | Exception | None = None


@define(eq=False)
class _Batch(_Turn):
    """Jobs that are written together.

    Attributes:
        jobs: in the order in which they were asked for.
        size: bytes of their payloads.
        answered: set when nobody has to wait any more.
    """

    jobs: list[_Asked] = field(factory=list[_Asked])
    size: int = 0
    answered: anyio.Event = field(factory=anyio.Event)

    def takes(self, job: NewJob) -> bool:
        return len(self.jobs) < MOST_JOBS and self.size + len(job.payload) <= MOST_BYTES

    def add(self, job: NewJob) -> _Asked:
        asked = _Asked(job)
        self.jobs.append(asked)
        self.size += len(job.payload)
        return asked


class Inserter:
    """Writes jobs to a storage, those of concurrent callers together. Made by `inserting`."""

    def __init__(self, storage: Storage, batches: TaskGroup) -> None:
        self._storage = storage
        self._batches = batches
        self._context = copy_context()  # what several ask for is written in no caller's own
        self._home = os.getpid(), threading.get_ident()
        self._last: _Turn | None = None
        self._gathering: _Batch | None = None

    async def insert(self, job: NewJob) -> Insertion:
        """Write one job, or find what stands in its place; see `Storage.insert`.

        Alone, it is written in the caller's own task: as if the storage were called. Together with others it is
        written in a task of the queue's. A caller that is cancelled then leaves at once: what was not sent yet is not
        sent, and what was may have been written; the others get their answers.

        Raises:
            StatementRejected: this job can't be written. What becomes of those that were sent with it, they are told.
            StorageUnavailable: nobody can say whether it was written.
            QueueNotOpen: the queue was closed before it was sent.
        """
        if not _joins(job) or self._home != (os.getpid(), threading.get_ident()):
            return await self._alone(job)
        if self._last is None or self._last.over:
            turn = self._last = _Turn()
            try:
                return await self._alone(job)
            finally:
                turn.end()
        batch = self._gathering
        if batch is None or not batch.takes(job):
            batch = self._gather(self._last)
        asked = batch.add(job)
        try:
            await batch.answered.wait()
        finally:
            asked.left = True
        if isinstance(asked.answer, Insertion):
            return asked.answer
        raise _own(asked.answer)

    async def _alone(self, job: NewJob) -> Insertion:
        return (await self._storage.insert([job]))[0]

    def _gather(self, before: _Turn) -> _Batch:
        batch = self._last = self._gathering = _Batch()
        self._context.run(partial(self._batches.start_soon, partial(self._send, batch, before), name="creche inserter"))
        return batch

    async def _send(self, batch: _Batch, before: _Turn) -> None:
        """Write a batch when what was sent before is over. The next one gathers meanwhile."""
        unknown: CrecheError = QueueNotOpen()
        try:
            with move_on_after(HELD_UP):
                await before.wait()
            self._seal(batch)
            unknown = StorageUnavailable("the queue was closed before there was an answer: the outcome is unknown")
            await self._write(batch.jobs)
        finally:
            self._seal(batch)
            for asked in batch.jobs:
                asked.answer = asked.answer or unknown
            batch.answered.set()
            try:
                # Whoever has been answered and asks again at once comes into the next one, with all the others: on
                # trio tasks run in any order, so it takes two turns of the event loop to be sure.
                await checkpoint()
                await checkpoint()
            finally:
                batch.end()

    def _seal(self, batch: _Batch) -> None:
        if self._gathering is batch:
            self._gathering = None

    async def _write(self, jobs: Sequence[_Asked]) -> None:
        """Write jobs, and note what became of them. What is refused is taken apart, until the refusal has found those
        that it is about; each job is sent under the same id as before, so it is written once.
        """
        jobs = [asked for asked in jobs if not asked.left]
        if not jobs:
            return
        try:
            answers: Sequence[Insertion | Exception] = await self._storage.insert([asked.job for asked in jobs])
        except StatementRejected as error:
            half = len(jobs) // 2
            if half:
                await self._write(jobs[:half])
                await self._write(jobs[half:])
                return
            answers = [error]
        except Exception as error:  # noqa: BLE001 - it is raised where it was asked for
            answers = [error] * len(jobs)
        for asked, answer in zip(jobs, answers, strict=True):
            asked.answer = answer


def _joins(job: NewJob) -> bool:
    """Return whether nothing can stand in a job's place but itself, sent before: so it waits for nobody, is written in
    one round, and the order among those that are written together means nothing.
    """
    return job.idempotency_key is None and job.fingerprint is None and not job.callbacks


def _own(error: Exception | None) -> Exception:
    """Return an error for one caller of many: a traceback grows with everybody who raises it."""
    if not isinstance(error, CrecheError):
        return error or QueueNotOpen()
    own = copy(error)
    own.__cause__ = error.__cause__
    return own


@asynccontextmanager
async def inserting(storage: Storage) -> AsyncGenerator[Inserter]:
    """Write jobs while the block runs. What is on its way when it is left is waited for, if not for long."""
    async with background(farewell=FAREWELL) as batches:
        yield Inserter(storage, batches)
