"""The service on a socket of this process, with parts that a test has made."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Self

import httpx2 as httpx
import orjson
import uvicorn
from boxwright_api.app import create_app
from boxwright_api.records import UsageRow
from boxwright_api.settings import Settings
from doubles import SECRET, MemoryParts, parts
from fastapi import APIRouter
from stub_engine import StubEngine
from waiting import until

KEY = {"Authorization": f"Bearer {SECRET}"}


def settings(engine: StubEngine, **changes: Any) -> Settings:
    """Settings with four models: plain, ollama, embed (embeddings only) and tied (of an engine with a key)."""
    values: dict[str, Any] = {
        "database": "sqlite:////nonexistent/keys.sqlite",
        "peppers": "1:00",
        "admin_secret": "admin",
        "engine_keys": '{"theirs": "engine-secret"}',
        "models": [
            {"name": "plain", "upstream": engine.url, "model": "gguf"},
            {"name": "ollama", "upstream": engine.url, "engine": "ollama", "model": "qwen3:8b"},
            {"name": "embed", "upstream": engine.url, "offers": ["embeddings"], "engine": "ollama"},
            {"name": "tied", "upstream": engine.url, "key": "theirs", "offers": ["chat", "images"], "warm": False},
        ],
    }
    return Settings(**{**values, **changes})


class Served:
    """It runs in a thread, with the server that production has."""

    def __init__(self, made: MemoryParts, *routers: APIRouter) -> None:
        self.parts = made
        self.app = create_app(made, *routers)
        self.server = uvicorn.Server(
            uvicorn.Config(
                self.app,
                port=0,
                loop="uvloop",
                http="httptools",
                ws="none",
                lifespan="on",
                access_log=False,
                proxy_headers=False,
                server_header=False,
                log_level="warning",
                timeout_graceful_shutdown=int(made.settings.stop_seconds),
            )
        )
        self.url = ""
        self._thread = threading.Thread(target=self.server.run, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        while not self.server.started:
            assert self._thread.is_alive(), "the service did not start"
            time.sleep(0.005)
        self.port = self.server.servers[0].sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        return self

    def __exit__(self, *_: object) -> None:
        self.server.should_exit = True
        self._thread.join(30)

    def stop(self) -> None:
        """As SIGTERM does."""
        self.server.should_exit = True

    def post(self, path: str, body: Any, **more: Any) -> httpx.Response:
        """A request with the key."""
        content = body if isinstance(body, bytes) else orjson.dumps(body)
        more.setdefault("headers", KEY)
        return httpx.post(self.url + path, content=content, timeout=30, **more)

    def row(self, number: int = 1, timeout: float = 30) -> UsageRow:
        """The newest row, when there are so many."""
        return self.rows(number, timeout)[-1]

    def rows(self, number: int, timeout: float = 30) -> list[UsageRow]:
        """All rows, when there are so many."""
        until(lambda: len(self.parts.usage.rows) >= number, timeout)
        assert len(self.parts.usage.rows) == number, self.parts.usage.rows
        return self.parts.usage.rows

    def free(self, timeout: float = 30) -> None:
        """Waits until no place is taken."""
        until(lambda: not self.parts.limiter.taken and not self.parts.limiter.waiting, timeout)


@contextmanager
def served(engine: StubEngine, *routers: APIRouter, **changes: Any) -> Iterator[Served]:
    """The service in front of the stub; models are warm, and the stub has forgotten that."""
    service = Served(parts(settings(engine, **changes)), *routers)
    with service:
        until(lambda: all(service.app.state.warmth.models.values()))
        engine.clear()
        yield service
