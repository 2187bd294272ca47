"""Documents in Qdrant: cut into passages, replaced as a whole, looked up.

What a document is at a moment is said by one point, its record, whose id is made from the name: which upload counts.
Passages are written before the record names them and deleted after it names others; whoever looks up ignores those
that no record names. So a fault at any moment leaves the whole old document or the whole new one. Writers that meet
are told apart by a number that only grows: a record is replaced only by a higher one (`update_filter`, Qdrant 1.16).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any

from boxwright_api import metrics
from boxwright_api.embedding import NoVectors, embed, estimate
from boxwright_api.errors import ApiError, collection_not_allowed, no_passages
from boxwright_api.qdrant import Filter, NoCollection, Point, Qdrant, QdrantUnavailable, any_of, below, is_
from boxwright_api.retrieval import Passage, split
from boxwright_api.settings import Settings
from boxwright_api.streams import Tokens
from boxwright_api.upstream import Upstream

log = logging.getLogger("boxwright_api")

# What is looked for in a payload, and how Qdrant indexes it.
INDEXES = {"kind": "keyword", "document": "keyword", "upload": "keyword", "model": "keyword", "number": "integer"}
# Texts that an engine is given at a time, and passages that are written at a time.
BATCH = 16
# How often is asked again because passages were found that no record names.
TRIES = 8
# A record of a document that is gone is kept so long (microseconds): no upload takes longer.
GONE = 24 * 3600 * 1_000_000
# Names of records are made in this space.
SPACE = uuid.UUID("6f0c9f0e-0f6d-4d0a-9a53-1d9f2f7f3c11")


@dataclass(frozen=True)
class Document:
    """What is known of one."""

    name: str
    passages: int
    characters: int
    # Microseconds since 1970.
    number: int
    model: str


class Lookup:
    """A lookup and what it has cost so far, also when it fails."""

    def __init__(self) -> None:
        self.passages: list[Passage] = []
        self.tokens = Tokens()


class Library:
    """The documents of all collections. Raises ApiError; 503 `retrieval_unavailable` for what is away."""

    def __init__(self, settings: Settings, upstream: Upstream) -> None:
        retrieval = settings.retrieval
        route = settings.route(retrieval.model) if retrieval else None
        if retrieval is None or route is None:
            raise ValueError("`retrieval` is not set")
        self._upstream, self._route = upstream, route
        self._seconds, self._batch_seconds = retrieval.seconds, settings.first_byte_seconds
        self.passages = retrieval.passages
        self.qdrant = Qdrant(settings)
        # One document at a time: an engine that makes vectors for many answers nobody meanwhile.
        self._writing = asyncio.Lock()
        self._tasks: set[asyncio.Task[None]] = set()

    async def close(self) -> None:
        """End all connections."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=2)
        await self.qdrant.close()

    # Looking up.

    async def find(self, lookup: Lookup, collection: str, question: str, count: int, request_id: str) -> None:
        """The passages nearest to the question, the nearest first. Raises ApiError 403 when there is no such
        collection. When it is cancelled, what `lookup` says of tokens is an estimate.
        """
        outcome = "failed"
        try:
            async with asyncio.timeout(self._seconds):
                lookup.tokens = estimate([question])
                vectors, lookup.tokens = await embed(self._upstream, self._route, [question], request_id)
                lookup.passages = await self._nearest(collection, vectors[0], count)
            outcome = "found" if lookup.passages else "nothing"
        except NoCollection:
            outcome = "refused"
            raise collection_not_allowed(collection) from None
        except NoVectors as error:
            if not error.reached:
                lookup.tokens = Tokens()
            raise self._away(str(error)) from None
        except QdrantUnavailable as error:
            raise self._away(str(error)) from None
        except TimeoutError:
            raise self._away(f"no passages within {self._seconds:g} s") from None
        except asyncio.CancelledError:
            outcome = "left"
            raise
        finally:
            metrics.RETRIEVALS.labels(outcome).inc()

    async def _nearest(self, collection: str, vector: list[float], count: int) -> list[Passage]:
        passed_over: set[str] = set()
        good: list[Point] = []
        for _ in range(TRIES):
            filter: Filter = {"must": [is_("kind", "passage")]}
            if passed_over:
                filter["must_not"] = [any_of("upload", sorted(passed_over))]
            hits = await self.qdrant.query(collection, vector, count, filter)
            counts = await self._uploads(collection, {_text(hit, "document") for hit in hits})
            good = [hit for hit in hits if counts.get(_text(hit, "document")) == _text(hit, "upload")]
            if len(good) == len(hits):
                break
            passed_over |= {_text(hit, "upload") for hit in hits} - set(counts.values())
        if any(_text(hit, "model") != self._route.upstream_model for hit in good):
            raise QdrantUnavailable(
                f"the vectors of `{collection}` are of another model than {self._route.upstream_model}: "
                "remove the collection and add its documents again"
            )
        return [Passage(_text(hit, "document"), _number(hit, "part"), _text(hit, "text")) for hit in good]

    async def _uploads(self, collection: str, documents: set[str]) -> dict[str, str]:
        """The upload of each document that counts."""
        if not documents:
            return {}
        names = {_id(name): name for name in documents}
        records = await self.qdrant.points(collection, list(names))
        return {
            names[str(record.get("id"))]: _text(record, "upload")
            for record in records
            if _payload(record).get("kind") == "document" and str(record.get("id")) in names
        }

    # Documents.

    async def collections(self) -> dict[str, list[Document]]:
        """All of them."""
        async with self._told():
            found = {}
            for name in await self.qdrant.collections():
                # One that is deleted just now is not there any more.
                with contextlib.suppress(NoCollection):
                    found[name] = await self._documents(name)
            return found

    async def documents(self, collection: str) -> list[Document]:
        """Those of one, by name."""
        async with self._told(collection):
            return await self._documents(collection)

    async def put(
        self, collection: str, name: str, text: str, request_id: str, ready: Callable[[int, int], Awaitable[None]]
    ) -> tuple[Document, Tokens]:
        """Add the document, or replace it as a whole. `ready` is called with the numbers of passages and tokens before
        anybody can see it; what it raises ends it, and nothing is changed.
        """
        # In a thread, since it may take some time for a book.
        passages = await asyncio.to_thread(split, text)
        if not passages:
            raise ApiError(400, "empty_document", "The document has no text.")
        async with self._told(collection), self._writing:
            model = self._route.upstream_model
            size, before = await self._prepare(collection, name)
            upload, number = uuid.uuid4().hex, _after(before)
            common: dict[str, Any] = {"document": name, "upload": upload, "number": number, "model": model}
            tokens, seen = Tokens(), False
            try:
                for first in range(0, len(passages), BATCH):
                    texts = passages[first : first + BATCH]
                    vectors, cost = await self._embed(texts, request_id)
                    tokens = Tokens(tokens.into + cost.into, 0, tokens.estimated or cost.estimated)
                    size = await self._fit(collection, size, len(vectors[0]))
                    seen = True
                    points: list[Point] = [
                        {
                            "id": str(uuid.uuid4()),
                            "vector": vector,
                            "payload": {**common, "kind": "passage", "part": part, "text": piece},
                        }
                        for part, (vector, piece) in enumerate(zip(vectors, texts, strict=True), first + 1)
                    ]
                    await self.qdrant.upsert(collection, points)
                if await self.qdrant.count(collection, {"must": [is_("upload", upload)]}) != len(passages):
                    # Somebody took the collection away and made it anew.
                    raise _changed()
                await ready(len(passages), tokens.into)
            except BaseException:
                if seen:
                    await self._finish(self._forget(collection, {"must": [is_("upload", upload)]}))
                raise
            assert size is not None  # noqa: S101 - there was at least one batch
            record = {**common, "kind": "document", "passages": len(passages), "characters": len(text)}
            if not await self._record(collection, name, size, record):
                await self._finish(self._forget(collection, {"must": [is_("upload", upload)]}))
                raise _changed()
            await self._finish(self._forget(collection, _older(name, record)))
            return _document(record), tokens

    async def remove(self, collection: str, name: str, ready: Callable[[], Awaitable[None]]) -> None:
        """Take a document away. `ready` is called before."""
        async with self._told(collection), self._writing:
            size, before = await self.qdrant.size(collection), await self._before(collection, name)
            there = before.get("kind") == "document"
            if there:
                await ready()
            # Without the document's name, which is gone with it.
            record = {"kind": "gone", "upload": uuid.uuid4().hex, "number": _after(before)}
            if there and not await self._record(collection, name, size, record):
                raise _changed()
            # Also when it is gone already: what a fault has left is for the next one to clear.
            await self.qdrant.delete(collection, _older(name, record))
            old = [is_("kind", "gone"), below("number", _now() - GONE)]
            await self._finish(self._forget(collection, {"must": old}))
            if not there:
                raise ApiError(404, "document_not_found", f"There is no document {name!r} in {collection}.")

    async def drop(self, collection: str, ready: Callable[[], Awaitable[None]]) -> None:
        """Take a collection away. `ready` is called before."""
        async with self._told(collection), self._writing:
            await self.qdrant.size(collection)
            await ready()
            await self.qdrant.drop(collection)

    # Their parts.

    @contextlib.asynccontextmanager
    async def _told(self, collection: str = "") -> AsyncIterator[None]:
        """What is away, in an administrator's words."""
        try:
            yield
        except NoCollection:
            raise ApiError(404, "collection_not_found", f"There is no collection {collection}.") from None
        except (QdrantUnavailable, NoVectors) as error:
            words = getattr(error, "words", "")
            told = self._away(str(error))
            told.message = f"It cannot be done now: {error}{': ' if words else ''}{words}."
            raise told from None

    def _away(self, reason: str) -> ApiError:
        log.warning("no passages: %s", reason)
        return no_passages()

    async def _documents(self, collection: str) -> list[Document]:
        records = await self.qdrant.scroll(collection, {"must": [is_("kind", "document")]})
        return sorted((_document(_payload(record)) for record in records), key=lambda document: document.name)

    async def _prepare(self, collection: str, name: str) -> tuple[int | None, dict[str, Any]]:
        """The size of the collection's vectors, None where there is none, and what the document's record says now.
        Raises ApiError 409 when the vectors are another model's.
        """
        try:
            size = await self.qdrant.size(collection)
            other = {"must": [is_("kind", "document")], "must_not": [is_("model", self._route.upstream_model)]}
            if found := await self.qdrant.scroll(collection, other, 1):
                raise self._other_model(collection, _text(found[0], "model"))
            return size, await self._before(collection, name)
        except NoCollection:
            return None, {}

    async def _before(self, collection: str, name: str) -> dict[str, Any]:
        """What the document's record says now."""
        found = await self.qdrant.points(collection, [_id(name)])
        return _payload(found[0]) if found else {}

    async def _fit(self, collection: str, size: int | None, wanted: int) -> int:
        """The size of the collection's vectors, which is made when there is none. Raises ApiError 409."""
        if size is None:
            await self.qdrant.create(collection, wanted, INDEXES)
            size = await self.qdrant.size(collection)
        if size != wanted:
            raise self._other_model(collection, f"a model with {size} numbers, not {wanted}")
        return size

    def _other_model(self, collection: str, found: str) -> ApiError:
        message = (
            f"The vectors of {collection} are by {found}; {self._route.upstream_model} makes others, which cannot be "
            "compared with them. Remove the collection and add its documents again, or go back to that model."
        )
        return ApiError(409, "other_embedding_model", message)

    async def _embed(self, texts: Sequence[str], request_id: str) -> tuple[list[list[float]], Tokens]:
        try:
            async with asyncio.timeout(self._batch_seconds):
                return await embed(self._upstream, self._route, texts, request_id)
        except TimeoutError:
            raise NoVectors(f"the engine did not answer within {self._batch_seconds:g} s") from None

    async def _record(self, collection: str, name: str, size: int, record: dict[str, Any]) -> bool:
        """Let the document be this; False: somebody else has a higher number."""
        # Nobody looks for this vector, but each point has one.
        point = {"id": _id(name), "vector": [1.0] + [0.0] * (size - 1), "payload": record}
        await self.qdrant.upsert(collection, [point], {"must": [below("number", record["number"])]})
        return bool((await self._before(collection, name)).get("upload") == record["upload"])

    async def _forget(self, collection: str, filter: Filter) -> None:
        """What nobody is given any more goes; else the next one who writes takes it away."""
        try:
            await self.qdrant.delete(collection, filter)
        except (QdrantUnavailable, NoCollection) as error:
            log.warning("passages that nobody is given any more are left in %s: %s", collection, error)

    async def _finish(self, work: Coroutine[Any, Any, None]) -> None:
        """Waits for `work`, which goes on when the waiting is cancelled."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        await asyncio.shield(task)


def _changed() -> ApiError:
    message = "Somebody else changed this document or its collection meanwhile, and that was kept."
    return ApiError(409, "document_changed", message)


def _now() -> int:
    return time.time_ns() // 1000


def _after(before: dict[str, Any]) -> int:
    """A number above the one before, also when the clock was put back."""
    number = before.get("number")
    return max(_now(), number + 1 if isinstance(number, int) else 0)


def _older(name: str, record: dict[str, Any]) -> Filter:
    """Passages of uploads that can never count any more."""
    return {
        "must": [is_("kind", "passage"), is_("document", name), below("number", record["number"] + 1)],
        "must_not": [is_("upload", record["upload"])],
    }


def _id(name: str) -> str:
    """The id of a document's record."""
    return str(uuid.uuid5(SPACE, name))


def _payload(point: Point) -> dict[str, Any]:
    payload = point.get("payload")
    return payload if isinstance(payload, dict) else {}


def _text(point: Point, name: str) -> str:
    value = _payload(point).get(name)
    return value if isinstance(value, str) else ""


def _number(point: Point, name: str) -> int:
    value = _payload(point).get(name)
    return value if isinstance(value, int) else 0


def _document(payload: dict[str, Any]) -> Document:
    def number(name: str) -> int:
        return _number({"payload": payload}, name)

    name, model = _text({"payload": payload}, "document"), _text({"payload": payload}, "model")
    return Document(name, number("passages"), number("characters"), number("number"), model)
