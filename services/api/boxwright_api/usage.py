"""The usage log: rows are taken at once, written in batches, and kept on the disk while the database is away."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import deque
from itertools import islice

from boxwright_api.contracts import Store
from boxwright_api.errors import StoreUnavailable, unavailable
from boxwright_api.records import UsageRow
from boxwright_api.settings import Settings
from boxwright_api.spill import BATCH, Spill

log = logging.getLogger(__name__)

# Seconds: how often what is spilled is offered to the database again, and how often files of other processes are looked
# for; a process that was killed leaves some.
RETRY = 0.5
LOOK = 10.0
# How often a loss is told in the log.
TELL = 60.0


class UsageLog:
    """The usage log (`contracts.Usage`). `dropped` counts rows that were lost, `written` those in the database,
    `spilled` those that went to the disk first.
    """

    def __init__(self, settings: Settings, store: Store) -> None:
        self._store = store
        self._queue: deque[UsageRow] = deque()
        self._most = settings.usage_queue
        self._pause = settings.usage_flush_ms / 1000
        self._spill = Spill(settings.spill, settings.spill_bytes) if settings.spill else None
        self._pending = False
        self._away = False
        self._wake, self._stop = asyncio.Event(), asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._next_look = 0.0
        self._told = -TELL
        self.dropped = self.written = self.spilled = 0

    async def start(self) -> None:
        """Write from now on, first what is spilled."""
        if self._spill:
            await asyncio.to_thread(self._spill.look)
            self._pending = True
            self._wake.set()
        self._task = asyncio.create_task(self._run(), name="usage log")

    async def close(self) -> None:
        """Write what is left."""
        self._stop.set()
        self._wake.set()
        if self._task:
            await self._task
        try:
            await self._flush()
        except Exception:
            log.exception("writing usage")
        if self._spill:
            self._spill.finish()
        self._drop(len(self._queue), "there is neither a database nor room on the disk")
        self._queue.clear()

    @property
    def waiting(self) -> int:
        """Rows that are in memory only."""
        return len(self._queue)

    def put(self, row: UsageRow) -> None:
        """Takes a row; never waits and never raises."""
        if len(self._queue) >= self._most:
            self._drop(1, "the queue is full")
            return
        self._queue.append(row)
        self._wake.set()

    def check(self) -> None:
        """Raises ApiError 503 when rows can be kept nowhere.

        What is still free of the queue then is for the rows of requests that are under way.
        """
        if not self._away:
            return
        if self._spill.full if self._spill else 2 * len(self._queue) >= self._most:
            raise unavailable("usage_unavailable", "Usage cannot be recorded at the moment.")

    async def _run(self) -> None:
        while not self._stop.is_set():
            busy = self._queue or self._pending or self._away
            await _within(self._wake, RETRY if busy else LOOK)
            await _within(self._stop, self._pause)
            self._wake.clear()
            try:
                await self._flush()
                await self._replay()
            except Exception:
                log.exception("writing usage")

    async def _flush(self) -> None:
        """Empty the queue, to the database or to the disk. What neither takes stays in it."""
        while self._queue:
            batch = list(islice(self._queue, BATCH))
            try:
                await self._write(batch)
            except StoreUnavailable:
                self._away = True
                if not self._spill or not await asyncio.to_thread(self._spill.append, batch):
                    return
                self._pending = True
                self.spilled += len(batch)
            # Removed when they are kept, so that nothing that fails loses them.
            for _ in batch:
                self._queue.popleft()

    async def _replay(self) -> None:
        """Give the database what is spilled; rows that it has already change nothing."""
        if self._away and not await self._store.alive():
            return
        now = time.monotonic()
        if self._spill and (self._pending or now >= self._next_look):
            self._next_look = now + LOOK
            self._spill.finish()
            try:
                while not self._stop.is_set() and await self._replay_file(self._spill):
                    pass
            except StoreUnavailable:
                self._away = True
                return
            self._pending = False
            self._spill.look()
        if not self._queue:
            self._away = False

    async def _replay_file(self, spill: Spill) -> bool:
        """One file; False when there is none, or something else has to be done first. Raises StoreUnavailable."""
        with spill.take() as taken:
            if taken is None:
                return False
            path, batches = taken
            while batch := await asyncio.to_thread(next, batches, None):
                rows, bad = batch
                await self._write(rows)
                self._drop(bad, f"{path.name} has lines that are no rows")
                # Those that arrived meanwhile do not wait for a long file.
                await self._flush()
                if self._away:
                    raise StoreUnavailable
                if self._stop.is_set():
                    return False
            path.unlink()
            log.info("usage of %s is in the database", path.name)
            return True

    async def _write(self, rows: list[UsageRow]) -> None:
        """Rows to the database; one that it refuses for what is in it is dropped. Raises StoreUnavailable."""
        if not rows:
            return
        try:
            await self._store.write_usage(rows)
            self.written += len(rows)
        except StoreUnavailable:
            raise
        except Exception as error:
            if len(rows) == 1:
                self._drop(1, f"the database refuses a row: {type(error).__name__}")
            else:
                await self._write(rows[: len(rows) // 2])
                await self._write(rows[len(rows) // 2 :])
        self._away = False

    def _drop(self, count: int, why: str) -> None:
        if not count:
            return
        self.dropped += count
        if time.monotonic() - self._told >= TELL:
            self._told = time.monotonic()
            log.error("usage is lost, %d rows so far: %s", self.dropped, why)


async def _within(event: asyncio.Event, seconds: float) -> None:
    """Until the event, for a limited time."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await event.wait()
