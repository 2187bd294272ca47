"""Limits in Redis or Valkey, for any number of workers.

An admission is one Lua script in one round trip, so that it is all or nothing; time is the server's. The scripts use
keys that begin with `redis_prefix`, each of which expires by itself, and one channel of that name:

    places        requests in progress -> end of the lease       key:ID:places    those of a key
    requests      requests of all in the last minute             key:ID:requests  those of a key
    visitor:HASH  those of a visitor                             key:ID:tokens    tokens of a key in the last minute
    charged:W     charges of a worker, so that none counts twice key:ID:budget    its tokens of this day and month
    freed         the channel: a place was given back

The keys of one script need not be in one slot, so this is for one server, not for a cluster; the server should not
evict keys (`maxmemory-policy noeviction`), or limits are forgotten. Nothing newer than Redis 6.0 is used.

A place is a lease of `lease_seconds`, renewed by its worker three times as often, so the places of a killed worker are
free when their leases end. A worker that was away from Redis for longer takes its places again when it is back, since
its requests are in progress: for a while more may be, then, than the limit says.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import secrets
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import count

from boxwright_api import metrics
from boxwright_api.limits import wire
from boxwright_api.limits.line import Line
from boxwright_api.limits.windows import SECOND, Held, Rules, Verdict, away, headers, refusal, verdict_of
from boxwright_api.limits.wire import ADMIT, FAILURES, RELEASE, RENEW, Away, Wire
from boxwright_api.records import Ask, Ticket
from boxwright_api.settings import KeyLimits, Settings
from boxwright_api.tasks import ended

log = logging.getLogger(__name__)

Strings = list[str | int]


class Commands:
    """Keys and arguments of the scripts. `at`: microseconds since 1970 instead of the server's clock, for tests."""

    def __init__(self, settings: Settings, worker: str = "") -> None:
        self._prefix, self._rules = settings.redis_prefix, Rules.of(settings)
        self._lease, self._worker = int(settings.lease_seconds * SECOND), worker
        self.channel = f"{self._prefix}freed"

    def _keys(self, ask: Ask) -> list[str]:
        # A visitor's name is whatever a client sends, and may be somebody's address.
        visitor = hashlib.sha256((ask.visitor or "").encode(errors="surrogatepass")).hexdigest()[:32]
        key = f"{self._prefix}key:{ask.key_id}:"
        return [
            f"{self._prefix}places",
            f"{key}places",
            f"{self._prefix}requests",
            f"{self._prefix}visitor:{visitor}",
            f"{key}requests",
            f"{key}tokens",
            f"{key}budget",
        ]

    def admit(self, place: str, ask: Ask, look: bool = False, at: int | str = "") -> tuple[list[str], Strings]:
        """For admission.lua."""
        limits = ask.limits
        return [*self._keys(ask), f"{self._prefix}nothing"], [
            place,
            self._lease,
            self._rules.in_flight,
            limits.parallel or 0,
            self._rules.breaker,
            self._rules.visitor if ask.visitor is not None else 0,
            limits.requests_per_minute or 0,
            limits.tokens_per_minute or 0,
            limits.tokens_per_day or 0,
            limits.tokens_per_month or 0,
            int(look),
            at,
        ]

    def release(
        self, place: str, ask: Ask, tokens: int, number: int, withdraw: bool = False, at: int | str = ""
    ) -> tuple[list[str], Strings]:
        """For release.lua. `number` is one that this worker has not charged before."""
        return [*self._keys(ask), f"{self._prefix}charged:{self._worker}"], [
            place,
            self._rules.in_flight,
            ask.limits.parallel or 0,
            self.channel,
            f"{self._worker} {ask.key_id}",
            tokens,
            number,
            int(bool(ask.limits.tokens_per_minute)),
            int(withdraw),
            at,
        ]

    def renew(self, held: Sequence[Held] = (), at: int | str = "") -> tuple[list[str], Strings]:
        """For renew.lua."""
        keys, arguments = [f"{self._prefix}places"], Strings([self._lease, at])
        index: dict[str, int] = {}
        for one in held:
            if one.key_id not in index:
                keys.append(self._keys(one.ask)[1])
                index[one.key_id] = len(keys)
            arguments += [index[one.key_id], one.place]
        return keys, arguments


class RedisLimiter:
    """Who may begin, in all workers."""

    def __init__(self, settings: Settings) -> None:
        self._settings, self._rules = settings, Rules.of(settings)
        self._worker = secrets.token_hex(6)
        self._commands = Commands(settings, self._worker)
        self._wire = Wire(settings, self._renew)
        self._line = Line(self._attempt, self._withdraw, settings.wait_ms / 1000)
        self._held: dict[str, Held] = {}
        self._numbers = count(1)
        self._tasks: list[asyncio.Task[None]] = []
        self._uncounted = False

    async def start(self) -> None:
        """See contracts.Limiter."""
        await self._wire.start()
        self._tasks = [asyncio.create_task(self._keep()), asyncio.create_task(self._listen())]

    async def close(self) -> None:
        """See contracts.Limiter. Takes two seconds at most."""
        await ended(*self._tasks)
        await self._line.close()
        for held in self._held.values():
            self._wire.post(RELEASE, *self._commands.release(held.place, held.ask, 0, 0))
        self._held.clear()
        await self._wire.close()

    async def alive(self) -> bool:
        """See contracts.Limiter: whether an admission would be counted, as far as Redis can say without one."""
        nobody = Ask(request_id="", key_id="", limits=KeyLimits())
        try:
            await self._wire.call(ADMIT, *self._commands.admit("", nobody, look=True))
        except Away:
            return False
        return True

    async def admit(self, ask: Ask) -> Ticket:
        """See contracts.Limiter."""
        began = time.monotonic()
        # Unique whatever the request's id is, and plain text.
        place = f"{ascii(ask.request_id)[1:-1][:64]}/{self._worker}/{next(self._numbers)}"
        held = Held(request_id=ask.request_id, key_id=ask.key_id, queue_ms=0, place=place, ask=ask)
        try:
            verdict = await self._line.enter(held)
            self._uncounted = False
        except Away:
            if not self._settings.fail_open:
                raise away() from None
            self._pass()
            verdict = Verdict()
        if not verdict.admitted:
            raise refusal(verdict, ask, self._rules)
        self._held[place] = held
        return replace(held, queue_ms=(time.monotonic() - began) * 1000, headers=headers(verdict))

    async def release(self, ticket: Ticket, tokens: int) -> None:
        """See contracts.Limiter. A ticket that was released before is left alone. While Redis is away, the charge is
        kept and counted when it is back.
        """
        held = self._held.pop(ticket.place, None) if isinstance(ticket, Held) else None
        if held is None:
            return
        number = next(self._numbers)
        told = self._wire.post(RELEASE, *self._commands.release(held.place, held.ask, max(0, tokens), number))
        # Whoever asks now asks after it, on the same connection.
        self._line.woken(held.key_id)
        if not self._wire.down:
            await asyncio.wait([told], timeout=wire.PATIENCE)

    async def in_flight(self) -> int:
        """See contracts.Limiter. While Redis is away, those of this worker."""
        try:
            return int(await self._wire.call(RENEW, *self._commands.renew()))
        except Away:
            return len(self._held)

    async def _attempt(self, held: Held, look: bool, foremost: bool) -> Verdict:
        try:
            keys, arguments = self._commands.admit(held.place, held.ask, look)
            return verdict_of(await self._wire.call(ADMIT, keys, arguments, urgent=foremost))
        except Away as error:
            if error.sent:
                self._withdraw(held)
            raise
        except asyncio.CancelledError:
            self._withdraw(held)
            raise

    def _withdraw(self, held: Held) -> None:
        self._wire.post(RELEASE, *self._commands.release(held.place, held.ask, 0, 0, withdraw=True))
        self._line.woken(held.key_id)

    def _pass(self) -> None:
        metrics.UNCOUNTED.inc()
        if not self._uncounted:
            self._uncounted = True
            log.error("limits: Redis is away, and `fail_open` lets all requests in without counting them")

    async def _keep(self) -> None:
        """Renews the leases of this worker."""
        while True:
            await asyncio.sleep(self._settings.lease_seconds / 3)
            await self._renew()

    async def _renew(self) -> None:
        if self._held:
            with suppress(Away):
                await self._wire.call(RENEW, *self._commands.renew(list(self._held.values())), urgent=True)

    async def _listen(self) -> None:
        """Hears of places that other workers give back. What is missed meanwhile is found by the line's poll."""
        client = wire.client(self._settings)
        try:
            while True:
                with suppress(*FAILURES):
                    async with client.pubsub(ignore_subscribe_messages=True) as subscription:
                        await subscription.subscribe(self._commands.channel)
                        async for message in subscription.listen():
                            worker, _, key = message["data"].decode().partition(" ")
                            if worker != self._worker:
                                self._line.woken(key)
                await asyncio.sleep(wire.RETRY)
        finally:
            await client.aclose()
