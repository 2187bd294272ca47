"""Fixtures for tests of the API service."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from databases import Databases
from served import Served, served
from stub_engine import StubEngine


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
