"""From a client's request to a call of its engine, and the engine's refusals in words that clients know."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import orjson

from boxwright_api.errors import ApiError
from boxwright_api.settings import ModelRoute, Offer
from boxwright_api.streams import Events, Stream, Tokens, usage_of

PATHS: dict[Offer, str] = {
    "chat": "/v1/chat/completions",
    "completions": "/v1/completions",
    "embeddings": "/v1/embeddings",
    "responses": "/v1/responses",
    "images": "/v1/images/generations",
}
ENDS: dict[Offer, Literal["done", "response", "closed"]] = {
    "chat": "done",
    "completions": "done",
    "embeddings": "closed",
    "responses": "response",
    "images": "closed",
}

# A code of an engine's error as it may become a label of a figure.
CODE = re.compile(r"^[a-z][a-z0-9_]{0,63}$")
# A plain answer as the client gets it, and what it has cost.
Plain = Callable[[bytes], tuple[bytes, Tokens | None]]


@dataclass(frozen=True, kw_only=True)
class Call:
    """What the engine is asked, and how its answer is handed on. `stream`: the client wants a stream."""

    path: str
    body: bytes
    plain: Plain
    stream: Stream | None = None


def with_defaults(route: ModelRoute, body: dict[str, Any]) -> dict[str, Any]:
    """The body with the route's options where the client has none, also inside of `options`."""
    if not route.options:
        return body
    merged = {**route.options, **{name: value for name, value in body.items() if value is not None}}
    ours, theirs = route.options.get("options"), body.get("options")
    if isinstance(ours, dict) and isinstance(theirs, dict):
        merged["options"] = {**ours, **theirs}
    return merged


def dump(body: dict[str, Any]) -> bytes:
    """The body as it goes to the engine: always written anew, so that the engine reads what was checked here, whatever
    the client's text had twice. Raises ApiError 400 for one that is nested too deep.
    """
    try:
        return orjson.dumps(body)
    except TypeError:
        raise ApiError(400, "invalid_json", "The body is nested too deep.") from None


def openai_plain(data: bytes) -> tuple[bytes, Tokens | None]:
    """An OpenAI-style answer is handed on as it is."""
    try:
        return data, usage_of(orjson.loads(data))
    except orjson.JSONDecodeError:
        return data, None


def openai_call(route: ModelRoute, offer: Offer, body: dict[str, Any], path: str | None = None) -> Call:
    """A call of an engine that speaks the OpenAI API. The usage of a stream is always asked for."""
    asked = {**body, "model": route.upstream_model}
    if not body.get("stream"):
        return Call(path=path or PATHS[offer], body=dump(asked), plain=openai_plain)
    show = False
    if ENDS[offer] == "done":
        options = body.get("stream_options") or {}
        show = bool(options.get("include_usage"))
        asked["stream_options"] = {**options, "include_usage": True}
    return Call(
        path=path or PATHS[offer],
        body=dump(asked),
        plain=openai_plain,
        stream=Events(ENDS[offer], show_usage=show),
    )


def refusal(status: int, data: bytes, retry_after: str | None) -> tuple[int, bytes, str, dict[str, str]]:
    """What the client gets for an engine's error: status, body, code and headers.

    An OpenAI-style body is handed on; other words are put into one. That the engine wants another key than ours is
    nothing the client could cure, and neither is a redirection.
    """
    if status in (401, 403) or not 400 <= status <= 599:
        error = ApiError(
            502, "engine_refused", f"The engine refused the service itself ({status}).", kind="server_error"
        )
        return error.status, error.body(), error.code, {}
    headers = {"Retry-After": retry_after} if retry_after and retry_after.isdigit() else {}
    try:
        body = orjson.loads(data)
    except orjson.JSONDecodeError:
        body = None
    found = body.get("error") if isinstance(body, dict) else None
    if isinstance(found, dict) and isinstance(found.get("message"), str):
        code = found.get("code")
        return status, data, code if isinstance(code, str) and CODE.match(code) else "engine_error", headers
    text = found if isinstance(found, str) else None
    if text is None and isinstance(body, dict):
        text = next((value for name in ("message", "detail") if isinstance(value := body.get(name), str)), None)
    kind = "invalid_request_error" if status < 500 else "server_error"
    error = ApiError(status, "engine_error", (text or f"The engine answered with {status}.")[:2000], kind=kind)
    return status, error.body(), error.code, headers
