"""What the state machine draws, with an eye on what would be remarkable. It calls nothing.

In each list the simplest comes first: that is where Hypothesis shrinks to.

A draw costs time, and an example is over when it has drawn some kilobytes; so what has many parts is drawn whole, out
of a table, or as the few parts that are not as usual.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from enum import Enum
from hashlib import blake2b
from itertools import cycle
from typing import Any, Final, TypeAlias, TypeVar
from uuid import UUID

from attrs import frozen
from hypothesis import strategies as st

from creche._job import Event, Failure, JobFilter, On, Origin, Presence, Retention, Status, WorkerState

T = TypeVar("T")
Draft: TypeAlias = dict[str, Any]
"""What is not as usual about a job, an end or a callback."""

PLACE: Final = st.integers(0, 15)
"""Which job, or which lease, counted from the newest. What there is depends on who of several rivals came first, and
what is drawn must not.
"""

START: Final = datetime(2026, 1, 1, tzinfo=UTC)
MICROSECOND: Final = timedelta(microseconds=1)

# Each differs from another by what a collation would fold.
QUEUES: Final = ("a", "A", "a ", "ä")
WORKERS: Final = ("host:1", "HOST:1", "host:1 ", "w's \\ ä\U0001f423")
WATCHERS: Final = ("w1", "w's ä")
TYPES: Final = ("t", "T", "u")
KEYS: Final = ("k", "K", "k ", "it's", "ß")
FINGERPRINTS: Final = (b"f" * 32, b"F" * 32, b"f" * 31 + b" ", b"f" * 31 + b"\0", bytes(range(224, 256)))
PAYLOADS: Final = (b"{}", b'{"a":1.0,"a":[2,{}]}', "\"\\u0000\\\\ 'quoted' %s ä€\U0001f423\"".encode())
RESULTS: Final = (
    None,
    b"null",
    b'{"n":10000000000000000000000.0}',
    '"it\'s \\"so\\" \\u0000\U0001f423"'.encode(),
    '"it\'s \\"so\\" \U0001f423"'.encode(),
)
HEADS: Final = (
    ("{}", None),
    ("[", "]"),
    ('{"it\'s \\"\\\\\\u0000 é\U0001f423": ', " }"),
    ('"\\n"', None),
    ("", ""),
    *((payload.decode(), None) for payload in PAYLOADS[1:]),
    *((f"[{payload.decode()},", f",{payload.decode()}]") for payload in PAYLOADS),
)
MESSAGES: Final = ("", "it's ä\U0001f423", *(payload.decode() for payload in PAYLOADS))
FAILURES: Final = (
    None,
    Failure(type="E", message='it\'s % \\ "quoted" ä\U0001f423', traceback="line\nline\t"),
    Failure(type="ValueError", message="m" * 700),
)
ORIGINS: Final = tuple(
    Origin(job_id=UUID(int=1), type=name, queue_name="ä", status=Status.FAILED, error=FAILURES[1])
    for name in ("t", "it's")
)
SPANS: Final = (0.0, 0.000001, 0.5, 1.0, 1.999999, 5.0, 30.0, 60.0)
"""Seconds, in whole microseconds: what becomes of half a one, an engine may say."""


def bits(number: int) -> int:
    """Return 128 bits that look random, the same for the same number."""
    return int.from_bytes(blake2b(number.to_bytes(8), digest_size=16).digest())


@frozen
class Limit:
    """A moment at which something changes by itself, or beside it.

    Attributes:
        number: of those to come, counted from 0.
        off: microseconds after it; negative before it.
    """

    number: int
    off: int


class Lost(Enum):
    """What a connection took with it when it broke."""

    NOTHING = "nothing"
    REQUEST = "the request"
    ANSWER = "the answer"

    def __repr__(self) -> str:
        return f"Lost.{self.name}"


def often(usual: T, *others: T, times: int = 4) -> st.SearchStrategy[T]:
    """Draw what is usual as often as `times` of the others."""
    return st.sampled_from([*[usual] * times, *others])


AFTER: Final = often(0.0, *SPANS[1:], *(Limit(number, off) for number in (0, 0, 1, 3) for off in (0, 1, -1)), times=14)
"""How long after the step before: seconds, or a limit."""

LOST: Final = often(Lost.NOTHING, Lost.ANSWER)
LOST_IN_TRANSACTION: Final = often(Lost.NOTHING, Lost.REQUEST, Lost.ANSWER)
LIMITS: Final = st.sampled_from([1, 2, 3, 8])
SECONDS: Final = st.sampled_from([30.0, 5.0, 0.5, 0.000001])
SOME_QUEUES: Final = often(
    list(QUEUES), *([queue] for queue in QUEUES), ["ä", "a"], ["a ", "A", "a", "a "], list(reversed(QUEUES)), times=6
)
SOME_TYPES: Final = often(None, ["t"], ["T", "u"], ["u"], [], times=12)
WORKER: Final = st.sampled_from(WORKERS)
VIEW: Final = st.sampled_from(["jobs", "dead letters", "queues", "workers", "ends"])
DEED: Final = st.sampled_from(["cancel", "retry", "delete"])
WATCHER: Final = st.sampled_from([None, *WATCHERS])
SELDOM_A_WATCHER: Final = often(None, *WATCHERS)
SPAN: Final = st.sampled_from(SPANS)
PLACES: Final = st.lists(PLACE, min_size=1, max_size=4)
FORGED: Final = often(None, (0, 0), (1, None), (-1, None), (1, 0), times=8)
"""A token that is this much off, and a nonce, None for the true one."""

PROGRESS: Final = often(
    None, *((fraction, message) for fraction, message in zip((0, 0.1, 1 / 3, 1, 0.7), MESSAGES, strict=True))
)
FILTERS: Final = st.sampled_from(
    [
        JobFilter(),
        *(JobFilter(statuses=frozenset({status})) for status in Status),
        *(JobFilter(queues=frozenset({queue})) for queue in QUEUES),
        JobFilter(types=frozenset({"t"})),
        JobFilter(types=frozenset({"T", "u"}), queues=frozenset({"a", "ä"})),
        JobFilter(types=frozenset({"t", "T"}), statuses=frozenset({Status.PENDING, Status.FAILED})),
        JobFilter(queues=frozenset({"A", "a "}), statuses=frozenset({Status.PROCESSING, Status.SCHEDULED})),
        JobFilter(queues=frozenset(), types=frozenset({"t"})),
        JobFilter(statuses=frozenset()),
    ]
)
RETENTIONS: Final = [
    Retention(),
    Retention(completed=0.0, failed=0.0, cancelled=0.0),
    *(Retention(completed=span) for span in SPANS[1:]),
    *(Retention(failed=span) for span in SPANS),
    *(Retention(cancelled=span) for span in SPANS),
    Retention(completed=60.0, failed=1.0, cancelled=0.5),
]
RETENTION: Final = st.sampled_from(RETENTIONS)
UNKEPT: Final = Retention(completed=0.0)
SETTLE_RETENTION: Final = st.sampled_from([*[None] * 20, *[UNKEPT] * 20, *RETENTIONS])
"""What whoever ends an attempt says of how long its job is kept; None: nothing."""

UPKEEP_LIMITS: Final = often(1_000, 1, 2)
PRESENCES: Final = [
    Presence(
        name=name,
        host=host,
        pid=42,
        backend=backend,
        version="1.0",
        queues=queues,
        concurrency=concurrency,
        state=state,
    )
    for name, host, backend, queues, concurrency, state in zip(
        WORKERS * 3,
        cycle(["host", "host", "it's \\ ä\U0001f423"]),
        cycle(["asyncio", "trio"]),
        cycle([(), ("a",), QUEUES]),
        cycle([10, 1, 8, 3, 2]),
        cycle([*WorkerState, WorkerState.RUNNING]),
        strict=False,
    )
]
ORDER: Final[st.SearchStrategy[tuple[str, Any, Any]]] = st.sampled_from(
    [
        *(("resume", [queue], None) for queue in QUEUES),
        ("resume", list(QUEUES), None),
        ("resume", [], None),
        *(("pause", [queue], None) for queue in (*QUEUES, "a", "a")),
        ("pause", ["a", "a"], None),
        ("pause", [], None),
        *(("announce", presence, ttl) for presence, ttl in zip(PRESENCES[:8], SPANS, strict=True)),
        *(("withdraw", worker, None) for worker in WORKERS[1:]),
        *(("set_retention", queue, None) for queue in QUEUES[:2]),
        *(("set_retention", QUEUES[0], kept) for kept in (None, *RETENTIONS[2:6])),
        *(("set_retention", queue, kept) for queue, kept in zip(cycle(QUEUES), RETENTIONS[1::4], strict=False)),
    ]
)
"""What people set of queues, and workers say of themselves."""


# --- jobs, their callbacks, and their ends ----------------------------------------------------------


def _braid(length: int, **strands: Sequence[Any]) -> list[Draft]:
    """Put together as many drafts as there are to be, each strand beginning anew when it is at its end."""
    return [{name: strand[place % len(strand)] for name, strand in strands.items()} for place in range(length)]


def job_with(parts: Iterable[Draft]) -> Draft:
    """Return a job that is unusual in all these ways; of two that are about the same, in the last one."""
    return {name: value for part in parts for name, value in part.items()}


_LINKS: Final = _braid(
    30,
    on=list(On),
    text=HEADS,
    queue_name=["a", "a", "A", "ä", "a "],
    type=["t", "t", "T", "u"],
    priority=[0, 0, 0, 1, 5, -5, -100],
    max_attempts=[1, 2, 3, 3],
)
CALLBACKS: Final[list[tuple[Draft, ...]]] = [
    *((link,) for link in _LINKS[:12]),
    *(({**link, "then": tuple(_LINKS[20 + place : 21 + place])},) for place, link in enumerate(_LINKS[12:18])),
    *((_LINKS[place], _LINKS[-place]) for place in range(1, 8)),
    ({**_LINKS[3], "then": ({**_LINKS[4], "then": ({**_LINKS[5], "then": (_LINKS[6],)}, _LINKS[7])}, _LINKS[8])},),
    ({**_LINKS[0], "again": True},),
    ({**_LINKS[2], "again": True}, _LINKS[9]),
]
"""What follows a job. One that is sent `again` is the last that is a job by now, so that there is nothing to write."""

PARTS: Final[list[Draft]] = [
    *({"queue_name": queue} for queue in QUEUES[1:]),
    *({"priority": priority} for priority in (1, -100, 100)),
    *({"delay": span} for span in SPANS[1:]),
    *({"due": seconds} for span in SPANS for seconds in (span, -span)),
    *({"type": name} for name in TYPES[1:] * 2),
    *({"payload": payload} for payload in PAYLOADS[1:]),
    *({"max_attempts": attempts} for attempts in (1, 1, 2, 2, 25)),
    *({"idempotency_key": key} for key in KEYS * 3),
    *({"fingerprint": fingerprint} for fingerprint in FINGERPRINTS * 2),
    *({"fingerprint": fingerprint, "result_ttl": 60.0} for fingerprint in FINGERPRINTS[:2] * 5),
    *({"fingerprint": fingerprint, "refresh": True} for fingerprint in FINGERPRINTS[:2] * 4),
    *({"result_ttl": span} for span in SPANS),
    *({"origin": origin} for origin in ORIGINS),
    *({"twice": True} for _ in range(4)),  # the same job, twice in the batch
    *({"callbacks": callbacks} for callbacks in CALLBACKS),
]
JOB: Final = st.lists(st.sampled_from(PARTS), max_size=6).map(job_with)
"""A job: what is not as usual about it."""

JOB_DRAFTS: Final = st.lists(JOB, min_size=1, max_size=4)
FIRST_DRAFTS: Final = st.lists(JOB, max_size=4)
OVER_DRAFTS: Final = st.lists(
    st.sampled_from(
        [
            {},
            *(
                {"fingerprint": fingerprint, "result_ttl": span}
                for fingerprint in FINGERPRINTS[:2]
                for span in (60.0, 5.0)
            ),
            {"idempotency_key": KEYS[0]},
            {"callbacks": CALLBACKS[0]},
        ]
    ),
    max_size=4,
)
RIVAL_DRAFTS: Final = st.lists(JOB, min_size=2, max_size=3)
SHARED: Final = st.sampled_from(
    [
        *({"fingerprint": fingerprint} for fingerprint in FINGERPRINTS),
        *({"fingerprint": fingerprint, "result_ttl": 60.0} for fingerprint in FINGERPRINTS[:2]),
        *({"fingerprint": fingerprint, "refresh": True} for fingerprint in FINGERPRINTS[:2] * 2),
        *({"idempotency_key": key, "queue_name": queue} for key, queue in zip(KEYS * 2, cycle(QUEUES), strict=False)),
    ]
)
"""What rival dispatches have in common, so that they are the same piece of work."""

ENDS: Final[list[Draft]] = [
    {"event": Event.SUCCEED},
    {"event": Event.FAIL},
    {"event": Event.RELEASE},
    {"event": Event.ABORT},
    *({"event": Event.RETRY, "delay": span} for span in SPANS),
    *({"event": Event.SNOOZE, "delay": span} for span in SPANS),
    *({"event": Event.SUCCEED, "result": result} for result in RESULTS[1:] * 4),
    *({"event": event, "error": error} for event in (Event.FAIL, Event.DISCARD) for error in FAILURES * 2),
    *({"event": Event.RETRY, "delay": span, "error": error} for span in (0.0, 5.0) for error in FAILURES[1:]),
    *({"event": Event.SNOOZE, "due": seconds} for span in SPANS for seconds in (span, -span)),
    *({"event": event} for event in (Event.RELEASE, Event.ABORT) * 3),
]
END: Final = st.sampled_from(ENDS)
FIRST_END: Final = often({"event": Event.SUCCEED}, {"event": Event.FAIL}, {"event": Event.ABORT}, times=3)
WORK_END: Final = often(ENDS[0], *ENDS, times=len(ENDS))
END_LIST: Final = st.lists(st.tuples(PLACE, END), min_size=1, max_size=4)

ACTS: Final = st.lists(
    st.sampled_from(
        [
            "succeed",
            "vanish",
            "cancel",
            "fail",
            "retry",
            "release",
            "snooze",
            "abort",
            "extend",
            "revive",
            "delete",
            "join",
            "recover",
        ]
    ),
    min_size=2,
    max_size=3,
)
"""What is done to one job at once. It vanishes when it succeeds and is kept for no time."""
