"""Records as rows of a table and back; what differs between the databases is how a time is written."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

from boxwright_api.records import AuditEntry, Key, UsageRow
from boxwright_api.settings import KeyLimits

# The newest migration: what both stores expect to find.
REVISION = "0003"

LIMITS = tuple(KeyLimits.model_fields)
KEY = (
    *("id", "owner", "digest", "pepper", "created_at", "old_digest", "old_pepper", "old_until", "expires_at"),
    *("revoked_at", "models", "collections"),
    *LIMITS,
    "version",
)
AUDIT = ("at", "actor", "action", "target", "details")
USAGE = (
    *("request_id", "at", "key_id", "route", "model", "status", "outcome", "code"),
    *("tokens_in", "tokens_out", "estimated", "queue_ms", "first_ms", "total_ms"),
)

# Of texts that a client chose, such as the name of a model, so much is kept.
TEXT = 200
LARGEST = 2**63 - 1


def text(value: str) -> str:
    """A text that every database takes: PostgreSQL has no NUL, and no UTF-8 has half a surrogate pair."""
    return value[:TEXT].encode("utf-8", "replace").decode().replace("\0", "\N{REPLACEMENT CHARACTER}")


def kept_since(now: datetime, months: int) -> datetime | None:
    """When the first of so many calendar months began, the one of `now` included, in UTC. None for 0: all are kept."""
    if not months:
        return None
    year, month = divmod(now.astimezone(UTC).year * 12 + now.astimezone(UTC).month - months, 12)
    return datetime(year, month + 1, 1, tzinfo=UTC)


def key_values(key: Key, time: Callable[[datetime], Any]) -> list[Any]:
    """The columns KEY of a key."""

    def when(value: datetime | None) -> Any:
        return None if value is None else time(value)

    return [
        *(key.id, key.owner, key.digest, key.pepper, time(key.created_at)),
        *(key.old_digest, key.old_pepper, when(key.old_until), when(key.expires_at), when(key.revoked_at)),
        *(None if key.models is None else json.dumps(key.models), json.dumps(key.collections)),
        *(getattr(key.limits, name) for name in LIMITS),
        (key.version or 0) + 1,
    ]


def key(row: Mapping[str, Any], time: Callable[[Any], datetime]) -> Key:
    """The key of a row with the columns KEY."""

    def when(value: Any) -> datetime | None:
        return None if value is None else time(value)

    return Key(
        id=row["id"],
        owner=row["owner"],
        digest=bytes(row["digest"]),
        pepper=row["pepper"],
        created_at=time(row["created_at"]),
        old_digest=None if row["old_digest"] is None else bytes(row["old_digest"]),
        old_pepper=row["old_pepper"],
        old_until=when(row["old_until"]),
        expires_at=when(row["expires_at"]),
        revoked_at=when(row["revoked_at"]),
        models=None if row["models"] is None else _names(row["models"]),
        collections=_names(row["collections"]),
        limits=KeyLimits(**{name: row[name] for name in LIMITS}),
        version=row["version"],
    )


def _names(stored: str) -> tuple[str, ...]:
    """The names; what somebody has written by hand and is no list is no name at all."""
    try:
        names = json.loads(stored)
    except ValueError:
        names = None
    return tuple(map(str, names)) if isinstance(names, list) else ()


def audit_values(entry: AuditEntry, time: Callable[[datetime], Any]) -> list[Any]:
    """The columns AUDIT of an entry."""
    details = json.dumps(dict(entry.details), default=str).replace("\\u0000", "\\ufffd")
    return [time(entry.at), text(entry.actor), text(entry.action), text(entry.target), details]


def audit(row: Mapping[str, Any], time: Callable[[Any], datetime]) -> AuditEntry:
    """The entry of a row with the columns AUDIT."""
    return AuditEntry(
        at=time(row["at"]),
        actor=row["actor"],
        action=row["action"],
        target=row["target"],
        details=json.loads(row["details"]),
    )


def usage_values(row: UsageRow, time: Callable[[datetime], Any]) -> list[Any]:
    """The columns USAGE of a row, with nothing in it that a database refuses."""

    def some(value: str | None) -> str | None:
        return None if value is None else text(value)

    def milliseconds(value: float) -> float:
        return value if math.isfinite(value) else 0.0

    return [
        *(text(row.request_id), time(row.at), some(row.key_id), text(row.route), some(row.model)),
        *(row.status, row.outcome, some(row.code)),
        *(min(max(count, 0), LARGEST) for count in (row.tokens_in, row.tokens_out)),
        *(row.estimated, milliseconds(row.queue_ms)),
        None if row.first_ms is None else milliseconds(row.first_ms),
        milliseconds(row.total_ms),
    ]
