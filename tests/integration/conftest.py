"""Fixtures: one full box and one light box for each test process, and a lab for tests that need a box of their own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from kit import LIGHT, Box, Lab, remove_leftovers

# What takes longest comes first, so that of several processes (`pytest -n`, each file in one of them) none waits long
# for the last one. What takes much away comes last, so that nothing waits for it to be built up again.
FIRST, LAST = ("test_molecule.py",), ("test_reboot.py", "test_removal.py")
# Boxes that several files use. Those of one file alone go with its last test: every box holds about five of the 128
# inotify instances that root has on a machine by default, so some 25 boxes at a time are all that can boot.
SHARED = ("full", "light", "gateway")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The order of the files, after the tests of other folders; and which tests may be tried twice."""
    items.sort(key=_place)
    for item in items:
        if item.get_closest_marker("lab"):
            # Machines, networks and programs that are not ours take part. The summary counts each second try.
            item.add_marker(pytest.mark.flaky(reruns=1))


def _place(item: pytest.Item) -> int:
    if item.path.parent.name != "integration":
        return 0
    name = item.path.name
    return 1 if name in FIRST else LAST.index(name) + 3 if name in LAST else 2


@pytest.fixture(scope="session")
def _lab() -> Iterator[Lab]:
    remove_leftovers()
    session = Lab()
    try:
        yield session
    finally:
        session.close()


@pytest.fixture(scope="session")
def lab(_lab: Lab) -> Lab:
    """Where this session makes its boxes."""
    return _lab


@pytest.fixture(scope="module", autouse=True)
def _boxes_of_this_file(_lab: Lab) -> Iterator[None]:
    """Take away what only the tests of one file used."""
    yield
    _lab.take_away(set(_lab.boxes) - set(SHARED))


@pytest.fixture(scope="session")
def _full(lab: Lab) -> Box:
    return lab.up("full")


@pytest.fixture(scope="session")
def _light(lab: Lab) -> Box:
    return lab.up("light", LIGHT)


@pytest.fixture
def full(_full: Box) -> Box:
    """The shared box with everything, converged. A test that breaks something sets `settled` to False first."""
    _full.settle()
    return _full


@pytest.fixture
def light(_light: Box) -> Box:
    """The shared box without Docker and Open WebUI, converged."""
    _light.settle()
    return _light
