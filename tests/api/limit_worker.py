"""A worker of its own process: a limiter that does what lines on standard input say.

The first line is a JSON object: `settings`, and `skew`, by how many seconds its clock is wrong. Then each line is one
thing to do, and is answered with one line: `admit COUNT KEY LIMIT` (as many at once, held; LIMIT requests in a minute,
0 for none) with the codes of the answers, `churn COUNT` with the largest number that held a place at the same time in
all workers, and `release`.
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
import time
from typing import Any

from boxwright_api.errors import ApiError
from boxwright_api.limits import open_limiter
from boxwright_api.limits.wire import client
from boxwright_api.records import Ticket
from limiting import ask, outcome, settings


async def main() -> None:
    """Until the input ends."""
    orders = json.loads(sys.stdin.readline())
    real = time.time
    time.time = lambda: real() + orders["skew"]
    chosen = settings(**orders["settings"])
    limiter, witness = open_limiter(chosen), client(chosen)
    await limiter.start()
    held: list[Ticket] = []

    async def admit(count: str, key: str, limit: str) -> object:
        limits = {"requests_per_minute": int(limit)} if limit != "0" else {}
        found = await asyncio.gather(*(outcome(limiter, ask(f"r{n}", key, **limits)) for n in range(int(count))))
        held.extend(one for one in found if isinstance(one, Ticket))
        return [one.code if isinstance(one, ApiError) else "" for one in found]

    async def churn(count: str) -> object:
        return max(await asyncio.gather(*(one() for _ in range(int(count)))))

    async def one() -> int:
        found = await outcome(limiter, ask())
        if isinstance(found, ApiError):
            return 0
        now = int(await witness.incr(f"{chosen.redis_prefix}witness"))
        await asyncio.sleep(random.random() / 100)
        await witness.decr(f"{chosen.redis_prefix}witness")
        await limiter.release(found, 1)
        return now

    async def release() -> object:
        while held:
            await limiter.release(held.pop(), 1)
        return await limiter.in_flight()

    does: dict[str, Any] = {"admit": admit, "churn": churn, "release": release}
    print(json.dumps("ready"), flush=True)
    while line := await asyncio.to_thread(sys.stdin.readline):
        name, *arguments = line.split()
        print(json.dumps(await does[name](*arguments)), flush=True)
    await limiter.close()
    await witness.aclose()


if __name__ == "__main__":
    asyncio.run(main())
