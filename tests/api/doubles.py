"""The service's database and limiter in memory, only for tests of what stands in front of them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from datetime import UTC, datetime

from boxwright_api.contracts import Span
from boxwright_api.errors import ApiError, StoreUnavailable, busy, invalid_key, unavailable
from boxwright_api.parts import Parts
from boxwright_api.records import Ask, AuditEntry, Key, Ticket, UsageRow, UsageSum
from boxwright_api.settings import Settings

SECRET = "bw_testkey1_" + "s" * 43


def key(id: str = "testkey1", models: tuple[str, ...] | None = None, collections: tuple[str, ...] = ()) -> Key:
    """A key that may use these models, and passages of these collections."""
    now = datetime.now(UTC)
    return Key(id=id, owner="tests", digest=b"", pepper=1, created_at=now, models=models, collections=collections)


class MemoryStore:
    """Keeps the audit log alone; `up` is whether it answers."""

    def __init__(self) -> None:
        self.up = True
        self.entries: list[AuditEntry] = []

    async def start(self, changed: Callable[[str | None], None]) -> None: ...
    async def close(self) -> None: ...
    async def alive(self) -> bool:
        return self.up

    async def key(self, id: str) -> Key | None:
        raise StoreUnavailable

    async def keys(self) -> list[Key]:
        return []

    async def put_key(self, key: Key, audit: AuditEntry) -> None: ...
    async def write_usage(self, rows: Sequence[UsageRow]) -> None: ...
    async def usage(self, since: datetime, until: datetime, span: Span, key_id: str | None = None) -> list[UsageSum]:
        return []

    async def write_audit(self, entry: AuditEntry) -> None:
        if not self.up:
            raise StoreUnavailable
        self.entries.append(entry)

    async def audit(self, limit: int = 100, before: datetime | None = None) -> list[AuditEntry]:
        return []


class MemoryLimiter:
    """Counts places; a request waits for one as long as `wait` seconds."""

    def __init__(self, places: int = 10, wait: float = 0.25) -> None:
        self.places, self.wait = places, wait
        self.up = True
        self.taken: dict[str, Ticket] = {}
        self.asked: list[Ask] = []
        self.tokens = 0
        self.waiting = 0
        # Raised instead of an admission.
        self.refusal: ApiError | None = None
        self._free = asyncio.Condition()

    async def start(self) -> None: ...
    async def close(self) -> None: ...
    async def alive(self) -> bool:
        return self.up

    async def admit(self, ask: Ask) -> Ticket:
        self.asked.append(ask)
        if self.refusal:
            raise self.refusal
        if not self.up:
            raise unavailable("limiter_unavailable", "Limits cannot be counted now.")
        self.waiting += 1
        try:
            async with asyncio.timeout(self.wait), self._free:
                await self._free.wait_for(lambda: len(self.taken) < self.places)
                headers = {"x-ratelimit-limit-requests": "60"}
                ticket = Ticket(request_id=ask.request_id, key_id=ask.key_id, queue_ms=0.1, headers=headers)
                self.taken[ask.request_id] = ticket
                return ticket
        except TimeoutError:
            raise busy(1, {"x-ratelimit-limit-requests": "60"}) from None
        finally:
            self.waiting -= 1

    async def release(self, ticket: Ticket, tokens: int) -> None:
        del self.taken[ticket.request_id]
        self.tokens += tokens
        async with self._free:
            self._free.notify_all()

    async def in_flight(self) -> int:
        return len(self.taken)


class MemoryKeys:
    """Knows the keys it is given, by the whole header."""

    def __init__(self) -> None:
        self.known = {f"Bearer {SECRET}": key()}
        self.up = True

    async def authenticate(self, authorization: str | None) -> Key:
        if not self.up:
            raise unavailable("store_unavailable", "Keys cannot be checked now.")
        if authorization is None or authorization not in self.known:
            raise invalid_key()
        return self.known[authorization]

    def forget(self, id: str | None) -> None: ...


class MemoryUsage:
    """Keeps the rows."""

    def __init__(self) -> None:
        self.rows: list[UsageRow] = []
        self.closed_with: int | None = None
        self.full = False
        self.dropped = 0

    async def start(self) -> None: ...

    async def close(self) -> None:
        self.closed_with = len(self.rows)

    def put(self, row: UsageRow) -> None:
        self.rows.append(row)

    def check(self) -> None:
        if self.full:
            raise unavailable("usage_unavailable", "Usage cannot be recorded now.")


class MemoryParts(Parts):
    """All of them, with their own types."""

    store: MemoryStore
    limiter: MemoryLimiter
    keys: MemoryKeys
    usage: MemoryUsage


def parts(settings: Settings) -> MemoryParts:
    """Parts in memory for these settings."""
    limiter = MemoryLimiter(settings.in_flight, settings.wait_ms / 1000)
    return MemoryParts(settings, MemoryStore(), limiter, MemoryKeys(), MemoryUsage())
