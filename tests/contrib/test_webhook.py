"""A webhook says how a job ended, to whom it may, signed, until it is heard; and touches nothing else."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import logging
import socket
import ssl
import subprocess
import sys
import threading
import traceback
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from ipaddress import ip_address
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final, cast
from uuid import UUID

import anyio
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from creche import Callback, Discard, Job, OptionInvalid, Queue, Retry, Status, Tasks, TypeTaken, Worker
from creche._job import Failure, Origin
from creche.contrib import webhook
from creche.contrib.webhook import DeliveryFailed, SignatureInvalid, Webhooks, verify
from engine_kit import until
from sockets import closed_port
from webhook_receiver import Receiver, Reply, Request

SECRET: Final = "whsec_Y2FuYXJ5LWNhbmFyeS1jYW5hcnktMQ=="
CANARY: Final = "canary-canary-canary-1"
ENDED: Final = datetime(2026, 1, 2, 3, 4, 5, 678, tzinfo=UTC)
NOW: Final = datetime(2026, 1, 2, 4, 0, tzinfo=UTC)
JOB: Final = UUID("0192d3c4-5b6a-7f80-9a1b-2c3d4e5f6071")
FOLLOWED: Final = UUID("0192d3c4-0000-7000-8000-000000000001")


def ended(status: Status = Status.COMPLETED, error: Failure | None = None) -> Job:
    origin = Origin(job_id=FOLLOWED, type="report", queue_name="q", status=status, error=error)
    return cast("Job", SimpleNamespace(id=JOB, created_at=ENDED, origin=origin))


def webhooks(**options: Any) -> Webhooks:
    return Webhooks(Tasks(), **{"secret": SECRET, "allow_private": True, **options})


async def deliver(sender: Webhooks, url: str, result: object = None, job: Job | None = None) -> object:
    return await sender._deliver(job or ended(), result, url)


def resolver(monkeypatch: pytest.MonkeyPatch, *answers: Sequence[str]) -> list[tuple[str, int]]:
    """Let names have these addresses: the first time, the second, …; return what was asked for."""
    asked: list[tuple[str, int]] = []

    async def resolve(host: str, port: int) -> list[str]:
        asked.append((host, port))
        return list(answers[min(len(asked), len(answers)) - 1])

    monkeypatch.setattr(webhook, "_resolve", resolve)
    return asked


def signature(request: Request, key: bytes) -> str:
    content = f"{request.headers['webhook-id']}.{request.headers['webhook-timestamp']}.".encode() + request.body
    return "v1," + base64.b64encode(hmac.new(key, content, hashlib.sha256).digest()).decode()


# --- the signature ----------------------------------------------------------------------------------

# What the specification's own libraries test themselves with.
PUBLISHED: Final = {
    "webhook-id": "msg_p5jXN8AQM9LWM0D4loKWxJek",
    "webhook-timestamp": "1614265330",
    "webhook-signature": "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=",
}
PUBLISHED_BODY: Final = '{"test": 2432232314}'
PUBLISHED_SECRET: Final = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
PUBLISHED_AT: Final = 1_614_265_330.0


def test_signatures_are_those_of_the_standards_libraries() -> None:
    keys = webhook._keys(PUBLISHED_SECRET)
    headers = webhook._signed_headers(PUBLISHED["webhook-id"], int(PUBLISHED_AT), PUBLISHED_BODY.encode(), keys)
    assert headers == PUBLISHED
    assert verify(PUBLISHED, PUBLISHED_BODY, PUBLISHED_SECRET, now=PUBLISHED_AT) == PUBLISHED["webhook-id"]


def test_a_receiver_may_write_headers_in_any_case_and_have_several_secrets() -> None:
    headers = {name.title(): value for name, value in PUBLISHED.items()}
    secrets: list[str | bytes] = ["another", b"third", PUBLISHED_SECRET]
    assert verify(headers, PUBLISHED_BODY.encode(), secrets, now=PUBLISHED_AT + 299) == PUBLISHED["webhook-id"]
    several = {**PUBLISHED, "webhook-signature": f"v1a,AAAA v1,AAAA é {PUBLISHED['webhook-signature']}"}
    verify(several, PUBLISHED_BODY, PUBLISHED_SECRET, now=PUBLISHED_AT)


@pytest.mark.parametrize(
    ("changed", "body", "secret", "now", "reason"),
    [
        ({}, PUBLISHED_BODY + " ", PUBLISHED_SECRET, 0, "no signature"),
        ({}, PUBLISHED_BODY, "another", 0, "no signature"),
        ({"webhook-id": "msg_other"}, PUBLISHED_BODY, PUBLISHED_SECRET, 0, "no signature"),
        ({"webhook-timestamp": "1614265331"}, PUBLISHED_BODY, PUBLISHED_SECRET, 0, "no signature"),
        ({"webhook-timestamp": "x"}, PUBLISHED_BODY, PUBLISHED_SECRET, 0, "no number"),
        ({"webhook-timestamp": "١"}, PUBLISHED_BODY, PUBLISHED_SECRET, 0, "no number"),
        ({"webhook-timestamp": ""}, PUBLISHED_BODY, PUBLISHED_SECRET, 0, "missing"),
        ({"webhook-signature": "v1"}, PUBLISHED_BODY, PUBLISHED_SECRET, 0, "no signature"),
        ({"webhook-signature": "v1,\udcff \ud800"}, PUBLISHED_BODY, PUBLISHED_SECRET, 0, "no signature"),
        ({"webhook-id": "\udcff"}, PUBLISHED_BODY, PUBLISHED_SECRET, 0, "no signature"),
        ({}, "\ud800", PUBLISHED_SECRET, 0, "no signature"),
        ({"webhook-signature": "v1,"}, PUBLISHED_BODY, PUBLISHED_SECRET, 0, "no signature"),
        ({}, PUBLISHED_BODY, PUBLISHED_SECRET, 301, "301|300 s ago"),
        ({}, PUBLISHED_BODY, PUBLISHED_SECRET, -301, "ahead"),
    ],
)
def test_what_is_not_signed_or_not_recent_is_refused(
    changed: dict[str, str], body: str, secret: str, now: float, reason: str
) -> None:
    with pytest.raises(SignatureInvalid, match=reason):
        verify({**PUBLISHED, **changed}, body, secret, now=PUBLISHED_AT + now)


@pytest.mark.parametrize("secret", ["", b"", [], "whsec_", "whsec_!", None, 7, [None], ["fine", ""]])
def test_a_secret_that_is_none_is_refused_and_not_shown(secret: Any) -> None:
    with pytest.raises(OptionInvalid, match="secret=<secret>"):
        Webhooks(Tasks(), secret=secret)


# --- where it may go --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "url",
    [
        "", "example.org/hook", "//example.org", "ftp://example.org", "file:///etc/passwd", "http:///x", "http://",
        None, "https://user:password@example.org", "https://user@example.org", "http://example.org\\@10.0.0.1/",
        "http://example.org:0", "http://example.org:99999", "http://example.org:x", "http://example.org.", "http://a..b",
        "http://exa mple.org", "http://exa%6dple.org", "http://example.org\n", "http://[::1", "http://[fe80::1%25eth0]/",
        "http://\ud800", "http://example.org/\ud800", "http://" + "a" * 64, "http://x/" + "a" * 3_000, "http://*",
        # This machine and its networks, in the spellings that some resolver takes for them.
        "http://127.0.0.1", "http://0.0.0.0", "http://127.1", "http://0x7f.1", "http://0x7f000001", "http://2130706433",
        "http://0177.0.0.1", "http://017700000001", "http://1.1.1.256", "http://１２７.0.0.1", "http://127。0。0。1",
        "http://127.0.0.1.", "http://0x", "http://example.0x7f", "http://localhost", "http://LOCALHOST:80",
        "http://a.localhost", "http://10.0.0.1", "http://172.16.0.1", "http://192.168.1.1", "http://169.254.169.254",
        "http://100.64.0.1", "http://192.0.0.8", "http://192.0.2.1", "http://198.18.0.1", "http://224.0.0.1",
        "http://240.0.0.1", "http://255.255.255.255", "http://[::]", "http://[::1]", "http://[fe80::1]", "http://[fd00::1]",
        "http://[fec0::1]", "http://[ff02::1]", "http://[2001:db8::1]", "http://[3fff::1]", "http://[5f00::1]",
        "http://[::ffff:10.0.0.1]", "http://[::ffff:8.8.8.8]", "http://[::127.0.0.1]", "http://[2002:7f00:1::]",
        "http://[64:ff9b::10.0.0.1]", "http://[64:ff9b:1::8.8.8.8]", "http://[2001:0:7f00:1::1]", "http://[100::1]",
    ],
)  # fmt: skip
def test_a_url_that_leads_nowhere_or_inside_is_refused_at_once(url: Any) -> None:
    with pytest.raises(OptionInvalid, match="url="):
        webhooks(allow_private=False).to(url)


@pytest.mark.parametrize(
    "url",
    [
        "https://example.org/hook?a=b#c", "http://EXAMPLE.org:8080", "https://müller.example/ü", "https://a_b.example",
        "http://8.8.8.8", "https://[2606:4700::1111]/", "http://[64:ff9b::8.8.8.8]", "http://[2002:808:808::]",
        "https://7.example", "http://intranet",
    ],
)  # fmt: skip
def test_a_url_on_the_internet_is_taken(url: str) -> None:
    callback = webhooks(allow_private=False).to(url, on="failure")
    assert isinstance(callback, Callback)
    assert (callback.on, dict(callback.arguments)) == ("failure", {"url": url})


def test_a_password_in_a_url_is_not_shown_with_the_refusal() -> None:
    with pytest.raises(OptionInvalid) as caught:
        webhooks().to("https://user:hunter2@example.org/")
    assert "hunter2" not in str(caught.value) + repr(caught.value.value)


def test_when_it_is_called_is_checked() -> None:
    with pytest.raises(OptionInvalid, match="success, failure, always"):
        webhooks().to("https://example.org", on=cast("Any", "never"))


@pytest.mark.parametrize(("address", "public"), [("192.88.99.1", False), ("192.0.0.10", False), ("1.1.1.1", True)])
def test_the_verdict_is_the_same_on_every_python(address: str, *, public: bool) -> None:
    assert webhook._is_public(ip_address(address)) is public


@pytest.mark.anyio
@pytest.mark.parametrize("inside", ["127.0.0.1", "10.0.0.1", "::1", "fe80::1%1", "::ffff:127.0.0.1", "2002:7f00:1::"])
@pytest.mark.parametrize("first", [True, False])
async def test_a_name_with_one_address_inside_is_not_called(
    inside: str, *, first: bool, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = resolver(monkeypatch, [inside, "8.8.8.8"] if first else ["8.8.8.8", inside])
    with pytest.raises(Discard, match=r"hook\.example has the address .*, which is not public") as caught:
        await deliver(webhooks(allow_private=False), f"http://hook.example:{receiver.server_port}/")
    assert inside in str(caught.value)
    assert asked == [("hook.example", receiver.server_port)]
    assert receiver.requests == []


@pytest.mark.anyio
async def test_a_url_that_was_stored_is_checked_again_when_it_is_delivered(receiver: Receiver) -> None:
    with pytest.raises(Discard, match="a public address") as caught:
        await deliver(webhooks(allow_private=False), receiver.url)
    assert "token" not in str(caught.value)
    assert receiver.requests == []


@pytest.mark.anyio
async def test_a_name_is_resolved_once_and_the_address_that_was_checked_is_called(
    receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DNS rebinding: whatever the name would resolve to a second time, nobody asks."""
    asked = resolver(monkeypatch, ["127.0.0.1"], ["203.0.113.1"])

    def never(*args: object, **named: object) -> object:
        raise AssertionError("a second resolution")

    monkeypatch.setattr(anyio, "getaddrinfo", never)
    monkeypatch.setattr(socket, "getaddrinfo", never)
    assert await deliver(webhooks(), f"http://hook.example:{receiver.server_port}/a?b=c") == {"status": 204}
    assert len(asked) == 1
    (request,) = receiver.requests
    assert request.headers["host"] == f"hook.example:{receiver.server_port}"
    assert request.path == "/a?b=c"


@pytest.mark.anyio
async def test_another_address_is_tried_when_one_does_not_answer(
    receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    resolver(monkeypatch, ["127.0.0.2", "127.0.0.1"])
    assert await deliver(webhooks(), f"http://hook.example:{receiver.server_port}/") == {"status": 204}


@pytest.mark.anyio
@pytest.mark.parametrize("addresses", [["127.0.0.1"], []])
async def test_nobody_there_is_a_failed_attempt(addresses: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    resolver(monkeypatch, addresses)
    with pytest.raises(DeliveryFailed, match=r"hook\.example") as caught:
        await deliver(webhooks(), f"http://hook.example:{closed_port()}/")
    assert caught.value.status is None


@pytest.mark.anyio
async def test_a_name_that_does_not_exist_is_a_failed_attempt() -> None:
    with pytest.raises(DeliveryFailed, match="can't be resolved"):
        await deliver(webhooks(), "http://nobody.invalid/")


@pytest.mark.anyio
async def test_this_machines_resolver_is_asked_without_a_thread_left_behind(receiver: Receiver) -> None:
    assert await deliver(webhooks(), f"http://localhost:{receiver.server_port}/") == {"status": 204}
    assert receiver.requests[0].headers["host"] == f"localhost:{receiver.server_port}"


@pytest.mark.anyio
async def test_the_environments_proxies_are_not_asked(receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{closed_port()}")
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    assert await deliver(webhooks(), receiver.url) == {"status": 204}


def certificate(name: str, folder: Path) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """Return what a server of this name speaks TLS with, and what a client trusts it by."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    file = folder / "certificate.pem"
    own = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    public = made.public_bytes(serialization.Encoding.PEM)
    file.write_bytes(own + public)
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(file)
    return server, ssl.create_default_context(cadata=public.decode())


@pytest.mark.anyio
async def test_tls_is_spoken_with_the_name_though_an_address_is_called(
    receiver: Receiver, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    server, client = certificate("hook.example", tmp_path)
    receiver.speak_tls(server)
    resolver(monkeypatch, ["127.0.0.1"])
    url = f"https://hook.example:{receiver.server_port}/"
    assert await deliver(webhooks(ssl_context=client), url) == {"status": 204}
    assert receiver.names == ["hook.example"]
    with pytest.raises(DeliveryFailed, match="certificate"):
        await deliver(webhooks(ssl_context=client), f"https://another.example:{receiver.server_port}/")
    with pytest.raises(DeliveryFailed, match="certificate"):
        await deliver(webhooks(), url)  # nobody else trusts it
    assert len(receiver.requests) == 1


# --- what is said -----------------------------------------------------------------------------------


@pytest.mark.anyio
async def test_a_request_says_how_the_job_ended_and_is_signed(receiver: Receiver) -> None:
    sender = webhooks(secret=[SECRET, b"old", "older"])
    assert await deliver(sender, receiver.url, {"größe": [1, 2.5, None]}) == {"status": 204}
    (request,) = receiver.requests
    assert json.loads(request.body) == {
        "type": "report",
        "job_id": str(FOLLOWED),
        "status": "completed",
        "result": {"größe": [1, 2.5, None]},
        "error": None,
        "timestamp": "2026-01-02T03:04:05.000678Z",
    }
    assert request.path == "/hook?token=7"
    assert request.headers["content-type"] == "application/json"
    assert request.headers["user-agent"].startswith("creche/")
    assert request.headers["webhook-id"] == str(JOB)
    assert abs(int(request.headers["webhook-timestamp"]) - datetime.now(UTC).timestamp()) < 60
    keys = [CANARY.encode(), b"old", b"older"]
    assert request.headers["webhook-signature"].split() == [signature(request, key) for key in keys]
    for secret in (SECRET, b"old", "older"):
        assert verify(request.headers, request.body, secret) == str(JOB)


@pytest.mark.anyio
async def test_a_failure_says_its_error_without_the_traceback(receiver: Receiver) -> None:
    failure = Failure(type="ValueError", message="no such year", traceback="File …")
    await deliver(webhooks(), receiver.url, None, ended(Status.FAILED, failure))
    said = json.loads(receiver.requests[0].body)
    assert (said["status"], said["result"]) == ("failed", None)
    assert said["error"] == {"type": "ValueError", "message": "no such year"}


@pytest.mark.anyio
async def test_a_repetition_says_the_same_under_the_same_id(receiver: Receiver) -> None:
    sender = webhooks()
    for _ in range(2):
        await deliver(sender, receiver.url, {"a": 1})
    first, second = receiver.requests
    assert first.body == second.body
    assert first.headers["webhook-id"] == second.headers["webhook-id"]


@pytest.mark.anyio
async def test_a_job_that_follows_none_is_discarded(receiver: Receiver) -> None:
    with pytest.raises(Discard, match="it follows no job"):
        await deliver(webhooks(), receiver.url, None, cast("Job", SimpleNamespace(origin=None)))
    assert receiver.requests == []


# --- what is answered -------------------------------------------------------------------------------


@pytest.mark.anyio
@pytest.mark.parametrize("status", [200, 201, 202, 204, 299])
async def test_any_2xx_is_a_delivery(status: int, receiver: Receiver) -> None:
    receiver.replies.append(Reply(status))
    assert await deliver(webhooks(), receiver.url) == {"status": status}


@pytest.mark.anyio
@pytest.mark.parametrize("status", [301, 302, 307, 308])
async def test_a_redirect_is_a_failed_attempt_and_not_followed(status: int, receiver: Receiver) -> None:
    receiver.replies.append(Reply(status, {"location": receiver.url}))
    with pytest.raises(DeliveryFailed, match=f"{status}: redirects are not followed"):
        await deliver(webhooks(), receiver.url)
    assert len(receiver.requests) == 1


@pytest.mark.anyio
@pytest.mark.parametrize("status", [400, 401, 404, 422, 429, 500, 503])
async def test_any_other_answer_is_a_failed_attempt_with_the_beginning_of_its_text(
    status: int, receiver: Receiver
) -> None:
    receiver.replies.append(Reply(status, body=b" out of paper \xff"))
    with pytest.raises(DeliveryFailed, match=f"127.0.0.1 answered {status}: out of paper") as caught:
        await deliver(webhooks(), receiver.url)
    assert caught.value.status == status
    assert "token" not in str(caught.value)


@pytest.mark.anyio
async def test_gone_ends_it_for_good(receiver: Receiver) -> None:
    receiver.replies.append(Reply(410))
    with pytest.raises(Discard, match="410"):
        await deliver(webhooks(), receiver.url)


@pytest.mark.anyio
@pytest.mark.parametrize("status", [429, 503])
async def test_retry_after_puts_the_next_attempt_off(status: int, receiver: Receiver) -> None:
    receiver.replies.append(Reply(status, {"Retry-After": "17"}))
    with pytest.raises(Retry, match=f"answered {status}") as caught:
        await deliver(webhooks(), receiver.url)
    assert caught.value.delay == 17


@pytest.mark.parametrize(
    ("value", "delay"),
    [
        ("120", 120.0),
        (" 5 ", 5.0),
        ("0", 1.0),
        ("999999", 3_600.0),
        ("9" * 15, 3_600.0),
        (format_datetime(NOW + timedelta(seconds=90), usegmt=True), 90.0),
        (format_datetime(NOW - timedelta(days=1), usegmt=True), 1.0),
        (format_datetime(NOW + timedelta(days=1), usegmt=True), 3_600.0),
        ("Fri, 02 Jan 2026 04:01:30", 90.0),
        ("9" * 16, None),
        ("-5", None),
        ("1.5", None),
        ("٣", None),
        ("soon", None),
        ("", None),
        (None, None),
    ],
)
def test_retry_after_is_seconds_or_a_date_and_an_hour_at_most(value: str | None, delay: float | None) -> None:
    assert webhook._retry_after(value, NOW) == delay


@pytest.mark.anyio
async def test_retry_after_has_no_sense_with_other_answers(receiver: Receiver) -> None:
    receiver.replies.append(Reply(500, {"Retry-After": "17"}))
    with pytest.raises(DeliveryFailed):
        await deliver(webhooks(), receiver.url)


@pytest.mark.anyio
async def test_a_server_that_does_not_answer_costs_the_timeout_and_no_more(receiver: Receiver) -> None:
    release = threading.Event()
    receiver.replies.append(Reply(wait=release))
    started = anyio.current_time()
    with pytest.raises(DeliveryFailed, match=r"did not answer within 0\.3 s"):
        await deliver(webhooks(timeout=0.3), receiver.url)
    assert anyio.current_time() - started < 5
    release.set()


@pytest.mark.anyio
@pytest.mark.parametrize("status", [200, 500])
async def test_of_a_body_without_end_no_more_is_read_than_an_error_shows(status: int, receiver: Receiver) -> None:
    receiver.replies.append(Reply(status, endless=True))
    if status == 200:
        assert await deliver(webhooks(), receiver.url) == {"status": 200}
    else:
        with pytest.raises(DeliveryFailed) as caught:
            await deliver(webhooks(), receiver.url)
        assert len(str(caught.value)) < 1_200
    assert receiver.sent < 50_000_000


@pytest.mark.anyio
async def test_of_a_body_without_end_in_tls_no_more_is_read_either(
    receiver: Receiver, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    server, client = certificate("hook.example", tmp_path)
    receiver.speak_tls(server)
    resolver(monkeypatch, ["127.0.0.1"])
    receiver.replies += [Reply(500, endless=True), Reply(410, endless=True)]
    with pytest.raises(DeliveryFailed, match="500: xxx"):
        await deliver(webhooks(ssl_context=client), f"https://hook.example:{receiver.server_port}/")
    with pytest.raises(Discard, match="410"):
        await deliver(webhooks(ssl_context=client), f"https://hook.example:{receiver.server_port}/")


@pytest.mark.anyio
async def test_an_answer_that_breaks_off_is_judged_by_its_status(receiver: Receiver) -> None:
    receiver.replies.append(Reply(503, {"content-length": "100", "Retry-After": "3"}, b"half"))
    with pytest.raises(Retry, match="503") as caught:
        await deliver(webhooks(), receiver.url)
    assert caught.value.delay == 3


@pytest.mark.anyio
async def test_the_timeout_is_for_looking_up_the_name_too(monkeypatch: pytest.MonkeyPatch) -> None:
    async def resolve(host: str, port: int) -> list[str]:
        await anyio.sleep_forever()
        return []

    monkeypatch.setattr(webhook, "_resolve", resolve)
    with pytest.raises(DeliveryFailed, match=r"did not answer within 0\.1 s"):
        await deliver(webhooks(timeout=0.1), "https://slow.example")


@pytest.mark.anyio
async def test_a_compressed_answer_is_not_unpacked(receiver: Receiver) -> None:
    receiver.replies.append(Reply(500, {"content-encoding": "gzip"}, b"no gzip at all"))
    with pytest.raises(DeliveryFailed, match="500: no gzip at all"):
        await deliver(webhooks(), receiver.url)
    assert receiver.requests[0].headers["accept-encoding"] == "identity"


@pytest.mark.anyio
async def test_what_is_no_http_is_a_failed_attempt() -> None:
    async with await anyio.create_tcp_listener(local_host="127.0.0.1") as listener:

        async def babble(stream: anyio.abc.ByteStream) -> None:
            async with stream:
                await stream.receive()
                await stream.send(b"220 mail.example ESMTP\r\n")

        port = listener.extra(anyio.abc.SocketAttribute.local_port)
        async with anyio.create_task_group() as group:
            group.start_soon(listener.serve, babble)
            with pytest.raises(DeliveryFailed, match="gave no answer"):
                await deliver(webhooks(), f"http://127.0.0.1:{port}/")
            group.cancel_scope.cancel()


@pytest.mark.anyio
async def test_cancelled_it_leaves_no_connection(receiver: Receiver) -> None:
    release = threading.Event()
    receiver.replies.append(Reply(wait=release))
    async with anyio.create_task_group() as group:
        group.start_soon(deliver, webhooks(), receiver.url)
        await until(lambda: bool(receiver.requests))
        group.cancel_scope.cancel()
    release.set()  # an open socket would be a ResourceWarning, and that an error


# --- secrets ----------------------------------------------------------------------------------------


def shown(error: BaseException) -> str:
    """What a tracker of errors sends: the text, and the local variables of every frame."""
    return "".join(traceback.TracebackException.from_exception(error, capture_locals=True).format())


@pytest.mark.anyio
async def test_the_secret_is_nowhere_to_be_seen(receiver: Receiver, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    sender = webhooks()
    receiver.replies.append(Reply(500))
    seen = [repr(sender), repr(sender.task), repr(sender.to(receiver.url)), repr(vars(sender))]
    for url in (receiver.url, f"http://127.0.0.1:{closed_port()}/"):
        with pytest.raises(DeliveryFailed) as caught:
            await deliver(sender, url)
        seen.append(shown(caught.value))
    (request,) = receiver.requests
    seen += [str(request.headers), request.body.decode(), caplog.text]
    with pytest.raises(SignatureInvalid) as refused:
        verify({**request.headers, "webhook-signature": "v1,AAAA"}, request.body, SECRET)
    seen.append(shown(refused.value))
    with pytest.raises(OptionInvalid) as invalid:
        webhooks(timeout=-1)
    seen.append(shown(invalid.value))
    for form in (CANARY, SECRET, SECRET.removeprefix("whsec_")):
        assert form not in "".join(seen)


# --- among the other jobs ---------------------------------------------------------------------------


@pytest.mark.anyio
@pytest.mark.parametrize("engine", ["memory", "sqlite"])
async def test_from_a_job_to_the_receiver_through_failed_attempts(
    engine: str, receiver: Receiver, tmp_path: Path
) -> None:
    queue = Queue("memory://" if engine == "memory" else f"sqlite:///{tmp_path / 'jobs.db'}")
    sender = Webhooks(queue, secret=SECRET, allow_private=True, backoff=Soon())

    @queue.task("report")
    async def report(year: int) -> dict[str, int]:
        return {"pages": year}

    @queue.task("broken", max_attempts=1)
    async def broken() -> None:
        raise ValueError("no paper")

    await queue.migrate()
    receiver.replies += [Reply(500), Reply(302, {"location": "/"}), Reply(204)]
    async with queue, Worker(queue, poll_interval=0.05):
        receipt = await report.options(callbacks=[sender.to(receiver.url)]).dispatch(24)
        assert await receipt.wait(10) == {"pages": 24}
        await until(lambda: len(receiver.requests) == 3)
        first, second, third = receiver.requests
        assert first.body == second.body == third.body
        assert first.headers["webhook-id"] == third.headers["webhook-id"]
        said = json.loads(third.body)
        assert (said["type"], said["job_id"]) == ("report", str(receipt.job_id))
        assert (said["status"], said["result"]) == ("completed", {"pages": 24})
        assert await (await queue.receipt(verify(third.headers, third.body, SECRET))).wait(10) == {"status": 204}

        receiver.replies.append(Reply(410))
        failing = await broken.options(callbacks=[sender.to(receiver.url, on="failure")]).dispatch()
        await until(lambda: len(receiver.requests) == 4)
        said = json.loads(receiver.requests[3].body)
        assert (said["status"], said["error"]) == ("failed", {"type": "ValueError", "message": "no paper"})
        delivery = await queue.look_up(UUID(receiver.requests[3].headers["webhook-id"]))
        assert delivery is not None
        with anyio.fail_after(10):
            while (await queue.receipt(delivery.id)).status is not Status.FAILED:  # noqa: ASYNC110
                await anyio.sleep(0.01)
        assert (await queue.receipt(failing.job_id)).status is Status.FAILED
        assert (await queue.receipt(receipt.job_id)).result == {"pages": 24}
    stored = b"".join([await file.read_bytes() async for file in anyio.Path(tmp_path).iterdir()])
    assert CANARY.encode() not in stored
    assert SECRET.removeprefix("whsec_").encode() not in stored
    assert (b"hook?token=7" in stored) is (engine == "sqlite")


class Soon:
    """A back-off for tests that wait for attempts."""

    def delay(self, attempt: int) -> float:
        return 0.01


def test_one_is_enough_and_another_has_a_type_of_its_own() -> None:
    tasks = Tasks()
    Webhooks(tasks, secret="one")
    with pytest.raises(TypeTaken):
        Webhooks(tasks, secret="two")
    Webhooks(tasks, secret="two", type="partner.webhook", queue="slow", max_attempts=3)
    assert set(tasks.types) == {"creche.webhook", "partner.webhook"}


def test_it_is_tried_for_hours() -> None:
    delays = [webhook.BACKOFF.delay(attempt) for attempt in range(1, webhook.MAX_ATTEMPTS)]
    assert 4 <= delays[0] <= 6
    assert max(delays) <= 3_600
    assert sum(delays) > 2 * 3_600 * 0.8


def test_without_httpx_the_import_says_what_to_install() -> None:
    code = "import sys; sys.modules['httpx'] = None; import creche.contrib.webhook"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "pip install 'creche[webhook]'" in done.stderr
