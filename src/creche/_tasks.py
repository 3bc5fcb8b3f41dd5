"""Tasks: typed functions under the name of a job type; arguments to payload and back. It stores and runs nothing.

Options never share a handler's keyword arguments: `task.options(delay=60).dispatch(delay="the handler's own")`.
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Collection, Coroutine, Iterator, Mapping
from copy import deepcopy
from datetime import datetime, timedelta
from difflib import get_close_matches
from functools import partial
from typing import Any, Concatenate, Final, Generic, ParamSpec, Protocol, TypeVar, overload

import anyio.to_thread
import msgspec
from anyio import CapacityLimiter
from attrs import evolve, field, fields, frozen

from creche._attempt import Job, current_job
from creche._job import (
    DEFAULT_MAX_ATTEMPTS,
    DEFAULT_QUEUE,
    MAX_ATTEMPTS_LIMIT,
    PRIORITY_LIMIT,
    check_aware,
    check_integer,
    check_name,
    seconds,
)
from creche._payload import MAX_PAYLOAD, MAX_RESULT, JSONSerializer, Refused, check_json, refusal, to_plain
from creche._receipt import Receipt
from creche.abc import Backoff, Serializer
from creche.errors import (
    OptionInvalid,
    PayloadInvalid,
    QueueNotOpen,
    ResultInvalid,
    TaskInvalid,
    TypeTaken,
    UnknownType,
)

P = ParamSpec("P")
R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)


# --- options ----------------------------------------------------------------------------------------


@frozen(kw_only=True)
class Options:
    """What a dispatch is asked to observe; None leaves it to the task, and then to the defaults."""

    queue: str | None = None
    priority: int | None = None
    delay: float | None = None
    available_at: datetime | None = None
    max_attempts: int | None = None
    idempotency_key: str | None = None
    result_ttl: float | None = None
    unique: bool | None = None

    def over(self, base: Options) -> Options:
        """Return these options, with those of `base` where these say nothing."""
        given = {each.name: getattr(self, each.name) for each in fields(Options)}
        due = self.delay is not None or self.available_at is not None
        if due:  # a delay of the call's own replaces a task's moment, and the other way round
            base = evolve(base, delay=None, available_at=None)
        return evolve(base, **{name: value for name, value in given.items() if value is not None})

    @property
    def single_flight(self) -> bool:
        """Whether equal dispatches join each other."""
        return bool(self.unique) or self.result_ttl is not None


def make_options(
    *,
    queue: str | None = None,
    priority: int | None = None,
    delay: float | timedelta | None = None,
    available_at: datetime | None = None,
    max_attempts: int | None = None,
    idempotency_key: str | None = None,
    result_ttl: float | timedelta | None = None,
    unique: bool | None = None,
) -> Options:
    """Check options and return them; raise OptionInvalid for one that makes no sense."""
    if delay is not None and available_at is not None:
        raise OptionInvalid("available_at", available_at, "give `delay` or `available_at`, not both")
    if unique is False and result_ttl is not None:
        raise OptionInvalid("unique", unique, "a result_ttl means that equal dispatches share one run")
    return Options(
        queue=None if queue is None else check_name("queue", queue),
        priority=None if priority is None else check_integer("priority", priority, -PRIORITY_LIMIT, PRIORITY_LIMIT),
        delay=None if delay is None else seconds("delay", delay),
        available_at=None if available_at is None else check_aware("available_at", available_at),
        max_attempts=None
        if max_attempts is None
        else check_integer("max_attempts", max_attempts, 1, MAX_ATTEMPTS_LIMIT),
        idempotency_key=None if idempotency_key is None else check_name("idempotency_key", idempotency_key, 255),
        result_ttl=None if result_ttl is None else seconds("result_ttl", result_ttl),
        unique=unique,
    )


DEFAULTS: Final = Options(queue=DEFAULT_QUEUE, priority=0, delay=0.0, max_attempts=DEFAULT_MAX_ATTEMPTS, unique=False)


# --- calls ------------------------------------------------------------------------------------------


@frozen(kw_only=True)
class Call(Generic[R_co]):
    """A dispatch that has not been sent: for `queue.dispatch` and `queue.dispatch_many`.

    Attributes:
        type: the job type.
        payload: JSON text in UTF-8.
        arguments: the same as plain values, with defaults filled in: what the fingerprint is made of.
        options: with the task's own filled in.
    """

    type: str
    payload: bytes = field(repr=False)
    arguments: Any = field(repr=False)
    options: Options
    _returns: Any = field(default=Any, repr=False)

    @property
    def returns(self) -> Any:
        """What the handler's result is decoded as."""
        return self._returns


class Dispatcher(Protocol):
    """What a task needs of a queue."""

    @property
    def serializer(self) -> Serializer:
        """Turns arguments into JSON text."""
        ...

    async def dispatch_call(self, call: Call[R]) -> Receipt[R]:
        """Send a call."""
        ...


# --- a handler's signature --------------------------------------------------------------------------


class Signature:
    """A handler's parameters: how arguments become a payload, and a payload arguments.

    Args:
        function: the handler.
        type: its job type, for messages.
    """

    def __init__(self, function: Callable[..., Any], type: str) -> None:
        self._type = type
        try:
            signature = inspect.signature(function, eval_str=True)
        except (NameError, TypeError, ValueError) as error:
            raise TaskInvalid(f"{function!r}: its signature can't be read: {error}") from error
        parameters = list(signature.parameters.values())
        self.takes_job: Final = bool(parameters) and parameters[0].annotation is Job
        if self.takes_job:
            del parameters[0]
        for parameter in parameters:
            if parameter.kind in {parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD}:
                raise TaskInvalid(f"{function!r}: *{parameter.name}: a payload needs a name for each argument")
        self.returns: Final = Any if signature.return_annotation is signature.empty else signature.return_annotation
        self._signature = inspect.Signature(parameters)
        self._positional = [each.name for each in parameters if each.kind is each.POSITIONAL_ONLY]
        self._named = [each.name for each in parameters if each.kind is not each.POSITIONAL_ONLY]
        try:
            self.arguments: Final = msgspec.defstruct(
                "Arguments", [_field(each) for each in parameters], kw_only=True, forbid_unknown_fields=True
            )
            msgspec.json.Decoder(self.arguments)
        except (TypeError, ValueError) as error:
            raise TaskInvalid(f"{function!r}: its annotations can't be a payload: {error}") from error

    def bind(self, arguments: tuple[Any, ...], named: Mapping[str, Any]) -> Any:
        """Return the checked arguments of a call, or raise PayloadInvalid."""
        try:
            bound = self._signature.bind(*arguments, **named)
        except TypeError as error:
            raise PayloadInvalid(str(error), type=self._type) from None
        return self.check(dict(bound.arguments))

    def check(self, payload: object) -> Any:
        """Return a payload as checked arguments, defaults filled in, or raise PayloadInvalid."""
        try:
            return msgspec.convert(to_plain(payload), self.arguments)
        except Refused as refused:
            raise PayloadInvalid(refused.reason, path=refused.path, type=self._type) from None
        except msgspec.ValidationError as error:
            misfit = refusal(error)
            raise PayloadInvalid(misfit.reason, path=misfit.path, type=self._type) from None

    def decode(self, payload: bytes, serializer: Serializer) -> tuple[list[Any], dict[str, Any]]:
        """Return a stored payload as positional and named arguments, or raise PayloadInvalid."""
        try:
            arguments = serializer.decode(payload, self.arguments)
        except Refused as refused:
            raise PayloadInvalid(refused.reason, path=refused.path, type=self._type) from None
        return (
            [getattr(arguments, name) for name in self._positional],
            {name: getattr(arguments, name) for name in self._named},
        )


def _field(parameter: inspect.Parameter) -> tuple[str, Any] | tuple[str, Any, Any]:
    annotation = Any if parameter.annotation is parameter.empty else parameter.annotation
    if parameter.default is parameter.empty:
        return parameter.name, annotation
    default = parameter.default
    return parameter.name, annotation, msgspec.field(default_factory=lambda: deepcopy(default))


# --- tasks ------------------------------------------------------------------------------------------


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
        return await self._home.dispatcher.dispatch_call(self.call(*args, **kwargs))

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
        return await self._task._home.dispatcher.dispatch_call(self.call(*args, **kwargs))  # noqa: SLF001 - its half

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
        kind = AsyncTask if inspect.iscoroutinefunction(function) else SyncTask
        task: Task[..., Any] = kind(function, self._type, options=self._options, backoff=self._backoff, home=self._home)
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


# --- how a worker calls them ------------------------------------------------------------------------


class TaskHandlers:
    """Calls registered tasks.

    Args:
        tasks: which.
        serializer: payloads and results pass through it.
        threads: how many synchronous handlers run at once.
    """

    def __init__(self, tasks: Tasks, serializer: Serializer, threads: CapacityLimiter) -> None:
        self._tasks = tasks
        self._serializer = serializer
        self._threads = threads

    def backoff(self, type: str) -> Backoff | None:
        """Return the task's own back-off."""
        return self._tasks.get(type).backoff if type in self._tasks else None

    async def call(self, job: Job, payload: bytes) -> bytes:
        """Run the handler of `job`; return its result as JSON text."""
        task = self._tasks.get(job.type)
        positional, named = task.signature.decode(payload, self._serializer)
        if task.signature.takes_job:
            positional.insert(0, job)
        if task.asynchronous:
            result = await task.function(*positional, **named)
        else:
            run = partial(task.function, *positional, **named)
            result = await anyio.to_thread.run_sync(run, abandon_on_cancel=True, limiter=self._threads)
        return encode_result(self._serializer, result, job.type)


class PlainHandler:
    """Calls one handler for every job, for people who route by hand.

    Args:
        function: `async def handle(job: Job)`.
        serializer: results pass through it.
    """

    def __init__(self, function: Callable[[Job], Awaitable[object]], serializer: Serializer) -> None:
        self._function = function
        self._serializer = serializer

    def backoff(self, type: str) -> Backoff | None:  # noqa: ARG002 - part of the Protocol
        """There are no tasks here that could have one."""
        return None

    async def call(self, job: Job, payload: bytes) -> bytes:  # noqa: ARG002 - part of the Protocol
        """Run the handler; return its result as JSON text."""
        return encode_result(self._serializer, await self._function(job), job.type)


def encode_payload(serializer: Serializer, arguments: object, type: str) -> bytes:
    """Return arguments as JSON text that every engine keeps, or raise PayloadInvalid."""
    try:
        data = serializer.encode(arguments)
        if not isinstance(serializer, JSONSerializer):
            check_json(data)
    except Refused as refused:
        raise PayloadInvalid(refused.reason, path=refused.path, type=type) from None
    if len(data) > MAX_PAYLOAD:
        reason = f"{len(data):,} bytes, at most {MAX_PAYLOAD:,}: store the data elsewhere, send where"
        raise PayloadInvalid(reason, type=type)
    return data


def encode_result(serializer: Serializer, result: object, type: str) -> bytes:
    """Return a result as JSON text, or raise ResultInvalid."""
    try:
        data = serializer.encode(result)
        if not isinstance(serializer, JSONSerializer):
            check_json(data)
    except Refused as refused:
        raise ResultInvalid(refused.reason, path=refused.path, type=type) from None
    if len(data) > MAX_RESULT:
        raise ResultInvalid(f"{len(data):,} bytes, at most {MAX_RESULT:,}: store it elsewhere, return where", type=type)
    return data


def queues_of(tasks: Collection[Task[..., Any]]) -> list[str]:
    """Return the queues that tasks are dispatched to by themselves, the default one first."""
    named = sorted({task.defaults.queue for task in tasks if task.defaults.queue} - {DEFAULT_QUEUE})
    return [DEFAULT_QUEUE, *named]
