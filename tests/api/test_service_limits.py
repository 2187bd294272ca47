"""Limits of the running service, with requests that come at once and by several workers, one of which dies."""

from __future__ import annotations

import asyncio
import os
import signal
import textwrap
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from running import ASK, CHAT, STREAM, Made, Running, running
from stub_engine import StubEngine
from waiting import until

from boxwright.paths import repository_root

LEASE = 4.0
# What every worker renews within, and what a busy machine may add.
MARGIN = 6.0


async def flood(urls: list[str], made: Made, bodies: list[dict[str, Any]]) -> list[tuple[int, str, Any, float]]:
    """All of them at once, each on a connection of its own: status, code, headers, seconds."""

    async def one(session: aiohttp.ClientSession, url: str, body: dict[str, Any]) -> tuple[int, str, Any, float]:
        begun = time.perf_counter()
        async with session.post(url + CHAT, json=body, headers=made.headers) as answer:
            took = time.perf_counter() - begun
            text = await answer.read()
            code = "" if answer.status == 200 else (await answer.json())["error"]["code"]
            assert answer.status != 200 or text
            return answer.status, code, answer.headers, took

    connector = aiohttp.TCPConnector(limit=0, force_close=True)
    async with aiohttp.ClientSession(connector=connector) as session:
        asked = (one(session, urls[number % len(urls)], body) for number, body in enumerate(bodies))
        return await asyncio.gather(*asked)


def test_sixty_at_once(running: Running, engine: StubEngine) -> None:
    """Ten places: ten are with the engine, fifty are refused after the wait, and nothing is taken at the end."""
    made = running.key()
    # Long enough that no place becomes free before the last of the sixty has been refused.
    engine.behave(wait=4.0)
    found = asyncio.run(flood([running.url], made, [ASK, STREAM] * 30))
    assert Counter((status, code) for status, code, _, _ in found) == {
        (200, ""): 10,
        (429, "chat_concurrency_limit"): 50,
    }
    assert engine.most == 10
    assert len(engine.records) == 10
    for status, _, headers, took in found:
        if status == 429:
            assert int(headers["retry-after"]) >= 1
            assert 0.2 <= took < 4
    assert until(lambda: running.taken() == 0) < 5
    until(lambda: running.count(f"key_id = '{made.id}'") == 60)
    assert running.count(f"key_id = '{made.id}' AND outcome = 'limited' AND code = 'chat_concurrency_limit'") == 50
    assert len(engine.records) == 10


def test_never_more_than_ten(running: Running, engine: StubEngine) -> None:
    """Places change hands many times, and at no moment are more taken."""
    made = running.key()
    engine.behave(wait=0.02)
    statuses: Counter[int] = Counter()
    for _ in range(5):
        statuses += Counter(found[0] for found in asyncio.run(flood([running.url], made, [ASK] * 60)))
    assert set(statuses) <= {200, 429}
    assert statuses[200] == len(engine.records) >= 50
    assert engine.most <= 10
    assert until(lambda: running.taken() == 0) < 5


def test_places_of_a_key(running: Running, engine: StubEngine) -> None:
    made = running.key(limits={"parallel": 3})
    engine.behave(wait=4.0)
    found = asyncio.run(flood([running.url], made, [ASK] * 8))
    assert Counter((status, code) for status, code, _, _ in found) == {(200, ""): 3, (429, "key_concurrency_limit"): 5}
    assert engine.most == 3


def test_sixty_a_minute(running: Running, engine: StubEngine) -> None:
    """Of two hundred exactly sixty pass, whichever worker they meet."""
    made = running.key(limits={"requests_per_minute": 60})
    found = []
    begun = time.monotonic()
    for _ in range(25):
        found += asyncio.run(flood([running.url], made, [ASK] * 8))
    assert time.monotonic() - begun < 55, "the first of them do not count any more, so this proves nothing"
    assert Counter((status, code) for status, code, _, _ in found) == {(200, ""): 60, (429, "rate_limit_exceeded"): 140}
    assert len(engine.records) == 60
    left = [int(headers["x-ratelimit-remaining-requests"]) for status, _, headers, _ in found if status == 200]
    assert sorted(left) == list(range(60))


# Put into a worker's Python: whoever asks there what time it is gets one that is an hour behind or before.
SKEW = textwrap.dedent(
    """
    import datetime, time

    real, by = time.time, float({skew!r})
    time.time = lambda: real() + by

    class Skewed(datetime.datetime):
        @classmethod
        def now(cls, tz=None):
            return super().now(tz) + datetime.timedelta(seconds=by)

        @classmethod
        def utcnow(cls):
            return super().utcnow() + datetime.timedelta(seconds=by)

    datetime.datetime = Skewed
    """
)


@pytest.mark.lab
@pytest.mark.parametrize("kind", ["full"])
@pytest.mark.parametrize("skew", [-3600, 45])
def test_a_worker_whose_clock_is_wrong(
    own: Callable[..., Running], engine: StubEngine, tmp_path: Path, skew: int
) -> None:
    """Two processes share the limits; the clock of one is wrong, and sixty pass all the same."""
    first = own(workers=1)
    place = tmp_path / "skew"
    place.mkdir()
    (place / "sitecustomize.py").write_text(SKEW.format(skew=skew))
    path = f"{place}:{repository_root() / 'services' / 'api'}"
    with running(
        tmp_path / "second", engine.url, first.databases, like=first, workers=1, environment={"PYTHONPATH": path}
    ) as second:
        engine.clear()
        made = first.key(limits={"requests_per_minute": 60})
        found = []
        begun = time.monotonic()
        for _ in range(20):
            found += asyncio.run(flood([first.url, second.url], made, [ASK] * 10))
        assert time.monotonic() - begun < 55, "this proves nothing"
        assert Counter(status for status, _, _, _ in found) == {200: 60, 429: 140}
        assert len(engine.records) == 60
        # It is wrong indeed, as the rows show that it has written.
        until(lambda: first.count(f"key_id = '{made.id}'") == 200)
        times = [row[0] for row in first.rows("extract(epoch from max(at) - min(at))", f"key_id = '{made.id}'")]
        assert float(times[0]) >= abs(skew)


@pytest.mark.lab
@pytest.mark.parametrize("kind", ["full"])
def test_a_worker_that_is_killed(own: Callable[..., Running], engine: StubEngine) -> None:
    """Its places are free when their leases end, the other one goes on meanwhile, and a new one takes its place."""
    service = own(lease_seconds=LEASE, in_flight=4, stop_seconds=5)
    made = service.key(limits={"parallel": 4})
    engine.behave(wait=60.0)
    with ThreadPoolExecutor(1) as pool:
        held = [service.send(made) for _ in range(4)]
        until(lambda: engine.running == 4)
        before = service.workers()
        assert len(before) == 2
        # Whoever of both holds them: all places of one worker are gone with it.
        rows = service.count()
        killed = time.monotonic()
        for pid in before:
            os.kill(pid, signal.SIGKILL)
        until(lambda: len(set(service.workers()) - set(before)) == 2, why=service.text)
        assert service.taken() == 4
        engine.behave()
        until(lambda: engine.running == 0)

        def served() -> bool:
            try:
                return service.post(made).status_code == 200
            except OSError:
                return False

        pool.submit(until, served).result(PATIENCE_OF_RESTART)
        took = time.monotonic() - killed
        # Not before the last lease has ended, and that is at most one lease after the death.
        assert took <= LEASE + MARGIN, took
        for connection in held:
            connection.close()
    assert service.count() >= rows
    until(lambda: service.taken() == 0)


PATIENCE_OF_RESTART = 60


@pytest.mark.lab
@pytest.mark.parametrize("kind", ["full"])
def test_one_of_two_workers_is_killed(own: Callable[..., Running], engine: StubEngine) -> None:
    """Only what it was working on is lost: rows that were written before are there, the other goes on."""
    service = own(lease_seconds=LEASE, usage_flush_ms=200)
    made = service.key()
    for _ in range(20):
        assert service.post(made).status_code == 200
    until(lambda: service.count(f"key_id = '{made.id}'") == 20)
    engine.behave(wait=30.0)
    held = [service.send(made) for _ in range(8)]
    until(lambda: engine.running == 8)
    engine.behave()
    victim, other = service.workers()
    os.kill(victim, signal.SIGKILL)
    until(lambda: engine.running < 8 or service.workers() != [victim, other])
    left = engine.running
    # The one that lives answers all the time.
    answered = 0
    begun = time.monotonic()
    while time.monotonic() - begun < LEASE + MARGIN and (len(service.workers()) < 2 or answered < 20):
        try:
            status = service.post(made).status_code
        except Exception:
            # What was waiting for the victim's accept is reset with it.
            continue
        assert status in (200, 429)
        answered += status == 200
    assert answered >= 1
    until(lambda: len(service.workers()) == 2 and victim not in service.workers())
    assert other in service.workers()
    # Its places are free; those of the other one are not touched.
    until(lambda: service.taken() <= left, LEASE + MARGIN)
    for connection in held:
        connection.close()
    until(lambda: service.taken() == 0, LEASE + MARGIN)
    until(lambda: service.count(f"key_id = '{made.id}' AND outcome = 'ok'") == 20 + answered)
