"""What is stored and handed around: keys, usage rows, audit entries. Times are UTC, durations milliseconds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal

from boxwright_api.settings import KeyLimits

Outcome = Literal["ok", "client_closed", "client_closed_early", "upstream_error", "limited", "refused"]


@dataclass(frozen=True, kw_only=True)
class Key:
    """An API key as it is stored. The secret itself is nowhere: `digest` is HMAC-SHA256(pepper, secret).

    `version` counts what was written, and is what makes a change that began from an older state fail
    (`Store.put_key`); None is a key that was not read from a store.
    """

    id: str
    owner: str
    digest: bytes = field(repr=False)
    pepper: int
    created_at: datetime
    # Of a rotation: the secret before, which is accepted until then.
    old_digest: bytes | None = field(default=None, repr=False)
    old_pepper: int | None = None
    old_until: datetime | None = None
    expires_at: datetime | None = None
    revoked_at: datetime | None = None
    # None: every model.
    models: tuple[str, ...] | None = None
    # Whose passages its requests may ask for.
    collections: tuple[str, ...] = ()
    limits: KeyLimits = field(default_factory=KeyLimits)
    version: int | None = field(default=None, compare=False)


@dataclass(frozen=True, kw_only=True)
class UsageRow:
    """One request of a client, whatever its end. No text of prompts or answers."""

    request_id: str
    at: datetime
    key_id: str | None
    route: str
    model: str | None
    status: int
    outcome: Outcome
    # `error.code` of a refusal.
    code: str | None = None
    tokens_in: int = 0
    tokens_out: int = 0
    # The engine did not say, so tokens were counted here.
    estimated: bool = False
    queue_ms: float = 0.0
    first_ms: float | None = None
    total_ms: float = 0.0


@dataclass(frozen=True, kw_only=True)
class AuditEntry:
    """What an administrator did, or a refusal that one should know of. Never altered or deleted."""

    at: datetime
    actor: str
    action: str
    target: str
    details: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class UsageSum:
    """Usage of one key and model in one span of time."""

    start: datetime
    key_id: str | None
    owner: str | None
    model: str | None
    requests: int
    refused: int
    aborted: int
    tokens_in: int
    tokens_out: int


@dataclass(frozen=True, kw_only=True)
class Ask:
    """What the limiter is asked: may this request begin? `limits`: the key's, else the defaults."""

    request_id: str
    key_id: str
    limits: KeyLimits
    visitor: str | None = None


@dataclass(frozen=True, kw_only=True)
class Ticket:
    """A request that was admitted. It holds one lease of the key and one of all, until it is released.

    `headers` are the x-ratelimit-* of the answer.
    """

    request_id: str
    key_id: str
    queue_ms: float
    headers: Mapping[str, str] = field(default_factory=dict)
