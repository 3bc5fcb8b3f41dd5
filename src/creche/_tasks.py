"""Tasks: typed functions registered under the name of a job type. They store and run nothing.

Options never share a handler's keyword arguments: `task.options(delay=60).dispatch(delay="the handler's own")`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Coroutine, Iterator, Mapping
from datetime import datetime, timedelta
from difflib import get_close_matches
from typing import Any, Concatenate, Final, Generic, ParamSpec, Protocol, TypeVar, overload

from attrs import frozen

from creche._attempt import Job, current_job
from creche._calls import Call, Options, encode_payload, make_options
from creche._job import DEFAULT_QUEUE, check_name
from creche._payload import Refused, to_plain
from creche._receipt import Receipt
from creche._signature import Signature
from creche.abc import Backoff, Serializer
from creche.errors import PayloadInvalid, QueueNotOpen, TaskInvalid, TypeTaken, UnknownType

P = ParamSpec("P")
R = TypeVar("R")


class Dispatcher(Protocol):
    """What a task needs of a queue."""

    @property
    def serializer(self) -> Serializer:
        """Turns arguments into JSON text."""
        ...

    async def dispatch_call(self, call: Call[R]) -> Receipt[R]:
        """Send a call."""
        ...


class Task(Generic[P, R]):
    """A typed function registered under a job type. Made by `@queue.task(…)`.

    `dispatch`, `call` and calling it take the function's own arguments (without a first `Job`).
    """

    def __init__(
        self, function: Callable[..., Any], type: str, *, options: Options, backoff: Backoff | None, home: Tasks
    ) -> None:
        self.type: Final = check_name("type", type)
        self.defaults: Final = options
        self.backoff: Final = backoff
        self.function: Final = function
        self.signature: Final = Signature(function, type)
        self.asynchronous: Final = inspect.iscoroutinefunction(function)
        self._home = home
        self.__doc__ = function.__doc__
        self.__name__ = getattr(function, "__name__", type)
        self.__module__ = function.__module__
        self.__wrapped__ = function

    def __repr__(self) -> str:
        return f"<Task {self.type!r}>"

    async def dispatch(self, *args: P.args, **kwargs: P.kwargs) -> Receipt[R]:
        """Ask for a run with these arguments.

        Raises:
            PayloadInvalid: the arguments don't fit the signature, or can't be stored; names the place.
            QueueNotOpen: use `async with queue:`.
            StorageUnavailable: the database can't be reached; sending it again is safe with an idempotency key.

        Cancelled, it may or may not have been written; never half.
        """
        return await self.send(self.call(*args, **kwargs))

    def call(self, *args: P.args, **kwargs: P.kwargs) -> Call[R]:
        """Return the dispatch without sending it, for `queue.dispatch` and `queue.dispatch_many`."""
        return self.make_call(Options(), args, kwargs)

    def options(
        self,
        *,
        queue: str | None = None,
        priority: int | None = None,
        delay: float | timedelta | None = None,
        available_at: datetime | None = None,
        max_attempts: int | None = None,
        idempotency_key: str | None = None,
        result_ttl: float | timedelta | None = None,
        unique: bool | None = None,
    ) -> Prepared[P, R]:
        """Return this task with options for its next dispatches.

        Args:
            queue: the queue's name.
            priority: −100 to 100, larger is sooner.
            delay: seconds until it is due, by the database's clock.
            available_at: instead of `delay`, an aware datetime.
            max_attempts: at least 1.
            idempotency_key: a dispatch with a key that this queue knows gets the job that has it.
            result_ttl: seconds for which the result answers equal dispatches; implies `unique`.
            unique: equal dispatches share one run while it is active.

        Raises:
            OptionInvalid: one of them makes no sense.
        """
        options = make_options(
            queue=queue,
            priority=priority,
            delay=delay,
            available_at=available_at,
            max_attempts=max_attempts,
            idempotency_key=idempotency_key,
            result_ttl=result_ttl,
            unique=unique,
        )
        return Prepared(self, options)

    def make_call(self, options: Options, arguments: tuple[Any, ...], named: Mapping[str, Any]) -> Call[R]:
        """Return a call with these options over the task's own."""
        return self.call_with(options, self.signature.bind(arguments, named))

    def call_with(self, options: Options, arguments: Any) -> Call[R]:
        """Return a call with arguments that were checked."""
        try:
            plain = to_plain(arguments)
            payload = encode_payload(self._home.dispatcher.serializer, arguments, self.type)
        except Refused as refused:
            raise PayloadInvalid(refused.reason, path=refused.path, type=self.type) from None
        return Call(
            type=self.type,
            payload=payload,
            arguments=plain,
            options=options.over(self.defaults),
            returns=self.signature.returns,
        )

    async def send(self, call: Call[R]) -> Receipt[R]:
        """Send one of its calls."""
        return await self._home.dispatcher.dispatch_call(call)

    def home(self, tasks: Tasks) -> None:
        """Belong to another registry from now on."""
        self._home = tasks


class AsyncTask(Task[P, R]):
    """A task whose function is async; calling it just runs the function."""

    async def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Run the function here and now, without the queue."""
        result: R = await self.function(*_with_job(self), *args, **kwargs)
        return result


class SyncTask(Task[P, R]):
    """A task whose function is not async: workers run it in a thread; calling it just runs it.

    A thread can't be ended: when its lease is lost the attempt ends, and the thread's result is thrown away.
    """

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Run the function here and now, without the queue."""
        result: R = self.function(*_with_job(self), *args, **kwargs)
        return result


def _with_job(task: Task[..., Any]) -> list[Job]:
    return [current_job()] if task.signature.takes_job else []


@frozen
class Prepared(Generic[P, R]):
    """A task with options for its next dispatches."""

    _task: Task[P, R]
    _options: Options

    async def dispatch(self, *args: P.args, **kwargs: P.kwargs) -> Receipt[R]:
        """Ask for a run with these arguments; see `Task.dispatch`."""
        return await self._task.send(self.call(*args, **kwargs))

    def call(self, *args: P.args, **kwargs: P.kwargs) -> Call[R]:
        """Return the dispatch without sending it; see `Task.call`."""
        return self._task.make_call(self._options, args, kwargs)


class TaskDecorator:
    """What `@queue.task(…)` is before it meets the function."""

    def __init__(self, home: Tasks, type: str, options: Options, backoff: Backoff | None) -> None:
        self._home = home
        self._type = type
        self._options = options
        self._backoff = backoff

    # A function that returns a coroutine without being async would match twice; the first match is what is meant.
    @overload
    def __call__(  # type: ignore[overload-overlap]
        self, function: Callable[Concatenate[Job, P], Coroutine[Any, Any, R]], /
    ) -> AsyncTask[P, R]: ...
    @overload
    def __call__(  # type: ignore[overload-overlap]
        self, function: Callable[P, Coroutine[Any, Any, R]], /
    ) -> AsyncTask[P, R]: ...
    @overload
    def __call__(self, function: Callable[Concatenate[Job, P], R], /) -> SyncTask[P, R]: ...
    @overload
    def __call__(self, function: Callable[P, R], /) -> SyncTask[P, R]: ...
    def __call__(self, function: Callable[..., Any], /) -> Task[..., Any]:
        """Register the function, and return it as a task."""
        if not callable(function):
            raise TaskInvalid(f'{function!r} is no function: write `@queue.task("its.job.type")` above a function')
        kind = AsyncTask[..., Any] if inspect.iscoroutinefunction(function) else SyncTask[..., Any]
        task = kind(function, self._type, options=self._options, backoff=self._backoff, home=self._home)
        self._home.add(task)
        return task


class Tasks:
    """A registry of tasks: a queue has one, and takes in those of other modules with `queue.include(tasks)`."""

    def __init__(self) -> None:
        self._tasks: dict[str, Task[..., Any]] = {}
        self._dispatcher: Dispatcher | None = None

    def __len__(self) -> int:
        return len(self._tasks)

    def __iter__(self) -> Iterator[Task[..., Any]]:
        return iter(self._tasks.values())

    def __contains__(self, type: object) -> bool:
        return type in self._tasks

    @property
    def types(self) -> Collection[str]:
        """The job types that are registered: a view, always up to date."""
        return self._tasks.keys()

    def task(
        self,
        type: str,
        *,
        queue: str | None = None,
        priority: int | None = None,
        max_attempts: int | None = None,
        result_ttl: float | timedelta | None = None,
        unique: bool | None = None,
        backoff: Backoff | None = None,
    ) -> TaskDecorator:
        """Register a function as the handler of a job type.

        Args:
            type: the job type; it is what stands in the database, so it outlives the function's name.
            queue: where its jobs go unless a dispatch says otherwise.
            priority: −100 to 100, larger is sooner.
            max_attempts: at least 1.
            result_ttl: seconds for which a result answers equal dispatches; implies `unique`.
            unique: equal dispatches share one run while it is active.
            backoff: the delays between its attempts; else the worker's.

        Raises:
            OptionInvalid: one of them makes no sense.
            TaskInvalid: the function's signature can't be a payload.
            TypeTaken: there is a task of this type.
        """
        options = make_options(
            queue=queue, priority=priority, max_attempts=max_attempts, result_ttl=result_ttl, unique=unique
        )
        return TaskDecorator(self, check_name("type", type), options, backoff)

    def add(self, task: Task[..., Any]) -> None:
        """Take in one task."""
        if task.type in self._tasks:
            raise TypeTaken(task.type)
        self._tasks[task.type] = task

    def include(self, other: Tasks) -> None:
        """Take in all tasks of another registry; they are dispatched through this one from now on."""
        for task in other:
            if task.type in self._tasks and self._tasks[task.type] is not task:
                raise TypeTaken(task.type)
        for task in other:
            self._tasks[task.type] = task
            task.home(self)

    def get(self, type: str) -> Task[..., Any]:
        """Return the task of this type, or raise UnknownType with the names that come near."""
        try:
            return self._tasks[type]
        except KeyError:
            raise UnknownType(type, self.near(type)) from None

    def near(self, type: str) -> list[str]:
        """Return registered types whose names come near."""
        return get_close_matches(type, self._tasks, n=3, cutoff=0.75)

    def bind(self, dispatcher: Dispatcher) -> None:
        """Dispatch through this queue."""
        self._dispatcher = dispatcher

    @property
    def dispatcher(self) -> Dispatcher:
        """The queue that these tasks are dispatched through."""
        if self._dispatcher is None:
            raise QueueNotOpen
        return self._dispatcher


def queues_of(tasks: Collection[Task[..., Any]]) -> list[str]:
    """Return the queues that tasks are dispatched to by themselves, the default one first."""
    named = sorted({task.defaults.queue for task in tasks if task.defaults.queue} - {DEFAULT_QUEUE})
    return [DEFAULT_QUEUE, *named]
