"""Fixtures for tests of the API service."""

from __future__ import annotations

import secrets
from collections.abc import Iterator

import pytest
from databases import Databases
from limiting import Limits


@pytest.fixture(scope="session")
def databases() -> Iterator[Databases]:
    """Real PostgreSQL and Valkey; a test that uses it is marked `lab`."""
    found = Databases()
    try:
        yield found
    finally:
        found.close()


@pytest.fixture
def anyio_backend() -> str:
    """Tests with a coroutine, marked `anyio`, run in asyncio."""
    return "asyncio"


@pytest.fixture
def redis_limits(databases: Databases) -> Limits:
    """Limits that are counted in Valkey, below a prefix of their own."""
    shared = {"redis": databases.redis, "redis_password": databases.redis_password}
    return Limits({**shared, "redis_prefix": f"test-{secrets.token_hex(4)}:"})


@pytest.fixture(params=["process", pytest.param("redis", marks=pytest.mark.lab)])
def limits(request: pytest.FixtureRequest) -> Limits:
    """Limits that are counted in the process, and in Valkey."""
    found: Limits = Limits() if request.param == "process" else request.getfixturevalue("redis_limits")
    return found
