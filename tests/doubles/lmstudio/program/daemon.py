"""The daemon of the double: knows the models, holds what is loaded, and starts the HTTP server when told to."""

from __future__ import annotations

import json
import os
import secrets
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import store

HERE = Path(__file__).resolve().parent
# What models that are loaded on demand get.
DEMAND_TTL = 3600
DEFAULT_CONTEXT, DEFAULT_PARALLEL = 4096, 4


@dataclass
class Instance:
    """A model in memory."""

    model: dict[str, Any]
    identifier: str
    context: int
    parallel: int
    gpu: float
    ttl: int | None
    on_demand: bool
    port: int
    process: subprocess.Popen[bytes] | None = None
    last_used: float | None = None
    active: int = 0
    loaded_at: float = field(default_factory=time.time)

    @property
    def idle_since(self) -> float:
        """When it was last needed, in seconds since 1970."""
        return self.last_used or self.loaded_at


def free_port() -> int:
    """A port on loopback that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


class Daemon:
    """State and what can be asked; each public method is a question of the internal protocol."""

    def __init__(self, home: Path, version: str) -> None:
        self.home = home
        self.version = version
        self.key = secrets.token_hex(16)
        self.port = 0
        self.lock = threading.RLock()
        self.instances: dict[str, Instance] = {}
        # Names of what is being loaded.
        self.coming: set[str] = set()
        self.http: subprocess.Popen[bytes] | None = None
        self.on_disk = store.models(home)
        self.stopping = threading.Event()
        # Read once: what is written into the file while the daemon runs is lost at the next start of the server.
        saved = store.read_json(store.internal(home, "http-server-config.json"))
        self.settings = store.SERVER_SETTINGS | (saved if isinstance(saved, dict) else {})
        chosen = store.read_json(store.internal(home, "backend-preferences.json"))
        self.engine = str(chosen["engine"]) if isinstance(chosen, dict) else self.engines()[0]

    def info(self) -> dict[str, Any]:
        return {"pid": os.getpid(), "isDaemon": True, "version": self.version}

    def engines(self) -> list[str]:
        bundle = HERE.parent
        return [line for line in (bundle / "engines").read_text().split() if line]

    def selected_engine(self) -> str:
        return self.engine

    def select_engine(self, engine: str) -> None:
        self.engine = engine
        store.write_json(store.internal(self.home, "backend-preferences.json"), {"engine": engine})

    def models(self) -> list[dict[str, Any]]:
        return self.on_disk

    def loaded(self) -> list[dict[str, Any]]:
        """As `lms ps --json` has it."""
        with self.lock:
            return [
                {
                    **instance.model,
                    "identifier": instance.identifier,
                    "ttlMs": None if instance.ttl is None else instance.ttl * 1000,
                    "lastUsedTime": None if instance.last_used is None else int(instance.last_used * 1000),
                    "contextLength": instance.context,
                    "status": "generating" if instance.active else "idle",
                    "queued": max(0, instance.active - instance.parallel),
                    "parallel": None if instance.model["type"] == "embedding" else instance.parallel,
                }
                for instance in self.instances.values()
            ]

    def native_models(self) -> list[dict[str, Any]]:
        """As GET /api/v1/models has it."""
        with self.lock:
            return [
                {
                    "type": model["type"],
                    "publisher": model["publisher"],
                    "key": model["modelKey"],
                    "display_name": model["displayName"],
                    "architecture": model["architecture"],
                    "quantization": {"name": model["quantization"]["name"], "bits_per_weight": None},
                    "size_bytes": model["sizeBytes"],
                    "params_string": model["paramsString"],
                    "loaded_instances": [
                        {
                            "id": instance.identifier,
                            "config": {"context_length": instance.context}
                            | ({} if model["type"] == "embedding" else {"parallel": instance.parallel}),
                        }
                        for instance in self.instances.values()
                        if instance.model["path"] == model["path"]
                    ],
                    "max_context_length": model["maxContextLength"],
                    "format": "gguf",
                }
                for model in self.on_disk
            ]

    def openai_models(self) -> list[dict[str, Any]]:
        """As GET /v1/models has it: with loading on demand, also what is merely on the disk."""
        with self.lock:
            names = list(self.instances)
            if self.settings["justInTimeModelLoading"]:
                loaded = {instance.model["path"] for instance in self.instances.values()}
                names += [model["modelKey"] for model in self.on_disk if model["path"] not in loaded]
            return [{"id": name, "object": "model", "owned_by": "organization_owner"} for name in names]

    def load(
        self,
        key: str,
        context: int | None = None,
        parallel: int | None = None,
        gpu: float | None = None,
        ttl: int | None = None,
        identifier: str | None = None,
        on_demand: bool = False,
    ) -> dict[str, Any]:
        """Another instance, whatever is loaded already."""
        with self.lock:
            model = next((one for one in self.on_disk if key in (one["modelKey"], one["path"])), None)
            if model is None:
                raise LookupError(f'Cannot find a model with key "{key}".')
            scratch = store.internal(self.home, "temp")
            if not scratch.is_dir():
                raise LookupError(f"ENOENT: no such file or directory, mkdtemp '{scratch}/XXXXXX'")
            wanted = identifier or str(model["modelKey"])
            name, number = wanted, 1
            while name in self.instances or name in self.coming:
                number += 1
                name = f"{wanted}:{number}"
            self.coming.add(name)
        try:
            # Not under the lock: what is loaded already goes on answering.
            instance = self.started(
                Instance(
                    model=model,
                    identifier=name,
                    context=context or DEFAULT_CONTEXT,
                    parallel=parallel or DEFAULT_PARALLEL,
                    gpu=1.0 if gpu is None else gpu,
                    ttl=ttl,
                    on_demand=on_demand,
                    port=free_port(),
                )
            )
            with self.lock:
                self.instances[name] = instance
        finally:
            self.coming.discard(name)
        return {**model, "identifier": name}

    def started(self, instance: Instance) -> Instance:
        """With a server of its own that answers; raises LookupError when it does not."""
        settings = {
            "model": str(self.home / "models" / instance.model["path"]),
            "alias": instance.identifier,
            "port": instance.port,
            "context": instance.context,
            "parallel": instance.parallel,
            "layers": 0 if instance.gpu == 0 else 999,
            "embedding": instance.model["type"] == "embedding",
        }
        with store.internal(self.home, "inference.log").open("ab") as log:
            instance.process = subprocess.Popen(
                [sys.executable, "-I", str(HERE / "inference.py"), json.dumps(settings)],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                env={**os.environ, "BACKEND": str(HERE.parent / "backend")},
            )
        if not answers(instance.process, f"http://127.0.0.1:{instance.port}/health"):
            instance.process.kill()
            instance.process.wait()
            raise LookupError("Failed to load the model. (Exit code: null). Please check the settings.")
        instance.loaded_at = time.time()
        return instance

    def unload(self, identifier: str) -> bool:
        """False when there is no such instance."""
        with self.lock:
            instance = self.instances.pop(identifier, None)
            if instance is None:
                return False
            if instance.process is not None:
                instance.process.kill()
                instance.process.wait()
            return True

    def begin(self, model: str) -> dict[str, Any] | None:
        """Where a request for `model` is to be sent; loads it when it may. None: nowhere."""
        with self.lock:
            instance = self.instances.get(model) or next(
                (one for one in self.instances.values() if one.model["modelKey"] == model), None
            )
            known = any(one["modelKey"] == model for one in self.on_disk)
            if instance is None and known and self.settings["justInTimeModelLoading"]:
                for other in [one for one in self.instances.values() if one.on_demand]:
                    self.unload(other.identifier)
                self.load(model, ttl=DEMAND_TTL, on_demand=True)
                instance = self.instances[model]
            if instance is None:
                return None
            instance.active += 1
            instance.last_used = time.time()
            return {"port": instance.port, "identifier": instance.identifier}

    def end(self, identifier: str) -> None:
        """A request is over."""
        with self.lock:
            if instance := self.instances.get(identifier):
                instance.active -= 1
                instance.last_used = time.time()

    def start_http(self, port: int, bind: str, cors: bool) -> None:
        """The HTTP server at this address; it comes with the settings that the daemon has, not those on the disk."""
        with self.lock:
            self.stop_http()
            self.settings |= {"port": port, "networkInterface": bind, "cors": cors}
            store.write_json(store.internal(self.home, "http-server-config.json"), self.settings)
            settings = {
                "bind": bind,
                "port": port,
                "cors": cors,
                "logs": str(self.home / "server-logs"),
                "sensitive": self.settings["logSensitiveData"],
                "internal": self.port,
                "key": self.key,
            }
            self.http = subprocess.Popen(
                [sys.executable, "-I", str(HERE / "server.py"), json.dumps(settings)],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )

    def stop_http(self) -> None:
        with self.lock:
            if self.http is not None:
                self.http.kill()
                self.http.wait()
                self.http = None

    def shut_down(self) -> None:
        self.stopping.set()

    def housekeeping(self) -> None:
        """Each second: what is on the disk, and what has not been needed for its time to live."""
        while not self.stopping.wait(1):
            found = store.models(self.home)
            with self.lock:
                self.on_disk = found
                for instance in list(self.instances.values()):
                    idle = time.time() - instance.idle_since
                    expired = instance.ttl is not None and not instance.active and idle > instance.ttl
                    ended = instance.process is not None and instance.process.poll() is not None
                    if expired or ended:
                        self.unload(instance.identifier)


def answers(process: subprocess.Popen[bytes], url: str, seconds: float = 120) -> bool:
    """Whether `url` answers with success before the process ends or the time is over."""
    until = time.monotonic() + seconds
    while process.poll() is None and time.monotonic() < until:
        try:
            with urllib.request.urlopen(url, timeout=5):
                return True
        except (urllib.error.URLError, OSError):
            time.sleep(0.1)
    return False


def internal_server(daemon: Daemon) -> ThreadingHTTPServer:
    """The server by which `lms` and the HTTP server talk to the daemon."""
    questions: dict[str, Callable[..., Any]] = {
        name: getattr(daemon, name)
        for name in (
            *("info", "engines", "selected_engine", "select_engine", "models", "loaded", "native_models"),
            *("openai_models", "load", "unload", "begin", "end", "start_http", "stop_http", "shut_down"),
        )
    }

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, format: str, *args: Any) -> None:
            """Quiet."""

        def answer(self, status: int, value: Any) -> None:
            data = json.dumps(value).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def do_GET(self) -> None:
            self.answer(200, {"package": "daemon", "version": daemon.version})

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if self.headers.get("X-Key") != daemon.key:
                self.answer(403, {"error": "Invalid passkey for lms CLI client"})
                return
            try:
                self.answer(200, {"result": questions[body["method"]](**body["parameters"])})
            except LookupError as error:
                self.answer(200, {"error": str(error.args[0])})

    for port in store.INTERNAL_PORTS:
        try:
            server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        except OSError:
            continue
        daemon.port = port
        server.daemon_threads = True
        return server
    raise SystemExit("no port is left for the internal server")


def run() -> None:
    """Until told to stop, or killed."""
    home = store.find_home()
    daemon = Daemon(home, (HERE.parent / "version").read_text().strip().replace("-", "+"))
    server = internal_server(daemon)
    store.internal(home, "lms-key-2").write_text(daemon.key)
    store.write_json(
        store.internal(home, "http-server.json"), {"host": "127.0.0.1", "pid": os.getpid(), "port": daemon.port}
    )
    threading.Thread(target=server.serve_forever, daemon=True).start()
    threading.Thread(target=daemon.housekeeping, daemon=True).start()
    daemon.stopping.wait()
    daemon.stop_http()
    for name in list(daemon.instances):
        daemon.unload(name)
    # The answer to who told it to stop is on its way.
    time.sleep(0.2)
