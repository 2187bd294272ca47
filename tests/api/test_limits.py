"""The contract of the limiter, for both: in the process, and in a real Valkey."""

from __future__ import annotations

import asyncio
import random
import tracemalloc
from collections import Counter
from typing import Any

import pytest
from boxwright_api.contracts import Limiter
from boxwright_api.errors import ApiError
from boxwright_api.limits.line import Line
from boxwright_api.limits.windows import Held, Reason, Verdict, duration
from boxwright_api.records import Ticket
from limiting import Limits, ask, outcome
from waiting import until_async

LONG = 60_000  # milliseconds: longer than any test waits


pytestmark = pytest.mark.anyio


async def test_window_is_exact_over_workers(limits: Limits) -> None:
    """200 calls of a key that may make 60 in a minute, over two workers: 60 pass, the others hear when to come back."""
    async with limits.open(2, in_flight=1000) as workers:

        async def call(number: int) -> Ticket | ApiError:
            found = await outcome(workers[number % 2], ask(f"r{number}", requests_per_minute=60))
            if isinstance(found, Ticket):
                await workers[number % 2].release(found, 0)
            return found

        found = await asyncio.gather(*(call(number) for number in range(200)))
    passed = [one for one in found if isinstance(one, Ticket)]
    refused = [one for one in found if isinstance(one, ApiError)]
    assert (len(passed), len(refused)) == (60, 140)
    assert sorted(int(one.headers["x-ratelimit-remaining-requests"]) for one in passed) == list(range(60))
    assert {(one.status, one.code) for one in refused} == {(429, "rate_limit_exceeded")}
    assert all(one.retry_after and 0 < one.retry_after <= 60 for one in refused)
    assert {one.headers["x-ratelimit-remaining-requests"] for one in refused} == {"0"}
    assert {one.headers["x-ratelimit-limit-requests"] for one in refused} == {"60"}


async def test_burst(limits: Limits) -> None:
    """60 at once with 10 places, over two workers: 10 have one, 50 wait and are refused."""
    async with limits.open(2, in_flight=10, wait_ms=250) as workers:
        began = asyncio.get_running_loop().time()
        found = await asyncio.gather(*(outcome(workers[n % 2], ask(f"r{n}", f"k{n % 7}")) for n in range(60)))
        took = asyncio.get_running_loop().time() - began
        refused = [one for one in found if isinstance(one, ApiError)]
        assert len(refused) == 50
        assert {(one.status, one.code, one.kind) for one in refused} == {
            (429, "chat_concurrency_limit", "rate_limit_error")
        }
        assert all(one.retry_after for one in refused)
        assert 0.25 <= took < 5
        assert [await worker.in_flight() for worker in workers] == [10, 10]


async def test_never_more_than_the_places(limits: Limits) -> None:
    """While places change hands quickly, there are never more requests than places, and all have their turn."""
    now = most = 0

    async def work(worker: Limiter, number: int) -> None:
        nonlocal now, most
        ticket = await worker.admit(ask(f"r{number}", f"k{number % 3}"))
        now += 1
        most = max(most, now)
        await asyncio.sleep(random.random() / 500)
        now -= 1
        await worker.release(ticket, 1)

    async with limits.open(2, in_flight=7, wait_ms=LONG) as workers:
        await asyncio.gather(*(work(workers[n % 2], n) for n in range(300)))
        assert most == 7
        assert await workers[0].in_flight() == 0


async def test_order(limits: Limits) -> None:
    """Who waits in a worker is served in the order of arrival."""
    served: list[int] = []

    async def work(limiter: Limiter, number: int) -> None:
        ticket = await limiter.admit(ask(f"r{number}", f"k{number % 5}"))
        served.append(number)
        await limiter.release(ticket, 0)

    async with limits.open(in_flight=1, wait_ms=LONG) as (limiter,):
        first = await limiter.admit(ask("first"))
        tasks = [asyncio.create_task(work(limiter, number)) for number in range(30)]
        await until_async(lambda: _waiting(limiter, 30))
        await limiter.release(first, 0)
        await asyncio.gather(*tasks)
    assert served == list(range(30))


async def test_newcomer_does_not_overtake(limits: Limits) -> None:
    """A request that comes when a place has just become free does not take it from those who wait."""
    async with limits.open(in_flight=1, wait_ms=LONG) as (limiter,):
        first = await limiter.admit(ask("first"))
        waiting = asyncio.create_task(limiter.admit(ask("waiting")))
        await until_async(lambda: _waiting(limiter, 1))
        release = asyncio.create_task(limiter.release(first, 0))
        newcomer = asyncio.create_task(limiter.admit(ask("newcomer")))
        await asyncio.wait([waiting, newcomer], return_when=asyncio.FIRST_COMPLETED)
        assert waiting.done()
        assert not newcomer.done()
        await release
        await limiter.release(await waiting, 0)
        await limiter.release(await newcomer, 0)


async def test_place_of_another_worker(limits: Limits) -> None:
    """Who waits in one worker gets a place that is given back in another."""
    async with limits.open(2, in_flight=1, wait_ms=LONG) as (one, two):
        held = await one.admit(ask("one"))
        waiting = asyncio.create_task(two.admit(ask("two")))
        await until_async(lambda: _waiting(two, 1))
        await one.release(held, 0)
        async with asyncio.timeout(10):
            await two.release(await waiting, 0)


async def test_parallel_of_a_key(limits: Limits) -> None:
    """A key has its own number of places; who waits for one of them is in nobody else's way."""
    async with limits.open(2, in_flight=10, wait_ms=LONG) as (one, two):
        held = [await one.admit(ask("a", parallel=2)), await two.admit(ask("b", parallel=2))]
        waiting = asyncio.create_task(two.admit(ask("c", parallel=2)))
        await until_async(lambda: _waiting(two, 1))
        other = await two.admit(ask("other", "other", parallel=1))
        assert not waiting.done()
        await one.release(held[0], 0)
        held[0] = await waiting
        assert await one.in_flight() == 3
        for ticket in (*held, other):
            await two.release(ticket, 0)
            await one.release(ticket, 0)
        assert await one.in_flight() == 0
    async with limits.open(in_flight=10, wait_ms=50) as (limiter,):
        await limiter.admit(ask("a", parallel=1))
        began = asyncio.get_running_loop().time()
        refusal = await outcome(limiter, ask("b", parallel=1))
        assert isinstance(refusal, ApiError)
        assert (refusal.status, refusal.code) == (429, "key_concurrency_limit")
        assert asyncio.get_running_loop().time() - began >= 0.05
        assert isinstance(await outcome(limiter, ask("c", "other", parallel=1)), Ticket)


async def test_refused_counts_nowhere(limits: Limits) -> None:
    """Neither a request that waited in vain, nor one that another limit refused, uses up a window."""
    async with limits.open(in_flight=1, wait_ms=30, breaker_requests=3, visitor_requests=3) as (limiter,):
        held = await limiter.admit(ask("a", visitor="v", requests_per_minute=3))
        for number in range(5):
            refusal = await outcome(limiter, ask(f"b{number}", visitor="v", requests_per_minute=3))
            assert isinstance(refusal, ApiError)
            assert refusal.code == "chat_concurrency_limit"
            assert refusal.headers["x-ratelimit-remaining-requests"] == "2"
        await limiter.release(held, 10)
        for number in range(5):
            refusal = await outcome(limiter, ask(f"c{number}", visitor="v", tokens_per_day=10))
            assert isinstance(refusal, ApiError)
            assert refusal.code == "token_budget_exceeded"
        ticket = await limiter.admit(ask("d", visitor="v", requests_per_minute=3))
        assert ticket.headers["x-ratelimit-remaining-requests"] == "1"


async def test_windows_of_all_and_of_visitors(limits: Limits) -> None:
    """Requests of a visitor, and of everybody."""
    async with limits.open(2, in_flight=100, breaker_requests=7, visitor_requests=2) as workers:

        async def codes(visitor: str | None, times: int) -> list[str]:
            found = [await outcome(workers[n % 2], ask(visitor=visitor)) for n in range(times)]
            return [one.code if isinstance(one, ApiError) else "" for one in found]

        assert await codes("a", 3) == ["", "", "visitor_limit_exceeded"]
        assert await codes("2001:db8::1 {x}:*\udcff\n", 3) == ["", "", "visitor_limit_exceeded"]
        assert await codes(None, 5) == ["", "", "", "breaker_open", "breaker_open"]


@pytest.mark.parametrize(
    ("limit", "code", "longest"),
    [
        ("tokens_per_minute", "token_limit_exceeded", 61),
        ("tokens_per_day", "token_budget_exceeded", 86400),
        ("tokens_per_month", "token_budget_exceeded", 31 * 86400),
    ],
)
async def test_tokens(limits: Limits, limit: str, code: str, longest: float) -> None:
    """Tokens are charged afterwards: a key may overdraw once, and is then refused; other keys are not."""
    async with limits.open(2) as (one, two):
        first, second = [await worker.admit(ask("r", **{limit: 100})) for worker in (one, two)]
        assert first.headers["x-ratelimit-remaining-tokens"] == "100"
        await one.release(first, 99)
        third = await two.admit(ask("r", **{limit: 100}))
        assert third.headers["x-ratelimit-remaining-tokens"] == "1"
        await two.release(second, 900)
        await two.release(third, 0)
        refusal = await outcome(one, ask("r", **{limit: 100}))
        assert isinstance(refusal, ApiError)
        assert (refusal.status, refusal.code) == (429, code)
        assert refusal.retry_after
        assert 1 <= refusal.retry_after <= longest
        # However it is rounded, it is not too early.
        assert refusal.retry_after == int(refusal.retry_after)
        assert refusal.headers["x-ratelimit-limit-tokens"] == "100"
        assert refusal.headers["x-ratelimit-remaining-tokens"] == "0"
        assert isinstance(await outcome(one, ask("r", "other", **{limit: 100})), Ticket)
        # The limits of a key may be raised.
        assert (await one.admit(ask("r", **{limit: 1000}))).headers["x-ratelimit-remaining-tokens"] == "1"


async def test_same_request_id(limits: Limits) -> None:
    """Two requests have two places, whatever ids they bear; a release twice, or of a foreign ticket, does nothing."""
    async with limits.open(in_flight=2, wait_ms=0) as (limiter,):
        one, two = await limiter.admit(ask("é\udcff\n" * 100)), await limiter.admit(ask("é\udcff\n" * 100))
        refusal = await outcome(limiter, ask("é\udcff\n" * 100))
        assert isinstance(refusal, ApiError)
        assert refusal.code == "chat_concurrency_limit"
        for _ in range(2):
            await limiter.release(one, 50)
        await limiter.release(Ticket(request_id=two.request_id, key_id=two.key_id, queue_ms=0), 1)
        assert await limiter.in_flight() == 1
        ticket = await limiter.admit(ask("x", tokens_per_day=100))
        assert ticket.headers["x-ratelimit-remaining-tokens"] == "50"


async def test_cancelled_at_each_step(limits: Limits) -> None:
    """Wherever a request is cancelled before it has its ticket, nothing of it is left; the next in line goes on."""
    async with limits.open(in_flight=1, wait_ms=LONG, breaker_requests=1000) as (limiter,):
        tickets = 0
        for busy in (False, True):
            for step in range(60):
                held = await limiter.admit(ask("held")) if busy else None
                tickets += busy + 1
                task = asyncio.create_task(limiter.admit(ask("gone")))
                follower = asyncio.create_task(limiter.admit(ask("follower")))
                await _steps(step)
                if held and step % 2:
                    await limiter.release(held, 0)
                    held = None
                    await _steps(step // 8)
                task.cancel()
                if held:
                    await limiter.release(held, 0)
                try:
                    ticket = await task
                except asyncio.CancelledError:
                    pass
                else:
                    await limiter.release(ticket, 0)
                    tickets += 1
                async with asyncio.timeout(10):
                    await limiter.release(await follower, 0)
                await until_async(lambda: _free(limiter))
        # What was cancelled is not in the window: only those that had a ticket are.
        last = await limiter.admit(ask("last"))
        assert last.headers["x-ratelimit-remaining-requests"] == str(1000 - tickets - 1)


async def test_cancelled_release(limits: Limits) -> None:
    """Wherever a release is cancelled, the place is free and the tokens are charged once."""
    async with limits.open(in_flight=1, wait_ms=LONG) as (limiter,):
        for step in range(20):
            ticket = await limiter.admit(ask("r", tokens_per_day=1000))
            assert ticket.headers["x-ratelimit-remaining-tokens"] == str(1000 - 7 * step)
            task = asyncio.create_task(limiter.release(ticket, 7))
            await _steps(step + 1)
            task.cancel()
            await asyncio.wait([task])
            await until_async(lambda: _free(limiter))


async def test_cancelled_while_waiting(limits: Limits) -> None:
    """Of many that wait, those who leave take nothing, and those who stay keep their order."""
    served: list[int] = []

    async def work(limiter: Limiter, number: int) -> None:
        ticket = await limiter.admit(ask(f"r{number}", f"k{number % 3}", requests_per_minute=100))
        served.append(number)
        await limiter.release(ticket, 0)

    async with limits.open(in_flight=1, wait_ms=LONG) as (limiter,):
        first = await limiter.admit(ask("first"))
        tasks = [asyncio.create_task(work(limiter, number)) for number in range(40)]
        await until_async(lambda: _waiting(limiter, 40))
        for task in tasks[::2]:
            task.cancel()
        await asyncio.wait(tasks[::2])
        assert await _waiting(limiter, 20)
        await limiter.release(first, 0)
        await asyncio.wait(tasks)
        assert served == list(range(1, 40, 2))
        await until_async(lambda: _free(limiter))
        ticket = await limiter.admit(ask("last", "k0", requests_per_minute=100))
        assert int(ticket.headers["x-ratelimit-remaining-requests"]) == 99 - sum(n % 3 == 0 for n in served)


async def test_close_gives_back(limits: Limits) -> None:
    """A limiter that is closed refuses who waits, and leaves no place taken."""
    async with limits.open(2, in_flight=2, wait_ms=LONG) as (one, two):
        await one.admit(ask("a"))
        await one.admit(ask("b"))
        waiting = asyncio.create_task(outcome(one, ask("c")))
        await until_async(lambda: _waiting(one, 1))
        await one.close()
        refusal = await waiting
        assert isinstance(refusal, ApiError)
        assert (refusal.status, refusal.code) == (503, "limiter_unavailable")
        assert await two.in_flight() == 0


async def test_many_requests(limits: Limits) -> None:
    """10,000 requests that pass, are refused, wait, are cancelled: no place is taken at the end."""
    outcomes: Counter[str] = Counter()
    rng = random.Random(1)

    async def client(workers: list[Any], number: int) -> None:
        for turn in range(100):
            worker = rng.choice(workers)
            request = ask(
                f"{number}-{turn}",
                f"k{number % 10}",
                f"v{turn % 7}",
                parallel=3,
                requests_per_minute=400,
                tokens_per_day=9000,
            )
            task = asyncio.create_task(outcome(worker, request))
            if rng.random() < 0.2:
                await asyncio.sleep(rng.random() * 0.01)
                task.cancel()
            try:
                found = await task
            except asyncio.CancelledError:
                outcomes["cancelled"] += 1
                continue
            if isinstance(found, ApiError):
                outcomes[found.code] += 1
                continue
            outcomes["passed"] += 1
            await asyncio.sleep(rng.random() * 0.004)
            await worker.release(found, rng.randrange(20))

    async with limits.open(2, in_flight=8, wait_ms=30, visitor_requests=1200) as workers:
        await asyncio.gather(*(client(workers, number) for number in range(100)))
        await until_async(lambda: _free(workers[0]))
    assert sum(outcomes.values()) == 10_000
    assert min(outcomes[one] for one in ("passed", "cancelled", "chat_concurrency_limit")) > 50, outcomes


async def test_alive(limits: Limits) -> None:
    """It can count."""
    async with limits.open() as (limiter,):
        assert await limiter.alive()


async def test_thousand_waiters() -> None:
    """A thousand that wait ask once each, and the foremost again at each poll; they take little memory."""
    asked = 0
    free = asyncio.Event()

    async def attempt(held: Held, look: bool, foremost: bool) -> Verdict:
        nonlocal asked
        asked += 1
        await asyncio.sleep(0)
        return Verdict() if free.is_set() and not look else Verdict(Reason.PLACES)

    line = Line(attempt, lambda held: None, 60)
    loop = asyncio.get_running_loop()
    tracemalloc.start()
    tasks = [asyncio.create_task(line.enter(_held(number))) for number in range(1000)]
    await until_async(lambda: len(line) == 1000)
    memory, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert memory / 1000 < 16_384
    before, began = asked, loop.time()
    await until_async(lambda: loop.time() - began > 1)
    assert 1 <= asked - before <= (loop.time() - began) / 0.02 + 2
    free.set()
    assert all(verdict.admitted for verdict in await asyncio.gather(*tasks))
    assert asked <= before + 1000 + 52 + 1000
    assert len(line) == 0


async def test_blocked_keys_ask_in_turns() -> None:
    """Many keys that wait for places of their own are asked a few at a time; each is asked again in the end."""
    asked: Counter[str] = Counter()

    async def attempt(held: Held, look: bool, foremost: bool) -> Verdict:
        asked[held.key_id] += 1
        return Verdict(Reason.KEY_PLACES)

    line = Line(attempt, lambda held: None, 60)
    tasks = [asyncio.create_task(line.enter(_held(number, f"k{number}"))) for number in range(40)]
    await until_async(lambda: min(asked.values(), default=0) >= 3 and len(asked) == 40)
    assert max(asked.values()) <= min(asked.values()) + 2
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
    assert len(line) == 0


@pytest.mark.parametrize(
    ("microseconds", "text"),
    [
        (-5, "0s"),
        (0, "0s"),
        (1, "1ms"),
        (120_000, "120ms"),
        (999_001, "1s"),
        (7_660_000, "7.66s"),
        (60_000_000, "1m0s"),
        (360_000_000, "6m0s"),
        (3_600_000_000, "1h0m0s"),
        (90_061_500_000, "25h1m1.5s"),
    ],
)
def test_durations(microseconds: int, text: str) -> None:
    """As OpenAI's headers have them; never shorter than the time itself."""
    assert duration(microseconds) == text


def _held(number: int, key: str = "key") -> Held:
    return Held(request_id=f"r{number}", key_id=key, queue_ms=0, place=str(number), ask=ask(f"r{number}", key))


async def _steps(count: int) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def _waiting(limiter: Any, count: int) -> bool:
    return len(limiter._line) == count


async def _free(limiter: Limiter) -> bool:
    return await limiter.in_flight() == 0
