"""Limits in the process, for one worker: the same contract without Redis.

Counts live as long as the process: a restart begins with empty windows and budgets. Places need no lease, since they
end with the only process that could hold them.
"""

from __future__ import annotations

import time
from dataclasses import replace
from itertools import count

from boxwright_api.limits.ledger import Ledger
from boxwright_api.limits.line import Line
from boxwright_api.limits.windows import Held, Rules, Verdict, headers, refusal
from boxwright_api.records import Ask, Ticket
from boxwright_api.settings import Settings


class MemoryLimiter:
    """Who may begin, in this process."""

    def __init__(self, settings: Settings) -> None:
        self._rules = Rules.of(settings)
        self._ledger = Ledger(self._rules)
        self._line = Line(self._attempt, self._undo, settings.wait_ms / 1000)
        self._held: dict[str, Held] = {}
        self._numbers = count()

    async def start(self) -> None:
        """Nothing to connect to."""

    async def close(self) -> None:
        """Give all places back."""
        await self._line.close()
        for held in list(self._held.values()):
            await self.release(held, 0)

    async def alive(self) -> bool:
        """It can always count."""
        return True

    async def admit(self, ask: Ask) -> Ticket:
        """See contracts.Limiter."""
        began = time.monotonic()
        held = Held(request_id=ask.request_id, key_id=ask.key_id, queue_ms=0, place=str(next(self._numbers)), ask=ask)
        verdict = await self._line.enter(held)
        if not verdict.admitted:
            raise refusal(verdict, ask, self._rules)
        self._held[held.place] = held
        return replace(held, queue_ms=(time.monotonic() - began) * 1000, headers=headers(verdict))

    async def release(self, ticket: Ticket, tokens: int) -> None:
        """See contracts.Limiter. A ticket that was released before is left alone."""
        held = self._held.pop(ticket.place, None) if isinstance(ticket, Held) else None
        if held is not None:
            self._ledger.release(held.place, held.ask, tokens, *_now())
            self._line.woken(held.key_id)

    async def in_flight(self) -> int:
        """Places that are taken."""
        return self._ledger.taken

    async def _attempt(self, held: Held, look: bool, foremost: bool) -> Verdict:
        return self._ledger.admit(held.place, held.ask, *_now(), look)

    def _undo(self, held: Held) -> None:
        self._ledger.withdraw(held.place, held.ask)
        self._line.woken(held.key_id)


def _now() -> tuple[int, int]:
    """Microseconds of a clock that never goes back, for the windows, and since 1970, for the calendar."""
    return time.monotonic_ns() // 1000, time.time_ns() // 1000
