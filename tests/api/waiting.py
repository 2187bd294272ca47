"""Waits for what comes about by itself; a test that waits in vain fails."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable
from typing import Any

PATIENCE = 60.0


def until(condition: Callable[[], Any], seconds: float = PATIENCE, why: Callable[[], Any] = lambda: "") -> float:
    """Waits until it is so; returns how many seconds that took. `why` says more where it is not in time."""
    begun = time.monotonic()
    while not condition():
        assert time.monotonic() < begun + seconds, f"it never came to be {why()}"
        time.sleep(0.002)
    return time.monotonic() - begun


async def until_async(condition: Callable[[], Awaitable[Any] | Any], seconds: float = PATIENCE) -> None:
    """Waits until it is so, in a loop that goes on; the condition may itself be awaited."""
    deadline = time.monotonic() + seconds
    while True:
        found = condition()
        if await found if inspect.isawaitable(found) else found:
            return
        assert time.monotonic() < deadline, "it never came to be"
        await asyncio.sleep(0.01)
