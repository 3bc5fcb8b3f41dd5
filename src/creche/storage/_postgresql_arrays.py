"""New jobs as the columns that insert_plain.sql takes, and leases as those of complete.sql, arrays in the binary form
that PostgreSQL itself sends; a single job as plain values, for insert_one.sql.

It runs no statement, and knows of jobs only what stands in those columns.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from struct import Struct
from typing import Any, Final
from uuid import UUID

from creche._job import AlikeJobs, Lease, NewJob
from creche.storage._batches import lease_order
from creche.storage._psycopg import BinaryArray

# What one statement has at most: jobs, and bytes of payload (of a single job, as many as it has).
CHUNK: Final = 1_000
CHUNK_BYTES: Final = 4 << 20

# Types by their numbers, which are the same in every database (pg_type.dat).
_INT8, _INT2, _INT4, _TEXT, _JSON, _UUID = 20, 21, 23, 25, 114, 2950

_HEADER: Final = Struct("!iiIii")  # dimensions, whether any is NULL, the type, how many, the number of the first
_SIZE: Final = Struct("!i").pack
_SHORT: Final = Struct("!h").pack
_SIZED_LONG: Final = Struct("!iq").pack
_UUID_SIZE: Final = _SIZE(16)


def are_plain(jobs: Sequence[NewJob]) -> bool:
    """Return whether jobs are ready now, and nothing can stand in the place of one but itself, sent before."""
    return _is_plain(jobs.like) if isinstance(jobs, AlikeJobs) else all(map(_is_plain, jobs))


def _is_plain(job: NewJob) -> bool:
    return (
        job.idempotency_key is None
        and job.fingerprint is None
        and job.result_ttl is None
        and job.available_at is None
        and not job.delay
        and not job.callbacks
        and job.origin is None
    )


def chunks(jobs: Sequence[NewJob]) -> Iterator[Sequence[NewJob]]:
    """Cut a batch into what goes into one statement each."""
    begin = size = 0
    for place, payload in enumerate(_payloads(jobs)):
        size += len(payload)
        if place > begin and (place - begin >= CHUNK or size > CHUNK_BYTES):
            yield jobs[begin:place]
            begin, size = place, len(payload)
    yield jobs[begin:]


def _payloads(jobs: Sequence[NewJob]) -> Sequence[bytes]:
    return jobs.payloads if isinstance(jobs, AlikeJobs) else [job.payload for job in jobs]


def ids_of(jobs: Sequence[NewJob]) -> Sequence[UUID]:
    """Return the ids of jobs."""
    return jobs.ids if isinstance(jobs, AlikeJobs) else [job.id for job in jobs]


def queues_of(jobs: Sequence[NewJob]) -> frozenset[str]:
    """Return the names of the queues that jobs are in."""
    return frozenset({jobs.like.queue_name} if isinstance(jobs, AlikeJobs) else {job.queue_name for job in jobs})


def columns(job: NewJob) -> dict[str, Any]:
    """Return what insert_one.sql takes."""
    return {
        "id": job.id,
        "queue_name": job.queue_name,
        "type": job.type,
        "payload": job.payload.decode(),
        "priority": job.priority,
        "max_attempts": job.max_attempts,
    }


def arrays(jobs: Sequence[NewJob]) -> dict[str, Any]:
    """Return the columns of jobs, at least one, by the names that insert_plain.sql has for them."""
    if isinstance(jobs, AlikeJobs):
        return _alike_arrays(jobs)
    return {
        "ids": _array(_UUID, [job.id.int.to_bytes(16) for job in jobs]),
        "queue_names": _array(_TEXT, _encoded([job.queue_name for job in jobs])),
        "types": _array(_TEXT, _encoded([job.type for job in jobs])),
        "payloads": _array(_JSON, [job.payload for job in jobs]),
        "priorities": _array(_INT2, [_SHORT(job.priority) for job in jobs]),
        "max_attempts": _array(_INT4, [_SIZE(job.max_attempts) for job in jobs]),
    }


def _alike_arrays(jobs: AlikeJobs) -> dict[str, Any]:
    like, count = jobs.like, len(jobs)
    return {
        "ids": _array(_UUID, [job_id.int.to_bytes(16) for job_id in jobs.ids]),
        "queue_names": _repeated(_TEXT, like.queue_name.encode(), count),
        "types": _repeated(_TEXT, like.type.encode(), count),
        "payloads": _array(_JSON, jobs.payloads),
        "priorities": _repeated(_INT2, _SHORT(like.priority), count),
        "max_attempts": _repeated(_INT4, _SIZE(like.max_attempts), count),
    }


def leases(some: Iterable[Lease]) -> dict[str, Any]:
    """Return the columns of leases, at least one, sorted: rows are locked in one order."""
    ordered = sorted(some, key=lease_order)
    header, count = _HEADER.pack, len(ordered)
    ids = b"".join([_UUID_SIZE + lease.job_id.int.to_bytes(16) for lease in ordered])
    return {
        "ids": BinaryArray(header(1, 0, _UUID, count, 1) + ids),
        "tokens": _longs([lease.token for lease in ordered]),
        "nonces": _longs([lease.nonce for lease in ordered]),
    }


def _longs(numbers: Sequence[int]) -> BinaryArray:
    values = b"".join([_SIZED_LONG(8, number) for number in numbers])
    return BinaryArray(_HEADER.pack(1, 0, _INT8, len(numbers), 1) + values)


def _encoded(names: Sequence[str]) -> list[bytes]:
    known = {name: name.encode() for name in set(names)}
    return [known[name] for name in names]


def _repeated(kind: int, value: bytes, count: int) -> BinaryArray:
    return BinaryArray(_HEADER.pack(1, 0, kind, count, 1) + (_SIZE(len(value)) + value) * count)


def _array(kind: int, values: Sequence[bytes]) -> BinaryArray:
    parts = [_HEADER.pack(1, 0, kind, len(values), 1)]
    for value in values:
        parts += _SIZE(len(value)), value
    return BinaryArray(b"".join(parts))
