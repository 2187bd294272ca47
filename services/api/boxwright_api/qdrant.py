"""Qdrant's REST API, as far as passages need it (docs/redoc/v1.18.x/openapi.json in its repository)."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import aiohttp
import orjson

from boxwright_api.settings import Settings

# Seconds of silence: a lookup, and what writes.
READ_SECONDS = 5.0
WRITE_SECONDS = 60.0
ALIVE_SECONDS = 1.0
# Qdrant's server (actix-web) closes an idle connection after 5 seconds; it must not be taken up just then.
IDLE_SECONDS = 4.0
# Points of a page, where all are read.
PAGE = 1000

Filter = dict[str, Any]
Point = dict[str, Any]


class QdrantUnavailable(Exception):
    """It does not answer, or not as it should. The text has no part of a document."""


class NoCollection(Exception):
    """There is no such collection."""


def is_(key: str, value: str) -> dict[str, Any]:
    """A condition of a filter."""
    return {"key": key, "match": {"value": value}}


def any_of(key: str, values: Sequence[str]) -> dict[str, Any]:
    """A condition of a filter."""
    return {"key": key, "match": {"any": list(values)}}


def below(key: str, value: int) -> dict[str, Any]:
    """A condition of a filter."""
    return {"key": key, "range": {"lt": value}}


class Qdrant:
    """One pool of connections. Every method raises QdrantUnavailable, and those about one collection NoCollection.

    `url` is where it listens; collections are named without the prefix.
    """

    def __init__(self, settings: Settings) -> None:
        retrieval, key = settings.retrieval, settings.retrieval_key
        if retrieval is None:
            raise ValueError("`retrieval` is not set")
        self._url, self._prefix = retrieval.url, retrieval.prefix
        headers = {"User-Agent": "boxwright-api", "Content-Type": "application/json"}
        if key is not None and key.get_secret_value():
            headers["api-key"] = key.get_secret_value()
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=IDLE_SECONDS),
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=settings.connect_seconds),
            trust_env=False,
            headers=headers,
        )

    async def close(self) -> None:
        """End all connections."""
        await self._session.close()

    async def alive(self) -> bool:
        """Whether it answers to our key; never raises."""
        try:
            await self._ask("GET", "/collections", seconds=ALIVE_SECONDS)
        except (QdrantUnavailable, NoCollection):
            return False
        return True

    async def collections(self) -> list[str]:
        """Those with our prefix."""
        found = await self._ask("GET", "/collections")
        names = [one["name"] for one in _list(found, "collections") if isinstance(one.get("name"), str)]
        return sorted(name.removeprefix(self._prefix) for name in names if name.startswith(self._prefix))

    async def size(self, collection: str) -> int:
        """How many numbers its vectors have."""
        found = await self._ask("GET", self._path(collection))
        try:
            size = found["config"]["params"]["vectors"]["size"]
        except (KeyError, TypeError):
            size = None
        if not isinstance(size, int):
            raise QdrantUnavailable("a collection has vectors of another kind than ours")
        return size

    async def create(self, collection: str, size: int, indexes: dict[str, str]) -> None:
        """Make it, with indexes over its payload (field and kind); one that is there already stays as it is."""
        vectors = {"vectors": {"size": size, "distance": "Cosine"}}
        # 409: somebody else was quicker.
        await self._ask("PUT", self._path(collection), vectors, seconds=WRITE_SECONDS, fine=(409,))
        for field, kind in indexes.items():
            body = {"field_name": field, "field_schema": kind}
            await self._ask("PUT", f"{self._path(collection)}/index?wait=true", body, seconds=WRITE_SECONDS)

    async def drop(self, collection: str) -> None:
        """Delete it."""
        await self._ask("DELETE", self._path(collection), seconds=WRITE_SECONDS)

    async def query(self, collection: str, vector: Sequence[float], limit: int, filter: Filter) -> list[Point]:
        """The nearest points, the nearest first."""
        body = {"query": list(vector), "limit": limit, "filter": filter, "with_payload": True}
        return _list(await self._ask("POST", f"{self._path(collection)}/points/query", body), "points")

    async def points(self, collection: str, ids: Sequence[str]) -> list[Point]:
        """Those of these points that are there."""
        body = {"ids": list(ids), "with_payload": True, "with_vector": False}
        return _points(await self._ask("POST", f"{self._path(collection)}/points", body))

    async def scroll(self, collection: str, filter: Filter, most: int | None = None) -> list[Point]:
        """All points that fit, or `most` of them."""
        found: list[Point] = []
        body: dict[str, Any] = {"filter": filter, "with_payload": True, "with_vector": False}
        while True:
            body["limit"] = PAGE if most is None else min(PAGE, most - len(found))
            page = await self._ask("POST", f"{self._path(collection)}/points/scroll", body)
            found += _list(page, "points")
            body["offset"] = page.get("next_page_offset")
            if body["offset"] is None or (most is not None and len(found) >= most):
                return found

    async def count(self, collection: str, filter: Filter) -> int:
        """How many points fit, exactly."""
        found = await self._ask("POST", f"{self._path(collection)}/points/count", {"filter": filter, "exact": True})
        if not isinstance(found, dict) or not isinstance(found.get("count"), int):
            raise QdrantUnavailable("Qdrant's answer has no count")
        return int(found["count"])

    async def upsert(self, collection: str, points: Sequence[Point], only: Filter | None = None) -> None:
        """Insert points, or replace those that are there and fit `only`."""
        body: dict[str, Any] = {"points": list(points)}
        if only is not None:
            body["update_filter"] = only
        await self._write("PUT", f"{self._path(collection)}/points", body)

    async def delete(self, collection: str, filter: Filter) -> None:
        """Delete all points that fit."""
        await self._write("POST", f"{self._path(collection)}/points/delete", {"filter": filter})

    def _path(self, collection: str) -> str:
        # Neither has a character that an address could take for something else.
        return f"/collections/{self._prefix}{collection}"

    async def _write(self, method: str, path: str, body: dict[str, Any]) -> None:
        found = await self._ask(method, f"{path}?wait=true&ordering=strong", body, seconds=WRITE_SECONDS)
        # "acknowledged" and "wait_timeout" are promises.
        if not isinstance(found, dict) or found.get("status") != "completed":
            raise QdrantUnavailable("Qdrant did not complete a write in time")

    async def _ask(
        self,
        method: str,
        path: str,
        body: dict[str, Any] | None = None,
        *,
        seconds: float = READ_SECONDS,
        fine: tuple[int, ...] = (),
    ) -> Any:
        """The answer's `result`."""
        data = None if body is None else orjson.dumps(body)
        try:
            async with (
                asyncio.timeout(seconds),
                self._session.request(method, self._url + path, data=data, allow_redirects=False) as response,
            ):
                text = await response.read()
        except TimeoutError:
            raise QdrantUnavailable(f"Qdrant did not answer within {seconds:g} s") from None
        except (aiohttp.ClientError, OSError) as error:
            raise QdrantUnavailable(f"Qdrant cannot be asked: {type(error).__name__}") from None
        try:
            answer = orjson.loads(text)
        except orjson.JSONDecodeError:
            answer = None
        if not isinstance(answer, dict) or "status" not in answer:
            # Also a wrong key, which it refuses in plain words. They are not repeated: they may quote what was sent.
            raise QdrantUnavailable(f"Qdrant, or what answers in its place, gave {response.status} and not its JSON")
        if response.status == 404:
            raise NoCollection
        if response.status in fine:
            return None
        if response.status != 200 or "result" not in answer:
            raise QdrantUnavailable(f"Qdrant answered {response.status}")
        return answer["result"]


def _list(found: Any, name: str) -> list[dict[str, Any]]:
    return _points(found.get(name) if isinstance(found, dict) else None)


def _points(found: Any) -> list[dict[str, Any]]:
    if not isinstance(found, list) or not all(isinstance(one, dict) for one in found):
        raise QdrantUnavailable("Qdrant's answer has no list where one is expected")
    return found
