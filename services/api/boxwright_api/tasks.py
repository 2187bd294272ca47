"""Waiting for tasks, on machines that may be busy with other things."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

# Pieces of a time limit, of which each begins when the one before is over.
PIECES = 7


@asynccontextmanager
async def at_most(seconds: float) -> AsyncIterator[None]:
    """A time limit that ends with TimeoutError, in which only time counts when this process was at work.

    On a machine that is busy with other things a process may stand still for a second. An ordinary timer is over then,
    although the answer has been there for long and was only not read.
    """
    loop = asyncio.get_running_loop()
    timer: asyncio.TimerHandle

    def piece(left: int) -> None:
        nonlocal timer
        if left:
            timer = loop.call_later(seconds / PIECES, piece, left - 1)
        else:
            limit.reschedule(loop.time())

    timer = loop.call_later(seconds / PIECES, piece, PIECES - 1)
    try:
        async with asyncio.timeout(None) as limit:
            yield
    finally:
        timer.cancel()


async def done_within(task: asyncio.Future[Any], seconds: float) -> bool:
    """Whether the task is done in time, as `at_most` counts it. It goes on when it is not."""
    with suppress(TimeoutError):
        async with at_most(seconds):
            await asyncio.wait({task})
    return task.done()


async def ended(*tasks: asyncio.Task[Any]) -> None:
    """Cancels the tasks and waits until they are over. Asks again, since a library may lose a cancellation (redis-py
    8.1 does while it connects).
    """
    pending = {task for task in tasks if not task.done()}
    while pending:
        for task in pending:
            task.cancel()
        _, pending = await asyncio.wait(pending, timeout=0.1)
