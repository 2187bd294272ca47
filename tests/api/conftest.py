"""Fixtures for tests of the API service."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from boxwright_api.store.migrate import migrate
from databases import Databases
from hypothesis import settings as hypothesis_settings
from limiting import Limits
from served import Served, served
from stores import Place, settings
from stub_engine import StubEngine

# How long an example takes says nothing on a busy machine.
hypothesis_settings.register_profile("patient", deadline=None)
hypothesis_settings.load_profile("patient")


@pytest.fixture(scope="session")
def databases() -> Iterator[Databases]:
    """Real PostgreSQL and Valkey; a test that uses it is marked `lab`."""
    found = Databases()
    try:
        yield found
    finally:
        found.close()


@pytest.fixture(scope="session")
def stub() -> Iterator[StubEngine]:
    """One stub engine for all tests; `engine` is it, as new."""
    with StubEngine() as found:
        yield found


@pytest.fixture
def engine(stub: StubEngine) -> StubEngine:
    """A stub engine."""
    stub.behave()
    stub.clear()
    return stub


@pytest.fixture
def service(engine: StubEngine) -> Iterator[Served]:
    """The service in front of it, with parts in memory."""
    with served(engine) as found:
        yield found


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


@pytest.fixture
def postgresql(databases: Databases) -> Place:
    """An empty PostgreSQL database."""
    return Place("postgresql", settings(databases.database(), database_password=databases.password), databases)


@pytest.fixture
def sqlite(tmp_path: Path) -> Place:
    """A SQLite database that is not there yet."""
    return Place("sqlite", settings(f"sqlite:///{tmp_path}/api.db"))


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.lab)])
def empty(request: Any) -> Place:
    """A database without tables, of either kind."""
    place: Place = request.getfixturevalue(request.param)
    return place


@pytest.fixture
def place(empty: Place) -> Place:
    """A database with all tables, of either kind."""
    migrate(empty.settings)
    return empty
