"""The addresses of the OpenAI API, and their description in /openapi.json."""

from __future__ import annotations

from typing import Any

import orjson
from pydantic.json_schema import models_json_schema
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from boxwright_api.client import authorization, refuse
from boxwright_api.edge import note
from boxwright_api.engines import PATHS
from boxwright_api.errors import ApiError, unknown_model
from boxwright_api.parts import Parts
from boxwright_api.records import Key
from boxwright_api.relay import Relay
from boxwright_api.schemas import ASKED
from boxwright_api.settings import ModelRoute, Offer

SUMMARIES: dict[Offer, str] = {
    "chat": "Answer a chat",
    "completions": "Continue a text",
    "embeddings": "Turn texts into vectors",
    "responses": "Answer with the Responses API",
    "images": "Make pictures",
}


class Models:
    """GET /v1/models and /v1/models/{id}: what the key may use."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        parts: Parts = scope["app"].state.parts
        key: Key | None = None
        try:
            key = await parts.keys.authenticate(authorization(scope))
            parts.usage.check()
            name = scope["path_params"].get("id")
            found = [route for route in parts.settings.models if key.models is None or route.name in key.models]
            if name is None:
                answer: dict[str, Any] = {"object": "list", "data": [_model(route) for route in found]}
            else:
                answer = next((_model(route) for route in found if route.name == name), {})
                if not answer:
                    raise unknown_model(name[:128])
        except ApiError as error:
            note(scope, error, route="models", key_id=key.id if key else None)
            await refuse(send, error)
            return
        note(scope, None, route="models", key_id=key.id)
        data = orjson.dumps(answer)
        head = [(b"content-type", b"application/json"), (b"content-length", str(len(data)).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": head})
        await send({"type": "http.response.body", "body": data})


def _model(route: ModelRoute) -> dict[str, Any]:
    # The number is there because clients expect one; nobody knows when a model was made.
    return {"id": route.name, "object": "model", "created": 0, "owned_by": "boxwright", "offers": list(route.offers)}


def routes() -> list[Route]:
    """All of them."""
    found = [Route(path, Relay(offer), methods=["POST"], name=offer) for offer, path in PATHS.items()]
    models = Models()
    return [
        *found,
        Route("/v1/models", models, methods=["GET"], name="models"),
        Route("/v1/models/{id:path}", models, methods=["GET"], name="model"),
    ]


def describe(schema: dict[str, Any]) -> dict[str, Any]:
    """Adds them to a description of the service."""
    refs, definitions = models_json_schema(
        [(model, "validation") for model in ASKED.values()], ref_template="#/components/schemas/{model}"
    )
    components = schema.setdefault("components", {})
    components.setdefault("schemas", {}).update(definitions["$defs"])
    components["schemas"] |= {"Refusal": _REFUSAL, "Model": _MODEL}
    components.setdefault("securitySchemes", {})["key"] = {"type": "http", "scheme": "bearer", "bearerFormat": "bw_..."}
    paths = schema.setdefault("paths", {})
    for offer, path in PATHS.items():
        good: dict[str, Any] = {"description": "The engine's answer.", "content": _answers(offer)}
        if offer == "chat":
            good["headers"] = {"x-boxwright-passages": _PASSAGES}
        answers = {"200": good}
        paths[path] = {
            "post": {
                "operationId": offer,
                "summary": SUMMARIES[offer],
                "tags": ["openai"],
                "security": [{"key": []}],
                "requestBody": {
                    "required": True,
                    "content": {"application/json": {"schema": refs[ASKED[offer], "validation"]}},
                },
                "responses": answers | _refusals(400, 401, 403, 404, 408, 413, 429, 500, 502, 503, 504),
            }
        }
    many = {"type": "object", "properties": {"data": {"type": "array", "items": {"$ref": _schema("Model")}}}}
    paths["/v1/models"] = {"get": _read("models", "Models that the key may use", many, 401, 503)}
    one = _read("model", "One of them", {"$ref": _schema("Model")}, 401, 404, 503)
    one["parameters"] = [{"name": "id", "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}]
    paths["/v1/models/{id}"] = {"get": one}
    return schema


def _read(id: str, summary: str, answer: dict[str, Any], *refused: int) -> dict[str, Any]:
    content = {"application/json": {"schema": answer}}
    return {
        "operationId": id,
        "summary": summary,
        "tags": ["openai"],
        "security": [{"key": []}],
        "responses": {"200": {"description": "Found.", "content": content}} | _refusals(400, *refused),
    }


def _answers(offer: Offer) -> dict[str, Any]:
    content: dict[str, Any] = {"application/json": {"schema": {"type": "object"}}}
    if offer != "embeddings":
        content["text/event-stream"] = {"schema": {"type": "string"}}
    return content


def _refusals(*statuses: int) -> dict[str, Any]:
    content = {"application/json": {"schema": {"$ref": _schema("Refusal")}}}
    return {str(status): {"description": "Refused.", "content": content} for status in statuses}


def _schema(name: str) -> str:
    return f"#/components/schemas/{name}"


_PASSAGES: dict[str, Any] = {
    "description": "How many passages the model was given; only where the request has `retrieval`.",
    "schema": {"type": "integer", "minimum": 0},
}
_REFUSAL: dict[str, Any] = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": ["string", "null"]},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "integer", "null"]},
            },
        }
    },
}
_MODEL: dict[str, Any] = {
    "type": "object",
    "required": ["id", "object", "created", "owned_by"],
    "properties": {
        "id": {"type": "string"},
        "object": {"const": "model"},
        "created": {"type": "integer"},
        "owned_by": {"type": "string"},
        "offers": {"type": "array", "items": {"type": "string"}},
    },
}
