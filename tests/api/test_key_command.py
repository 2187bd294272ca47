"""`boxwright key` against the service's own admin API, with the store of a small box, through a real SSH server."""

from __future__ import annotations

import asyncio
import json
import secrets
import sys
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from boxwright_api import admin
from boxwright_api.errors import ApiError
from boxwright_api.keys import KeyRing
from boxwright_api.parts import Parts
from boxwright_api.records import Key, UsageRow
from boxwright_api.settings import ModelRoute, Settings
from boxwright_api.store import migrate
from boxwright_api.store.sqlite import SqliteStore
from fastapi import FastAPI

from boxwright import masking
from tests.unit.admin_api import SECRET
from tests.unit.key_box import Here, Ssh, api_role, ssh

__all__ = ["api_role", "ssh"]


class Service:
    """The admin API on a port of its own, in a thread."""

    def __init__(self, folder: Path) -> None:
        self.settings = Settings(
            database=f"sqlite:///{folder / 'api.sqlite'}",
            peppers=f"1:{secrets.token_hex(32)}",
            admin_secret=SECRET,
            models=(
                ModelRoute(name="m", upstream="http://127.0.0.1:1"),
                ModelRoute(name="n", upstream="http://127.0.0.1:1"),
            ),
        )
        migrate.migrate(self.settings)
        self.store = SqliteStore(self.settings)
        self.keys = KeyRing(self.settings, self.store)
        app = FastAPI()
        app.include_router(admin.router())
        unused: Any = None
        app.state.parts = Parts(self.settings, self.store, unused, self.keys, unused)
        self.server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=0, log_level="error"))
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.run, daemon=True)
        self.ready = threading.Event()
        self.thread.start()
        assert self.ready.wait(30)

    def run(self) -> None:
        asyncio.set_event_loop(self.loop)
        self.loop.run_until_complete(self.serve())

    async def serve(self) -> None:
        await self.store.start(self.keys.forget)
        serving = asyncio.create_task(self.server.serve())
        while not self.server.started:
            await asyncio.sleep(0.01)
        self.port: int = self.server.servers[0].sockets[0].getsockname()[1]
        self.ready.set()
        await serving
        await self.store.close()

    def do(self, coroutine: Any) -> Any:
        """The result of a coroutine in the service's loop."""
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(30)

    def owner(self, key: str) -> str | None:
        """Who the service takes the bearer of `key` for."""
        try:
            found: Key = self.do(self.keys.authenticate(f"Bearer {key}"))
        except ApiError as refused:
            return None if refused.code == "invalid_api_key" else refused.code
        return found.owner

    def stop(self) -> None:
        self.server.should_exit = True
        self.thread.join(30)


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    running = Service(tmp_path)
    yield running
    running.stop()


@pytest.fixture
def key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ssh: Ssh, service: Service, capfd: pytest.CaptureFixture[str]
) -> Iterator[Here]:
    monkeypatch.setenv("BOXWRIGHT_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.setenv("BOXWRIGHT_INVENTORY", str(tmp_path / "hosts.yml"))
    monkeypatch.setenv("LOGNAME", "anna")
    monkeypatch.setattr(sys, "stdout", sys.stdout)
    monkeypatch.setattr(sys, "stderr", sys.stderr)
    yield Here(tmp_path, ssh, service.port, capfd)
    masking.forget()


def test_the_life_of_a_key(key: Here, service: Service) -> None:
    done = key("add", "laptop", "--expires", "90d", "--model", "m", "--parallel", "2", "--tokens-per-day", "1000")
    assert done.code == 0, done.problems
    first = done.out.strip()
    id = first.split("_")[1]
    assert service.owner(first) == "laptop"

    (listed,) = key("list", "--json").json()
    assert (listed["id"], listed["owner"], listed["state"], listed["models"]) == (id, "laptop", "active", ["m"])
    assert {name: value for name, value in listed["limits"].items() if value} == {"parallel": 2, "tokens_per_day": 1000}
    expires = datetime.fromisoformat(listed["expires_at"])
    assert abs(expires - datetime.now(UTC) - timedelta(days=90)) < timedelta(minutes=5)
    assert first not in json.dumps(listed)
    assert "2 at a time, 1000 tokens/day" in key("list").out
    assert "limit: tokens/month: default" in key("show", id).out

    # What is not named stays.
    done = key(
        "set", id, "--owner", "phone", "--tokens-per-day", "none", "--requests-per-minute", "60", "--expires", "never"
    )
    assert (done.code, done.out) == (0, "")
    assert "for ever; models: m; limits: 60 requests/min, 2 at a time" in done.err
    assert service.owner(first) == "phone"

    second = key("rotate", id, "--overlap", "1h").out.strip()
    assert second != first
    assert service.owner(first) == service.owner(second) == "phone"
    third = key("rotate", id, "--overlap", "0h").out.strip()
    assert (service.owner(first), service.owner(second), service.owner(third)) == (None, None, "phone")

    assert key("revoke", id).code == 0
    assert service.owner(third) is None
    assert key("revoke", id).code == 0
    done = key("rotate", id)
    assert (done.code, done.out, done.problems[0].code) == (2, "", "BW173")
    assert key("list", "--json").json()[0]["state"] == "revoked"

    entries = key("audit", "--json").json()
    mine = [entry["action"] for entry in entries if entry["target"] == id and entry["actor"].startswith("anna@")]
    assert mine == ["key.revoke", "key.rotate", "key.rotate", "key.change", "key.add"]
    told = key("audit").out
    assert "anna@" in told
    assert not [made for made in (first, second, third) if made in told or made in json.dumps(entries)]


def test_what_the_service_refuses(key: Here, service: Service) -> None:
    done = key("add", "laptop", "--model", "none-such")
    assert (done.code, done.out, done.problems[0].code) == (2, "", "BW173")
    assert "'none-such'; there is 'm', 'n'" in done.problems[0].message
    assert key("rotate", "Aaaa0001").problems[0].code == "BW172"
    assert key("list", "--json").json() == []
    made = key("add", "laptop").out.split("_")[1]
    done = key("rotate", made, "--overlap", "999d")
    assert (done.code, done.problems[0].code) == (2, "BW173")
    assert "overlap_seconds" in done.problems[0].message
    key.write(secret="another-secret-that-is-long-enough")
    assert key("list").problems[0].code == "BW171"


def test_usage_is_what_the_log_has(key: Here, service: Service) -> None:
    id = key("add", "laptop").out.split("_")[1]
    at = datetime.now(UTC) - timedelta(days=1)

    def row(number: int, **more: Any) -> UsageRow:
        fields: dict[str, Any] = {
            "request_id": f"r{number}",
            "at": at,
            "key_id": id,
            "route": "/v1/chat/completions",
            "model": "m",
            "status": 200,
            "outcome": "ok",
            "tokens_in": 10,
            "tokens_out": 100,
        }
        return UsageRow(**{**fields, **more})

    service.do(
        service.store.write_usage(
            [
                row(1),
                row(2, outcome="client_closed"),
                row(3, status=429, outcome="limited", tokens_in=0, tokens_out=0),
                row(4, key_id=None, model=None, status=401, outcome="refused", tokens_in=0, tokens_out=0),
                row(5, at=at - timedelta(days=30)),
            ]
        )
    )
    lines = [line.split() for line in key("usage").out.splitlines()]
    assert lines[2] == ["laptop", id, "m", "3", "1", "1", "20", "200"]
    assert lines[-1][-5:] == ["4", "2", "1", "20", "200"]
    assert key("usage", "--since", "60d", "--key", id).out.splitlines()[-1].split()[-1] == "300"
    assert f"laptop ({id}): 220" in key("usage", "--plot").out
    rows = key("usage", "--json", "--span", "hour").json()
    assert {one["start"][:13] for one in rows} == {f"{at:%Y-%m-%dT%H}"}
