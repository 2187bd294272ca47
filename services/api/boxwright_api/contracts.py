"""What the service needs of its database and of its limiter. Each has two implementations; tests run on both."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Literal, Protocol

from boxwright_api.records import Ask, AuditEntry, Key, Ticket, UsageRow, UsageSum

Span = Literal["hour", "day", "month"]


class Store(Protocol):
    """Keys, usage and the audit log. Every method raises StoreUnavailable when the database does not answer."""

    async def start(self, changed: Callable[[str | None], None]) -> None:
        """Connect. `changed` is called with the id of a key that was altered, here or by another worker or program,
        within a second; with None when changes may have been missed. Does not fail when the database is away: it goes
        on trying. A schema that is not the expected one is an error.
        """

    async def close(self) -> None:
        """Disconnect."""

    async def alive(self) -> bool:
        """Whether the database answers; never raises, and takes a second at most."""

    async def key(self, id: str) -> Key | None:
        """The key, also a revoked one."""

    async def keys(self) -> list[Key]:
        """All keys, the newest first."""

    async def put_key(self, key: Key, audit: AuditEntry) -> None:
        """Insert or replace the key, with its audit entry, in one transaction. A revoked key stays revoked. Raises
        KeyChanged, and writes nothing, when the key has a `version` and is no longer what was read as that; 0 is a key
        that must not be there yet.
        """

    async def write_usage(self, rows: Sequence[UsageRow]) -> None:
        """Insert rows; one that is there already (same request id and time) is left as it is."""

    async def usage(self, since: datetime, until: datetime, span: Span, key_id: str | None = None) -> list[UsageSum]:
        """Sums by span (UTC), key and model, oldest first."""

    async def write_audit(self, entry: AuditEntry) -> None:
        """Append to the audit log."""

    async def audit(self, limit: int = 100, before: datetime | None = None) -> list[AuditEntry]:
        """The newest entries first."""


class Limiter(Protocol):
    """Who may begin. Counts are exact over workers, reloads and a killed worker (its leases run out)."""

    async def start(self) -> None:
        """Connect, and renew the leases of this worker from now on. Does not fail when Redis is away."""

    async def close(self) -> None:
        """Stop; leases that are left are given back."""

    async def alive(self) -> bool:
        """Whether it can count; never raises, and takes a second at most."""

    async def admit(self, ask: Ask) -> Ticket:
        """Take a place, waiting up to `wait_ms` in the order of arrival. Raises ApiError: 429 with one of the codes
        chat_concurrency_limit (all places taken), key_concurrency_limit, rate_limit_exceeded (requests),
        token_limit_exceeded (tokens per minute), token_budget_exceeded (day, month), visitor_limit_exceeded,
        breaker_open; 503 limiter_unavailable. A cancelled wait takes no place. A request refused counts nowhere.
        """

    async def release(self, ticket: Ticket, tokens: int) -> None:
        """Give the place back at once and count the tokens. Called once, also when the client has left; never raises,
        and must be safe to call during cancellation (it does not wait for Redis longer than a second).
        """

    async def in_flight(self) -> int:
        """Places that are taken now, in all workers."""


class Keys(Protocol):
    """Who a client is (`keys.KeyRing`)."""

    async def authenticate(self, authorization: str | None) -> Key:
        """The key of an `Authorization` header. Raises ApiError 401 invalid_api_key, and 503 store_unavailable when the
        database is away and the key was not seen within `key_stale_seconds`.
        """

    def forget(self, id: str | None) -> None:
        """What the store calls when a key has changed; None: all of them may have."""


class Usage(Protocol):
    """The usage log (`usage.UsageLog`)."""

    # Rows that were lost, since the start.
    dropped: int

    async def start(self) -> None:
        """Write from now on, first what an earlier process has spilled."""

    async def close(self) -> None:
        """Write what is left, to the database, else to the spill."""

    def put(self, row: UsageRow) -> None:
        """Takes a row; never waits and never raises."""

    def check(self) -> None:
        """Raises ApiError 503 usage_unavailable when rows can be kept nowhere any more."""
