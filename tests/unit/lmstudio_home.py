"""A home with the double of LM Studio in it, for unit tests.

What stands in for llama.cpp there says the same to everybody, so that no wheel and no model are needed.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import socket
import struct
import subprocess
import tarfile
import time
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.doubles.lmstudio import bundle

BACKEND = """
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

class CommonParams(SimpleNamespace):
    def __init__(self):
        super().__init__(model=SimpleNamespace(path=""))

class llama_pooling_type:
    LLAMA_POOLING_TYPE_MEAN = 1

class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def log_message(self, *words): pass
    def answer(self, data, kind):
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)
    def do_GET(self): self.answer(b"ok", "text/plain")
    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if asked.get("stream"):
            self.answer(b"data: one\\n\\ndata: [DONE]\\n\\n", "text/event-stream")
        else:
            said = {"path": self.path, "context": self.server.parameters.n_ctx}
            self.answer(json.dumps(said).encode(), "application/json")

class Server:
    def __init__(self, parameters):
        server = ThreadingHTTPServer(("127.0.0.1", parameters.port), Handler)
        server.parameters = parameters
        threading.Thread(target=server.serve_forever, daemon=True).start()
"""


def gguf(path: Path, architecture: str = "llama", context: int = 2048) -> Path:
    """A file with the head of a model, and nothing in it."""

    def text(value: str) -> bytes:
        return struct.pack("<Q", len(value)) + value.encode()

    entries = text("general.architecture") + struct.pack("<I", 8) + text(architecture)
    entries += text(f"{architecture}.context_length") + struct.pack("<I", 4) + struct.pack("<I", context)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, 2) + entries)
    return path


def until(what: Callable[[], Any], seconds: float = 20) -> Any:
    """What `what` returns, as soon as it is true."""
    end = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < end, "it did not become true"
        time.sleep(0.05)
    return found


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@dataclass
class Said:
    """What a command left behind."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


class Installed:
    """A home with the double in it."""

    def __init__(self, user: Path) -> None:
        self.user = user
        self.home = user / ".lmstudio"
        self.port = free_port()
        # The daemons of tests that run at the same time are not taken for this one.
        self.environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(user),
            "LMS_API_SERVER_INFO_PATH": str(self.home / ".internal" / "http-server.json"),
        }

    def lms(self, *words: str) -> Said:
        """One command, without a terminal."""
        done = subprocess.run(
            [self.home / "bin" / "lms", *words],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            env=self.environment,
            timeout=60,
        )
        return Said(done.returncode, done.stdout, done.stderr)

    def has(self, publisher_and_name: str, **head: Any) -> None:
        """A model on the disk that the daemon has noticed."""
        name = publisher_and_name.partition("/")[2]
        gguf(self.home / "models" / publisher_and_name / f"{name}.Q4_0.gguf", **head)
        until(lambda: any(publisher_and_name in model["path"] for model in self.lms("ls", "--json").json))

    def ask(self, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        """Status and answer of the HTTP server."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        connection.request(method, path, None if body is None else json.dumps(body))
        response = connection.getresponse()
        data = response.read().decode()
        connection.close()
        return response.status, json.loads(data) if data.startswith("{") else data

    def serve(self) -> None:
        """The server runs."""
        assert self.lms("server", "start", "--port", str(self.port), "--bind", "127.0.0.1").code == 0

    def pid(self) -> int:
        return int(self.lms("daemon", "up", "--json").json["pid"])


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("wheel") / "xllamacpp-0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("xllamacpp/__init__.py", BACKEND)
    return path


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, wheel: Path) -> bundle.Bundle:
    return bundle.make(tmp_path_factory.mktemp("bundle"), "0.0.25-1", wheel)


@pytest.fixture
def lm(tmp_path: Path, made: bundle.Bundle) -> Iterator[Installed]:
    """The double, installed as the publisher's script does it, and able to load models."""
    unpacked, user = tmp_path / "unpacked", tmp_path / "user"
    user.mkdir()
    with tarfile.open(made.path) as archive:
        archive.extractall(unpacked, filter="data")
    installed = Installed(user)
    environment = {**installed.environment, "LMS_BOOTSTRAP_INSTALL_SH": "1", "LMS_NO_MODIFY_PATH": "1"}
    subprocess.run([unpacked / "llmster", "bootstrap"], env=environment, check=True, capture_output=True)
    (installed.home / ".internal" / "temp").mkdir()
    yield installed
    published = installed.home / ".internal" / "http-server.json"
    with contextlib.suppress(OSError, ValueError):
        os.kill(json.loads(published.read_text())["pid"], signal.SIGKILL)
