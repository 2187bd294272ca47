"""pytest plugin: every host of the inventory as a testinfra host, its settings, and a client from outside.

Fixtures: `box` (the host's settings) and `outside` (boxwright.outside.Outside), beside testinfra's own `host`. A test
that asks for `box` or `outside`, and every test in a file roles/ROLE/checks.py, runs once for each host of the
inventory, unless `--hosts` is given or its module names `testinfra_hosts` itself. The checks of a role run only on
boxes where the role's `enabled` setting is not false, those of an engine only where it runs, and those with the mark
`system("linux")` or `system("darwin")` only where the box runs that.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from boxwright.engines import EngineSettings

_REFUSED = pytest.StashKey[str]()
_HOSTS = pytest.StashKey[list[str]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Options to choose the inventory and its hosts."""
    group = parser.getgroup("boxwright")
    group.addoption("--boxwright-inventory", metavar="PATH", help="inventory of the hosts that are tested")
    group.addoption("--boxwright-limit", metavar="HOSTS", help="hosts or groups of that inventory, separated by commas")


def pytest_configure(config: pytest.Config) -> None:
    """Make the mark known."""
    config.addinivalue_line("markers", "system(name): the check is for boxes that run it, linux or darwin")


def role_of(path: Path) -> str | None:
    """The role whose checks the file `path` holds: roles/ROLE/checks.py."""
    return path.parts[-2] if path.name == "checks.py" and path.parts[-3:-2] == ("roles",) else None


def applies(role: str, box: Any) -> bool:
    """Whether `box` has what `role` sets up."""
    settings = getattr(box, role, None)
    if isinstance(settings, EngineSettings):
        return bool(box.inference.runs(role))
    enabled = getattr(settings, "enabled", True)
    # Unset, it runs where another role needs it.
    return bool(settings.switch(box)) if enabled is None and settings is not None else bool(enabled)


def _wanted(metafunc: pytest.Metafunc) -> bool:
    if metafunc.config.getoption("hosts", None) is not None or hasattr(metafunc.module, "testinfra_hosts"):
        return False
    if "_testinfra_host" not in metafunc.fixturenames:
        return False
    return bool({"box", "outside"} & set(metafunc.fixturenames)) or role_of(metafunc.definition.path) is not None


@pytest.hookimpl(tryfirst=True)
def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Tell testinfra, which makes one test per host, that its hosts are those of the inventory."""
    if _wanted(metafunc):
        metafunc.module.testinfra_hosts = _hosts(metafunc.config)


def _hosts(config: pytest.Config) -> list[str]:
    if (known := config.stash.get(_HOSTS, None)) is None:
        from boxwright.errors import Refused, render
        from boxwright.inventory import load
        from boxwright.testing.hosts import use

        inventory = config.getoption("--boxwright-inventory")
        try:
            known = use(load(Path(inventory) if inventory else None, limit=config.getoption("--boxwright-limit")))
        except Refused as refused:
            # Said once, when all that ask for hosts have been collected.
            config.stash[_REFUSED] = render(refused.problems)
            known = []
        config.stash[_HOSTS] = known
    return known


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out the checks of roles and systems that a box does not have. Ends the session where there is no fit
    inventory.
    """
    if (refused := config.stash.get(_REFUSED, None)) is not None:
        raise pytest.UsageError(refused)
    kept: list[pytest.Item] = []
    left_out: list[pytest.Item] = []
    for item in items:
        role = role_of(item.path)
        host = getattr(item, "callspec", None) and item.callspec.params.get("_testinfra_host")  # type: ignore[attr-defined]
        tested = getattr(getattr(host, "backend", None), "tested", None)
        mark = item.get_closest_marker("system")
        runs_it = not (mark and tested) or tested.box.system in mark.args
        has_it = runs_it and (not (role and tested) or applies(role, tested.box))
        (kept if has_it else left_out).append(item)
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = kept


def pytest_sessionfinish() -> None:
    """End shared SSH connections."""
    import sys

    if (hosts := sys.modules.get("boxwright.testing.hosts")) is not None:
        hosts.close_connections()


@pytest.fixture(scope="module")
def box(host: Any) -> Any:
    """Settings of the host under test (roles/registry.py: Box)."""
    return host.backend.tested.box


@pytest.fixture(scope="module")
def outside(host: Any) -> Iterator[Any]:
    """Client that asks the host under test from this machine (boxwright.outside.Outside)."""
    from boxwright.outside import Outside

    tested = host.backend.tested
    with Outside(tested.box, tested.connection) as client:
        yield client
