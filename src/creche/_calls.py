"""What a dispatch says: its options, and the call that has not been sent yet. It checks; it sends nothing."""

from __future__ import annotations

import builtins
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any, Final, Generic, TypeVar, cast

import msgspec
from attrs import field, frozen

from creche._callbacks import Callbacks, Chain, check_callbacks
from creche._ids import new_job_id
from creche._job import (
    DEFAULT_MAX_ATTEMPTS,
    DEFAULT_QUEUE,
    KEY_LIMIT,
    MAX_ATTEMPTS_LIMIT,
    PRIORITY_LIMIT,
    FollowUp,
    On,
    check_aware,
    check_boolean,
    check_integer,
    check_name,
    seconds,
)
from creche._payload import MAX_PAYLOAD, MAX_RESULT, JSONSerializer, Refused, check_json
from creche.abc import Serializer
from creche.errors import OptionInvalid, PayloadInvalid, ResultInvalid

R_co = TypeVar("R_co", covariant=True)


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
    refresh: bool | None = None
    callbacks: tuple[Chain, ...] | None = None
    connection: Any = field(default=None, repr=False, eq=False)

    def over(self, base: Options) -> Options:
        """Return these options, with those of `base` where these say nothing."""
        # A delay of the call's own replaces a task's moment, and the other way round.
        due = self if self.delay is not None or self.available_at is not None else base
        # A ttl of the base's would switch single flight on again.
        ttl = self.result_ttl if self.result_ttl is not None or self.unique is False else base.result_ttl
        return Options(
            queue=base.queue if self.queue is None else self.queue,
            priority=base.priority if self.priority is None else self.priority,
            delay=due.delay,
            available_at=due.available_at,
            max_attempts=base.max_attempts if self.max_attempts is None else self.max_attempts,
            idempotency_key=base.idempotency_key if self.idempotency_key is None else self.idempotency_key,
            result_ttl=ttl,
            unique=base.unique if self.unique is None else self.unique,
            refresh=base.refresh if self.refresh is None else self.refresh,
            callbacks=base.callbacks if self.callbacks is None else self.callbacks,
            connection=base.connection if self.connection is None else self.connection,
        )

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
    refresh: bool | None = None,
    callbacks: Callbacks | None = None,
    connection: Any = None,
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
        idempotency_key=None if idempotency_key is None else check_name("idempotency_key", idempotency_key, KEY_LIMIT),
        result_ttl=None if result_ttl is None else seconds("result_ttl", result_ttl),
        unique=None if unique is None else check_boolean("unique", unique),
        refresh=None if refresh is None else check_boolean("refresh", refresh),
        callbacks=None if callbacks is None else check_callbacks(callbacks),
        connection=connection,
    )


NO_OPTIONS: Final = Options()
DEFAULTS: Final = Options(queue=DEFAULT_QUEUE, priority=0, delay=0.0, max_attempts=DEFAULT_MAX_ATTEMPTS, unique=False)


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
    _returns: Any = field(alias="returns", default=Any, repr=False)

    @property
    def returns(self) -> Any:
        """What the handler's result is decoded as."""
        return self._returns

    def follow_up(self, on: On | None, arguments: Mapping[str, object]) -> FollowUp:
        """Return this call as a callback: it has its arguments, and gets no result."""
        if arguments:
            raise OptionInvalid("arguments", dict(arguments), "a call has its arguments already")
        return make_follow_up(self.type, self.options, on or On.SUCCESS, (self.payload.decode(), None))


def make_follow_up(type: str, options: Options, on: On, payload: tuple[str, str | None]) -> FollowUp:
    """Return a callback that is a job with these options, or raise OptionInvalid for one that it can't observe.

    Args:
        type: its job type.
        options: with the task's own filled in; that the task is unique, or has a result_ttl, means nothing here.
        on: after which end.
        payload: the text before and after the result; see `FollowUp`.
    """
    for name in ("delay", "available_at", "idempotency_key", "refresh", "callbacks", "connection"):
        if getattr(options, name) is not None:
            raise OptionInvalid(name, getattr(options, name), f"none: {type!r} is a callback, and runs at once")
    filled = options.over(DEFAULTS)
    head, tail = payload
    return FollowUp(
        id=new_job_id(),
        type=type,
        queue_name=filled.queue or DEFAULT_QUEUE,
        priority=filled.priority or 0,
        max_attempts=filled.max_attempts or DEFAULT_MAX_ATTEMPTS,
        on=on,
        head=head,
        tail=tail,
    )


def around_result(
    serializer: Serializer, given: Mapping[str, object], name: str | None, type: str
) -> tuple[str, str | None]:
    """Return the text of a payload before and after the place of a result, the value of `name`; None: it has none."""
    text = encode_payload(serializer, given, type).decode()
    if name is None:
        return text, None
    if builtins.type(serializer) is not JSONSerializer:
        # Elsewhere than among the arguments the result would be text that nobody can read, or no JSON: then the job
        # that is followed could not be ended, for its callbacks are written with its end.
        plain = msgspec.json.decode(text)
        if not isinstance(plain, dict) or cast("dict[str, object]", plain).keys() != given.keys():
            reason = (
                "a callback's result has no place in it: the queue's serializer writes no JSON object of the arguments"
            )
            raise PayloadInvalid(f"{reason} by their names; give `arguments` for all parameters", type=type)
        text = text.rstrip()
    key = msgspec.json.encode(name).decode()
    return f"{text[:-1]}{',' if given else ''}{key}:", "}"


# --- values to JSON text, with their limits ---------------------------------------------------------


def encode_payload(serializer: Serializer, arguments: object, type: str, *, plain: object = None) -> bytes:
    """Return arguments as JSON text that every engine keeps, or raise PayloadInvalid.

    Args:
        serializer: what writes it.
        arguments: the values.
        type: of the job.
        plain: the same as plain values, where they are known already: our own serializer would make them anew.
    """
    try:
        if plain is not None and serializer.__class__ is JSONSerializer:
            data = msgspec.json.encode(plain)
        else:
            data = serializer.encode(arguments)
            if not isinstance(serializer, JSONSerializer):
                check_json(data)
    except Refused as refused:
        raise PayloadInvalid(refused.reason, path=refused.path, type=type) from None
    if len(data) > MAX_PAYLOAD:
        reason = f"{len(data):,} bytes, at most {MAX_PAYLOAD:,}: store the data elsewhere, send where"
        raise PayloadInvalid(reason, type=type)
    return data


def encode_result(serializer: Serializer, result: object, type: str, limit: int = MAX_RESULT) -> bytes:
    """Return a result as JSON text of at most `limit` bytes, or raise ResultInvalid."""
    if result is None and serializer.__class__ is JSONSerializer:
        return b"null"
    try:
        data = serializer.encode(result)
        if not isinstance(serializer, JSONSerializer):
            check_json(data)
    except Refused as refused:
        raise ResultInvalid(refused.reason, path=refused.path, type=type) from None
    if len(data) > limit:
        raise ResultInvalid(f"{len(data):,} bytes, at most {limit:,}: store it elsewhere, return where", type=type)
    return data
