"""API keys: how they are made, recognised and remembered.

A key is `bw_<id>_<secret>`: 8 letters or digits that everybody may see, and 43 characters that encode 32 random bytes.
Stored is HMAC-SHA256(pepper, secret). A slow hash would buy nothing for a secret of 256 random bits; the pepper, which
the database does not have, makes a stolen database worthless.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import logging
import re
import secrets
import string
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime

from boxwright_api.audit import Refusals
from boxwright_api.contracts import Store
from boxwright_api.errors import StoreUnavailable, invalid_key, unavailable
from boxwright_api.records import Key
from boxwright_api.settings import Settings

log = logging.getLogger(__name__)

ID_CHARACTERS = string.ascii_letters + string.digits
KEY = re.compile(r"bw_([A-Za-z0-9]{8})_([A-Za-z0-9_-]{43})", re.ASCII)
BEARER = re.compile(r"bearer +(\S+) *", re.IGNORECASE | re.ASCII)

# How many keys one worker remembers, and how many ids that do not exist; the oldest go first.
REMEMBERED = 10_000
REMEMBERED_UNKNOWN = 1_000
# An id that does not exist is not asked for again so long, in seconds.
UNKNOWN_SECONDS = 2.0


def make_id() -> str:
    """A new id of a key."""
    return "".join(secrets.choice(ID_CHARACTERS) for _ in range(8))


def make_secret() -> str:
    """A new secret of a key."""
    return secrets.token_urlsafe(32)


def join(id: str, secret: str) -> str:
    """The key as its owner gets it, once."""
    return f"bw_{id}_{secret}"


def parse(authorization: str | None) -> tuple[str, str] | None:
    """Id and secret of an `Authorization` header; None when it is not one of our keys."""
    if authorization is None or (bearer := BEARER.fullmatch(authorization)) is None:
        return None
    key = KEY.fullmatch(bearer[1])
    return (key[1], key[2]) if key else None


class Peppers:
    """The peppers by version, from `1:<hex>;2:<hex>`. New digests take the highest, older ones stay known."""

    def __init__(self, text: str) -> None:
        self._peppers: dict[int, bytes] = {}
        for place, part in enumerate(text.split(";"), 1):
            version, _, value = part.strip().partition(":")
            # Messages do not repeat what was found: it is a secret.
            if not re.fullmatch(r"[1-9][0-9]{0,8}", version) or not re.fullmatch(r"([0-9a-fA-F]{2}){16,}", value):
                raise ValueError(f"`peppers`, part {place}: expected `VERSION:HEX` with at least 32 hex digits")
            if int(version) in self._peppers:
                raise ValueError(f"`peppers` has version {version} twice")
            self._peppers[int(version)] = bytes.fromhex(value)
        self.newest = max(self._peppers)

    def __repr__(self) -> str:
        return f"Peppers(versions={sorted(self._peppers)})"

    def digest(self, secret: str, version: int | None = None) -> bytes:
        """What is stored of a secret. Raises KeyError for a version that is not there."""
        pepper = self._peppers[self.newest if version is None else version]
        return hmac.digest(pepper, secret.encode(), hashlib.sha256)

    def matches(self, key: Key | None, secret: str, now: datetime) -> bool:
        """Whether the secret is the key's, or the one before it within the overlap. Takes as long for no key at all."""
        good = self._equal(key.digest if key else None, key.pepper if key else None, secret)
        if key and key.old_until and key.old_digest is not None and now < key.old_until:
            good |= self._equal(key.old_digest, key.old_pepper, secret)
        return good

    def _equal(self, stored: bytes | None, version: int | None, secret: str) -> bool:
        known = version in self._peppers
        if stored is not None and not known:
            log.warning("a key was made with pepper %s, which `peppers` does not have", version)
        computed = self.digest(secret, version if known else None)
        return hmac.compare_digest(computed, stored or bytes(32)) and stored is not None and known


@dataclass
class _Seen:
    """What the database said of an id, when (the clock's seconds), and whether it may have changed since."""

    key: Key | None
    at: float
    doubtful: bool = False


class KeyRing:
    """Who a client is (`contracts.Keys`). Answers from memory for `key_cache_seconds`; one lookup at a time each."""

    def __init__(
        self,
        settings: Settings,
        store: Store,
        *,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._store, self._clock, self._now = store, clock, now
        self._peppers = Peppers(settings.peppers.get_secret_value())
        self._fresh, self._stale = settings.key_cache_seconds, settings.key_stale_seconds
        self._seen: OrderedDict[str, _Seen] = OrderedDict()
        self._unknown: OrderedDict[str, _Seen] = OrderedDict()
        self._lookups: dict[str, asyncio.Task[Key | None]] = {}
        self._refusals = Refusals(store, clock=clock, now=now)

    async def authenticate(self, authorization: str | None) -> Key:
        """The key of an `Authorization` header."""
        parsed = parse(authorization)
        if parsed is None:
            raise invalid_key()
        id, secret = parsed
        key = await self._find(id)
        now = self._now()
        if not self._peppers.matches(key, secret, now):
            if key:
                self._refusals.note("key.refused", id, "wrong secret")
            raise invalid_key()
        assert key is not None  # noqa: S101 - nothing matches no key
        if key.revoked_at is not None:
            self._refusals.note("key.refused", id, "revoked")
            raise invalid_key()
        if key.expires_at is not None and now >= key.expires_at:
            self._refusals.note("key.refused", id, "expired")
            raise invalid_key()
        return key

    def forget(self, id: str | None) -> None:
        """What the store calls when a key has changed.

        A key that has certainly changed is not believed any more, not even while the database is away: it may have been
        revoked. Where changes may have been missed (None), keys are asked for again, and believed for
        `key_stale_seconds` when there is nobody to ask.
        """
        if id is not None:
            self._seen.pop(id, None)
            self._unknown.pop(id, None)
            # What is being read may be from before the change.
            self._lookups.pop(id, None)
            return
        self._unknown.clear()
        self._lookups.clear()
        for seen in self._seen.values():
            seen.doubtful = True

    async def _find(self, id: str) -> Key | None:
        clock = self._clock()
        unknown = self._unknown.get(id)
        if unknown and clock - unknown.at < UNKNOWN_SECONDS:
            return None
        seen = self._seen.get(id)
        if seen and not seen.doubtful and clock - seen.at < self._fresh:
            return seen.key
        lookup = self._lookups.get(id)
        if lookup is None:
            lookup = self._lookups[id] = asyncio.create_task(self._look_up(id), name="key lookup")
            # Whoever waits gets the error; when all have left, nobody needs it.
            lookup.add_done_callback(lambda task: task.cancelled() or task.exception())
        try:
            # One who leaves does not take the answer from the others.
            return await asyncio.shield(lookup)
        except StoreUnavailable:
            # Looked up again, since it may have been forgotten meanwhile.
            seen = self._seen.get(id)
            if seen and clock - seen.at < self._stale:
                return seen.key
            raise unavailable("store_unavailable", "Keys cannot be checked at the moment.") from None

    async def _look_up(self, id: str) -> Key | None:
        me = asyncio.current_task()
        at = self._clock()
        try:
            key = await self._store.key(id)
            if self._lookups.get(id) is me:
                self._remember(id, _Seen(key, at))
            return key
        finally:
            if self._lookups.get(id) is me:
                del self._lookups[id]

    def _remember(self, id: str, seen: _Seen) -> None:
        self._seen.pop(id, None)
        self._unknown.pop(id, None)
        if seen.key is None:
            kept, most = self._unknown, REMEMBERED_UNKNOWN
        else:
            kept, most = self._seen, REMEMBERED
        kept[id] = seen
        while len(kept) > most:
            kept.popitem(last=False)
