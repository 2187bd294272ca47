"""The application: its parts, started and stopped in order, and its addresses."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

from fastapi import APIRouter, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.openapi.utils import get_openapi
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.routing import Route

from boxwright_api import VERSION, admin, documents, health, metrics, routes
from boxwright_api.client import refusal
from boxwright_api.edge import Edge, not_found, quiet
from boxwright_api.errors import ApiError, StoreUnavailable, unavailable
from boxwright_api.library import Library
from boxwright_api.parts import Parts
from boxwright_api.settings import Settings
from boxwright_api.upstream import Upstream

# What is cancelled at the end may still say so to its client, in seconds.
LAST_WORDS = 2.0


def create_app(parts: Parts, *routers: APIRouter) -> FastAPI:
    """The service made of these parts. `routers` are added to it."""
    app = FastAPI(
        title="boxwright API",
        version=VERSION,
        lifespan=_lifespan,
        redirect_slashes=False,
        exception_handlers={
            ApiError: _api_error,
            HTTPException: _http_error,
            RequestValidationError: _invalid,
            StoreUnavailable: _store_away,
        },
    )
    app.state.parts = parts
    app.state.active = set()
    app.router.routes.extend(routes.routes())
    app.include_router(health.router())
    for router in routers:
        app.include_router(router)
    app.router.routes.append(Route("/metrics", metrics.metrics, methods=["GET"]))
    app.add_middleware(Edge)

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            schema = get_openapi(title=app.title, version=app.version, routes=app.routes)
            app.openapi_schema = routes.describe(schema)
        return app.openapi_schema

    # As FastAPI's documentation has it (How To: Extending OpenAPI).
    app.openapi = openapi  # type: ignore[method-assign]
    return app


def create_app_from_settings() -> FastAPI:
    """The service that the settings describe, for uvicorn."""
    from boxwright_api.keys import KeyRing
    from boxwright_api.limits import open_limiter
    from boxwright_api.store import open_store
    from boxwright_api.usage import UsageLog

    settings = Settings()
    store = open_store(settings)
    keys, usage = KeyRing(settings, store), UsageLog(settings, store)
    parts = Parts(settings, store, open_limiter(settings, store), keys, usage)
    return create_app(parts, admin.router(), documents.router())


@contextlib.asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Starts the parts; at the end, first what is under way comes to its end, then its usage is written."""
    parts: Parts = app.state.parts
    async with contextlib.AsyncExitStack() as stack:
        await parts.store.start(parts.keys.forget)
        stack.push_async_callback(parts.store.close)
        await parts.usage.start()
        stack.push_async_callback(parts.usage.close)
        # After the usage log, whose rows are what was spent.
        await parts.limiter.start()
        stack.push_async_callback(parts.limiter.close)
        app.state.upstream = Upstream(parts.settings)
        stack.push_async_callback(app.state.upstream.close)
        app.state.library = None
        if parts.settings.retrieval:
            app.state.library = Library(parts.settings, app.state.upstream)
            stack.push_async_callback(app.state.library.close)
        app.state.warmth = health.Warmth(parts, app.state.upstream)
        app.state.warmth.start()
        stack.push_async_callback(app.state.warmth.close)
        losses = asyncio.create_task(_count_losses(parts))
        stack.callback(losses.cancel)
        yield
        await quiet(app.state.active, LAST_WORDS)


async def _count_losses(parts: Parts) -> None:
    """Lost rows of usage become a figure."""
    counted = 0
    while True:
        await asyncio.sleep(1)
        metrics.USAGE_DROPPED.inc(parts.usage.dropped - counted)
        counted = parts.usage.dropped


async def _api_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)  # noqa: S101 - what the handler is registered for
    return refusal(error)


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)  # noqa: S101 - what the handler is registered for
    if error.status_code == 404:
        return refusal(not_found())
    code = {405: "method_not_allowed", 413: "request_too_large"}.get(error.status_code, "refused")
    return refusal(ApiError(error.status_code, code, f"{error.detail}.", headers=error.headers))


async def _invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)  # noqa: S101 - what the handler is registered for
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"][1:])[:200]
    return refusal(ApiError(400, "invalid_value", f"`{where}`: {first['msg']}.", param=where))


async def _store_away(request: Request, error: Exception) -> Response:
    return refusal(unavailable("store_unavailable", "The database does not answer."))
