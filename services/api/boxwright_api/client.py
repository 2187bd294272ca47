"""The client's side of a request: who it is, what it sends, and when it leaves."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import math
import re
from ipaddress import IPv4Address, IPv6Address, ip_address
from types import TracebackType
from typing import Any, Self

import orjson
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from boxwright_api.errors import ApiError
from boxwright_api.settings import Settings

# How long a body may take to arrive. It holds no place yet, only a connection.
BODY_SECONDS = 60
# What is still read of a body that was refused, so that the client can read the refusal (see `refuse`).
LINGER_BYTES = 1024**2
LINGER_SECONDS = 1.0
# A body of this size is in the socket's buffers anyway.
SMALL = 64 * 1024
PLAIN_NAME = re.compile(r"^[A-Za-z0-9._:@-]{1,64}$")


class ClientGone(Exception):
    """The client has closed the connection."""


def headers(scope: Scope, name: bytes) -> list[str]:
    """All values of a header, by its name in small letters."""
    return [value.decode("latin-1") for key, value in scope["headers"] if key == name]


def authorization(scope: Scope) -> str | None:
    """The Authorization header. Raises ApiError 400 when there are two: one of them is not meant for us."""
    found = headers(scope, b"authorization")
    if len(found) > 1:
        raise ApiError(400, "duplicate_header", "The Authorization header is there twice.")
    return found[0] if found else None


def visitor(scope: Scope, settings: Settings) -> str | None:
    """Whom a per-visitor limit counts: the peer, unless the peer is a proxy that is trusted to say who is behind it."""
    peer = _address(scope["client"][0]) if scope.get("client") else None
    if peer is None or not _trusted(peer, settings):
        return str(peer) if peer else None
    if settings.visitor_header:
        named = headers(scope, settings.visitor_header.lower().encode("latin-1", "replace"))
        if named and named[-1].strip():
            return _short(named[-1].strip())
    # Each proxy appends whom it saw, so the first address from the right that is no trusted proxy is the client.
    hops = [hop for value in headers(scope, b"x-forwarded-for") for hop in value.split(",")]
    for hop in reversed(hops):
        address = _address(hop.strip())
        if address is None:
            break
        peer = address
        if not _trusted(address, settings):
            break
    return str(peer)


def _address(text: str) -> IPv4Address | IPv6Address | None:
    try:
        address = ip_address(text)
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address


def _trusted(address: IPv4Address | IPv6Address, settings: Settings) -> bool:
    return any(address in network for network in settings.trusted_proxies)


def _short(name: str) -> str:
    """A visitor's name becomes part of a key in Redis: as it is when it is plain, else its digest."""
    return name if PLAIN_NAME.match(name) else hashlib.sha256(name.encode("latin-1", "replace")).hexdigest()


class Body:
    """The request's body. `rest` is whether the client may still be sending."""

    def __init__(self, scope: Scope, receive: Receive) -> None:
        declared = headers(scope, b"content-length")
        self._receive = receive
        self.length = int(declared[0]) if declared and declared[0].isdigit() else None
        self.rest = self.length != 0 and bool(declared or headers(scope, b"transfer-encoding"))

    async def read(self, most: int) -> bytes:
        """The whole body. Raises ApiError 413 as soon as it is known to be larger, 408, and ClientGone."""
        if self.length is not None and self.length > most:
            raise _too_large(most)
        parts, size = [], 0
        try:
            async with asyncio.timeout(BODY_SECONDS):
                while True:
                    message = await self._receive()
                    if message["type"] == "http.disconnect":
                        raise ClientGone
                    part = message.get("body", b"")
                    size += len(part)
                    if size > most:
                        raise _too_large(most)
                    parts.append(part)
                    if not message.get("more_body"):
                        self.rest = False
                        return b"".join(parts) if len(parts) != 1 else part
        except TimeoutError:
            message_ = f"The body did not arrive within {BODY_SECONDS} seconds."
            raise ApiError(408, "request_timeout", message_) from None

    async def json(self, most: int) -> Any:
        """The same as JSON. Raises ApiError 400 for what is none: NaN, broken UTF-8 and more than 1024 levels too."""
        data = await self.read(most)
        try:
            return orjson.loads(data)
        except orjson.JSONDecodeError as error:
            raise ApiError(400, "invalid_json", f"The body is not JSON: {error.msg}.") from None

    async def linger(self) -> None:
        """Reads a little more of what the client is sending.

        A socket that is closed with unread data in it is reset, and a reset takes the answer from the client that it
        has not read yet (RFC 9112, 9.6).
        """
        size = 0
        try:
            async with asyncio.timeout(LINGER_SECONDS):
                while size < LINGER_BYTES:
                    message = await self._receive()
                    size += len(message.get("body", b""))
                    if message["type"] == "http.disconnect" or not message.get("more_body"):
                        return
        except TimeoutError:
            return


def _too_large(most: int) -> ApiError:
    return ApiError(413, "request_too_large", f"The request is larger than {most} bytes.")


def error_headers(error: ApiError) -> dict[str, str]:
    """Headers of a refusal: its own, and when to ask again, in whole seconds (RFC 9110, 10.2.3) and never at once."""
    if error.retry_after is None:
        return error.headers
    return {**error.headers, "Retry-After": str(max(1, math.ceil(error.retry_after)))}


def refusal(error: ApiError) -> Response:
    """The same as a response, for handlers that give one back."""
    return Response(error.body(), error.status, error_headers(error), "application/json")


async def refuse(send: Send, error: ApiError, body: Body | None = None) -> None:
    """Answers with an error. When the client is still sending much, the connection ends with it."""
    data = error.body()
    head = [(b"content-type", b"application/json"), (b"content-length", str(len(data)).encode())]
    head += [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in error_headers(error).items()]
    close = body is not None and body.rest and (body.length is None or body.length > SMALL)
    if close:
        head.append((b"connection", b"close"))
    await send({"type": "http.response.start", "status": error.status, "headers": head})
    await send({"type": "http.response.body", "body": data, "more_body": close})
    if close and body is not None:
        await body.linger()
        await send({"type": "http.response.body", "body": b"", "more_body": False})


class Presence:
    """Ends what is inside with ClientGone as soon as the client has closed its connection.

    Starlette listens for that only while it writes; before the first byte of an answer nobody would, and that is as
    long as a model reads its prompt. Nothing else may call `receive` meanwhile.
    """

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._gone = False
        self._over = False

    async def __aenter__(self) -> Self:
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - only false outside of a task
        self._task, self._before = task, task.cancelling()
        self._watcher = asyncio.create_task(self._watch())
        return self

    async def _watch(self) -> None:
        while True:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                break
        if not self._over:
            self._gone = True
            self._task.cancel()

    def over(self) -> None:
        """The answer is complete: from now on the server itself says "disconnect"."""
        self._over = True

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over = True
        self._watcher.cancel()
        if not self._gone:
            return
        if kind is None or not issubclass(kind, asyncio.CancelledError):
            # The cancellation may not have been delivered yet; nobody else may get it.
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(0)
        if self._task.uncancel() <= self._before and (kind is None or issubclass(kind, asyncio.CancelledError)):
            raise ClientGone from None
