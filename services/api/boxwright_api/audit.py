"""Refusals that an administrator should know of, in the audit log, without letting a flood of them fill it."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime

from boxwright_api.contracts import Store
from boxwright_api.errors import StoreUnavailable
from boxwright_api.records import AuditEntry

log = logging.getLogger(__name__)

# Seconds in which the same refusal is written once, and all refusals together at most so often.
SPAN = 60.0
MOST = 30
REMEMBERED = 1_000


@dataclass
class _Kind:
    """One kind of refusal: when it was written last, and how many were not written since."""

    written: float
    left_out: int = 0


class Refusals:
    """Writes refusals in the background: each kind once a minute, with the number of those left out since."""

    def __init__(
        self,
        store: Store,
        *,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._store, self._clock, self._now = store, clock, now
        self._kinds: OrderedDict[tuple[str, str, str], _Kind] = OrderedDict()
        self._begun, self._count = clock(), 0
        self._tasks: set[asyncio.Task[None]] = set()

    def note(self, action: str, target: str, reason: str, actor: str = "client") -> None:
        """Takes a refusal; never waits and never raises. Texts must not be what a client chose freely."""
        clock, kind = self._clock(), (action, target, reason)
        seen = self._kinds.get(kind)
        if seen and clock - seen.written < SPAN:
            seen.left_out += 1
            return
        if clock - self._begun >= SPAN:
            self._begun, self._count = clock, 0
        if self._count >= MOST:
            return
        self._count += 1
        details: dict[str, object] = {"reason": reason}
        if seen and seen.left_out:
            details["left_out"] = seen.left_out
        self._kinds.pop(kind, None)
        self._kinds[kind] = _Kind(clock)
        while len(self._kinds) > REMEMBERED:
            self._kinds.popitem(last=False)
        entry = AuditEntry(at=self._now(), actor=actor, action=action, target=target, details=details)
        task = asyncio.create_task(self._write(entry), name="audit of a refusal")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _write(self, entry: AuditEntry) -> None:
        try:
            await self._store.write_audit(entry)
        except StoreUnavailable:
            log.warning("%s of %s was not written to the audit log: no database", entry.action, entry.target)
