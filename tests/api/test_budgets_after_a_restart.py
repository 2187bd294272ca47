"""Limits in the process: what was spent before it was started."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from boxwright_api.errors import ApiError, StoreUnavailable
from boxwright_api.limits.memory import MemoryLimiter
from boxwright_api.records import Ask
from boxwright_api.settings import KeyLimits
from boxwright_api.store.migrate import migrate
from stores import Place, a_row

KEY = "Aaaaaaa1"


def ask(key: str = KEY, **limits: int) -> Ask:
    return Ask(request_id=f"request of {key} {limits}", key_id=key, limits=KeyLimits(**limits))


async def refused(limiter: MemoryLimiter, question: Ask) -> str | None:
    """The code of the refusal."""
    try:
        await limiter.release(await limiter.admit(question), 0)
    except ApiError as error:
        return error.code
    return None


@pytest.mark.anyio
async def test_budgets_go_on(sqlite: Place) -> None:
    migrate(sqlite.settings)
    now = datetime.now(UTC)
    first = now.replace(day=1, hour=0, minute=0, second=0, microsecond=0)
    async with sqlite.opened() as store:
        rows = [
            a_row(1, at=first, tokens_in=20, tokens_out=30),
            a_row(2, at=now, tokens_in=40, tokens_out=60),
            a_row(3, at=now, tokens_in=7, tokens_out=0, key_id=None),
            a_row(4, at=now, tokens_in=9, tokens_out=0, key_id="Another1"),
        ]
        await store.write_usage(rows)
        limiter = MemoryLimiter(sqlite.settings, store)
        await limiter.start()
        today = 150 if now.day == 1 else 100
        assert await refused(limiter, ask(tokens_per_day=today)) == "token_budget_exceeded"
        assert await refused(limiter, ask(tokens_per_day=today + 1)) is None
        assert await refused(limiter, ask(tokens_per_month=150)) == "token_budget_exceeded"
        assert await refused(limiter, ask(tokens_per_month=151)) is None
        assert await refused(limiter, ask("Another1", tokens_per_day=10, tokens_per_month=10)) is None
        assert await refused(limiter, ask("Another1", tokens_per_day=9)) == "token_budget_exceeded"
        await limiter.close()


@pytest.mark.anyio
async def test_without_a_database_they_begin_anew(sqlite: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    migrate(sqlite.settings)

    async def away(*_: object) -> None:
        raise StoreUnavailable

    async with sqlite.opened() as store:
        monkeypatch.setattr(store, "usage", away)
        limiter = MemoryLimiter(sqlite.settings, store)
        await limiter.start()
        assert await refused(limiter, ask(tokens_per_day=1)) is None
        await limiter.close()
