"""`creche dispatch`: one job from words on a command line. What may be dispatched is the queue's to say."""

from __future__ import annotations

import math
import os
import re
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Final

import anyio
import click
import msgspec

from creche import JobNotFound, Queue, Receipt, Status, UnknownType, WaitTimeout
from creche._job import JobRecord
from creche.cli._display import failure, print_json, print_stored, raw, say
from creche.cli._durations import duration
from creche.cli._problems import Misuse, Trouble
from creche.cli._targets import chosen_app, load_queue, required_app
from creche.errors import JobCancelled, JobFailed

_TARGET: Final = re.compile(r"[^\W\d][\w.]*:[^\W\d][\w.]*")


@click.command(
    epilog="Exit codes: 0 dispatched (--wait: completed), 1 configuration or database, 2 refused, nothing was written, "
    "3 the job failed or was cancelled, 4 the timeout is over, the job goes on."
)
@click.argument("words", nargs=-1, metavar="[TARGET] TYPE [JSON | - | NAME=VALUE...]")
@click.option("--queue", metavar="NAME", help="Where the job goes; needed if its handler is not in this application.")
@click.option("--priority", type=int, metavar="N", help="-100 to 100, larger is sooner.")
@click.option("--delay", type=duration, metavar="TIME", help="Due this much later: 90s, 15m, 2h, 7d.")
@click.option("--max-attempts", type=int, metavar="N", help="How often it is tried before it is given up.")
@click.option("--idempotency-key", metavar="KEY", help="The queue has one job for each key.")
@click.option("--result-ttl", type=duration, metavar="TIME", help="The result answers equal dispatches for so long.")
@click.option("--unique", is_flag=True, help="Join an equal job that is on its way.")
@click.option("--refresh", is_flag=True, help="Run anew, though an equal job's result is cached.")
@click.option("--callback", multiple=True, metavar="TYPE", help="Runs with the result when it is over; repeatable.")
@click.option("--wait", is_flag=True, help="Wait until the job is over, and print its result as JSON.")
@click.option("--timeout", type=duration, metavar="TIME", help="With --wait: for at most so long.")
@click.option("--json", is_flag=True, help="Print the receipt as JSON.")
def dispatch(
    words: Sequence[str],
    *,
    wait: bool,
    timeout: float | None,
    json: bool,
    unique: bool,
    refresh: bool,
    callback: Sequence[str],
    **options: Any,
) -> None:
    """Ask for a job and print its id.

    TARGET is module:name of a Queue, a Worker, or a function that returns one; CRECHE_APP stands in for it. TYPE is
    the job type. Its arguments are a JSON object, in one word or on stdin (-), or NAME=VALUE for each: a VALUE is
    JSON if the handler takes it so, else text.
    """
    if timeout is not None and not wait:
        raise click.UsageError("--timeout limits --wait: give both.")
    target, job_type, arguments = _split(words)
    queue = load_queue(target)
    payload = _payload(queue, job_type, arguments)
    if not queue.storage.capabilities.shared:
        raise Trouble(f"{queue.storage!r} lives inside one process: no worker would see the job")
    options |= {"unique": unique or None, "refresh": refresh or None, "callbacks": callback or None}
    send = partial(queue.dispatch, job_type, payload, **options)
    anyio.run(_dispatch, queue, send, (math.inf if timeout is None else timeout) if wait else None, json)


def _split(words: Sequence[str]) -> tuple[str, str, Sequence[str]]:
    """Return target, type and the rest. If CRECHE_APP or [tool.creche] names one, a first word has to look like it."""
    rest = list(words)
    app = chosen_app()
    target = rest.pop(0) if rest and (not app or _TARGET.fullmatch(rest[0])) else app
    if not target:
        target = required_app(None)
    if not rest:
        raise click.UsageError("Missing argument 'TYPE': the job type, such as report.generate.")
    return target, rest[0], rest[1:]


# --- the payload ------------------------------------------------------------------------------------


def _payload(queue: Queue, type: str, words: Sequence[str]) -> object:
    if len(words) == 1 and words[0] == "-":
        return _decoded(sys.stdin.buffer.read())
    if len(words) == 1 and words[0].lstrip().startswith(("{", "[")):
        return _decoded(os.fsencode(words[0]))
    kinds = _annotations(queue, type)
    payload: dict[str, object] = {}
    for word in words:
        name, equals, text = word.partition("=")
        if not equals or not name:
            raise Misuse(f"{word!r} is neither NAME=VALUE nor a JSON object")
        if name in payload:
            raise Misuse(f"{name!r} is given twice")
        payload[name] = _value(text, kinds.get(name, Any))
    return payload


def _decoded(data: bytes) -> object:
    try:
        return msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Misuse(f"the payload is not JSON: {error}") from None


def _annotations(queue: Queue, type: str) -> Mapping[str, Any]:
    if type not in queue.tasks:
        return {}
    return {each.name: each.type for each in msgspec.structs.fields(queue.tasks.get(type).signature.arguments)}


def _value(text: str, annotation: Any) -> object:
    """Return JSON where the handler takes it, else the text itself: zip=12345 is a str for `zip: str`."""
    try:
        value = msgspec.json.decode(os.fsencode(text))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return text
    return value if _fits(value, annotation) or not _fits(text, annotation) else text


def _fits(value: object, annotation: Any) -> bool:
    try:
        msgspec.convert(value, annotation)
    except msgspec.ValidationError:
        return False
    return True


# --- the dispatch, and what it prints ---------------------------------------------------------------


async def _dispatch(queue: Queue, send: partial[Any], wait: float | None, json: bool) -> None:
    async with queue:
        try:
            receipt: Receipt[Any] = await send()
        except UnknownType as error:
            elsewhere = "" if error.near else ", or say with --queue where its handler is served"
            raise Misuse(f"{error}{elsewhere}") from None
        say(f"job {receipt.job_id}: {_words(receipt)}")
        if wait is None:
            record = await queue.look_up(receipt.job_id) if json else None
        else:
            record = await _over(queue, receipt, wait)
    if json:
        print_json(_answer(receipt, record))
    elif wait is None:
        click.echo(str(receipt.job_id))
    elif record is not None and record.status is Status.COMPLETED:
        print_stored(record.result)
    if wait is not None:
        _end(receipt, record, wait)


async def _over(queue: Queue, receipt: Receipt[Any], limit: float) -> JobRecord | None:
    with anyio.move_on_after(limit):
        await queue.wait_for(receipt.job_id)
    return await queue.look_up(receipt.job_id)


def _words(receipt: Receipt[Any]) -> str:
    if receipt.inserted:
        return f"dispatched, {receipt.status}"
    if receipt.status.active:
        return f"on its way already, {receipt.status}"
    return f"here already, {receipt.status}"


def _answer(receipt: Receipt[Any], record: JobRecord | None) -> Mapping[str, Any]:
    error = record.last_error if record is not None and record.status is Status.FAILED else None
    return {
        "job_id": receipt.job_id,
        "status": receipt.status if record is None else record.status,
        "inserted": receipt.inserted,
        "fingerprint": receipt.fingerprint.hex() if receipt.fingerprint else None,
        "result": None if record is None else raw(record.result),
        "error": failure(error),
    }


def _end(receipt: Receipt[Any], record: JobRecord | None, waited: float) -> None:
    """Raise what tells how the job ended, unless it completed."""
    if record is None:
        raise JobNotFound(receipt.job_id)
    if record.status.active:
        raise WaitTimeout(record.id, waited, record.status)
    if record.status is Status.CANCELLED:
        raise JobCancelled(record.id)
    if record.status is Status.FAILED:
        error = record.last_error
        raise JobFailed(
            record.id, type=error.type if error else "unknown", message=error.message if error else "no error is kept"
        )
