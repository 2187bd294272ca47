"""Counting in the process: the same rules as the Lua scripts, on plain Python collections.

Nothing here waits, and no method looks at a clock: the caller says what time it is. `at` is microseconds of a clock
that never goes back; `utc` is microseconds since 1970, which decide the day and month of budgets and nothing else.
"""

from __future__ import annotations

from collections import OrderedDict, defaultdict, deque
from itertools import islice
from typing import TypeVar

from boxwright_api.limits.windows import GRAIN, MINUTE, Reason, Rules, Standing, Verdict, calendar, tightest
from boxwright_api.records import Ask


class Requests:
    """A sliding window of requests. It holds no more entries than its limit lets in."""

    def __init__(self) -> None:
        self._entries: OrderedDict[str, int] = OrderedDict()

    def __len__(self) -> int:
        return len(self._entries)

    def purge(self, at: int) -> None:
        """Forget what no longer counts."""
        while self._entries and next(iter(self._entries.values())) <= at - MINUTE:
            self._entries.popitem(last=False)

    def retry(self, limit: int, at: int) -> int:
        """How long until one more may begin; 0: now."""
        over = len(self._entries) - limit
        return 0 if over < 0 else next(islice(self._entries.values(), over, None)) + MINUTE - at

    def standing(self, limit: int, at: int) -> Standing:
        """What is left of the limit."""
        reset = next(reversed(self._entries.values())) + MINUTE - at if self._entries else 0
        return Standing(limit, max(0, limit - len(self._entries)), reset)

    def add(self, place: str, at: int) -> None:
        """Count a request."""
        self._entries[place] = at

    def remove(self, place: str) -> None:
        """It did not happen."""
        self._entries.pop(place, None)


class Tokens:
    """A sliding window of charged tokens: amounts, each with the moment until which it counts."""

    def __init__(self) -> None:
        self._entries: deque[tuple[int, int]] = deque()
        self._sum = 0

    def __len__(self) -> int:
        return len(self._entries)

    def purge(self, at: int) -> None:
        """Forget what no longer counts."""
        while self._entries and self._entries[0][0] <= at:
            self._sum -= self._entries.popleft()[1]

    def retry(self, limit: int, at: int) -> int:
        """How long until fewer tokens than the limit count; 0: now."""
        left, wait = self._sum, 0
        for until, amount in self._entries:
            if left < limit:
                break
            left, wait = left - amount, until - at
        return wait

    def standing(self, limit: int, at: int) -> Standing:
        """What is left of the limit."""
        return Standing(limit, max(0, limit - self._sum), self._entries[-1][0] - at if self._entries else 0)

    def add(self, amount: int, at: int) -> None:
        """Count tokens."""
        until = (at // GRAIN + 1) * GRAIN + MINUTE
        self._sum += amount
        if self._entries and self._entries[-1][0] == until:
            amount += self._entries.pop()[1]
        self._entries.append((until, amount))


class Budget:
    """Tokens of a key in one day and one month (UTC)."""

    def __init__(self) -> None:
        self.day, self.day_tokens, self.month, self.month_tokens = -1, 0, -1, 0

    def turn(self, day: int, month: int) -> None:
        """It is now this day; what was used on another does not count."""
        if self.day != day:
            self.day, self.day_tokens = day, 0
        if self.month != month:
            self.month, self.month_tokens = month, 0


class Ledger:
    """Everything that is counted. `place` names one request, in all methods."""

    def __init__(self, rules: Rules) -> None:
        self._rules = rules
        self._places: set[str] = set()
        self._key_places: defaultdict[str, set[str]] = defaultdict(set)
        self._breaker = Requests()
        self._visitors: defaultdict[str, Requests] = defaultdict(Requests)
        self._keys: defaultdict[str, Requests] = defaultdict(Requests)
        self._tokens: defaultdict[str, Tokens] = defaultdict(Tokens)
        self._budgets: defaultdict[str, Budget] = defaultdict(Budget)
        self._swept = 0

    @property
    def taken(self) -> int:
        """Places that are taken."""
        return len(self._places)

    def admit(self, place: str, ask: Ask, at: int, utc: int, look: bool = False) -> Verdict:
        """Take a place and count the request, or say why not and count nothing. With `look`, only say why not: if for
        no other reason, then because others come before it.

        Of several windows and budgets that refuse, the one that lasts longest is named, of equals the first in the
        order of `Reason`: who waits for it meets no other. Places are looked at last, since only they are waited for.
        """
        limits = ask.limits
        windows: list[tuple[Reason, int, Requests]] = []
        if self._rules.breaker:
            windows.append((Reason.BREAKER, self._rules.breaker, self._breaker))
        if self._rules.visitor and ask.visitor is not None:
            windows.append((Reason.VISITOR, self._rules.visitor, self._visitors[ask.visitor]))
        if limits.requests_per_minute:
            windows.append((Reason.REQUESTS, limits.requests_per_minute, self._keys[ask.key_id]))
        reason, retry = Reason.NONE, 0
        for name, limit, window in windows:
            window.purge(at)
            if (wait := window.retry(limit, at)) > retry:
                reason, retry = name, wait

        tokens: list[Standing] = []
        if limits.tokens_per_minute:
            charged = self._tokens[ask.key_id]
            charged.purge(at)
            if (wait := charged.retry(limits.tokens_per_minute, at)) > retry:
                reason, retry = Reason.TOKENS, wait
            tokens.append(charged.standing(limits.tokens_per_minute, at))
        if limits.tokens_per_day or limits.tokens_per_month:
            day, month, day_left, month_left = calendar(utc)
            budget = self._budgets[ask.key_id]
            budget.turn(day, month)
            for name, most, used, left in (
                (Reason.DAY, limits.tokens_per_day, budget.day_tokens, day_left),
                (Reason.MONTH, limits.tokens_per_month, budget.month_tokens, month_left),
            ):
                if most:
                    if used >= most and left > retry:
                        reason, retry = name, left
                    tokens.append(Standing(most, max(0, most - used), left if used else 0))

        if not reason:
            if limits.parallel and len(self._key_places[ask.key_id]) >= limits.parallel:
                reason = Reason.KEY_PLACES
            elif look or len(self._places) >= self._rules.in_flight:
                reason = Reason.PLACES
        if not reason:
            self._places.add(place)
            self._key_places[ask.key_id].add(place)
            for _, _, window in windows:
                window.add(place, at)
        requests = [window.standing(limit, at) for _, limit, window in windows]
        self._sweep(at, utc)
        return Verdict(reason, retry, tightest(requests), tightest(tokens))

    def release(self, place: str, ask: Ask, tokens: int, at: int, utc: int) -> None:
        """Give the place back and charge the tokens."""
        self._leave(place, ask)
        if tokens <= 0:
            return
        if ask.limits.tokens_per_minute:
            self._tokens[ask.key_id].purge(at)
            self._tokens[ask.key_id].add(tokens, at)
        self.spend(ask.key_id, tokens, utc)

    def spend(self, key_id: str, tokens: int, utc: int) -> None:
        """Take tokens out of the key's budgets of that day and month; called in the order of time."""
        budget = self._budgets[key_id]
        budget.turn(*calendar(utc)[:2])
        budget.day_tokens += tokens
        budget.month_tokens += tokens

    def withdraw(self, place: str, ask: Ask) -> None:
        """The request has not begun after all: nothing of it counts."""
        self._leave(place, ask)
        self._breaker.remove(place)
        for window in (self._visitors.get(ask.visitor or ""), self._keys.get(ask.key_id)):
            if window is not None:
                window.remove(place)

    def _leave(self, place: str, ask: Ask) -> None:
        self._places.discard(place)
        if places := self._key_places.get(ask.key_id):
            places.discard(place)

    def _sweep(self, at: int, utc: int) -> None:
        """Once a minute: keys and visitors of whom nothing counts any more are forgotten."""
        if at < self._swept + MINUTE:
            return
        self._swept = at
        _forget(self._visitors, at)
        _forget(self._keys, at)
        _forget(self._tokens, at)
        month = calendar(utc)[1]
        for name, places in list(self._key_places.items()):
            if not places:
                del self._key_places[name]
        for name, budget in list(self._budgets.items()):
            if budget.month != month:
                del self._budgets[name]


Window = TypeVar("Window", Requests, Tokens)


def _forget(windows: defaultdict[str, Window], at: int) -> None:
    for name, window in list(windows.items()):
        window.purge(at)
        if not len(window):
            del windows[name]
