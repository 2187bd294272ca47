"""A Mac that is set up whole: the double of one (tests/doubles/macos), its inventory, and who asks it from outside."""

from __future__ import annotations

import re
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import requests
from headscale import free_port
from kit import Done, Lab, eventually
from requests.adapters import HTTPAdapter

from tests.doubles.macos import MacDouble

# The custom Caddy for a Mac cannot run on the double, which is Linux underneath: boxwright takes the one for Linux for
# it, which is built from the same sources and pinned just so. Nothing else of boxwright is another.
WITH_CADDY_OF_LINUX = """
from boxwright import caddy_build
caddy_build.MAC = caddy_build.own_architecture()
from boxwright.cli import main
main()
"""


class MacBox:
    """The Mac as commands are pointed at it. `boxwright` is run as a person runs it."""

    def __init__(self, lab: Lab, mac: MacDouble, inventory: Path, *, caddy_of_linux: bool = False) -> None:
        self.lab, self.mac, self.inventory = lab, mac, inventory
        self.environment: dict[str, str] = {}
        self._boxwright = (sys.executable, "-c", WITH_CADDY_OF_LINUX) if caddy_of_linux else ("boxwright",)

    def run(self, *words: str) -> Done:
        """`boxwright` with these words, pointed at it."""
        command = (*self._boxwright, *words)
        return self.lab.run(*command, inventory=self.inventory, environment=self.environment, timeout=600)

    def changes(self, *words: str) -> list[str]:
        """What `boxwright` with these words changes; it must succeed."""
        found: list[str] = self.run(*words, "--json").expect().json["hosts"][self.mac.name]["changed"]
        return found

    def apply(self) -> list[str]:
        """What a run changes. The question from outside is left to the tests."""
        return self.changes("apply", "--no-check")

    def settle(self) -> None:
        """After services were started without a run, one sees that they are ready, and then nothing changes."""
        assert [name for name in self.apply() if not name.endswith("running")] == []
        assert self.apply() == []

    def pid(self, service: str) -> int:
        """Number of its process; 0 where none runs."""
        found = re.findall(r"^\tpid = (\d+)$", self.mac.sh(f"launchctl print system/boxwright.{service}"), re.MULTILINE)
        return int(found[0]) if found else 0

    def owner(self, service: str) -> str:
        """The account of that process."""
        return self.mac.sh(f"ps -ww -o user= -p {self.pid(service)}").strip()

    def kill(self, service: str) -> None:
        """SIGKILL to the service; returns when launchd has started another process."""
        before, owner = self.pid(service), self.owner(service)
        assert before, service
        # What went into the background would answer in its place until the new process ends it, as LM Studio's daemon.
        rest = f"; pkill -KILL -U {owner}" if owner.startswith("_") else ""
        self.mac.sh(f"kill -KILL {before}{rest}")
        eventually(f"{service} runs again", lambda: self.pid(service) not in (0, before), 90)

    @property
    def root(self) -> Path:
        """The root certificate of the Mac's own authority, which a run fetched."""
        return self.lab.state / "ca" / f"{self.mac.name}.crt"


class _Under(HTTPAdapter):
    """Connects to the URL's address; the certificate is that of `name`."""

    def __init__(self, name: str) -> None:
        self._name = name
        super().__init__()

    def init_poolmanager(self, *words: Any, **options: Any) -> None:
        super().init_poolmanager(*words, **options, server_hostname=self._name, assert_hostname=self._name)


class Client:
    """Asks `url`, a name with its port, at the address and port that `way` tells, trusting the root in a file alone.

    With http:// it is asked without TLS: where that ends before, the way is a machine's own loopback.
    """

    def __init__(self, url: str, way: Callable[[], tuple[str, int]], root: Path, token: str = "") -> None:
        self.url, self.way, self.root, self.token = urlsplit(url), way, root, token

    def http(self, method: str, path: str, token: str | None = None, **arguments: Any) -> requests.Response:
        """An answer, by default with the client's own token; with an empty one nobody says who asks."""
        chosen = self.token if token is None else token
        headers = {"Host": self.url.netloc, **arguments.pop("headers", {})}
        headers |= {"Authorization": f"Bearer {chosen}"} if chosen else {}
        address, port = self.way()
        session = requests.Session()
        session.trust_env, session.verify = False, str(self.root)
        session.mount("https://", _Under(self.url.hostname or ""))
        url = f"{self.url.scheme}://{address}:{port}/{path}"
        return session.request(method, url, headers=headers, timeout=120, **arguments)

    def answers(self, model: str) -> bool:
        """Whether `model` is listed with a token, and without one nothing is."""
        try:
            refused, listed = self.http("GET", "v1/models", ""), self.http("GET", "v1/models")
        except requests.RequestException:
            return False
        return refused.status_code == 401 and listed.status_code == 200 and model in listed.text


class Forward:
    """A TCP port of this machine that leads to one of the Mac's loopback, by the way of an operator: SSH."""

    def __init__(self, mac: MacDouble, address: str, port: int) -> None:
        self._mac, self._there = mac, f"{address}:{port}"
        self._port = free_port("127.0.0.1")
        self._process: subprocess.Popen[bytes] | None = None

    def __call__(self) -> tuple[str, int]:
        """Address and port here."""
        if self._process is None or self._process.poll() is not None:
            options = ("-N", "-o", "ExitOnForwardFailure=yes", "-L", f"127.0.0.1:{self._port}:{self._there}")
            self._process = subprocess.Popen(self._mac.ssh_command(*options), stdin=subprocess.DEVNULL)
            eventually("ssh forwards", self._listens)
        return "127.0.0.1", self._port

    def _listens(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, "ssh has ended"
        try:
            socket.create_connection(("127.0.0.1", self._port), 5).close()
        except OSError:
            return False
        return True

    def close(self) -> None:
        """No more; it begins anew when it is asked again."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(timeout=30)
            self._process = None


@contextmanager
def forward(mac: MacDouble, address: str, port: int) -> Iterator[Forward]:
    """A `Forward` as long as the context lasts."""
    made = Forward(mac, address, port)
    try:
        yield made
    finally:
        made.close()
