"""The admin API of documents, below /admin/collections: what requests of clients can ask for passages of."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Annotated, Any

from fastapi import APIRouter, Path, Request
from pydantic import BaseModel, Field

from boxwright_api.admin import Actor, AdminRoute, admin_router, parts_of
from boxwright_api.errors import ApiError
from boxwright_api.library import Document, Library
from boxwright_api.records import AuditEntry
from boxwright_api.retrieval import LONGEST_NAME, CollectionName, document_name

# Bytes of a document: a book. What is larger is better found in parts.
LARGEST_DOCUMENT = 1024**2
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

Collection = Annotated[CollectionName, Path(description="Small letters, digits, - and _.")]
Name = Annotated[
    str, Path(min_length=1, max_length=4 * LONGEST_NAME, description="Any printable text, also with slashes.")
]


class Stored(BaseModel):
    """A document."""

    name: str
    passages: int
    characters: int
    added_at: datetime
    model: str = Field(description="What its vectors were made with.")


class Put(Stored):
    """A document that was put."""

    tokens: int = Field(description="What its vectors have cost.")


class Gathered(BaseModel):
    """A collection."""

    name: str
    documents: int
    passages: int
    models: list[str]


class Removed(BaseModel):
    """What is gone."""

    name: str


class TextRoute(AdminRoute):
    """A route that takes a document."""

    text = LARGEST_DOCUMENT


_routes = admin_router("/admin/collections", TextRoute)


def router() -> APIRouter:
    """All routes below /admin/collections."""
    return _routes


@_routes.get("")
async def list_collections(request: Request) -> list[Gathered]:
    """All collections."""
    found = await _library(request).collections()
    return [
        Gathered(
            name=name,
            documents=len(documents),
            passages=sum(document.passages for document in documents),
            models=sorted({document.model for document in documents}),
        )
        for name, documents in found.items()
    ]


@_routes.delete("/{collection}")
async def remove_collection(request: Request, collection: Collection, actor: Actor) -> Removed:
    """Take a collection away, with all its documents. Keys that may read it may read one of the same name again."""

    async def ready() -> None:
        await _note(request, actor, "collection.remove", collection, {})

    await _library(request).drop(collection, ready)
    return Removed(name=collection)


@_routes.get("/{collection}/documents")
async def list_documents(request: Request, collection: Collection) -> list[Stored]:
    """The documents of a collection, by name."""
    return [Stored(**_stored(document)) for document in await _library(request).documents(collection)]


@_routes.put(
    "/{collection}/documents/{name:path}",
    openapi_extra={
        "requestBody": {
            "required": True,
            "description": f"The text, in UTF-8; at most {LARGEST_DOCUMENT} bytes.",
            "content": {"text/plain": {"schema": {"type": "string", "minLength": 1}}},
        }
    },
)
async def put_document(request: Request, collection: Collection, name: Name, actor: Actor) -> Put:
    """Add a document, or replace it: until the new one is complete, the old one is found. The first one makes the
    collection.
    """
    library, name = _library(request), _name(name)
    text = _text(await request.body())

    async def ready(passages: int, tokens: int) -> None:
        details = {"passages": passages, "tokens": tokens, "characters": len(text)}
        await _note(request, actor, "document.put", f"{collection}/{name}", details)

    document, tokens = await library.put(collection, name, text, request.scope["boxwright.request_id"], ready)
    return Put(**_stored(document), tokens=tokens.into)


@_routes.delete("/{collection}/documents/{name:path}")
async def remove_document(request: Request, collection: Collection, name: Name, actor: Actor) -> Removed:
    """Take a document away."""
    library, name = _library(request), _name(name)

    async def ready() -> None:
        await _note(request, actor, "document.remove", f"{collection}/{name}", {})

    await library.remove(collection, name, ready)
    return Removed(name=name)


def _library(request: Request) -> Library:
    library: Library | None = request.app.state.library
    if library is None:
        raise ApiError(400, "retrieval_not_available", "This service has no documents: `retrieval` is not set.")
    return library


async def _note(request: Request, actor: str, action: str, target: str, details: dict[str, Any]) -> None:
    """The audit log has it before it is done: nothing is done that it does not have. Raises StoreUnavailable."""
    entry = AuditEntry(at=datetime.now(UTC), actor=actor, action=action, target=target, details=details)
    await parts_of(request).store.write_audit(entry)


def _name(name: str) -> str:
    try:
        return document_name(name)
    except ValueError as error:
        raise ApiError(400, "invalid_request", f"name: {error}.", param="name") from None


def _text(body: bytes) -> str:
    try:
        text = body.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = "\0"
    if "\0" in text:
        raise ApiError(400, "not_text", "The document is not plain text in UTF-8; turn it into text first.")
    return text


def _stored(document: Document) -> dict[str, Any]:
    return {
        "name": document.name,
        "passages": document.passages,
        "characters": document.characters,
        "added_at": EPOCH + timedelta(microseconds=document.number),
        "model": document.model,
    }
