"""Limits: who may begin.

A request needs room in every window and budget that applies to it, and a place. Windows are requests in the last 60
seconds: of all callers (the breaker), of its visitor, of its key. Budgets are tokens of its key: in the last 60
seconds, on this day and in this month (UTC). Tokens are charged when a request ends, since nobody knows them before; so
a key may overdraw a budget by what it has in progress, and the next request is refused. A place is one of `in_flight`
for all and one of `parallel` for the key; a request waits for it up to `wait_ms`. Refused and cancelled requests count
nowhere.

Two limiters have this contract: `redis.RedisLimiter` for any number of workers, `memory.MemoryLimiter` for one.
"""

from __future__ import annotations

from boxwright_api.contracts import Limiter, Store
from boxwright_api.settings import Settings


def open_limiter(settings: Settings, store: Store | None = None) -> Limiter:
    """The limiter that the settings want; `start` connects it. One in the process reads what was spent in `store`."""
    # Only what is used takes memory: redis-py is 6 MiB of each worker.
    if settings.redis:
        from boxwright_api.limits.redis import RedisLimiter

        return RedisLimiter(settings)
    from boxwright_api.limits.memory import MemoryLimiter

    return MemoryLimiter(settings, store)
