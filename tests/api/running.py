"""The service as it runs on a box: processes of `python -m boxwright_api`, with files for its settings and secrets."""

from __future__ import annotations

import json
import os
import secrets
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import httpx2 as httpx
import orjson
from boxwright_api.settings import Settings
from databases import Databases
from redis import Redis
from stores import Place
from waiting import until

from boxwright.paths import repository_root

CHAT = "/v1/chat/completions"
ASK: dict[str, Any] = {"model": "plain", "messages": [{"role": "user", "content": "one two three"}]}
STREAM = {**ASK, "stream": True}
# What a request may take on a machine that is busy with other things.
PATIENCE = 60.0


@dataclass(frozen=True)
class Made:
    """A key of the admin API."""

    id: str
    key: str

    @property
    def headers(self) -> dict[str, str]:
        """What its owner sends."""
        return {"Authorization": f"Bearer {self.key}"}


def free_port() -> int:
    """A port on which nobody listens now."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


class Running:
    """One instance, in `folder`, in front of the engine at `engine`; embedded, or full with these databases.

    `like`: an instance whose database, limits and secrets it shares. `changes` are members of its settings.
    """

    def __init__(
        self,
        folder: Path,
        engine: str,
        databases: Databases | None = None,
        *,
        like: Running | None = None,
        environment: dict[str, str] | None = None,
        **changes: Any,
    ) -> None:
        self.folder, self.databases = folder, databases
        self.kind = "full" if databases else "embedded"
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = folder / "log"
        self.process: subprocess.Popen[bytes] | None = None
        self._environment = environment or {}
        (folder / "secrets").mkdir(parents=True)
        (folder / "spill").mkdir()
        if like:
            self.secrets, self.settings = like.secrets, {**like.settings}
        else:
            self.secrets = {
                "peppers": f"1:{secrets.token_hex(32)};2:{secrets.token_hex(32)}",
                "admin_secret": secrets.token_hex(24),
                "engine_keys": json.dumps({"theirs": secrets.token_hex(16)}),
            }
            self.settings = {"database": f"sqlite:///{folder}/api.db"}
            if databases:
                self.secrets |= {"database_password": databases.password, "redis_password": databases.redis_password}
                prefix = f"test-{secrets.token_hex(4)}:"
                self.settings = {"database": databases.database(), "redis": databases.redis(), "redis_prefix": prefix}
                self.settings["workers"] = 2
        self.settings |= {"port": self.port, "spill": str(folder / "spill"), "models": models(engine), **changes}
        for name, value in self.secrets.items():
            (folder / "secrets" / name).write_text(value)
        (folder / "settings.json").write_text(json.dumps(self.settings))
        made = {name: value for name, value in self.secrets.items() if name != "engine_keys"}
        self.place = Place(self.kind, Settings(**{**self.settings, **made}), databases)
        self.admin = httpx.Client(
            base_url=self.url, timeout=PATIENCE, headers={"Authorization": f"Bearer {self.secrets['admin_secret']}"}
        )
        self.client = httpx.Client(base_url=self.url, timeout=PATIENCE)
        if not like:
            assert self.run("migrate").returncode == 0

    def _start(self, *arguments: str, **more: Any) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [sys.executable, "-m", "boxwright_api", *arguments],
            cwd=self.folder,
            env={
                "PATH": os.environ["PATH"],
                "PYTHONPATH": str(repository_root() / "services" / "api"),
                "BOXWRIGHT_API_SETTINGS": str(self.folder / "settings.json"),
                "CREDENTIALS_DIRECTORY": str(self.folder / "secrets"),
                **self._environment,
            },
            **more,
        )

    def run(self, *arguments: str) -> subprocess.CompletedProcess[bytes]:
        """One of its other commands."""
        process = self._start(*arguments, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        output, _ = process.communicate(timeout=PATIENCE)
        return subprocess.CompletedProcess(arguments, process.returncode, output)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.process and self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                for pid in [*self.workers(), self.process.pid]:
                    with suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
                self.process.wait()
        self.admin.close()
        self.client.close()

    def start(self) -> None:
        """Start it, and wait until it and all its workers are ready."""
        with self.log.open("ab") as log:
            self.process = self._start(stdout=log, stderr=subprocess.STDOUT)
        started = self.text().count("Application startup complete")
        wanted = started + int(self.settings.get("workers", 1))

        def ready() -> bool:
            assert self.process is not None
            assert self.process.poll() is None, self.text()
            with suppress(httpx.TransportError):
                whole = self.text().count("Application startup complete") >= wanted
                # Not by the client that tests use, whose connection would stay with one worker.
                return whole and httpx.get(f"{self.url}/api/v1/ready", timeout=PATIENCE).status_code == 200
            return False

        until(ready, why=self.text)

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """End it, and wait for that; its exit status."""
        assert self.process is not None
        self.process.send_signal(number)
        return self.process.wait(PATIENCE)

    def workers(self) -> list[int]:
        """The processes that serve."""
        assert self.process is not None
        found = []
        with suppress(FileNotFoundError):
            for pid in Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split():
                if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes():
                    found.append(int(pid))
        return found or [self.process.pid]

    def processes(self) -> list[int]:
        """All of them."""
        assert self.process is not None
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        return [self.process.pid, *map(int, children)]

    def text(self) -> str:
        """Its log."""
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    # As an administrator.

    def key(self, **asked: Any) -> Made:
        """A new key."""
        answer = self.admin.post("/admin/keys", json={"owner": "tests", **asked})
        assert answer.status_code == 201, answer.text
        body = answer.json()
        return Made(body["id"], body["key"])

    def metric(self, name: str) -> float:
        """The sum of a figure of /metrics."""
        lines = self.admin.get("/metrics").text.splitlines()
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith((f"{name} ", f"{name}{{")))

    # What is kept.

    def rows(self, columns: str = "count(*)", where: str = "true") -> list[list[str]]:
        """Rows of the usage log, as a program of the database's own sees them."""
        text = self.place.sql(f"SELECT {columns} FROM usage_log WHERE {where}")
        return [line.split("|") for line in text.splitlines()]

    def count(self, where: str = "true") -> int:
        """How many rows there are."""
        return int(self.rows("count(*)", where)[0][0])

    def taken(self) -> int:
        """Places that are taken, also leases of what is dead."""
        if self.databases is None:
            return int(self.metric("boxwright_api_in_flight"))
        with self.redis() as redis:
            return int(redis.zcard(f"{self.settings['redis_prefix']}places"))  # type: ignore[arg-type]

    def redis(self) -> Redis:
        """A client of its Valkey."""
        return Redis.from_url(self.settings["redis"], password=self.secrets["redis_password"])

    # As a client.

    def post(self, made: Made, body: Any = ASK, path: str = CHAT, **more: Any) -> httpx.Response:
        """A request with this key, on a connection of its own, which any worker may take."""
        content = body if isinstance(body, bytes) else orjson.dumps(body)
        return httpx.post(self.url + path, content=content, headers=made.headers, timeout=PATIENCE, **more)

    def socket(self) -> socket.socket:
        """A connection."""
        return socket.create_connection(("127.0.0.1", self.port), timeout=PATIENCE)

    def send(self, made: Made, body: dict[str, Any] = ASK, path: str = CHAT) -> socket.socket:
        """A request by hand; the answer is not read."""
        data = orjson.dumps(body)
        head = f"POST {path} HTTP/1.1\r\nHost: box\r\nAuthorization: Bearer {made.key}\r\n"
        connection = self.socket()
        connection.sendall(f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data)
        return connection


def models(engine: str) -> list[dict[str, Any]]:
    """Models of the stub engine: one for each way to speak with an engine."""
    every = ["chat", "completions", "embeddings", "responses", "images"]
    return [
        {"name": "plain", "upstream": engine, "model": "gguf", "offers": every},
        {"name": "ollama", "upstream": engine, "engine": "ollama", "model": "qwen3:8b", "warm": False},
        {"name": "tied", "upstream": engine, "key": "theirs", "offers": ["chat"], "warm": False},
    ]


@contextmanager
def running(folder: Path, engine: str, databases: Databases | None = None, **changes: Any) -> Iterator[Running]:
    """An instance that is ready."""
    with Running(folder, engine, databases, **changes) as found:
        yield found
