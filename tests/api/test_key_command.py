"""`boxwright key` and the whole service, a process with the store of a small box, through a real SSH server."""

from __future__ import annotations

import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx2 as httpx
import pytest
from stub_engine import StubEngine

from boxwright import masking
from boxwright.paths import repository_root
from tests.unit.admin_api import SECRET
from tests.unit.key_box import Here, Ssh, ssh

__all__ = ["ssh"]


class Service:
    """`python -m boxwright_api`, with two models of the stub engine. `more` are members of its settings."""

    def __init__(self, folder: Path, engine: StubEngine, retrieval_key: str = "", **more: Any) -> None:
        with socket.create_server(("127.0.0.1", 0)) as probe:
            self.port: int = probe.getsockname()[1]
        (folder / "credentials").mkdir()
        (folder / "credentials" / "peppers").write_text(f"1:{secrets.token_hex(32)}\n")
        (folder / "credentials" / "admin_secret").write_text(f"{SECRET}\n")
        if retrieval_key:
            (folder / "credentials" / "retrieval_key").write_text(f"{retrieval_key}\n")
        models = [{"name": name, "upstream": engine.url} for name in ("m", "n")]
        settings = {"port": self.port, "database": f"sqlite:///{folder}/api.sqlite3", "models": models} | more
        (folder / "settings.json").write_text(json.dumps(settings))
        self.environment = {
            **os.environ,
            "PYTHONPATH": str(repository_root() / "services" / "api"),
            "BOXWRIGHT_API_SETTINGS": str(folder / "settings.json"),
            "CREDENTIALS_DIRECTORY": str(folder / "credentials"),
        }
        self.log = folder / "log"
        self.run("migrate").wait(60)
        self.process = self.run()
        deadline = time.monotonic() + 60
        while not self.answers():
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.05)

    def run(self, *arguments: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "boxwright_api", *arguments]
        with self.log.open("ab") as log:
            return subprocess.Popen(command, env=self.environment, stdout=log, stderr=log)

    def answers(self) -> bool:
        try:
            return httpx.get(f"http://127.0.0.1:{self.port}/api/v1/ready", timeout=5).status_code == 200
        except httpx.HTTPError:
            return False

    def models(self, key: str) -> list[str] | int:
        """What a client with this key is told, or the status that refuses it."""
        headers = {"Authorization": f"Bearer {key}"}
        answer = httpx.get(f"http://127.0.0.1:{self.port}/v1/models", headers=headers, timeout=30)
        return [model["id"] for model in answer.json()["data"]] if answer.status_code == 200 else answer.status_code

    def chat(self, key: str, text: str = "x", **more: Any) -> tuple[int, str | None]:
        """Status and code of a chat."""
        headers = {"Authorization": f"Bearer {key}"}
        body = {"model": "m", "messages": [{"role": "user", "content": text}], **more}
        answer = httpx.post(f"http://127.0.0.1:{self.port}/v1/chat/completions", headers=headers, json=body, timeout=30)
        return answer.status_code, answer.json().get("error", {}).get("code")

    def stop(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(60)


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    with StubEngine() as engine:
        running = Service(tmp_path, engine)
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
    assert service.models(first) == ["m"]

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
        "set", id, "--owner", "phone", "--tokens-per-day", "none", "--tokens-per-minute", "60", "--expires", "never"
    )
    assert (done.code, done.out) == (0, "")
    assert "for ever; models: m; limits: 60 tokens/min, 2 at a time" in done.err
    assert key("set", id, "--all-models").code == 0
    assert service.models(first) == ["m", "n"]

    second = key("rotate", id, "--overlap", "1h").out.strip()
    assert second != first
    assert service.models(first) == service.models(second) == ["m", "n"]
    third = key("rotate", id, "--overlap", "0h").out.strip()
    assert (service.models(first), service.models(second), service.models(third)) == (401, 401, ["m", "n"])

    assert key("revoke", id).code == 0
    assert service.models(third) == 401
    assert key("revoke", id).code == 0
    done = key("rotate", id)
    assert (done.code, done.out, done.problems[0].code) == (2, "", "BW173")
    assert key("list", "--json").json()[0]["state"] == "revoked"

    entries = key("audit", "--json").json()
    mine = [entry["action"] for entry in entries if entry["target"] == id and entry["actor"].startswith("anna@")]
    assert mine == ["key.revoke", "key.rotate", "key.rotate", "key.change", "key.change", "key.add"]
    told = key("audit").out
    assert "anna@" in told
    everything = told + json.dumps(entries) + service.log.read_text()
    assert not [made for made in (first, second, third, SECRET) if made in everything]


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


def test_usage_is_what_clients_did(key: Here, service: Service) -> None:
    made = key("add", "laptop", "--requests-per-minute", "3").out.strip()
    id = made.split("_")[1]
    assert [service.chat(made) for _ in range(4)] == [(200, None)] * 3 + [(429, "rate_limit_exceeded")]
    assert service.chat("bw_none0000_nothing")[0] == 401

    def rows() -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = key("usage", "--json", "--key", id).json()
        return found

    # Usage is written in batches.
    deadline = time.monotonic() + 30
    while sum(row["requests"] for row in rows()) < 4 and time.monotonic() < deadline:
        time.sleep(0.1)
    (row,) = rows()
    assert (row["owner"], row["model"], row["requests"], row["refused"]) == ("laptop", "m", 4, 1)
    assert row["tokens_out"] == 15  # the stub's five of each answer
    lines = [line.split() for line in key("usage", "--key", id).out.splitlines()]
    assert lines[1] == ["laptop", id, "m", "4", "1", "0", str(row["tokens_in"]), "15"]
    assert f"laptop ({id}): {row['tokens_in'] + 15}" in key("usage", "--plot").out
    assert ["-", "-"] in [line.split()[:2] for line in key("usage").out.splitlines()]
