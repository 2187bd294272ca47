"""What only limits in Redis must withstand: several processes, one of them killed, and a server that fails."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
from boxwright_api.errors import ApiError
from boxwright_api.limits import open_limiter
from boxwright_api.limits.wire import BATCH, KEPT, RELEASE, SILENCE, Wire, client
from boxwright_api.records import Ticket
from databases import Databases
from limiting import Limits, ask, outcome, settings
from prometheus_client import REGISTRY
from pydantic import SecretStr
from waiting import until_async

pytestmark = [pytest.mark.anyio, pytest.mark.lab]

LONG = 60_000
FOLDER = Path(__file__).parent


class Worker:
    """A process with a limiter (limit_worker.py)."""

    process: asyncio.subprocess.Process

    @classmethod
    async def start(cls, limits: Limits, skew: float = 0, **changes: Any) -> Worker:
        self = cls()
        paths = [str(FOLDER.parents[1] / "services/api"), str(FOLDER)]
        self.process = await asyncio.create_subprocess_exec(
            sys.executable,
            str(FOLDER / "limit_worker.py"),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        )
        orders = {"settings": {**limits.shared, "models": [MODEL], **changes}, "skew": skew}
        assert await self.does(json.dumps(orders)) == "ready"
        return self

    async def does(self, line: str) -> Any:
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write(line.encode() + b"\n")
        return json.loads(await self.process.stdout.readline())

    async def end(self, number: signal.Signals | None = None) -> None:
        if number:
            self.process.send_signal(number)
        elif self.process.stdin:
            self.process.stdin.close()
        await self.process.wait()


MODEL = {"name": "model", "upstream": "http://127.0.0.1:1"}


@asynccontextmanager
async def _workers(limits: Limits, *skews: float, **changes: Any) -> AsyncIterator[list[Worker]]:
    found = await asyncio.gather(*(Worker.start(limits, skew, **changes) for skew in skews))
    try:
        yield list(found)
    finally:
        for worker in found:
            if worker.process.returncode is None:
                await worker.end()


@dataclass
class Proxy:
    """Stands between a limiter and the server, on a Unix socket. `loses`: `questions` or `answers`, and the connection
    ends. `delay`: by how many seconds it holds back each piece of a question.
    """

    path: Path
    target: str
    loses: str = ""
    delay: float = 0

    @property
    def url(self) -> str:
        return f"unix://{self.path}?db=0"

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        host, port = self.target.split("/")[2].split(":")
        from_server, to_server = await asyncio.open_connection(host, int(port))

        async def copy(source: asyncio.StreamReader, sink: asyncio.StreamWriter, what: str) -> None:
            with suppress(OSError):
                while data := await source.read(65536):
                    if what == self.loses:
                        break
                    if what == "questions":
                        await asyncio.sleep(self.delay)
                    sink.write(data)
                    await sink.drain()
            for end in (to_server, writer):
                end.close()

        await asyncio.gather(copy(reader, to_server, "questions"), copy(from_server, writer, "answers"))


@asynccontextmanager
async def _proxy(limits: Limits, folder: Path) -> AsyncIterator[Proxy]:
    proxy = Proxy(folder / "redis.sock", limits.shared["redis"])
    server = await asyncio.start_unix_server(proxy.serve, proxy.path)
    try:
        yield proxy
    finally:
        server.close()


async def _keys(limits: Limits) -> dict[str, int]:
    """All keys of a prefix, with the milliseconds until they expire."""
    async with client(limits.settings()) as server:
        names = [name async for name in server.scan_iter(f"{limits.shared['redis_prefix']}*", count=1000)]
        return {name.decode(): await server.pttl(name) for name in names}


async def _config(limits: Limits, name: str, value: str) -> None:
    async with client(limits.settings()) as server:
        await server.config_set(name, value)


@contextmanager
def _stopped(databases: Databases, server: str) -> Iterator[None]:
    """The server does not run."""
    databases.stop(server)
    try:
        yield
    finally:
        databases.start(server)


@contextmanager
def _hanging(databases: Databases, server: str) -> Iterator[None]:
    """The server takes connections and answers nothing."""
    databases.sh(f"pkill -STOP -x {server}")
    try:
        yield
    finally:
        databases.sh(f"pkill -CONT -x {server}")


async def test_burst_of_two_processes(redis_limits: Limits) -> None:
    """60 at once with 10 places from two processes: 10 hold a place, 50 are refused, then all are free again."""
    async with _workers(redis_limits, 0, 0, in_flight=10, wait_ms=250) as workers:
        answers = await asyncio.gather(*(worker.does("admit 30 key 0") for worker in workers))
        assert Counter(chain(*answers)) == {"": 10, "chat_concurrency_limit": 50}
        assert [await worker.does("release") for worker in workers][-1] == 0


async def test_never_more_than_the_places_in_processes(redis_limits: Limits) -> None:
    """While places change hands between processes, there are never more requests than places."""
    async with _workers(redis_limits, 0, 0, in_flight=6, wait_ms=LONG) as workers:
        assert 2 <= max(await asyncio.gather(*(worker.does("churn 150") for worker in workers))) <= 6


async def test_clocks_of_workers_do_not_matter(redis_limits: Limits) -> None:
    """Three workers whose clocks are hours apart: 60 of 200 requests pass, and no place is lost or taken twice."""
    async with _workers(redis_limits, 0, 7200, -7200, in_flight=100, wait_ms=0, lease_seconds=60) as workers:
        for _ in range(5):
            answers = await asyncio.gather(*(worker.does("admit 14 key 60") for worker in workers))
        assert all(code == "rate_limit_exceeded" for code in chain(*answers))
        async with redis_limits.open(in_flight=100) as (limiter,):
            assert await limiter.in_flight() == 60


async def test_killed_worker(redis_limits: Limits) -> None:
    """The places of a worker that was killed are free when their leases end; those of a living one stay."""
    changes: dict[str, Any] = {"in_flight": 10, "wait_ms": LONG, "lease_seconds": 3}
    async with _workers(redis_limits, 0, 0, **changes) as (dying, living):
        assert await dying.does("admit 9 key 0") == [""] * 9
        assert await living.does("admit 1 key 0") == [""]
        await dying.end(signal.SIGKILL)
        killed = time.monotonic()
        async with redis_limits.open(**changes) as (limiter,):
            assert await limiter.in_flight() == 10
            async with asyncio.timeout(30):
                tickets = [await limiter.admit(ask(f"r{number}")) for number in range(9)]
            assert time.monotonic() - killed < 3 + 3
            # More than a lease later the living one still has its place.
            await until_async(lambda: _later(killed + 7))
            assert await limiter.in_flight() == 10
            for ticket in tickets:
                await limiter.release(ticket, 0)
            assert await limiter.in_flight() == 1


async def test_server_stopped_and_back(redis_limits: Limits, server: str, databases: Databases) -> None:
    """Away: 503 within a second, also for who waits. Back: it goes on by itself, and what was charged meanwhile counts,
    and requests that are still in progress have their places again.
    """
    async with redis_limits.open(in_flight=2, wait_ms=LONG) as (limiter,):
        held = await limiter.admit(ask("held"))
        ended = await limiter.admit(ask("ended", tokens_per_day=1000, tokens_per_minute=1000))
        waiting = asyncio.create_task(outcome(limiter, ask("waiting")))
        await until_async(lambda: len(limiter._line) == 1)
        with _stopped(databases, server):
            for refusal in (await waiting, await _within(outcome(limiter, ask("away")))):
                assert isinstance(refusal, ApiError)
                assert (refusal.status, refusal.code) == (503, "limiter_unavailable")
            assert not await _within(limiter.alive())
            await _within(limiter.release(ended, 700))
            assert await limiter.in_flight() == 1
        back = time.monotonic()
        await until_async(limiter.alive)
        assert time.monotonic() - back < 20
        assert await _spent(limiter) == 700
        await until_async(lambda: _in_flight(limiter, 1))
        await limiter.release(held, 0)
        assert await limiter.in_flight() == 0


async def test_starts_without_the_server(redis_limits: Limits, server: str, databases: Databases) -> None:
    """It starts while the server is away, and counts when it comes."""
    with _stopped(databases, server):
        limiter = open_limiter(redis_limits.settings())
        await _within(limiter.start())
        refusal = await _within(outcome(limiter, ask()))
        assert isinstance(refusal, ApiError)
        assert refusal.code == "limiter_unavailable"
    await until_async(limiter.alive)
    await limiter.release(await limiter.admit(ask()), 0)
    await limiter.close()


async def test_server_hangs(redis_limits: Limits, server: str, databases: Databases) -> None:
    """A server that takes connections and answers nothing: nobody waits for more than a second, and all is counted once
    when it goes on.
    """
    async with redis_limits.open(in_flight=2, wait_ms=0, lease_seconds=2) as (limiter,):
        tickets = [await limiter.admit(ask("r", tokens_per_day=1000, tokens_per_minute=1000)) for _ in range(2)]
        with _hanging(databases, server):
            await _within(limiter.release(tickets[0], 300))
            refusal = await _within(outcome(limiter, ask("away")))
            assert isinstance(refusal, ApiError)
            assert refusal.code == "limiter_unavailable"
            await _within(limiter.release(tickets[1], 50))
            assert not await _within(limiter.alive())
        await until_async(limiter.alive)
        await until_async(lambda: _in_flight(limiter, 0))
        assert await _spent(limiter) == 350


async def test_a_worker_that_stands_still(redis_limits: Limits) -> None:
    """On a machine that is busy with other things a worker may get no time for longer than Redis has to answer."""
    async with redis_limits.open() as (limiter,):
        asked = asyncio.create_task(limiter.admit(ask("held up")))
        await asyncio.sleep(0)
        time.sleep(2 * SILENCE)
        await limiter.release(await asked, 0)


async def test_as_long_as_the_server_answers_all_get_their_turn(redis_limits: Limits, tmp_path: Path) -> None:
    """The last of many waits for longer than a server may say nothing, since each round trip takes a while."""
    async with _proxy(redis_limits, tmp_path) as proxy:
        proxy.delay = 0.15
        async with Limits({**redis_limits.shared, "redis": proxy.url}).open(in_flight=1000) as (limiter,):
            began = time.monotonic()
            tickets = await asyncio.gather(*(limiter.admit(ask(f"r{number}")) for number in range(10 * BATCH)))
            assert time.monotonic() - began > SILENCE
            proxy.delay = 0
            await asyncio.gather(*(limiter.release(ticket, 0) for ticket in tickets))
            assert await limiter.in_flight() == 0


@pytest.mark.parametrize("loses", ["questions", "answers"])
async def test_connection_breaks(redis_limits: Limits, tmp_path: Path, loses: str) -> None:
    """What the limiter asks or what the server answers is lost: tokens count once; a request that was refused for that
    holds no place and is in no window. Also: a Unix socket.
    """
    async with (
        _proxy(redis_limits, tmp_path) as proxy,
        redis_limits.open(in_flight=2, breaker_requests=100, redis=proxy.url) as (limiter,),
    ):
        for turn in range(5):
            ticket = await limiter.admit(ask("r", tokens_per_day=1000, tokens_per_minute=1000))
            proxy.loses = loses
            released = asyncio.create_task(limiter.release(ticket, 10))
            refusal = await _within(outcome(limiter, ask("lost")))
            await _within(released)
            assert isinstance(refusal, ApiError)
            assert refusal.code == "limiter_unavailable"
            proxy.loses = ""
            await until_async(limiter.alive)
            assert await _spent(limiter) == 10 * (turn + 1)
            await until_async(lambda: _in_flight(limiter, 0))
        ticket = await limiter.admit(ask("last"))
        # Five, and five that asked what was spent, and the last.
        assert ticket.headers["x-ratelimit-remaining-requests"] == str(100 - 11)


async def test_fail_open(
    redis_limits: Limits, server: str, databases: Databases, caplog: pytest.LogCaptureFixture
) -> None:
    """With `fail_open` requests pass uncounted while the server is away, which is said once; their tokens and places
    count when it is back.
    """
    before = _metric("uncounted")
    async with redis_limits.open(in_flight=1, wait_ms=0, fail_open=True) as (limiter,):
        with _stopped(databases, server):
            tickets = [await _within(limiter.admit(ask(f"r{number}"))) for number in range(4)]
            assert _metric("uncounted") - before == 4
            for ticket in tickets[1:]:
                await limiter.release(ticket, 5)
        await until_async(limiter.alive)
        assert len([one for one in caplog.records if one.levelno == logging.ERROR]) == 1
        await until_async(lambda: _in_flight(limiter, 1))
        refusal = await outcome(limiter, ask("counted"))
        assert isinstance(refusal, ApiError)
        assert refusal.code == "chat_concurrency_limit"
        await limiter.release(tickets[0], 5)
        assert await _spent(limiter) == 20
        assert _metric("uncounted") - before == 4


async def test_scripts_forgotten(redis_limits: Limits) -> None:
    """SCRIPT FLUSH while requests are in progress and wait: nobody notices."""
    async with redis_limits.open(in_flight=1, wait_ms=LONG) as (limiter,), client(redis_limits.settings()) as server:
        for turn in range(3):
            ticket = await limiter.admit(ask("r", tokens_per_day=1000))
            assert ticket.headers["x-ratelimit-remaining-tokens"] == str(1000 - 10 * turn)
            waiting = asyncio.create_task(limiter.admit(ask("waiting")))
            await until_async(lambda: len(limiter._line) == 1)
            await server.script_flush()
            await limiter.release(ticket, 10)
            await server.script_flush()
            await limiter.release(await waiting, 0)
            await server.script_flush()
            assert await limiter.in_flight() == 0


async def test_server_is_full(redis_limits: Limits) -> None:
    """No memory is left in the server: requests are refused, places are given back and charged all the same."""
    async with redis_limits.open(in_flight=2, wait_ms=0) as (limiter,):
        ticket = await limiter.admit(ask("r", tokens_per_day=1000, tokens_per_minute=1000))
        await _config(redis_limits, "maxmemory", "1")
        try:
            refusal = await _within(outcome(limiter, ask("full")))
            assert isinstance(refusal, ApiError)
            assert (refusal.status, refusal.code) == (503, "limiter_unavailable")
            assert not await limiter.alive()
            await limiter.release(ticket, 70)
            assert await limiter.in_flight() == 0
        finally:
            await _config(redis_limits, "maxmemory", "0")
        await until_async(limiter.alive)
        assert await _spent(limiter) == 70


async def test_every_key_ends(redis_limits: Limits) -> None:
    """Every key expires by itself, when nothing in it counts any more at the latest; and none is named by a visitor."""
    limits = {"requests_per_minute": 9, "tokens_per_minute": 100, "tokens_per_day": 100, "parallel": 3}
    changes: dict[str, Any] = {"breaker_requests": 99, "visitor_requests": 99, "lease_seconds": 9}
    async with redis_limits.open(2, **changes) as (one, two):
        for number in range(5):
            ticket = await one.admit(ask(f"r{number}", f"key{number}", "203.0.113.7", **limits))
            await two.release(ticket, 5)
            await one.release(ticket, 5)
        await two.admit(ask("held", "key", "203.0.113.7", **limits))
        keys = await _keys(redis_limits)
    prefix = redis_limits.shared["redis_prefix"]
    kinds = {name.removeprefix(prefix).split(":")[-1 if ":key" in name else 0] for name in keys}
    assert kinds == {"requests", "visitor", "charged", "places", "tokens", "budget"}
    most = {"places": 9, "charged": 3600, "budget": 31 * 86400 + 60}
    for name, left in keys.items():
        kind = name.removeprefix(prefix).split(":")[-1 if ":key" in name else 0]
        assert 0 < left <= most.get(kind, 60.01) * 1000, name
        assert "203.0.113" not in name


async def test_many_keys_and_no_leak(redis_limits: Limits) -> None:
    """After many requests of many keys, every key has an end, and what ended has left no place."""

    async def one(limiter: Any, number: int) -> None:
        found = await outcome(limiter, ask(f"r{number}", f"key{number % 200}", f"v{number}", tokens_per_minute=10))
        if isinstance(found, Ticket):
            await limiter.release(found, number % 3)

    async with redis_limits.open(in_flight=50, visitor_requests=2, wait_ms=LONG) as (limiter,):
        await asyncio.gather(*(one(limiter, number) for number in range(2000)))
        assert await limiter.in_flight() == 0
        keys = await _keys(redis_limits)
    assert len(keys) > 2000
    assert min(keys.values()) > 0
    assert not [name for name in keys if name.endswith("places")]


async def test_told_of_a_place(redis_limits: Limits, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who waits in one worker is told by the server when a place is given back in another, of the key or of all."""
    monkeypatch.setattr("boxwright_api.limits.line.POLL", 60)
    for limits in ({}, {"parallel": 1}):
        async with redis_limits.open(2, in_flight=2 if limits else 1, wait_ms=LONG) as (one, two):
            await until_async(lambda: _listeners(redis_limits, 2))
            held = await one.admit(ask("held", **limits))
            waiting = asyncio.create_task(two.admit(ask("waiting", **limits)))
            await until_async(lambda: len(two._line) == 1)
            await one.release(held, 0)
            async with asyncio.timeout(10):
                await two.release(await waiting, 0)


async def test_waiting_costs_little(redis_limits: Limits) -> None:
    """500 that wait ask the server once each, and the foremost again at each poll and for each place given back."""
    async with redis_limits.open(2, in_flight=1, wait_ms=LONG) as (one, two), client(redis_limits.settings()) as server:

        async def calls() -> int:
            return int((await server.info("commandstats"))["cmdstat_evalsha"]["calls"])

        held = await one.admit(ask("held"))
        tasks = [asyncio.create_task((one, two)[number % 2].admit(ask(f"r{number}"))) for number in range(500)]
        await until_async(lambda: len(one._line) + len(two._line) == 500)
        before, began = await calls(), time.monotonic()
        await until_async(lambda: _later(began + 1))
        asked, took = await calls() - before, time.monotonic() - began
        assert asked <= 2 * (took / 0.02 + 2)
        before = await calls()
        await one.release(held, 0)
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        assert await calls() - before <= 20
        for task in tasks:
            task.cancel()
        for result in await asyncio.gather(*tasks, return_exceptions=True):
            if isinstance(result, Ticket):
                await one.release(result, 0)
                await two.release(result, 0)
        await until_async(lambda: _in_flight(one, 0))


async def test_wrong_password(redis_limits: Limits, caplog: pytest.LogCaptureFixture) -> None:
    """A wrong password is an outage, and is not told to anybody; none is no way around it."""
    for password in (SecretStr("wrong-and-secret"), None):
        async with redis_limits.open(redis_password=password) as (limiter,):
            refusal = await _within(outcome(limiter, ask()))
            assert isinstance(refusal, ApiError)
            assert refusal.code == "limiter_unavailable"
            assert "wrong-and-secret" not in refusal.message
    assert "AuthenticationError" in caplog.text
    assert "wrong-and-secret" not in caplog.text


async def test_too_many_kept(redis_limits: Limits, server: str, databases: Databases) -> None:
    """What is kept for a server that is away is bounded; the oldest is given up and counted."""

    async def nothing() -> None:
        pass

    before = _metric("uncharged")
    with _stopped(databases, server):
        wire = Wire(redis_limits.settings(), nothing)
        await wire.start()
        for _ in range(KEPT + 7):
            wire.post(RELEASE, [], [])
        assert (_metric("uncharged") - before, len(wire._kept)) == (7, KEPT)
        wire._kept.clear()
        wire._urgent.clear()
        await wire.close()


@pytest.mark.parametrize(
    "url",
    ["redis://:secret@127.0.0.1/0", "redis://127.0.0.1/0?password=secret", "redis://127.0.0.1/0?socket_timeout=9"],
)
def test_address_is_no_place_for_a_password(url: str) -> None:
    """A password in the address, which may be logged, is refused, without repeating it."""
    with pytest.raises(ValueError, match="redis_password") as caught:
        open_limiter(settings(redis=url))
    assert "secret@" not in str(caught.value)
    assert "=secret" not in str(caught.value)


async def _spent(limiter: Any) -> int:
    """Tokens that the key has used: both counts agree."""
    async with asyncio.timeout(10):
        while True:
            ticket = await outcome(limiter, ask("look", tokens_per_day=1000))
            if isinstance(ticket, Ticket):
                break
    await limiter.release(ticket, 0)
    return 1000 - int(ticket.headers["x-ratelimit-remaining-tokens"])


async def _within(work: Any) -> Any:
    """A second is promised; a slow machine may take two more."""
    async with asyncio.timeout(3):
        return await work


def _metric(name: str) -> float:
    return REGISTRY.get_sample_value(f"boxwright_api_{name}_total") or 0.0


async def _later(moment: float) -> bool:
    return time.monotonic() >= moment


async def _listeners(limits: Limits, count: int) -> bool:
    async with client(limits.settings()) as server:
        channel = f"{limits.shared['redis_prefix']}freed"
        return dict(await server.pubsub_numsub(channel)) == {channel.encode(): count}


async def _in_flight(limiter: Any, count: int) -> bool:
    return await limiter.alive() and await limiter.in_flight() == count
