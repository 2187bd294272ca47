"""What every request passes first: its id, and what is refused before anybody looks at it. Plain ASGI throughout."""

from __future__ import annotations

import asyncio
import logging
import re
import secrets
import traceback
from datetime import UTC, datetime
from ipaddress import ip_address
from typing import Any
from urllib.parse import parse_qsl

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from boxwright_api import metrics
from boxwright_api.client import Body, headers, refuse
from boxwright_api.engines import PATHS
from boxwright_api.errors import ApiError
from boxwright_api.records import UsageRow

log = logging.getLogger("boxwright_api")

# For people and programs on the box itself.
INSIDE = ("/admin", "/metrics", "/docs", "/redoc", "/openapi.json")
# Set by proxies and tunnels: whoever came through one is not on the box (cloudflared sets cf-*).
PROXY = re.compile(rb"^(?:forwarded|via|x-forwarded-.+|x-real-ip|cf-.+|tailscale-.+)$")
# A key does not belong in an address: addresses are logged by every proxy on the way.
KEY_NAMES = frozenset(("key", "api_key", "api-key", "apikey", "access_token", "token", "authorization"))
KEY_VALUE = re.compile(r"bw_[A-Za-z0-9]{8}_")


# What a row of usage calls an address; never a client's own words, which would be labels of figures without number.
ROUTES = {path: offer for offer, path in PATHS.items()} | {"/v1/models": "models"}


class Edge:
    """The outermost part."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        # Always our own: a client that could choose it could make its row of usage the copy of another.
        id = f"req_{secrets.token_hex(12)}"
        scope["boxwright.request_id"] = id
        mark = (b"x-request-id", id.encode())
        started = False

        async def marked(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                message["headers"] = [*message.get("headers", ()), mark]
            await send(message)

        try:
            if error := _refused(scope):
                if scope["path"].startswith("/v1/"):
                    note(scope, error)
                await refuse(marked, error, Body(scope, receive))
            else:
                await self._app(scope, receive, marked)
        except Exception as error:
            # Without the exception's text, which may quote a client's data.
            where = "".join(traceback.format_tb(error.__traceback__))
            log.error("request %s failed: %s\n%s", id, type(error).__name__, where)
            if not started:
                message = f"Something went wrong here; the log has it as {id}."
                await refuse(marked, ApiError(500, "internal_error", message, kind="server_error"))


def _refused(scope: Scope) -> ApiError | None:
    path: str = scope["path"]
    if path.startswith(INSIDE) and not _inside(scope):
        return not_found()
    query: bytes = scope["query_string"]
    if query:
        for name, value in parse_qsl(query.decode("latin-1"), keep_blank_values=True):
            if name.lower() in KEY_NAMES or KEY_VALUE.search(value) or KEY_VALUE.search(name):
                message = "A key in an address is in the logs of everybody on the way: send it as Authorization header."
                return ApiError(400, "key_in_query", message)
    return None


def _inside(scope: Scope) -> bool:
    """Whether it was sent on the box to the service itself."""
    hosts = headers(scope, b"host")
    return len(hosts) == 1 and _loopback(hosts[0]) and not any(PROXY.match(name) for name, _ in scope["headers"])


def _loopback(host: str) -> bool:
    name = host[: host.rindex("]") + 1] if "]" in host else host.partition(":")[0]
    if name.lower() == "localhost":
        return True
    try:
        return ip_address(name.strip("[]")).is_loopback
    except ValueError:
        return False


def not_found() -> ApiError:
    """There is no such address, or not for this client."""
    return ApiError(404, "not_found", "There is nothing at this address.")


def note(scope: Scope, error: ApiError | None, **more: Any) -> None:
    """The row of usage of a request that no engine had to do with."""
    status = error.status if error else 200
    row = UsageRow(
        request_id=scope["boxwright.request_id"],
        at=datetime.now(UTC),
        route=more.pop("route", None) or ROUTES.get(scope["path"], "other"),
        key_id=more.pop("key_id", None),
        model=None,
        status=status,
        outcome="refused" if error else "ok",
        code=error.code if error else None,
        **more,
    )
    scope["app"].state.parts.usage.put(row)
    metrics.count(row)


async def quiet(active: set[Any], seconds: float) -> None:
    """Waits until nothing is under way."""
    deadline = asyncio.get_running_loop().time() + seconds
    while active and asyncio.get_running_loop().time() < deadline:
        await asyncio.sleep(0.01)
