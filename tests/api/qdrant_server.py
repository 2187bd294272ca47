"""Qdrant's double (tests/doubles/qdrant) as a process, with a key."""

from __future__ import annotations

import json
import secrets
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any, Self

from running import free_port
from waiting import until

from boxwright.paths import repository_root

PROGRAM = repository_root() / "tests" / "doubles" / "qdrant" / "qdrant.py"


class QdrantServer:
    """It keeps what it has over `stop` and `start`."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.port, self.key = folder, free_port(), secrets.token_hex(16)
        self.url = f"http://127.0.0.1:{self.port}"
        self.process: subprocess.Popen[bytes] | None = None
        service = {"host": "127.0.0.1", "http_port": self.port, "grpc_port": None, "api_key": self.key}
        storage = {"storage_path": str(folder / "storage"), "snapshots_path": str(folder / "snapshots")}
        (folder / "qdrant.json").write_text(json.dumps({"service": service, "storage": storage}))

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Until it answers."""
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, PROGRAM, "--config-path", self.folder / "qdrant.json"],
                cwd=self.folder,
                stdout=log,
                stderr=log,
            )
        until(self.answers)

    def stop(self) -> None:
        """At once."""
        if self.process:
            self.process.kill()
            self.process.wait()

    def answers(self) -> bool:
        """Whether it is there."""
        try:
            with urllib.request.urlopen(f"{self.url}/readyz", timeout=30):
                return True
        except OSError:
            return False

    def ask(self, method: str, path: str, body: Any = None) -> Any:
        """Its own answer."""
        data = None if body is None else json.dumps(body).encode()
        headers = {"api-key": self.key, "Content-Type": "application/json"}
        asked = urllib.request.Request(self.url + path, data, headers, method=method)
        with urllib.request.urlopen(asked, timeout=30) as answer:
            return json.load(answer)["result"]

    def payloads(self, collection: str) -> list[dict[str, Any]]:
        """What all points of a collection say."""
        found = self.ask("POST", f"/collections/{collection}/points/scroll", {"limit": 10000})
        return [point["payload"] for point in found["points"]]

    def clear(self) -> None:
        """No collection is left."""
        for one in self.ask("GET", "/collections")["collections"]:
            self.ask("DELETE", f"/collections/{one['name']}")
