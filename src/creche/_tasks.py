"""Tasks: typed functions registered under the name of a job type. They store and run nothing.

Options never share a handler's keyword arguments: `task.options(delay=60).dispatch(delay="the handler's own")`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Coroutine, Iterator, Mapping
from datetime import datetime, timedelta
from difflib import get_close_matches
from functools import partial
from typing import Any, Concatenate, Final, Generic, ParamSpec, Protocol, TypeVar, overload

from attrs import frozen

from creche._attempt import Job, current_job
from creche._callbacks import Callbacks, When, check_on
from creche._calls import NO_OPTIONS, Call, Options, around_result, encode_payload, make_follow_up, make_options
from creche._job import DEFAULT_QUEUE, FollowUp, On, check_boolean, check_name, seconds
from creche._processes import check_cpu
from creche._receipt import Receipt
from creche._signature import Signature
from creche.abc import Backoff, Serializer
from creche.errors import OptionInvalid, TaskInvalid, TasksNotIncluded, TypeTaken, UnknownType

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


@frozen(kw_only=True)
class Conduct:
    """How the attempts of a task are run, and run again.

    Attributes:
        backoff: the delays between them; None: the worker's.
        job_timeout: seconds that one may take; None: the worker's.
        cpu: whether its function runs in a process of its own.
    """

    backoff: Backoff | None = None
    job_timeout: float | None = None
    cpu: bool = False


class Task(Generic[P, R]):
    """A typed function registered under a job type. Made by `@queue.task(…)`.

    `dispatch`, `call` and calling it take the function's own arguments (without a first `Job`).
    """

    def __init__(
        self,
        function: Callable[..., Any],
        type: str,
        *,
        options: Options,
        conduct: Conduct,
        home: Tasks,
        on: On | None = None,
    ) -> None:
        self.type: Final = check_name("type", type)
        self.defaults: Final = options
        self.backoff: Final = conduct.backoff
        self.job_timeout: Final = conduct.job_timeout
        self.cpu: Final = conduct.cpu
        self.on: Final = on
        self.function: Final = function
        self.signature: Final = Signature(function, type, home.serializer)
        self.asynchronous: Final = is_asynchronous(function)
        self._home = home
        self.__doc__ = function.__doc__
        self.__name__ = getattr(function, "__name__", type)
        self.__module__ = function.__module__
        self.__wrapped__ = function
        if on not in {None, On.SUCCESS} and not self.signature.takes_no_result:
            hint = "where the job failed or was cancelled there is no result, so its first parameter must take None"
            raise TaskInvalid(f'{function!r} can\'t be a callback with on="{on}": {hint}')

    def __repr__(self) -> str:
        return f"<Task {self.type!r}>"

    async def dispatch(self, *args: P.args, **kwargs: P.kwargs) -> Receipt[R]:
        """Ask for a run with these arguments.

        Raises:
            PayloadInvalid: the arguments don't fit the signature, or can't be stored; names the place.
            TasksNotIncluded: these tasks belong to no queue yet.
            QueueNotOpen: use `async with queue:`.
            StorageUnavailable: the database can't be reached; sending it again is safe with an idempotency key.

        Cancelled, it may or may not have been written; never half.
        """
        return await self.send(self.call(*args, **kwargs))

    def call(self, *args: P.args, **kwargs: P.kwargs) -> Call[R]:
        """Return the dispatch without sending it, for `queue.dispatch` and `queue.dispatch_many`."""
        return self.make_call(NO_OPTIONS, args, kwargs)

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
        refresh: bool | None = None,
        callbacks: Callbacks | None = None,
        connection: Any = None,
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
            refresh: run anew, however fresh a cached result is; a run that is on its way is joined all the same.
            callbacks: what runs when the job is over, each as a job of its own, whether this dispatch makes a new one,
                joins one, or is answered from a cached result: tasks and registered callbacks (their first parameter
                gets the result), `Callback(…)`, calls, and job types by name. A sequence in it is a chain: each link
                follows the one before, and gets that one's result.
            connection: dispatch within the caller's own transaction: a handle on the same database that is in one, of
                its driver or of SQLAlchemy. Nothing is committed here: the job is there when the caller commits.

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
            refresh=refresh,
            callbacks=callbacks,
            connection=connection,
        )
        return Prepared(self, options)

    def make_call(self, options: Options, arguments: tuple[Any, ...], named: Mapping[str, Any]) -> Call[R]:
        """Return a call with these options over the task's own."""
        return self.call_with(options, self.signature.bind(arguments, named))

    def call_with(self, options: Options, arguments: Any) -> Call[R]:
        """Return a call with arguments that were checked."""
        plain = self.signature.plain(arguments)
        payload = encode_payload(self._home.dispatcher.serializer, arguments, self.type, plain=plain)
        return Call(
            type=self.type,
            payload=payload,
            arguments=plain,
            options=self.defaults if options is NO_OPTIONS else options.over(self.defaults),
            returns=self.signature.returns,
        )

    async def send(self, call: Call[R]) -> Receipt[R]:
        """Send one of its calls."""
        return await self._home.dispatcher.dispatch_call(call)

    def follow_up(self, on: On | None, arguments: Mapping[str, object]) -> FollowUp:
        """Return this task as a callback; see `Callback`."""
        return self.follow_up_with(Options(), on, arguments)

    def follow_up_with(self, options: Options, on: On | None, arguments: Mapping[str, object]) -> FollowUp:
        """Return this task as a callback, with options over its own."""
        on = on or self.on or On.SUCCESS
        given, result = self.signature.around_result(arguments, nullable=on is not On.SUCCESS)
        payload = around_result(self._home.dispatcher.serializer, given, result, self.type)
        return make_follow_up(self.type, options.over(self.defaults), on, payload)


class AsyncTask(Task[P, R]):
    """A task whose function is async; calling it just runs the function."""

    async def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Run the function here and now, without the queue."""
        result: R = await self.function(*_with_job(self), *args, **kwargs)
        return result


class SyncTask(Task[P, R]):
    """A task whose function is not async: workers run it in a thread, or with `cpu=True` in a process; calling it just
    runs it.

    A thread can't be ended: when its lease is lost the attempt ends, and the thread's result is thrown away. A process
    can, and is.
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

    def follow_up(self, on: On | None, arguments: Mapping[str, object]) -> FollowUp:
        """Return this task as a callback; see `Callback`."""
        return self._task.follow_up_with(self._options, on, arguments)


class TaskDecorator:
    """What `@queue.task(…)` is before it meets the function."""

    def __init__(self, home: Tasks, type: str, options: Options, conduct: Conduct, on: On | None = None) -> None:
        self._home = home
        self._type = type
        self._options = options
        self._conduct = conduct
        self._on = on

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
        if isinstance(function, staticmethod):
            function = function.__func__
        _check_callable(function)
        if self._conduct.cpu:
            check_cpu(function)
        kind = AsyncTask[..., Any] if is_asynchronous(function) else SyncTask[..., Any]
        task = kind(function, self._type, options=self._options, conduct=self._conduct, home=self._home, on=self._on)
        self._home.add(task)
        return task


def _innermost(function: Callable[..., Any]) -> Callable[..., Any]:
    while isinstance(function, partial):
        function = function.func
    return function


def is_asynchronous(function: Callable[..., Any]) -> bool:
    """Return whether calling `function` gives a coroutine: an async function, or an object whose call is one."""
    return _is(inspect.iscoroutinefunction, function)


def _is(kind: Callable[[object], bool], function: Callable[..., Any]) -> bool:
    """Return whether a callable is of a kind: the function itself, one inside a partial, or an object's `__call__`."""
    innermost = _innermost(function)
    return kind(innermost) or kind(type(innermost).__call__)


def _check_callable(function: Callable[..., Any]) -> None:
    innermost = _innermost(function)
    if isinstance(innermost, Task):
        raise TaskInvalid(f"{innermost!r} is a task already: for a second type, register its `.function`")
    if _is(inspect.isgeneratorfunction, function) or _is(inspect.isasyncgenfunction, function):
        raise TaskInvalid(f"{function!r} is a generator: a job has one result, so return it (a list, say)")


class Tasks:
    """A registry of tasks: a queue has one, and takes in those of other modules with `queue.include(tasks)`."""

    def __init__(self) -> None:
        self._tasks: dict[str, Task[..., Any]] = {}
        self._parents: list[Tasks] = []
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
        job_timeout: float | timedelta | None = None,
        cpu: bool = False,
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
            job_timeout: seconds after which an attempt is cancelled and has failed (`JobTimeout`); else the worker's. A
                thread can't be ended: its attempt fails then, and the thread keeps its slot until it ends.
            cpu: run a synchronous function in a process, not in a thread: for work that would keep the interpreter
                busy. The process is killed when the attempt loses its lease, is cancelled, or runs out of time. The
                function must be importable by its name, and its arguments and its result must survive `pickle`.

        Raises:
            OptionInvalid: one of them makes no sense.
            TaskInvalid: the function's signature can't be a payload, or it can't run in a process.
            TypeTaken: there is a task of this type.
        """
        options = make_options(
            queue=queue, priority=priority, max_attempts=max_attempts, result_ttl=result_ttl, unique=unique
        )
        return TaskDecorator(self, check_name("type", type), options, _conduct(backoff, job_timeout, cpu=cpu))

    def callback(
        self,
        type: str,
        *,
        on: When = "success",
        queue: str | None = None,
        priority: int | None = None,
        max_attempts: int | None = None,
        backoff: Backoff | None = None,
        job_timeout: float | timedelta | None = None,
    ) -> TaskDecorator:
        """Register a function to run when a job is over that was dispatched with `callbacks=[…]`.

        It is a task like any other, and may be dispatched as one. As a callback its first parameter (after a first
        `Job`, whose `origin` tells of the job that is over) gets the result; for the others there are defaults, or
        `Callback(…, arguments={…})`.

        Args:
            type: its job type: the name by which it can be asked for.
            on: after which end: "success", "failure", or "always". Unless it is "success" there may be no result, and
                the parameter must take None.
            queue: where its jobs go.
            priority: −100 to 100, larger is sooner.
            max_attempts: at least 1.
            backoff: the delays between its attempts; else the worker's.
            job_timeout: seconds that an attempt may take; else the worker's.

        Raises:
            OptionInvalid, TaskInvalid, TypeTaken: see `task`.
        """
        after = check_on(on)
        options = make_options(queue=queue, priority=priority, max_attempts=max_attempts)
        return TaskDecorator(self, check_name("type", type), options, _conduct(backoff, job_timeout), after)

    def add(self, task: Task[..., Any]) -> None:
        """Take in one task, here and in every registry that includes this one."""
        registries = list(self.lineage())
        for registry in registries:
            registry.check_free(task)
        for registry in registries:
            registry.put(task)

    def include(self, other: Tasks) -> None:
        """Take in the tasks of another registry, also those it gets later; they are dispatched through this one."""
        if other in self.lineage():
            raise OptionInvalid("tasks", other, "it includes this registry itself")
        registries = list(self.lineage())
        for registry in registries:
            for task in other:
                registry.check_free(task)
        for registry in registries:
            for task in other:
                registry.put(task)
        other.belong(self)

    def belong(self, registry: Tasks) -> None:
        """Be a part of another registry, which comes before those of earlier calls."""
        self._parents = [registry, *(each for each in self._parents if each is not registry)]

    def lineage(self) -> Iterator[Tasks]:
        """Yield this registry and those that include it."""
        yield self
        for parent in self._parents:
            yield from parent.lineage()

    def check_free(self, task: Task[..., Any]) -> None:
        """Raise TypeTaken if another task has this one's type."""
        if self._tasks.get(task.type, task) is not task:
            raise TypeTaken(task.type)

    def put(self, task: Task[..., Any]) -> None:
        """Hold a task, in this registry alone."""
        self._tasks[task.type] = task

    def find(self, type: str) -> Task[..., Any] | None:
        """Return the task of this type, if there is one."""
        return self._tasks.get(type)

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

    def find_dispatcher(self) -> Dispatcher | None:
        """Return the queue that these tasks are dispatched through, if there is one: the last that included them."""
        for parent in self._parents:
            found = parent.find_dispatcher()
            if found is not None:
                return found
        return self._dispatcher

    @property
    def dispatcher(self) -> Dispatcher:
        """The queue that these tasks are dispatched through.

        Raises:
            TasksNotIncluded: there is none.
        """
        found = self.find_dispatcher() if self._parents else self._dispatcher
        if found is None:
            raise TasksNotIncluded
        return found

    @property
    def serializer(self) -> Serializer | None:
        """What their arguments pass through, as far as that is known."""
        found = self.find_dispatcher()
        return None if found is None else found.serializer


def _conduct(backoff: Backoff | None, job_timeout: float | timedelta | None, *, cpu: bool = False) -> Conduct:
    limit = None if job_timeout is None else seconds("job_timeout", job_timeout, positive=True)
    return Conduct(backoff=backoff, job_timeout=limit, cpu=check_boolean("cpu", cpu))


def queues_of(tasks: Collection[Task[..., Any]]) -> list[str]:
    """Return the queues that tasks are dispatched to by themselves, the default one first."""
    named = sorted({task.defaults.queue for task in tasks if task.defaults.queue} - {DEFAULT_QUEUE})
    return [DEFAULT_QUEUE, *named]
