"""Fixtures for tests of the API service."""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from boxwright_api.store.migrate import migrate
from databases import PORTS, Databases
from hypothesis import settings as hypothesis_settings
from limiting import Limits
from running import Running
from served import Served, served
from stores import Place, settings
from stub_engine import StubEngine

# How long an example takes says nothing on a busy machine.
hypothesis_settings.register_profile("patient", deadline=None)
hypothesis_settings.load_profile("patient")


@pytest.fixture(scope="session")
def databases() -> Iterator[Databases]:
    """Real PostgreSQL, Valkey and Redis; a test that uses it is marked `lab`."""
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


# The instances that most tests of the running service share. Tests that stop something start one of their own.
KINDS = ["embedded", pytest.param("full", marks=pytest.mark.lab)]


def _lasting(stub: StubEngine, folder: Path, databases: Databases | None) -> Iterator[Running]:
    stub.behave()
    with Running(folder, stub.url, databases) as found:
        yield found


@pytest.fixture(scope="session")
def embedded(stub: StubEngine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """The running service, as it is on a small box."""
    yield from _lasting(stub, tmp_path_factory.mktemp("embedded"), None)


@pytest.fixture(scope="session")
def full(stub: StubEngine, tmp_path_factory: pytest.TempPathFactory, databases: Databases) -> Iterator[Running]:
    """The running service with PostgreSQL, Valkey and two workers."""
    yield from _lasting(stub, tmp_path_factory.mktemp("full"), databases)


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    """Each of them, by name."""
    return str(request.param)


@pytest.fixture
def running(request: pytest.FixtureRequest, kind: str) -> Running:
    """Each of them; the stub engine (`engine`) is as new."""
    found: Running = request.getfixturevalue(kind)
    request.getfixturevalue("engine")
    return found


@pytest.fixture
def own(
    request: pytest.FixtureRequest, kind: str, engine: StubEngine, tmp_path: Path
) -> Iterator[Callable[..., Running]]:
    """Starts an instance for one test alone, of each kind; arguments are members of its settings."""
    with contextlib.ExitStack() as stack:

        def start(**changes: Any) -> Running:
            databases = request.getfixturevalue("databases") if kind == "full" else None
            found = stack.enter_context(Running(tmp_path / kind, engine.url, databases, **changes))
            engine.clear()
            return found

        yield start


@pytest.fixture
def anyio_backend() -> str:
    """Tests with a coroutine, marked `anyio`, run in asyncio."""
    return "asyncio"


def _counted_in(databases: Databases, server: str) -> Limits:
    shared = {"redis": databases.redis(server), "redis_password": databases.redis_password}
    return Limits({**shared, "redis_prefix": f"test-{secrets.token_hex(4)}:"})


@pytest.fixture(params=PORTS)
def server(request: pytest.FixtureRequest) -> str:
    """Each server that may count limits, by its unit."""
    return str(request.param)


@pytest.fixture
def redis_limits(databases: Databases, server: str) -> Limits:
    """Limits that are counted in `server`, below a prefix of their own."""
    return _counted_in(databases, server)


@pytest.fixture(params=["process", *(pytest.param(server, marks=pytest.mark.lab) for server in PORTS)])
def limits(request: pytest.FixtureRequest) -> Limits:
    """Limits that are counted in the process, and in each server."""
    if request.param == "process":
        return Limits()
    return _counted_in(request.getfixturevalue("databases"), request.param)


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
