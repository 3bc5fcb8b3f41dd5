"""Callbacks, to the byte: what stands in a job that follows another. When it is written stands apart."""

from __future__ import annotations

import json
from typing import Final

import pytest

from creche._job import Event, Failure, On, Settlement
from creche.abc import Storage
from creche.testing._conformance_base import (
    BOOM,
    DISTINCT_NAMES,
    T0,
    UNUSUAL_JSON,
    Suite,
    follow_up,
    hold,
    new_job,
    reserve,
    row,
    settle,
    take,
)
from creche.testing._conformance_callbacks import one_of_each
from creche.testing._conformance_ends import RESULT

ODD_TEXTS: Final = (
    *('{"a":"', '"', "'", "\\", '\\"', "\\\\", '\\\\"', "[[[[", "}}", ",", " ", "\t\r\n"),
    *('{"head":"{\\"then\\":[{\\"tail\\":null}]}","tail":', "null", "%s {0} $1 :x ? -- ;", "*/ /* #"),
    *("é 漢字 😀 e\u0301 \u2028 \u00a0", '"\\u00e9\\ud83d\\ude00\\/\\b\\f"', "\x7f", ""),
)
"""What a text may hold that looks like an end of it, or like something else, to whoever puts texts together."""


class CallbackTextConformance(Suite):
    """What stands in a job that follows another."""

    async def test_its_payload_has_the_result_byte_for_byte(self, storage: Storage) -> None:
        callbacks = [follow_up(head='{"a":[', tail="]}") for _ in UNUSUAL_JSON]
        jobs = [new_job(callbacks=(each,)) for each in callbacks]
        await storage.insert(jobs, now=T0)
        leases = [job.lease for job in (await reserve(storage, len(jobs))).jobs]
        assert [lease.job_id for lease in leases] == [job.id for job in jobs]
        results = list(UNUSUAL_JSON.values())
        await storage.settle(
            [
                Settlement(lease=lease, event=Event.SUCCEED, result=result)
                for lease, result in zip(leases, results, strict=True)
            ],
            now=T0,
        )
        found = await storage.find([each.id for each in callbacks])
        for name, callback, result in zip(UNUSUAL_JSON, callbacks, results, strict=True):
            assert found[callback.id].payload == b'{"a":[' + result + b"]}", name

    async def test_its_payload_is_head_result_and_tail_whatever_they_hold(self, storage: Storage) -> None:
        odd = [json.dumps(text, ensure_ascii=ascii_only) for text in ODD_TEXTS for ascii_only in (True, False)]
        pairs: list[tuple[str, str | None]] = [
            *((f'{{"a" : {text},\t"result":', f", {text}:0.0}}") for text in odd),
            *((text.decode(), None) for text in UNUSUAL_JSON.values()),
            *(("", ""), (" ", "\n"), ("[1.0,", "]")),
        ]
        callbacks = tuple(follow_up(head=head, tail=tail) for head, tail in pairs)
        lease = await hold(storage, callbacks=callbacks)
        result = '{"é\\"😀":"\\\\\'"}'
        await settle(storage, lease, Event.SUCCEED, result=result.encode())
        found = await storage.find([each.id for each in callbacks])
        for each in callbacks:
            expected = each.head if each.tail is None else each.head + result + each.tail
            assert found[each.id].payload == expected.encode()

    async def test_a_large_result_stands_in_each_that_asks_for_it(self, storage: Storage) -> None:
        callbacks = tuple(follow_up(head=f"[{number},", tail="]") for number in range(10))
        without = follow_up(head="[]")
        lease = await hold(storage, callbacks=(*callbacks, without))
        result = ('"' + 'é漢😀\\\\\\"' * 16_000 + '"').encode()
        assert len(result) > 200_000
        await settle(storage, lease, Event.SUCCEED, result=result)
        taken = (await reserve(storage, 20, queues=["after"])).jobs
        assert [job.payload for job in taken] == [*(b"[%d,%s]" % (n, result) for n in range(10)), b"[]"]

    @pytest.mark.parametrize("event", [Event.SUCCEED, Event.FAIL, Event.ABORT])
    async def test_null_stands_where_there_is_no_result(self, storage: Storage, event: Event) -> None:
        callbacks = tuple(
            follow_up(on=On.ALWAYS, head=head, tail=tail) for head, tail in (("[", "]"), ("", ""), ("[]", None))
        )
        lease = await hold(storage, callbacks=callbacks)
        await settle(storage, lease, event, error=BOOM if event is Event.FAIL else None)
        payloads = [job.payload for job in (await reserve(storage, 5, queues=["after"])).jobs]
        assert payloads == [b"[null]", b"null", b"[]"]

    async def test_its_names_are_kept_as_they_are(self, storage: Storage) -> None:
        then = tuple(follow_up(type=name, queue_name=name) for name in DISTINCT_NAMES)
        callbacks = tuple(
            follow_up(type=name, queue_name=name, then=(each,)) for name, each in zip(DISTINCT_NAMES, then, strict=True)
        )
        for name, link in zip(DISTINCT_NAMES, callbacks, strict=True):
            lease = await hold(storage, type=name, queue_name=f"first {name}", callbacks=(link,))
            await settle(storage, lease, Event.SUCCEED, result=b"1")
            job = await take(storage, queues=[name])
            assert (job.id, job.type) == (link.id, name)
            assert job.origin is not None
            assert (job.origin.type, job.origin.queue_name) == (name, f"first {name}")
            await settle(storage, job.lease, Event.SUCCEED, result=b"1")
            job = await take(storage, queues=[name])
            assert (job.id, job.type) == (link.then[0].id, name)
            assert job.origin is not None
            assert (job.origin.type, job.origin.queue_name) == (name, name)

    async def test_the_error_of_its_origin_is_kept_whatever_it_holds(self, storage: Storage) -> None:
        text = 'it\'s "100%" \\ \\u0000 $1 :x ? {0}\r\n\té 漢字 😀 \x7f\x01 \N{REPLACEMENT CHARACTER}'
        error = Failure(type=text, message=text, traceback=text * 200)
        lease = await hold(storage, queue_name="q", callbacks=(follow_up(on=On.FAILURE),))
        await settle(storage, lease, Event.FAIL, error=error)
        job = await take(storage, queues=["after"])
        assert job.origin is not None
        assert job.origin.error == error
        assert (await row(storage, job.id)).origin == job.origin

    async def test_an_error_that_was_got_over_is_not_its_origins(self, storage: Storage) -> None:
        callbacks = one_of_each()
        lease = await hold(storage, queue_name="q", callbacks=tuple(callbacks.values()))
        await settle(storage, lease, Event.RETRY, error=BOOM)
        await settle(storage, (await take(storage, queues=["q"])).lease, Event.SUCCEED, result=RESULT)
        assert [job.origin and job.origin.error for job in (await reserve(storage, 5, queues=["after"])).jobs] == [
            None,
            None,
        ]

    async def test_the_last_error_is_its_origins(self, storage: Storage) -> None:
        lease = await hold(storage, queue_name="q", callbacks=(follow_up(on=On.FAILURE),))
        await settle(storage, lease, Event.RETRY, error=Failure(type="E", message="the first"))
        await settle(storage, (await take(storage, queues=["q"])).lease, Event.FAIL, error=BOOM)
        origin = (await take(storage, queues=["after"])).origin
        assert origin is not None
        assert origin.error == BOOM
