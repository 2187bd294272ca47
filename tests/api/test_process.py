"""The program as it is installed: its commands, and how it stops. Its database is a real one."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2 as httpx
import pytest
from databases import Databases
from stub_engine import StubEngine
from test_relay import ASK, CHAT
from waiting import until

SERVICES = Path(__file__).parents[2] / "services/api"
PEPPER, ADMIN = "ab" * 32, "admin-secret-of-this-test"


class Program:
    """Settings in a folder of their own, as the role writes them."""

    def __init__(self, folder: Path, engine: StubEngine, **changes: Any) -> None:
        self.folder, self.port = folder, _free()
        self.secrets = {"peppers": f"1:{PEPPER}", "admin_secret": ADMIN}
        self.settings: dict[str, Any] = {
            "port": self.port,
            "database": f"sqlite:///{folder}/api.db",
            "models": [{"name": "plain", "upstream": engine.url}],
            **changes,
        }
        self.url = f"http://127.0.0.1:{self.port}"

    def command(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Runs it to its end."""
        command = [sys.executable, "-m", "boxwright_api", *arguments]
        return subprocess.run(command, env=self.environment(), capture_output=True, text=True, timeout=60, check=False)

    def environment(self) -> dict[str, str]:
        secrets = self.folder / "secrets"
        secrets.mkdir(exist_ok=True)
        for name, text in self.secrets.items():
            (secrets / name).write_text(text)
        file = self.folder / "settings.json"
        file.write_text(json.dumps(self.settings))
        return {
            "PATH": os.environ["PATH"],
            "PYTHONPATH": str(SERVICES),
            "BOXWRIGHT_API_SETTINGS": str(file),
            "CREDENTIALS_DIRECTORY": str(secrets),
        }

    @contextmanager
    def serving(self) -> Iterator[subprocess.Popen[str]]:
        """Until the end of the block; ready."""
        migrated = self.command("migrate")
        assert migrated.returncode == 0, migrated.stderr
        log = (self.folder / "log").open("a")
        process = subprocess.Popen(
            [sys.executable, "-m", "boxwright_api"], env=self.environment(), stdout=log, stderr=log, text=True
        )
        try:
            until(lambda: self.ready(process), 60)
            yield process
        finally:
            if process.poll() is None:
                process.kill()
            process.wait(30)
            log.close()

    def ready(self, process: subprocess.Popen[str]) -> bool:
        assert process.poll() is None, self.log()
        try:
            return httpx.get(self.url + "/api/v1/ready", timeout=5).status_code == 200
        except httpx.TransportError:
            time.sleep(0.05)
            return False

    def key(self) -> dict[str, str]:
        """A new key, as a header."""
        answer = httpx.post(
            self.url + "/admin/keys", json={"owner": "me"}, headers={"Authorization": f"Bearer {ADMIN}"}
        )
        assert answer.status_code == 201, answer.text
        return {"Authorization": f"Bearer {answer.json()['key']}"}

    def log(self) -> str:
        return (self.folder / "log").read_text()

    def asked(self, key: dict[str, str]) -> int:
        """The status of one request; 0 while nobody answers."""
        try:
            return httpx.post(self.url + CHAT, json=ASK, headers=key, timeout=30).status_code
        except httpx.TransportError:
            return 0

    def stream(self, key: dict[str, str]) -> str:
        """How a stream ends."""
        try:
            with httpx.stream("POST", self.url + CHAT, json={**ASK, "stream": True}, headers=key, timeout=60) as answer:
                answer.read()
        except httpx.TransportError:
            return "broken"
        return "whole"

    def figure(self, name: str, labels: str = "") -> float:
        """A sum over all lines of /metrics with these labels."""
        text = httpx.get(self.url + "/metrics").text
        lines = [line.split() for line in text.splitlines() if line.startswith(f"boxwright_api_{name}")]
        return sum(float(value) for line, value in lines if all(part in line for part in labels.split(",")))

    def rows(self) -> list[dict[str, Any]]:
        """The usage log, read by SQLite itself."""
        with sqlite3.connect(self.folder / "api.db") as connection:
            connection.row_factory = sqlite3.Row
            tables = [name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
            (table,) = [name for name in tables if name.startswith("usage")]
            return [dict(row) for row in connection.execute(f"SELECT * FROM {table} WHERE route = 'chat'")]


def _free() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port


def test_check(tmp_path: Path, engine: StubEngine) -> None:
    """Right settings: 0. Wrong ones: 2, all at once, by name, and no value, which may be a secret."""
    program = Program(tmp_path, engine)
    assert program.command("check").returncode == 0
    program.settings |= {"port": "secret-value", "colour": "secret-value"}
    program.secrets.pop("admin_secret")
    (tmp_path / "secrets/admin_secret").unlink()
    found = program.command("check")
    assert found.returncode == 2
    assert {line.split(":")[0] for line in found.stderr.splitlines()} == {"`port`", "`colour`", "`admin_secret`"}
    assert "secret-value" not in found.stderr + found.stdout
    assert program.command("serve").returncode == 2
    (tmp_path / "settings.json").write_text("{")
    environment = {**program.environment(), "BOXWRIGHT_API_SETTINGS": str(tmp_path / "absent.json")}
    command = [sys.executable, "-m", "boxwright_api", "check"]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode == 2
    assert "Traceback" not in result.stderr


def test_another_schema(tmp_path: Path, engine: StubEngine) -> None:
    """A database of another version: the program ends, and says what to do in one line."""
    program = Program(tmp_path, engine)
    assert program.command("migrate").returncode == 0
    with sqlite3.connect(tmp_path / "api.db") as connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
    found = program.command("serve")
    assert found.returncode == 3
    assert "python -m boxwright_api migrate" in found.stderr
    assert "Traceback" not in found.stderr
    migrated = program.command("migrate")
    assert migrated.returncode == 1
    assert "Traceback" not in migrated.stderr


def streaming(program: Program, key: dict[str, str], got: list[str]) -> threading.Thread:
    """A stream that is read in the background."""

    def read() -> None:
        try:
            with httpx.stream(
                "POST", program.url + CHAT, json={**ASK, "stream": True}, headers=key, timeout=60
            ) as answer:
                for text in answer.iter_text():
                    got.append(text)
        except httpx.RemoteProtocolError:
            got.append("BROKEN")

    thread = threading.Thread(target=read)
    thread.start()
    until(lambda: got)
    return thread


def test_stop(tmp_path: Path, engine: StubEngine) -> None:
    """SIGTERM: nobody new is taken, a stream comes to its end, its row is written, and the end is 0."""
    program = Program(tmp_path, engine, stop_seconds=30)
    with program.serving() as process:
        key, got = program.key(), list[str]()
        engine.behave(tokens=20, pace=0.1)
        thread = streaming(program, key, got)
        process.send_signal(signal.SIGTERM)

        def refused() -> bool:
            try:
                socket.create_connection(("127.0.0.1", program.port), timeout=1).close()
            except ConnectionRefusedError:
                return True
            return False

        until(refused)
        assert "[DONE]" not in "".join(got)
        assert process.wait(30) == 0
        thread.join()
        assert "".join(got).endswith("data: [DONE]\n\n")
        (row,) = program.rows()
        assert (row["outcome"], row["tokens_out"]) == ("ok", 20)
    assert key["Authorization"].split()[1] not in program.log()
    assert not re.search(f"{PEPPER}|{ADMIN}|Traceback", program.log())


def test_stop_in_time(tmp_path: Path, engine: StubEngine) -> None:
    """A stream that does not end within stop_seconds is broken off, visibly, and has its row too."""
    program = Program(tmp_path, engine, stop_seconds=1)
    with program.serving() as process:
        key, got = program.key(), list[str]()
        engine.behave(tokens=3, hang_after=2)
        thread = streaming(program, key, got)
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
        thread.join()
        text = "".join(got)
        assert "[DONE]" not in text
        assert "service_stopping" in text
        assert text.endswith("BROKEN")
        engine.until("closed")
        (row,) = program.rows()
        assert (row["outcome"], row["code"], row["tokens_out"]) == ("upstream_error", "service_stopping", 2)


@pytest.mark.lab
def test_two_workers(tmp_path: Path, engine: StubEngine, databases: Databases) -> None:
    """Figures are added up, ten of sixty pass, places of a killed worker come back, and SIGTERM ends both."""
    program = Program(
        tmp_path,
        engine,
        workers=2,
        database=databases.database(),
        redis=databases.redis(),
        redis_prefix=f"{tmp_path.name}:",
        stop_seconds=5,
        lease_seconds=3,
    )
    program.secrets |= {"database_password": databases.password, "redis_password": databases.redis_password}
    early = program.command("serve")
    assert early.returncode == 3, early.stderr
    assert "python -m boxwright_api migrate" in early.stderr
    with program.serving() as process:
        key = program.key()
        for _ in range(40):
            assert httpx.post(program.url + CHAT, json=ASK, headers=key, timeout=30).status_code == 200
        assert program.figure("requests_total", 'outcome="ok",route="chat"') == 40
        engine.clear()
        engine.behave(gate=True)
        with ThreadPoolExecutor(60) as pool:
            asked = [pool.submit(httpx.post, program.url + CHAT, json=ASK, headers=key, timeout=60) for _ in range(60)]
            until(lambda: sum(future.done() for future in asked) >= 50, 60)
            engine.open()
            answers = [future.result() for future in asked]
        assert Counter(answer.status_code for answer in answers) == {200: 10, 429: 50}
        assert (len(engine.records), engine.most) == (10, 10)
        assert program.figure("in_flight") == 0

        engine.behave(hang_after=1)
        with ThreadPoolExecutor(10) as pool:
            hanging = [pool.submit(program.stream, key) for _ in range(10)]
            until(lambda: engine.running == 10)
            workers = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
            for worker in workers:
                if b"resource_tracker" not in Path(f"/proc/{worker}/cmdline").read_bytes():
                    os.kill(int(worker), signal.SIGKILL)
            assert all(future.result() == "broken" for future in hanging)
        engine.behave()
        until(lambda: program.asked(key) == 200, 30)
        assert program.figure("in_flight") == 0
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    assert "Traceback" not in program.log(), program.log()
