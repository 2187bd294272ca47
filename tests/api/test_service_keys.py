"""Keys of the running service: a change holds in every worker, soon."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx2 as httpx
import pytest
from running import Made, Running
from stub_engine import StubEngine
from waiting import until

# The demand, and what a busy machine may add to the answers.
SOON = 1.0
MARGIN = 3.0


class Everywhere:
    """Connections to all workers: enough that each of them has several, and they are kept."""

    def __init__(self, running: Running, made: Made) -> None:
        self.made = made
        self.clients = [httpx.Client(base_url=running.url, timeout=60) for _ in range(24)]

    def statuses(self, key: str | None = None) -> set[int]:
        """Of a cheap request by each of them."""
        headers = {"Authorization": f"Bearer {key or self.made.key}"}
        return {client.get("/v1/models", headers=headers).status_code for client in self.clients}

    def close(self) -> None:
        for client in self.clients:
            client.close()


@pytest.fixture
def made(running: Running) -> Made:
    """A key."""
    return running.key()


@pytest.fixture
def everywhere(running: Running, made: Made) -> Any:
    """The same, known to every worker."""
    found = Everywhere(running, made)
    assert found.statuses() == {200}
    yield found
    found.close()


def audited(running: Running, action: str, target: str) -> list[dict[str, Any]]:
    """Entries of the audit log."""
    entries = running.admin.get("/admin/audit?limit=1000").json()
    return [entry for entry in entries if (entry["action"], entry["target"]) == (action, target)]


def test_revoked(running: Running, engine: StubEngine, made: Made, everywhere: Everywhere) -> None:
    """It is refused within a second, though it is remembered for five."""
    answer = running.admin.post(f"/admin/keys/{made.id}/revoke", headers={"X-Boxwright-Actor": "carla"})
    assert answer.status_code == 200
    took = until(lambda: everywhere.statuses() == {401}, SOON + MARGIN)
    assert took < SOON + MARGIN
    assert everywhere.statuses() == {401}
    assert [entry["actor"] for entry in audited(running, "key.revoke", made.id)] == ["carla"]
    until(lambda: audited(running, "key.refused", made.id))
    assert running.admin.patch(f"/admin/keys/{made.id}", json={"owner": "x"}).status_code == 409


def test_rotated(running: Running, engine: StubEngine, made: Made, everywhere: Everywhere) -> None:
    """Both secrets are good for the overlap, and then only the new one."""
    answer = running.admin.post(f"/admin/keys/{made.id}/rotate", json={"overlap_seconds": 4})
    done = time.monotonic()
    new = answer.json()["key"]
    assert new != made.key
    until(lambda: everywhere.statuses(new) == {200}, SOON + MARGIN)
    if time.monotonic() - done < 3:
        assert everywhere.statuses() == {200} or time.monotonic() - done > 4
    until(lambda: everywhere.statuses() == {401}, 4 + MARGIN)
    assert time.monotonic() - done >= 4
    assert everywhere.statuses(new) == {200}
    at_once = running.admin.post(f"/admin/keys/{made.id}/rotate", json={"overlap_seconds": 0}).json()["key"]
    until(lambda: everywhere.statuses(new) == {401} and everywhere.statuses(at_once) == {200}, SOON + MARGIN)


def test_expired(running: Running, engine: StubEngine, made: Made, everywhere: Everywhere) -> None:
    """At the moment that was said, in every worker, without a change."""
    at = datetime.now(UTC) + timedelta(seconds=3)
    assert running.admin.patch(f"/admin/keys/{made.id}", json={"expires_at": at.isoformat()}).status_code == 200
    assert everywhere.statuses() == {200} or datetime.now(UTC) > at
    until(lambda: datetime.now(UTC) > at)
    assert everywhere.statuses() == {401}
    until(lambda: [entry for entry in audited(running, "key.refused", made.id) if "expired" in str(entry["details"])])


def test_fewer_models(running: Running, engine: StubEngine, made: Made, everywhere: Everywhere) -> None:
    assert running.admin.patch(f"/admin/keys/{made.id}", json={"models": ["ollama"]}).status_code == 200

    def refused() -> bool:
        answers = {client.get("/v1/models/plain", headers=made.headers).status_code for client in everywhere.clients}
        return answers == {404}

    until(refused, SOON + MARGIN)


def test_limits_that_change(running: Running, engine: StubEngine, made: Made, everywhere: Everywhere) -> None:
    """A smaller limit holds for the requests that were made before it, too."""
    for _ in range(3):
        assert running.post(made).status_code == 200
    for limit, status in ((2, 429), (50, 200)):
        body = {"limits": {"requests_per_minute": limit}}
        assert running.admin.patch(f"/admin/keys/{made.id}", json=body).status_code == 200
        until(lambda status=status: {running.post(made).status_code for _ in range(6)} == {status}, SOON + MARGIN)  # type: ignore[misc]
