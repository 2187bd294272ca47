"""Requests of one worker that wait for a place, in the order in which they came.

Only the foremost asks. When no place is free at all, those behind it do not ask either; when only its key has none, the
next one of another key does. They ask again when somebody says that a place was given back (`woken`), and every `POLL`
seconds, because a message can be lost and the places of a worker that died are given back by nobody. So a freed place
costs one or two questions for each worker, however many requests wait.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from itertools import islice

from boxwright_api.limits.windows import Held, Reason, Verdict, away

POLL = 0.02
# Of the keys that wait only for places of their own, so many ask again at each poll.
KEYS_AT_POLL = 8


@dataclass(eq=False)
class _Waiter:
    """One request. `answer` is set once: to the last verdict, or to an error."""

    held: Held
    verdict: Verdict
    answer: asyncio.Future[Verdict] = field(default_factory=lambda: asyncio.get_running_loop().create_future())
    asking: bool = False
    expired: bool = False

    @property
    def key(self) -> str:
        """Whose places it waits for."""
        return self.held.ask.key_id


class Line:
    """The line of one worker.

    `attempt(held, look, foremost)` asks for a place, and leaves nothing behind if it is cancelled; with `look` it only
    says what stands against the request, which is at least that others come before it. `foremost`: it asks for one that
    has waited. `undo(held)` gives back the place of a request that has gone while it was given one. `seconds`: how long
    a request waits at most.
    """

    def __init__(
        self, attempt: Callable[[Held, bool, bool], Awaitable[Verdict]], undo: Callable[[Held], None], seconds: float
    ) -> None:
        self._attempt, self._undo, self._seconds = attempt, undo, seconds
        self._waiters: OrderedDict[int, _Waiter] = OrderedDict()
        self._by_key: dict[str, int] = {}
        # What is known: no place is free at all; keys in the line that have none of their own, the oldest news first.
        self._full = False
        self._blocked: OrderedDict[str, None] = OrderedDict()
        self._news = asyncio.Event()
        self._changes = 0
        self._pump: asyncio.Task[None] | None = None

    def __len__(self) -> int:
        return len(self._waiters)

    async def enter(self, held: Held) -> Verdict:
        """Take a place, after those who came before. The verdict is one that does not wait, or the last one when the
        time is over. What `attempt` raises is raised to all who wait. When cancelled, no place is taken.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._seconds
        key = held.ask.key_id
        look = key in self._by_key or len(self._by_key) > len(self._blocked)
        changes = self._changes
        verdict = await self._attempt(held, look, False)
        if not verdict.waits or loop.time() >= deadline:
            return verdict
        waiter = _Waiter(held, verdict)
        self._waiters[id(waiter)] = waiter
        self._by_key[key] = self._by_key.get(key, 0) + 1
        if not look:
            self._note(waiter, changes)
        if self._pump is None or self._pump.done():
            self._pump = asyncio.create_task(self._run())
        else:
            self._news.set()
        return await self._wait(waiter, deadline)

    def woken(self, key: str) -> None:
        """A place was given back, by a request of this key, in whatever worker."""
        self._changes += 1
        self._full = False
        self._blocked.pop(key, None)
        self._news.set()

    async def close(self) -> None:
        """Nobody waits any more."""
        self._fail(away())
        if self._pump is not None:
            self._pump.cancel()
            await asyncio.wait([self._pump])

    async def _wait(self, waiter: _Waiter, deadline: float) -> Verdict:
        try:
            try:
                async with asyncio.timeout_at(deadline):
                    return await asyncio.shield(waiter.answer)
            except TimeoutError:
                if not waiter.answer.done() and not waiter.asking:
                    self._remove(waiter)
                    return waiter.verdict
                # It is being answered just now, which takes a second at most.
                waiter.expired = True
                return await asyncio.shield(waiter.answer)
        except asyncio.CancelledError:
            if not waiter.answer.done():
                # If it is asking, `_finish` finds it cancelled and takes the place back.
                self._remove(waiter)
                waiter.answer.cancel()
            elif waiter.answer.exception() is None and waiter.answer.result().admitted:
                self._undo(waiter.held)
            raise

    async def _run(self) -> None:
        while self._waiters:
            waiter = self._next()
            if waiter is None:
                await self._rest()
                continue
            changes = self._changes
            waiter.asking = True
            try:
                verdict = await self._attempt(waiter.held, False, True)
            except Exception as error:
                self._fail(error)
                return
            waiter.asking = False
            waiter.verdict = verdict
            if verdict.waits:
                self._note(waiter, changes)
            if not verdict.waits or waiter.expired or waiter.answer.done():
                self._finish(waiter)

    async def _rest(self) -> None:
        """Until somebody says something, or it is time to look."""
        self._news.clear()
        try:
            async with asyncio.timeout(POLL):
                await self._news.wait()
        except TimeoutError:
            self._full = False
            for key in list(islice(self._blocked, KEYS_AT_POLL)):
                del self._blocked[key]

    def _next(self) -> _Waiter | None:
        if self._full:
            return None
        return next((waiter for waiter in self._waiters.values() if waiter.key not in self._blocked), None)

    def _note(self, waiter: _Waiter, changes: int) -> None:
        """Remember why it got no place, unless a place was given back since it asked."""
        if changes != self._changes:
            return
        if waiter.verdict.reason is Reason.PLACES:
            self._full = True
        elif waiter.key in self._by_key:
            self._blocked[waiter.key] = None

    def _finish(self, waiter: _Waiter) -> None:
        self._remove(waiter)
        if not waiter.answer.done():
            waiter.answer.set_result(waiter.verdict)
        elif waiter.verdict.admitted:
            self._undo(waiter.held)

    def _remove(self, waiter: _Waiter) -> None:
        if self._waiters.pop(id(waiter), None) is None:
            return
        self._by_key[waiter.key] -= 1
        if not self._by_key[waiter.key]:
            del self._by_key[waiter.key]
            self._blocked.pop(waiter.key, None)

    def _fail(self, error: Exception) -> None:
        for waiter in list(self._waiters.values()):
            self._remove(waiter)
            if not waiter.answer.done():
                waiter.answer.set_exception(error)
