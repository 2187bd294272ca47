"""Tasks that run as long as the service."""

from __future__ import annotations

import asyncio
from typing import Any


async def ended(task: asyncio.Task[Any]) -> None:
    """Cancels the task and waits until it is over. Asks again, since a library may lose a cancellation."""
    while not task.done():
        task.cancel()
        await asyncio.wait({task}, timeout=0.5)
