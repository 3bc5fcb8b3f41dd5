"""Webhooks: a callback that tells an HTTP server how a job ended, signed by the Standard Webhooks specification.

It owns the one request of an attempt: where it may go, what it says, what the answer means. When there is another is
the queue's business. It never follows a redirect, never resolves a name twice, and never lets a secret out of the
process.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import re
import socket
import ssl
import time
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from importlib.metadata import version
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Any, Final, cast

import anyio
import msgspec
from attrs import frozen

from creche import (
    Callback,
    CrecheError,
    Discard,
    ExponentialBackoff,
    Job,
    MissingExtra,
    OptionInvalid,
    Queue,
    Retry,
    Tasks,
)
from creche._callbacks import When
from creche._job import Origin, seconds
from creche.abc import Backoff

try:
    import httpcore
    import httpx
except ImportError as error:
    raise MissingExtra("webhook", (error.name or "httpx").partition(".")[0]) from error

__all__ = ["DeliveryFailed", "SignatureInvalid", "Webhooks", "verify"]

BACKOFF: Final = ExponentialBackoff(base=5.0, multiplier=4.0, cap=3_600.0, jitter=0.2)
MAX_ATTEMPTS: Final = 8  # with these delays the last one is about two and a half hours after the first
RETRY_AFTER_LIMIT: Final = 3_600.0  # seconds: nobody puts a delivery off for longer
TOLERANCE: Final = 300.0  # seconds: what the specification's own libraries allow
_ANSWER_READ: Final = 1_024  # bytes of an answer that are read, for the error's text
_URL_LIMIT: Final = 2_048
_ADDRESSES_TRIED: Final = 4
_PREFIX: Final = "whsec_"


class DeliveryFailed(CrecheError):
    """A webhook did not arrive: no connection, no answer in time, or another answer than 2xx.

    `status` is the answer's, None if there was none.
    """

    def __init__(self, message: str, *, status: int | None = None) -> None:
        self.status = status
        super().__init__(message)


class SignatureInvalid(CrecheError, ValueError):
    """A request is not from somebody who has one of the secrets, or it is too old: answer 400, and do nothing."""

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(f"the webhook is refused: {reason}")


# --- the signature ----------------------------------------------------------------------------------


class _Key:
    """The bytes of one secret, which no repr and no traceback shows."""

    __slots__ = ("__bytes",)

    def __init__(self, secret: object) -> None:
        if isinstance(secret, str) and secret.startswith(_PREFIX):
            encoded = secret.removeprefix(_PREFIX)
            try:
                self.__bytes = base64.b64decode(encoded + "=" * (-len(encoded) % 4), validate=True)
            except (binascii.Error, ValueError):
                raise OptionInvalid("secret", _HIDDEN, "after `whsec_` comes Base64") from None
        elif isinstance(secret, str):
            self.__bytes = secret.encode("utf-8", "surrogatepass")
        elif isinstance(secret, bytes):
            self.__bytes = secret
        else:
            raise OptionInvalid("secret", _HIDDEN, "text (`whsec_` and Base64, or any other) or bytes, or several")
        if not self.__bytes:
            raise OptionInvalid("secret", _HIDDEN, "not empty: 24 to 64 random bytes")

    def __repr__(self) -> str:
        return repr(_HIDDEN)

    def sign(self, content: bytes) -> str:
        """Return a signature as a header carries it."""
        return "v1," + base64.b64encode(hmac.digest(self.__bytes, content, hashlib.sha256)).decode()


class _Hidden:
    def __repr__(self) -> str:
        return "<secret>"


_HIDDEN: Final = _Hidden()


def _keys(secrets: object) -> tuple[_Key, ...]:
    if not isinstance(secrets, Sequence) or isinstance(secrets, str | bytes):
        return (_Key(secrets),)
    keys = tuple(map(_Key, cast("Sequence[object]", secrets)))
    if not keys:
        raise OptionInvalid("secret", _HIDDEN, "at least one")
    return keys


def _content(id: str, timestamp: str, body: bytes) -> bytes:
    return f"{id}.{timestamp}.".encode("utf-8", "surrogatepass") + body  # some servers pass odd bytes on as surrogates


def _signed_headers(id: str, timestamp: int, body: bytes, keys: Sequence[_Key]) -> dict[str, str]:
    content = _content(id, str(timestamp), body)
    return {
        "webhook-id": id,
        "webhook-timestamp": str(timestamp),
        "webhook-signature": " ".join(key.sign(content) for key in keys),
    }


def verify(
    headers: Mapping[str, str],
    body: bytes | str,
    secrets: str | bytes | Sequence[str | bytes],
    tolerance: float | timedelta = TOLERANCE,
    *,
    now: float | None = None,
) -> str:
    """Make sure that a request is a webhook from somebody who has one of the secrets, and recent.

    For receivers, of webhooks by creche or by anybody else who keeps the Standard Webhooks specification.

    Args:
        headers: the request's, by name, in whatever case.
        body: the request's, as it came: parsed and written again it is another one.
        secrets: one or several, as for `Webhooks`; during a rotation, the old and the new one.
        tolerance: seconds by which the request may be older or newer than now.
        now: seconds since 1970, UTC; None asks this machine's clock.

    Returns:
        The webhook's id, the same for every repetition: drop a webhook whose id was seen before.

    Raises:
        SignatureInvalid: it is not; the message says which part.
        OptionInvalid: a secret is none.
    """
    keys = _keys(secrets)
    del secrets  # some tools show the local variables of a traceback
    tolerance = seconds("tolerance", tolerance)
    given = {name.lower(): value for name, value in headers.items()}
    message, timestamp, signatures = (given.get(f"webhook-{each}", "") for each in ("id", "timestamp", "signature"))
    if not (message and timestamp and signatures):
        raise SignatureInvalid("one of the headers webhook-id, webhook-timestamp and webhook-signature is missing")
    if not re.fullmatch(r"[0-9]{1,15}", timestamp):
        raise SignatureInvalid("webhook-timestamp is no number of seconds")
    content = _content(message, timestamp, body.encode("utf-8", "surrogatepass") if isinstance(body, str) else body)
    expected = [key.sign(content).encode() for key in keys]
    candidates = [each.encode("utf-8", "surrogatepass") for each in signatures.split()[:16]]
    # Each is compared with each, to the end, so that the time it takes tells nothing.
    if not any([hmac.compare_digest(one, other) for one in expected for other in candidates]):  # noqa: C419
        raise SignatureInvalid("no signature of it was made with one of the secrets")
    if abs((time.time() if now is None else now) - int(timestamp)) > tolerance:
        raise SignatureInvalid(f"it was sent more than {tolerance:g} s ago, or ahead of this machine's clock")
    return message


# --- where it may go --------------------------------------------------------------------------------


_NAME: Final = re.compile(r"(?=.{1,253}\Z)[a-z0-9_-]{1,63}(\.[a-z0-9_-]{1,63})*")
_NUMBER: Final = re.compile(r"[0-9]+|0x[0-9a-f]*")
_GLOBAL_UNICAST: Final = IPv6Network("2000::/3")  # all that was ever given out
_NAT64: Final = IPv6Network("64:ff9b::/96")
# Older versions of Python call these public (CVE-2024-4032 and later additions to IANA's registries).
_NOT_PUBLIC: Final = tuple(map(ip_network, ("192.0.0.0/24", "192.88.99.0/24", "2001::/23", "3fff::/20")))


def _is_public(address: IPv4Address | IPv6Address) -> bool:
    """Return whether an address is one host on the internet, and so is the IPv4 address that it stands for, if any."""
    if isinstance(address, IPv6Address):
        inner = address.sixtofour
        if address in _NAT64:
            inner = IPv4Address(int(address) & 0xFFFF_FFFF)
        elif address not in _GLOBAL_UNICAST:
            return False
        if inner is not None:
            return _is_public(inner)
    return (
        address.is_global
        and not address.is_multicast
        and not address.is_reserved
        and not any(address in network for network in _NOT_PUBLIC)
    )


def _literal(host: str) -> IPv4Address | IPv6Address | None:
    try:
        return ip_address(host)
    except ValueError:
        return None


def _check_url(url: object, *, allow_private: bool) -> httpx.URL:
    """Return where a webhook goes, or raise OptionInvalid. Names are looked up at delivery alone."""
    if not isinstance(url, str) or len(url) > _URL_LIMIT:
        shown = url if not isinstance(url, str) else url[:40] + "…"
        raise OptionInvalid("url", shown, f"text, at most {_URL_LIMIT:,} characters")
    try:
        parsed = httpx.URL(url)
    except (httpx.InvalidURL, ValueError) as error:
        raise OptionInvalid("url", url, f"an http or https URL: {error}") from None
    host = parsed.raw_host.decode()
    if parsed.userinfo:
        raise OptionInvalid("url", f"{parsed.scheme}://…@{host}", "no name and password in it: it is stored and logged")
    if parsed.scheme not in {"http", "https"} or not host:
        raise OptionInvalid("url", url, "an http or https URL with a host, such as https://example.org/hook")
    if parsed.port is not None and not 1 <= parsed.port <= 65_535:
        raise OptionInvalid("url", url, "a port from 1 to 65535")
    address = _literal(host)
    if address is None and (not _NAME.fullmatch(host) or _NUMBER.fullmatch(host.rpartition(".")[2])):
        raise OptionInvalid(
            "url", url, "a host as names or addresses are written, four numbers for IPv4, no dot at the end"
        )
    if isinstance(address, IPv6Address) and address.scope_id is not None:
        raise OptionInvalid("url", url, "an address without a zone")
    local = address is None and (host == "localhost" or host.endswith(".localhost"))
    if not allow_private and (local or (address is not None and not _is_public(address))):
        raise OptionInvalid("url", url, "a public address, unless `allow_private=True`")
    return parsed


async def _resolve(host: str, port: int) -> list[str]:
    """Return a name's addresses, as the machine's resolver gives them."""
    found = await anyio.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(each[4][0] for each in found))


async def _addresses(url: httpx.URL, *, allow_private: bool) -> list[str]:
    """Return the addresses that may be connected to, or raise Discard: if one of them is refused, so are all."""
    host = url.raw_host.decode()
    if _literal(host) is not None:
        return [host]
    try:
        addresses = await _resolve(host, url.port or _DEFAULT_PORTS[url.scheme])
    except (OSError, UnicodeError) as error:
        raise DeliveryFailed(f"the name {host} can't be resolved: {error}") from None
    for each in addresses:
        if not (allow_private or _is_public(ip_address(each))):
            raise Discard(f"{host} has the address {each}, which is not public: see `allow_private`")
    if not addresses:
        raise DeliveryFailed(f"the name {host} has no address")
    return addresses


_DEFAULT_PORTS: Final = {"http": 80, "https": 443}


_NO_ANSWER: Final = (httpcore.NetworkError, httpcore.ProtocolError, httpcore.TimeoutException, httpx.HTTPError, OSError)


class _Pinned(httpcore.AsyncNetworkBackend):
    """Connects to addresses that were checked, whatever name it is asked for: that is for TLS and `Host` alone."""

    def __init__(self, addresses: Sequence[str]) -> None:
        self._addresses = addresses[:_ADDRESSES_TRIED]
        backend: Any = httpcore.AnyIOBackend()  # which to type checkers is a stub's
        self._backend: httpcore.AsyncNetworkBackend = backend

    async def connect_tcp(
        self,
        host: str,  # noqa: ARG002 - it was resolved before
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        share = None if timeout is None else timeout / len(self._addresses)
        failure: Exception | None = None
        for address in self._addresses:
            try:
                return await self._backend.connect_tcp(address, port, share, local_address, socket_options)
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
                failure = error
        raise failure or httpcore.ConnectError("no address")


class _Body(httpx.AsyncByteStream):
    """The beginning of what an answer says: behind it the connection is closed."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    async def __aiter__(self) -> AsyncIterator[bytes]:
        left = _ANSWER_READ
        try:
            async for part in self._stream:
                yield part[:left]
                left = max(0, left - len(part))
                if not left:
                    # Iterating goes on, into the closed connection: that ends the generators below, too. Left before
                    # their end they would stay open until they are collected, of which trio warns.
                    await self._stream.aclose()
        except _NO_ANSWER:
            return  # the text of an error is worth no error

    async def aclose(self) -> None:
        await self._stream.aclose()


class _Transport(httpx.AsyncBaseTransport):
    """httpx over connections to checked addresses; errors stay httpcore's."""

    def __init__(self, addresses: Sequence[str], ssl_context: ssl.SSLContext) -> None:
        self._pool = httpcore.AsyncConnectionPool(
            ssl_context=ssl_context, max_connections=1, network_backend=_Pinned(addresses)
        )

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        url = request.url
        answer = await self._pool.handle_async_request(
            httpcore.Request(
                request.method,
                httpcore.URL(scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path),
                headers=request.headers.raw,
                content=cast("AsyncIterator[bytes]", request.stream),
                extensions=request.extensions,
            )
        )
        return httpx.Response(answer.status, headers=answer.headers, stream=_Body(answer.stream))

    async def aclose(self) -> None:
        await self._pool.aclose()


# --- what it says, and what the answer means --------------------------------------------------------


@frozen
class Answer:
    """What a receiver said.

    Attributes:
        retry_after: its header of that name.
        text: the beginning of the body, where it says what is wrong.
    """

    status: int
    retry_after: str | None = None
    text: str = ""


def _body(origin: Origin, result: object, ended_at: datetime) -> bytes:
    error = None if origin.error is None else {"type": origin.error.type, "message": origin.error.message}
    return msgspec.json.encode(
        {
            "type": origin.type,
            "job_id": str(origin.job_id),
            "status": str(origin.status),
            "result": result,
            "error": error,
            "timestamp": ended_at.astimezone(UTC),
        }
    )


def _judge(answer: Answer, host: str, *, now: datetime) -> dict[str, int]:
    """Return the result of a delivery, or raise what ends this attempt, or all of them."""
    if 200 <= answer.status < 300:
        return {"status": answer.status}
    if answer.status == 410:
        raise Discard(f"{host} answered 410: it wants no more of these webhooks")
    said = f": {answer.text}" if answer.text else ""
    if 300 <= answer.status < 400:
        said = ": redirects are not followed; give the URL that it leads to"
    message = f"{host} answered {answer.status}{said}"
    delay = _retry_after(answer.retry_after, now) if answer.status in {429, 503} else None
    if delay is not None:
        raise Retry(message, delay=delay)
    raise DeliveryFailed(message, status=answer.status)


def _retry_after(value: str | None, now: datetime) -> float | None:
    """Return the seconds of a `Retry-After` (RFC 9110, 10.2.3), from one second to an hour; None if it has no sense."""
    if value is None:
        return None
    if re.fullmatch(r"[0-9]{1,15}", value.strip()):
        delay = float(value)
    else:
        try:
            moment = parsedate_to_datetime(value)
        except (ValueError, TypeError, OverflowError):
            return None
        delay = (moment.replace(tzinfo=moment.tzinfo or UTC) - now).total_seconds()
    return min(max(delay, 1.0), RETRY_AFTER_LIMIT)


class Webhooks:
    """Deliveries to HTTP servers, as callbacks: `callbacks=[webhooks.to("https://example.org/hook")]`.

    It registers one task, which runs wherever a worker serves its queue: whoever dispatches and whoever delivers both
    make one of these, and only the secret of the one that delivers is used. A delivery is a job of its own, so that
    nothing that befalls it touches the job whose end it tells.

    Args:
        home: the queue, or the registry, that gets the task.
        secret: what requests are signed with: `whsec_` and Base64, or any other text, or bytes; 24 to 64 random bytes
            are right. Several sign each request, for the time of a rotation.
        type: the job type of deliveries.
        queue: the queue that they go to; None: the default one.
        timeout: seconds for one attempt, from looking up the name to the last byte of the answer that is read.
        max_attempts: at least 1.
        backoff: the delays between them; None: 5 s, 20 s, 80 s, … up to an hour, ± 20 %.
        allow_private: let webhooks go to addresses that are not on the internet: this machine, its network, its
            cloud's metadata. Only where nobody else says what URLs there are.
        ssl_context: for https; None trusts what httpx does (certifi, or `SSL_CERT_FILE` and `SSL_CERT_DIR`).

    Raises:
        OptionInvalid: one of them makes no sense.
        TypeTaken: there is a task of this type: one `Webhooks` is enough for all URLs.
    """

    def __init__(
        self,
        home: Queue | Tasks,
        /,
        *,
        secret: str | bytes | Sequence[str | bytes],
        type: str = "creche.webhook",
        queue: str | None = None,
        timeout: float | timedelta = 10.0,
        max_attempts: int = MAX_ATTEMPTS,
        backoff: Backoff | None = None,
        allow_private: bool = False,
        ssl_context: ssl.SSLContext | None = None,
    ) -> None:
        self._type = type
        self._keys = _keys(secret)
        del secret
        self._timeout = seconds("timeout", timeout, positive=True)
        self._allow_private = allow_private
        self._ssl_context = ssl_context
        register = home.task(type, queue=queue, max_attempts=max_attempts, backoff=backoff or BACKOFF)
        self.task: Final = register(self._deliver)

    def __repr__(self) -> str:
        return f"<Webhooks {self._type!r}>"

    def to(self, url: str, *, on: When = "always") -> Callback:
        """Return a callback that tells `url` how a job ended.

        Args:
            url: http or https, without a name and password. It is stored with the job, and shown to whoever may see it.
            on: after which end: "success", "failure", or "always" (also one that was cancelled).

        Raises:
            OptionInvalid: no such URL, or an address that is not public; a name is looked up when it is delivered.
        """
        _check_url(url, allow_private=self._allow_private)
        return Callback(self.task, on=on, arguments={"url": url})

    async def _deliver(self, job: Job, result: Any, url: str) -> dict[str, int]:
        """Tell `url` how the job ended that this one follows.

        Returns:
            The answer's status, which is some 2xx.

        Raises:
            DeliveryFailed, Retry: this attempt failed.
            Discard: the receiver wants no more, or the URL may not be called.

        Cancelled, it closes its connection at once; the receiver may have got the webhook, and gets it again.
        """
        if job.origin is None:
            raise Discard("it follows no job: a webhook is sent by `callbacks=[webhooks.to(url)]`")
        try:
            target = _check_url(url, allow_private=self._allow_private)
        except OptionInvalid as refused:
            raise Discard(f"its URL may not be called: {refused.rule}") from None
        host = target.raw_host.decode()
        body = _body(job.origin, result, job.created_at)
        headers = _signed_headers(str(job.id), int(time.time()), body, self._keys)
        try:
            with anyio.fail_after(self._timeout):
                answer = await self._post(target, body, headers)
        except TimeoutError:
            raise DeliveryFailed(f"{host} did not answer within {self._timeout:g} s") from None
        except _NO_ANSWER as error:
            reason = str(error) or type(error).__name__
            raise DeliveryFailed(f"{host} gave no answer: {reason}") from None
        return _judge(answer, host, now=datetime.now(UTC))

    async def _post(self, url: httpx.URL, body: bytes, headers: Mapping[str, str]) -> Answer:
        addresses = await _addresses(url, allow_private=self._allow_private)
        if self._ssl_context is None:
            self._ssl_context = httpx.create_ssl_context()
        sent = {
            **headers,
            "content-type": "application/json",
            "user-agent": f"creche/{version('creche')}",
            "accept-encoding": "identity",
        }
        # Without the environment: a proxy would resolve the name once more, where nothing checks it.
        async with (
            httpx.AsyncClient(
                transport=_Transport(addresses, self._ssl_context),
                trust_env=False,
                follow_redirects=False,
                timeout=self._timeout,
            ) as client,
            client.stream("POST", url, content=body, headers=sent) as response,
        ):
            says_why = response.status_code >= 400 and response.status_code != 410
            text = b"".join([part async for part in response.aiter_raw()]) if says_why else b""
            return Answer(
                response.status_code, response.headers.get("retry-after"), text.decode("utf-8", "replace").strip()
            )
