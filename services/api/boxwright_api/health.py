"""Whether the service lives, and whether it is ready: its database and limiter answer, and so did its models once."""

from __future__ import annotations

import asyncio
import logging
from typing import Any, Literal

import aiohttp
import orjson
from fastapi import APIRouter, Request, Response
from pydantic import BaseModel

from boxwright_api import VERSION
from boxwright_api.engines import openai_call, with_defaults
from boxwright_api.errors import ApiError
from boxwright_api.library import Library
from boxwright_api.ollama import ollama_call
from boxwright_api.parts import Parts
from boxwright_api.settings import ModelRoute, Offer
from boxwright_api.upstream import Upstream

log = logging.getLogger("boxwright_api")

# Between two tries to warm a model, in seconds: from, to.
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 10.0
# The least work that makes an engine load a model, in the order of preference.
LEAST: dict[Offer, dict[str, Any]] = {
    "chat": {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1},
    "completions": {"prompt": "Hi", "max_tokens": 1},
    "embeddings": {"input": "Hi"},
    "responses": {"input": "Hi", "max_output_tokens": 16},
}


class Health(BaseModel):
    """GET /api/v1/health."""

    status: Literal["ok"] = "ok"
    instance: str
    version: str
    # "embedded": in the process or in SQLite, for one worker.
    limits: Literal["embedded", "redis"]
    keys: Literal["embedded", "postgresql"]
    workers: int
    # Whether a request can ask for passages of documents. Whether they can be looked up just now is in `Readiness`.
    retrieval: Literal["off", "on"]


class Readiness(BaseModel):
    """GET /api/v1/ready."""

    status: Literal["ready", "not_ready"]
    store: bool
    limiter: bool
    # By model: has it answered? Only models that are warmed.
    models: dict[str, bool]
    # Whether Qdrant answers; null: it is not used. The service is ready without it: only requests that ask for passages
    # need it.
    retrieval: bool | None


class Warmth:
    """Asks each model once, until it has answered."""

    def __init__(self, parts: Parts, upstream: Upstream) -> None:
        self._upstream, self._patience = upstream, parts.settings.first_byte_seconds
        self.models = {route.name: False for route in parts.settings.models if route.warm}
        self._routes = [route for route in parts.settings.models if route.warm]
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """In the background, all at once."""
        self._tasks = [asyncio.create_task(self._warm(route)) for route in self._routes]

    async def close(self) -> None:
        """Give up."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _warm(self, route: ModelRoute) -> None:
        pause, told = FIRST_PAUSE, ""
        while True:
            problem = await self._try(route)
            if not problem:
                self.models[route.name] = True
                log.info("the model %s is warm", route.name)
                return
            if problem != told:
                log.warning("the model %s is not warm yet: %s", route.name, problem)
                told = problem
            await asyncio.sleep(pause)
            pause = min(pause * 2, LONGEST_PAUSE)

    async def _try(self, route: ModelRoute) -> str:
        """What is wrong; empty: it has answered."""
        offer = next((offer for offer in LEAST if offer in route.offers), None)
        try:
            async with asyncio.timeout(self._patience):
                if offer is None:
                    # A picture is no small thing to ask for: only whether the engine is there.
                    return await self._upstream.there(route)
                body = with_defaults(route, {"model": route.name, **LEAST[offer]})
                call = (ollama_call if route.engine == "ollama" else openai_call)(
                    route, offer, {**body, "stream": False}
                )
                response = await self._upstream.post(route, call.path, call.body, "warm-up", stream=False)
                async with response:
                    data = await response.read()
                    if response.status != 200:
                        return f"the engine answered {response.status}"
                answer = orjson.loads(call.plain(data)[0])
                return (
                    "" if isinstance(answer, dict) and not answer.get("error") else "the engine answered with an error"
                )
        except (aiohttp.ClientError, OSError, TimeoutError, ValueError, ApiError) as error:
            return type(error).__name__


def router() -> APIRouter:
    """Both addresses."""
    found = APIRouter(prefix="/api/v1", tags=["health"])

    @found.get("/health", summary="Whether it lives")
    async def health(request: Request) -> Health:
        settings = request.app.state.parts.settings
        return Health(
            instance=settings.instance,
            version=VERSION,
            limits="embedded" if settings.embedded else "redis",
            keys="embedded" if settings.database.startswith("sqlite") else "postgresql",
            workers=settings.workers,
            retrieval="on" if settings.retrieval else "off",
        )

    @found.get("/ready", summary="Whether it is ready", responses={503: {"model": Readiness}})
    async def ready(request: Request, response: Response) -> Readiness:
        parts: Parts = request.app.state.parts
        warmth: Warmth = request.app.state.warmth
        library: Library | None = request.app.state.library
        store, limiter, retrieval = await asyncio.gather(
            parts.store.alive(), parts.limiter.alive(), library.qdrant.alive() if library else _nothing()
        )
        fine = store and (limiter or parts.settings.fail_open) and all(warmth.models.values())
        if not fine:
            response.status_code = 503
        status: Literal["ready", "not_ready"] = "ready" if fine else "not_ready"
        return Readiness(status=status, store=store, limiter=limiter, models=dict(warmth.models), retrieval=retrieval)

    return found


async def _nothing() -> None:
    return None
