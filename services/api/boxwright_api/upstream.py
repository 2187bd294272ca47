"""Connections to the engines."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

import aiohttp
import orjson

from boxwright_api.settings import ModelRoute, Settings

# llama.cpp and vLLM close an idle connection after 5 seconds; it must not be taken up just then.
IDLE_SECONDS = 4.0


class Upstream:
    """One pool of connections for all engines. Nothing of a client's headers reaches an engine."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        keys = settings.engine_keys
        self._keys: dict[str, str] = orjson.loads(keys.get_secret_value()) if keys else {}
        self._tasks: set[asyncio.Task[None]] = set()
        # No limit of connections: the limiter counts. No cookies, no proxy from the environment, no decompression.
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=IDLE_SECONDS),
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=settings.connect_seconds),
            auto_decompress=False,
            trust_env=False,
            headers={"User-Agent": "boxwright-api", "Accept-Encoding": "identity", "Content-Type": "application/json"},
        )

    async def post(
        self, route: ModelRoute, path: str, body: bytes, request_id: str, *, stream: bool
    ) -> aiohttp.ClientResponse:
        """The engine's answer, as soon as its headers are there. Raises aiohttp.ClientError, OSError, TimeoutError."""
        headers = {"X-Request-Id": request_id, "Accept": "text/event-stream" if stream else "application/json"}
        if route.key:
            headers["Authorization"] = f"Bearer {self._keys[route.key]}"
        return await self._session.post(route.upstream + path, data=body, headers=headers, allow_redirects=False)

    async def there(self, route: ModelRoute) -> str:
        """Whether the engine answers at all: what is wrong, or nothing. Raises as `post` does."""
        headers = {"Authorization": f"Bearer {self._keys[route.key]}"} if route.key else {}
        async with self._session.get(f"{route.upstream}/v1/models", headers=headers, allow_redirects=False) as response:
            return "" if response.status == 200 else f"the engine answered {response.status}"

    async def finish(self, work: Coroutine[Any, Any, None]) -> None:
        """Waits for `work`, which goes on when the waiting is cancelled."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        await asyncio.shield(task)

    async def close(self) -> None:
        """Ends what is under way, then all connections."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=2)
        await self._session.close()
