"""Fixtures for tests of the API service."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from databases import Databases


@pytest.fixture(scope="session")
def databases() -> Iterator[Databases]:
    """Real PostgreSQL and Valkey; a test that uses it is marked `lab`."""
    found = Databases()
    try:
        yield found
    finally:
        found.close()
