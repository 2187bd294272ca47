"""Waiting for tasks."""

from __future__ import annotations

import asyncio
from typing import Any

# A wait that takes so much longer than it was told to, in seconds, says that this process stood still.
STILL = 0.1


async def done_within(task: asyncio.Future[Any], seconds: float) -> bool:
    """Whether the task is done in time. When this process itself stood still, as on a busy or suspended machine, the
    time begins again, once: what the task waits for may have arrived long ago.
    """
    loop = asyncio.get_running_loop()
    began = loop.time()
    await asyncio.wait({task}, timeout=seconds)
    if not task.done() and loop.time() - began > seconds + STILL:
        await asyncio.wait({task}, timeout=seconds)
    return task.done()


async def ended(task: asyncio.Task[Any]) -> None:
    """Cancels the task and waits until it is over. Asks again, since a library may lose a cancellation."""
    while not task.done():
        task.cancel()
        await asyncio.wait({task}, timeout=0.5)
