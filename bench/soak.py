#!/usr/bin/env python3
"""Whether the API service's memory grows: half an hour of streams, plain requests and clients that leave.

`.venv/bin/python bench/soak.py [MINUTES] > bench/soak.md`. Both forms are asked at the same time, embedded and with
PostgreSQL and Valkey, each with one worker, everything switched on, and by the same engine as in api.py. What else the
machine does changes how much is asked, and not what is kept. At the end every request must have its row, and no place
may be taken.
"""

import asyncio
import contextlib
import random
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "bench")]

import aiohttp  # noqa: E402
from api import CHAT, MESSAGES, Bench, Way, memory  # noqa: E402
from stack import machine  # noqa: E402

MINUTES = 30
# Clients of each form; after each request one waits up to PAUSE seconds.
CLIENTS, PAUSE = 8, 0.5
# The first minutes fill what is kept for good: connections, caches, prepared statements.
WARM = 2


@dataclass
class Soaked:
    """One form: how often what was asked, what was refused by its code, and its MiB at each minute."""

    way: Way
    asked: dict[str, int] = field(default_factory=lambda: dict.fromkeys(("plain", "stream", "left"), 0))
    failed: Counter[str] = field(default_factory=Counter)
    resident: list[float] = field(default_factory=list)


async def client(soaked: Soaked, session: aiohttp.ClientSession, end: float) -> None:
    """Asks in one of three ways, again and again."""
    url, headers = f"http://127.0.0.1:{soaked.way.port}{CHAT}", {"Authorization": f"Bearer {soaked.way.key}"}
    while time.monotonic() < end:
        kind = random.choice(list(soaked.asked))  # noqa: S311
        body = {"model": "bench", "messages": MESSAGES, "stream": kind != "plain"}
        async with session.post(url, json=body, headers=headers) as answer:
            if answer.status != 200:
                soaked.failed[(await answer.json())["error"]["code"]] += 1
            elif kind == "left":
                for _ in range(random.randint(1, 10)):  # noqa: S311
                    await answer.content.readline()
                # Before its end: the connection is closed, not given back.
                answer.close()
            else:
                await answer.read()
        soaked.asked[kind] += 1
        await asyncio.sleep(random.random() * PAUSE)  # noqa: S311


async def watch(all_of_them: list[Soaked], minutes: int) -> None:
    """What is resident after each minute."""
    for minute in range(1, minutes + 1):
        await asyncio.sleep(60)
        for soaked in all_of_them:
            assert soaked.way.pid is not None  # noqa: S101
            soaked.resident.append(memory(soaked.way.pid))
        print(f"... minute {minute}: {[round(soaked.resident[-1], 1) for soaked in all_of_them]}", file=sys.stderr)


async def soak(all_of_them: list[Soaked], minutes: int) -> None:
    """All clients of both, and who watches."""
    end = time.monotonic() + minutes * 60
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        clients = (client(soaked, session, end) for soaked in all_of_them for _ in range(CLIENTS))
        await asyncio.gather(watch(all_of_them, minutes), *clients)


def kept(soaked: Soaked) -> str:
    """Rows and places at the end, as the databases have them; rows are waited for."""
    running, total = soaked.way.running, sum(soaked.asked.values())
    for _ in range(100):
        if (rows := running.count()) >= total and running.taken() == 0:
            break
        time.sleep(0.1)
    return f"{rows} | {running.taken()}"


def main() -> None:
    """Run it, and print a table."""
    minutes = int(sys.argv[1]) if len(sys.argv) > 1 else MINUTES
    with tempfile.TemporaryDirectory(prefix="boxwright-bench-") as folder, contextlib.ExitStack() as stack:
        bench = Bench(Path(folder), stack)
        found = [Soaked(way) for way in (bench.embedded(), bench.full()) if way]
        asyncio.run(soak(found, minutes))
        lines = []
        for soaked in found:
            first, last = soaked.resident[min(WARM, minutes) - 1], soaked.resident[-1]
            counts = " | ".join(str(number) for number in soaked.asked.values())
            failed = ", ".join(f"{number} {code}" for code, number in soaked.failed.items()) or "0"
            lines.append(
                f"| {soaked.way.name} | {counts} | {failed} | {kept(soaked)} | {first:.1f} | "
                f"{max(soaked.resident):.1f} | {last:.1f} | {last - first:+.1f} |"
            )
    print(f"{machine()}\n\n{minutes} minutes, {CLIENTS} clients for each form at the same time.\n")
    for note in bench.notes:
        print(f"{note}\n")
    print(
        "| form | plain | streams | left in a stream | failed | rows | places taken | "
        f"MiB after {WARM} minutes | at most | at the end | grown |"
    )
    print("| --- |" + " ---: |" * 10)
    print("\n".join(lines))


if __name__ == "__main__":
    main()
