"""What the tests of the limits share: settings, requests, and a model of the rules that is as plain as they are."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from boxwright_api.contracts import Limiter
from boxwright_api.errors import ApiError
from boxwright_api.limits import open_limiter
from boxwright_api.records import Ask, Ticket
from boxwright_api.settings import KeyLimits, ModelRoute, Settings

MINUTE = 60_000_000


def settings(**changes: Any) -> Settings:
    """Settings of a service, whose limits matter here and nothing else."""
    values: dict[str, Any] = {
        "database": "sqlite:////nowhere",
        "peppers": "1:00",
        "admin_secret": "secret",
        "models": [ModelRoute(name="model", upstream="http://127.0.0.1:1")],
    }
    return Settings(**(values | changes))


def ask(request: str = "request", key: str = "key", visitor: str | None = None, **limits: int) -> Ask:
    """A request of a key with these limits."""
    return Ask(request_id=request, key_id=key, limits=KeyLimits(**limits), visitor=visitor)


@dataclass
class Model:
    """The rules, from lists of all that ever happened. `lease`: microseconds, or None where places do not end."""

    in_flight: int
    breaker: int
    visitor: int
    lease: int | None
    # Window -> requests: the request, and when it began.
    began: dict[str, list[tuple[str, int]]] = field(default_factory=dict)
    charges: list[tuple[str, int, int, bool]] = field(default_factory=list)
    places: dict[str, tuple[str, int]] = field(default_factory=dict)

    def admit(self, place: str, request: Ask, at: int, look: bool = False) -> list[int]:
        """What admission.lua answers."""
        limits = request.limits
        windows = [
            (1, "all", self.breaker),
            (2, f"visitor {request.visitor}", self.visitor if request.visitor is not None else 0),
            (3, f"key {request.key_id}", limits.requests_per_minute or 0),
        ]
        windows = [window for window in windows if window[2]]
        waits: list[tuple[int, int]] = []
        for reason, name, limit in windows:
            ends = sorted(began + MINUTE for _, began in self.began.get(name, []) if began + MINUTE > at)
            waits.append((self._wait([(end, 1) for end in ends], limit, at), reason))
        tokens = []
        if limits.tokens_per_minute:
            minute = [
                ((when // 10_000 + 1) * 10_000 + MINUTE, amount)
                for key, when, amount, counted in self.charges
                if key == request.key_id and counted
            ]
            minute = [(end, amount) for end, amount in minute if end > at]
            waits.append((self._wait(minute, limits.tokens_per_minute, at), 4))
            used = sum(amount for _, amount in minute)
            tokens.append((limits.tokens_per_minute, used, max((end for end, _ in minute), default=at) - at))
        now = datetime.fromtimestamp(at // 1_000_000, UTC)
        tomorrow = (now + timedelta(days=1)).replace(hour=0, minute=0, second=0)
        next_month = (now.replace(day=1) + timedelta(days=32)).replace(day=1, hour=0, minute=0, second=0)
        for reason, most, span, end in (
            (5, limits.tokens_per_day, "%Y-%m-%d", tomorrow),
            (6, limits.tokens_per_month, "%Y-%m", next_month),
        ):
            if most:
                used = sum(
                    amount
                    for key, when, amount, _ in self.charges
                    if key == request.key_id
                    and datetime.fromtimestamp(when // 1_000_000, UTC).strftime(span) == now.strftime(span)
                )
                left = int(end.timestamp()) * 1_000_000 - at
                waits.append((left if used >= most else 0, reason))
                tokens.append((most, used, left if used else 0))
        retry = max((wait for wait, _ in waits), default=0)
        reason = next((reason for wait, reason in waits if wait == retry), 0) if retry else 0
        if not reason:
            taken = [key for key, ends in self.places.values() if ends > at]
            if limits.parallel and taken.count(request.key_id) >= limits.parallel:
                reason = 7
            elif look or len(taken) >= self.in_flight:
                reason = 8
        if not reason:
            self.places[place] = (request.key_id, at + self.lease if self.lease else at * 2)
            for _, name, _ in windows:
                self.began.setdefault(name, []).append((place, at))
        requests = []
        for _, name, limit in windows:
            ends = [began + MINUTE for _, began in self.began.get(name, []) if began + MINUTE > at]
            requests.append((limit, len(ends), max(ends, default=at) - at))
        return [reason, retry, *self._tightest(requests), *self._tightest(tokens)]

    def release(self, place: str, request: Ask, tokens: int, at: int) -> None:
        """The request ends."""
        self.places.pop(place, None)
        if tokens:
            self.charges.append((request.key_id, at, tokens, bool(request.limits.tokens_per_minute)))

    def withdraw(self, place: str) -> None:
        """It has not begun."""
        self.places.pop(place, None)
        for window in self.began.values():
            window[:] = [entry for entry in window if entry[0] != place]

    def renew(self, places: dict[str, Ask], at: int) -> None:
        """They are still in progress."""
        assert self.lease
        for place, request in places.items():
            self.places[place] = (request.key_id, at + self.lease)

    def taken(self, at: int) -> int:
        """Places that are taken."""
        return sum(ends > at for _, ends in self.places.values())

    @staticmethod
    def _wait(entries: list[tuple[int, int]], limit: int, at: int) -> int:
        """Until less than the limit counts: now, or when one of the entries ends."""
        for moment in [at, *sorted(end for end, _ in entries)]:
            if sum(amount for end, amount in entries if end > moment) < limit:
                return moment - at
        raise AssertionError("never")

    @staticmethod
    def _tightest(found: list[tuple[int, int, int]]) -> list[int]:
        left = [(max(0, limit - used), -reset, limit) for limit, used, reset in found]
        if not left:
            return [0, 0, 0]
        best = min(left, key=lambda one: one[:2])
        return [best[2], best[0], -best[1]]


@dataclass
class Limits:
    """Where limiters count: in the process, or in a server, below a prefix of their own."""

    shared: dict[str, Any] = field(default_factory=dict)

    def settings(self, **changes: Any) -> Settings:
        """Settings of a limiter that counts here."""
        return settings(**(self.shared | changes))

    @asynccontextmanager
    async def open(self, workers: int = 1, **changes: Any) -> AsyncIterator[list[Any]]:
        """Limiters that count together; in the process it is one for all workers."""
        apart = workers if self.shared else 1
        found = [open_limiter(self.settings(**changes)) for _ in range(apart)]
        for limiter in found:
            await limiter.start()
        try:
            yield [found[number % apart] for number in range(workers)]
        finally:
            for limiter in found:
                await limiter.close()


async def outcome(limiter: Limiter, request: Ask) -> Ticket | ApiError:
    """The ticket or the refusal."""
    try:
        return await limiter.admit(request)
    except ApiError as error:
        return error
