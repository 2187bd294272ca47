"""The rules of the limits: what the Lua scripts and the ledger decide is what a plain model of them says.

Time is what the test says, so that minutes, months and leases pass at once.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Protocol

import pytest
from boxwright_api.limits.ledger import Ledger
from boxwright_api.limits.redis import Commands
from boxwright_api.limits.windows import Held, Rules, Verdict
from boxwright_api.limits.wire import ADMIT, RELEASE, RENEW, Script
from boxwright_api.records import Ask
from boxwright_api.settings import Settings
from databases import Databases
from hypothesis import HealthCheck, settings, strategies
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test
from limiting import MINUTE, Model
from limiting import ask as make_ask
from limiting import settings as make_settings
from redis import Redis

LEASE = 15
IN_FLIGHT, BREAKER, VISITOR = 4, 9, 5


def _settings(**changes: Any) -> Settings:
    return make_settings(
        in_flight=IN_FLIGHT,
        breaker_requests=BREAKER,
        visitor_requests=VISITOR,
        lease_seconds=LEASE,
        redis="redis://127.0.0.1:1/0",
        **changes,
    )


class Subject(Protocol):
    """What is compared with the model."""

    lease: int | None

    def admit(self, place: str, request: Ask, at: int, look: bool) -> list[int]: ...
    def release(self, place: str, request: Ask, tokens: int, at: int) -> None: ...
    def withdraw(self, place: str, request: Ask, at: int) -> None: ...
    def renew(self, places: dict[str, Ask], at: int) -> None: ...
    def taken(self, at: int) -> int: ...
    def check(self) -> None: ...


def _numbers(verdict: Verdict) -> list[int]:
    found = [int(verdict.reason), verdict.retry]
    for standing in (verdict.requests, verdict.tokens):
        found += [standing.limit, standing.remaining, standing.reset] if standing else [0, 0, 0]
    return found


@dataclass
class InProcess:
    """The ledger of the limiter in the process, whose places do not end by themselves."""

    ledger: Ledger = field(default_factory=lambda: Ledger(Rules.of(_settings())))
    lease: int | None = None

    def admit(self, place: str, request: Ask, at: int, look: bool) -> list[int]:
        return _numbers(self.ledger.admit(place, request, at, at, look))

    def release(self, place: str, request: Ask, tokens: int, at: int) -> None:
        self.ledger.release(place, request, tokens, at, at)

    def withdraw(self, place: str, request: Ask, at: int) -> None:
        self.ledger.withdraw(place, request)

    def renew(self, places: dict[str, Ask], at: int) -> None:
        pass

    def taken(self, at: int) -> int:
        return self.ledger.taken

    def check(self) -> None:
        pass


class InRedis:
    """The scripts, run by a real server."""

    lease: int | None = LEASE * 1_000_000

    def __init__(self, server: Redis) -> None:
        self.server, self.prefix = server, f"test-{secrets.token_hex(4)}:"
        self.commands = Commands(_settings(redis_prefix=self.prefix), "worker")
        self.number = 0

    def admit(self, place: str, request: Ask, at: int, look: bool) -> list[int]:
        reply = self._run(ADMIT, *self.commands.admit(place, request, look, at))
        assert isinstance(reply, list)
        return reply

    def release(self, place: str, request: Ask, tokens: int, at: int) -> None:
        self.number += 1
        # Twice, as when the answer to the first was lost.
        for _ in range(2):
            self._run(RELEASE, *self.commands.release(place, request, tokens, self.number, at=at))

    def withdraw(self, place: str, request: Ask, at: int) -> None:
        self._run(RELEASE, *self.commands.release(place, request, 0, 0, withdraw=True, at=at))

    def renew(self, places: dict[str, Ask], at: int) -> None:
        held = [
            Held(request_id="", key_id=request.key_id, queue_ms=0, place=place, ask=request)
            for place, request in places.items()
        ]
        self._run(RENEW, *self.commands.renew(held, at))

    def taken(self, at: int) -> int:
        return int(self._run(RENEW, *self.commands.renew(at=at)))  # type: ignore[call-overload]

    def check(self) -> None:
        for key in self.server.scan_iter(f"{self.prefix}*"):
            assert self.server.pttl(key) > 0, key

    def clean(self) -> None:
        for key in self.server.scan_iter(f"{self.prefix}*"):
            self.server.delete(key)

    def _run(self, script: Script, keys: Sequence[str], arguments: Sequence[str | int]) -> object:
        return self.server.eval(script.text, len(keys), *keys, *arguments)  # type: ignore[arg-type]


LIMITS = strategies.fixed_dictionaries(
    {},
    optional={
        "requests_per_minute": strategies.integers(1, 5),
        "tokens_per_minute": strategies.sampled_from([1, 50, 100]),
        "parallel": strategies.integers(1, 3),
        "tokens_per_day": strategies.sampled_from([1, 150]),
        "tokens_per_month": strategies.sampled_from([1, 400]),
    },
)
STARTS = [
    datetime(2026, 11, 30, 23, 59, 58, 999_999, UTC),
    datetime(2028, 2, 28, 23, 59, 30, 1, UTC),
    datetime(2028, 2, 29, 12, 0, 0, 0, UTC),
    datetime(2027, 12, 31, 23, 58, 0, 0, UTC),
    datetime(2100, 2, 28, 23, 59, 59, 0, UTC),
]
STEPS = [1, 9_999, 10_000, 1_000_000, LEASE * 1_000_000 - 1, LEASE * 1_000_000, MINUTE // 2, MINUTE - 1, MINUTE]
LONG_STEPS = [3600 * 1_000_000, 24 * 3600 * 1_000_000, 27 * 24 * 3600 * 1_000_000]


class Comparison(RuleBasedStateMachine):
    """Anything that may happen, in any order, to the model and to the subject."""

    subject: Subject

    @initialize(start=strategies.sampled_from(STARTS))
    def begin(self, start: datetime) -> None:
        self.at = int(start.timestamp()) * 1_000_000 + start.microsecond
        self.model = Model(IN_FLIGHT, BREAKER, VISITOR, self.subject.lease)
        self.held: dict[str, Ask] = {}
        self.count = 0

    @rule(
        step=strategies.sampled_from(STEPS) | strategies.integers(0, 2 * MINUTE) | strategies.sampled_from(LONG_STEPS)
    )
    def pass_time(self, step: int) -> None:
        self.at += step

    @rule(
        key=strategies.sampled_from(["one", "two"]),
        visitor=strategies.sampled_from([None, "", "a", "ä\udcff{}:*"]),
        limits=LIMITS,
        look=strategies.integers(0, 4),
    )
    def admit(self, key: str, visitor: str | None, limits: dict[str, int], look: int) -> None:
        self.count += 1
        place, request = str(self.count), make_ask(key=key, visitor=visitor, **limits)
        found = self.subject.admit(place, request, self.at, look == 0)
        assert found == self.model.admit(place, request, self.at, look == 0)
        if found[0] == 0:
            self.held[place] = request
        if found[1]:
            # Who waits as long as it says has only to find a place; a moment earlier is too early.
            early = self.subject.admit(place, request, self.at + found[1] - 1, True)
            assert 0 < early[0] < 7
            assert self.model.admit(place, request, self.at + found[1] - 1, True) == early
            self.at += found[1]
            assert self.subject.admit(place, request, self.at, True)[0] in (7, 8)

    @rule(data=strategies.data(), tokens=strategies.sampled_from([0, 1, 49, 50, 51, 1000]))
    def release(self, data: strategies.DataObject, tokens: int) -> None:
        if self.held:
            place = data.draw(strategies.sampled_from(sorted(self.held)))
            request = self.held.pop(place)
            self.subject.release(place, request, tokens, self.at)
            self.model.release(place, request, tokens, self.at)

    @rule(data=strategies.data())
    def withdraw(self, data: strategies.DataObject) -> None:
        if self.held:
            place = data.draw(strategies.sampled_from(sorted(self.held)))
            self.subject.withdraw(place, self.held.pop(place), self.at)
            self.model.withdraw(place)

    @rule()
    def renew(self) -> None:
        if self.subject.lease:
            self.subject.renew(self.held, self.at)
            self.model.renew(self.held, self.at)

    @invariant()
    def counted(self) -> None:
        if hasattr(self, "model"):
            assert self.subject.taken(self.at) == self.model.taken(self.at)
            self.subject.check()


def _compare(subject: type[Subject], *arguments: Any, examples: int) -> None:
    class Run(Comparison):
        def __init__(self) -> None:
            super().__init__()
            self.subject = subject(*arguments)

        def teardown(self) -> None:
            if isinstance(self.subject, InRedis):
                self.subject.clean()

    run_state_machine_as_test(
        Run,
        settings=settings(
            max_examples=examples,
            stateful_step_count=50,
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )


@pytest.fixture
def client(databases: Databases, server: str) -> Iterator[Redis]:
    """A client of each server."""
    with Redis.from_url(databases.redis(server), password=databases.redis_password) as found:
        yield found


def _lower(subject: Subject) -> None:
    """A key has used much, and its limits are lowered: it waits until so much has passed that they have room."""
    second, start = 1_000_000, 1_900_000_000_000_000
    for number in range(3):
        at = start + number * 10 * second
        assert subject.admit(str(number), make_ask(requests_per_minute=5, tokens_per_minute=500), at, False)[0] == 0
        subject.release(str(number), make_ask(tokens_per_minute=500), 50, at)
    for limits, reason, wait in (
        ({"requests_per_minute": 3}, 3, 30 * second),
        ({"requests_per_minute": 2}, 3, 40 * second),
        ({"requests_per_minute": 1}, 3, 50 * second),
        ({"tokens_per_minute": 150}, 4, 30 * second + 10_000),
        ({"tokens_per_minute": 100}, 4, 40 * second + 10_000),
        ({"tokens_per_minute": 51}, 4, 40 * second + 10_000),
        ({"tokens_per_minute": 50}, 4, 50 * second + 10_000),
        ({"requests_per_minute": 1, "tokens_per_minute": 100}, 3, 50 * second),
        ({"requests_per_minute": 3, "tokens_per_minute": 100}, 4, 40 * second + 10_000),
    ):
        assert subject.admit("x", make_ask(**limits), start + 30 * second, False)[:2] == [reason, wait], limits


def test_lowered_limits_in_the_ledger() -> None:
    """The limiter in the process."""
    _lower(InProcess())


@pytest.mark.lab
def test_lowered_limits_in_scripts(client: Redis) -> None:
    """The limiter in Redis."""
    _lower(InRedis(client))


def test_ledger_follows_the_rules() -> None:
    """The limiter in the process."""
    _compare(InProcess, examples=200)


@pytest.mark.lab
def test_scripts_follow_the_rules(client: Redis) -> None:
    """The limiter in Redis, also when a release comes twice; and no key is without an end."""
    _compare(InRedis, client, examples=60)
