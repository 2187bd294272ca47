"""What both limiters share: the kinds of refusal, the state of a window, and what clients are told of them.

Times are whole microseconds. A sliding window looks back `MINUTE` from now: what happened at `t` counts while
now < t + MINUTE, so that no span of 60 seconds, wherever it begins, holds more requests than the limit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import IntEnum
from math import ceil

from boxwright_api.errors import ApiError, busy, limited, unavailable
from boxwright_api.records import Ask, Ticket
from boxwright_api.settings import Settings

SECOND = 1_000_000
MINUTE = 60 * SECOND
DAY = 24 * 60 * MINUTE
# Tokens of a key are kept by hundredths of a second, so that a window has at most 6001 entries. They count until the
# hundredth in which they were charged is a minute old.
GRAIN = 10_000
# A place may become free at any moment: nobody knows when. This is only so that a refused client does not hammer.
BUSY_RETRY = SECOND


class Reason(IntEnum):
    """Why a request may not begin, in the order of the checks. The numbers are those of admission.lua."""

    NONE = 0
    BREAKER = 1
    VISITOR = 2
    REQUESTS = 3
    TOKENS = 4
    DAY = 5
    MONTH = 6
    KEY_PLACES = 7
    PLACES = 8


@dataclass(frozen=True)
class Standing:
    """How much of a limit is left, and how long until all of it is (if nothing more is used)."""

    limit: int
    remaining: int
    reset: int


@dataclass(frozen=True)
class Verdict:
    """The answer to one attempt to begin.

    `retry`: after this time the windows and budgets let one more request begin, if nobody else uses them up.
    `requests` and `tokens`: the tightest limit of each kind, this request included if it was admitted.
    """

    reason: Reason = Reason.NONE
    retry: int = 0
    requests: Standing | None = None
    tokens: Standing | None = None

    @property
    def admitted(self) -> bool:
        """It has a place."""
        return self.reason is Reason.NONE

    @property
    def waits(self) -> bool:
        """Only a place is missing, and one may become free."""
        return self.reason in (Reason.KEY_PLACES, Reason.PLACES)


def verdict_of(reply: Sequence[int]) -> Verdict:
    """The answer of admission.lua: reason, retry, then limit, remaining, reset of requests and of tokens (limit 0: none
    applies)."""
    reason, retry, *rest = (int(number) for number in reply)
    standings = [Standing(*rest[at : at + 3]) if rest[at] else None for at in (0, 3)]
    return Verdict(Reason(reason), retry, *standings)


def tightest(standings: Sequence[Standing]) -> Standing | None:
    """The one of which least is left; of two, the one that takes longer; else the first."""
    return min(standings, key=lambda one: (one.remaining, -one.reset), default=None)


def calendar(now: int) -> tuple[int, int, int, int]:
    """Of a moment since 1970: its day and its month (since year 0), UTC, and how long until each ends."""
    date = datetime.fromtimestamp(now // SECOND, UTC)
    month = date.year * 12 + date.month - 1
    following = datetime((month + 1) // 12, (month + 1) % 12 + 1, 1, tzinfo=UTC)
    day = now // DAY
    return day, month, (day + 1) * DAY - now, int(following.timestamp()) * SECOND - now


@dataclass(frozen=True)
class Rules:
    """Limits that do not depend on the key; 0 is no limit."""

    in_flight: int
    breaker: int
    visitor: int

    @classmethod
    def of(cls, settings: Settings) -> Rules:
        """Those of the settings."""
        return cls(settings.in_flight, settings.breaker_requests, settings.visitor_requests)


@dataclass(frozen=True, kw_only=True)
class Held(Ticket):
    """A ticket of a limiter. `place` names what it holds: made here, so that it is unique whatever the request's id."""

    place: str
    ask: Ask = field(repr=False)


def duration(microseconds: int) -> str:
    """As OpenAI writes it in x-ratelimit-reset-*: 120ms, 7.66s, 6m0s, 1h0m0s."""
    milliseconds = ceil(max(0, microseconds) / 1000)
    if 0 < milliseconds < 1000:
        return f"{milliseconds}ms"
    minutes, rest = divmod(milliseconds, 60_000)
    hours, minutes = divmod(minutes, 60)
    text = f"{rest / 1000:.3f}".rstrip("0").rstrip(".") + "s"
    if hours:
        return f"{hours}h{minutes}m{text}"
    return f"{minutes}m{text}" if minutes else text


def headers(verdict: Verdict) -> dict[str, str]:
    """The x-ratelimit-* of an answer, for the tightest limit of each kind that applies."""
    found: dict[str, str] = {}
    for kind, standing in (("requests", verdict.requests), ("tokens", verdict.tokens)):
        if standing is not None:
            found[f"x-ratelimit-limit-{kind}"] = str(standing.limit)
            found[f"x-ratelimit-remaining-{kind}"] = str(standing.remaining)
            found[f"x-ratelimit-reset-{kind}"] = duration(standing.reset)
    return found


def refusal(verdict: Verdict, ask: Ask, rules: Rules) -> ApiError:
    """The error for a request that may not begin."""
    told: Mapping[str, str] = headers(verdict)
    # Whole seconds, as Retry-After has them, and never too early.
    limits, seconds = ask.limits, float(ceil(max(verdict.retry, 1) / SECOND))
    match verdict.reason:
        case Reason.BREAKER:
            text = "All callers together have made the requests that are taken in a minute."
            return limited("breaker_open", text, seconds, told)
        case Reason.VISITOR:
            text = f"A visitor may make {rules.visitor} requests in a minute."
            return limited("visitor_limit_exceeded", text, seconds, told)
        case Reason.REQUESTS:
            text = f"This key may make {limits.requests_per_minute} requests in a minute."
            return limited("rate_limit_exceeded", text, seconds, told)
        case Reason.TOKENS:
            text = f"This key may use {limits.tokens_per_minute} tokens in a minute."
            return limited("token_limit_exceeded", text, seconds, told)
        case Reason.DAY:
            text = f"This key has used its {limits.tokens_per_day} tokens of this day (UTC)."
            return limited("token_budget_exceeded", text, seconds, told)
        case Reason.MONTH:
            text = f"This key has used its {limits.tokens_per_month} tokens of this month (UTC)."
            return limited("token_budget_exceeded", text, seconds, told)
        case Reason.KEY_PLACES:
            text = f"This key may have {limits.parallel} requests in progress; one of them must end first."
            return limited("key_concurrency_limit", text, BUSY_RETRY / SECOND, told)
        case Reason.PLACES:
            return busy(BUSY_RETRY / SECOND, told)
    raise ValueError(f"an admitted request is not refused: {verdict}")


def away() -> ApiError:
    """Nobody can count, so nobody is let in."""
    return unavailable("limiter_unavailable", "Requests cannot be counted at the moment; try again shortly.")
