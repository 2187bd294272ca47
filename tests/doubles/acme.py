"""Pebble, Let's Encrypt's own small ACME server (RFC 8555) for tests: the real program, compiled from its Go module.

pebble/go.mod and go.sum pin it; the toolchain is the one that builds the custom Caddy. It is kept in the user's cache.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import tempfile
import threading
from pathlib import Path
from types import TracebackType

import requests

from boxwright import caddy_build
from boxwright.caddy_build import builder
from boxwright.lab.locks import locked
from boxwright.paths import cache_dir
from tests.doubles.authority import Authority

SOURCE = Path(__file__).parent / "pebble"
PACKAGE = "github.com/letsencrypt/pebble/v2/cmd/pebble"


def pebble() -> Path:
    """The program, compiled when the cache does not have it."""
    digest = hashlib.sha256(caddy_build.GO_VERSION.encode())
    for name in ("go.mod", "go.sum"):
        digest.update((SOURCE / name).read_bytes())
    place = cache_dir() / "tests" / f"pebble-{digest.hexdigest()[:16]}"
    place.parent.mkdir(parents=True, exist_ok=True)
    with locked(place.with_name("pebble.lock")):
        if not place.exists():
            _compile(place)
    return place


def _compile(place: Path) -> None:
    with tempfile.TemporaryDirectory(prefix="pebble-", dir=place.parent, ignore_cleanup_errors=True) as temporary:
        folder = Path(temporary)
        go = builder.toolchain(folder, folder)
        settings = builder.go_environment(caddy_build.own_architecture(), folder, builder.modules_of_user())
        made = folder / "made"
        command = [go, "build", "-C", str(SOURCE), *caddy_build.FLAGS, "-o", str(made), PACKAGE]
        done = subprocess.run(
            command, env={**os.environ, **settings, "GOTMPDIR": temporary}, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        made.replace(place)


class Pebble:
    """An ACME server on `address`, which asks the name server `dns` (host:port) where a name leads.

    It looks at the usual ports, 80 and 443, of what it validates. Its authority is a new one at each start.
    """

    def __init__(self, folder: Path, address: str, dns: str, ports: tuple[int, int]) -> None:
        self.folder, self.address, self._dns = folder, address, dns
        self._port, self._management = ports
        self.authority = Authority(folder / "https", "Root of the ACME server's own HTTPS")
        # Everything it said.
        self.log: list[str] = []

    @property
    def directory(self) -> str:
        """Where its clients begin."""
        return f"https://{self.address}:{self._port}/dir"

    @property
    def root(self) -> str:
        """The root certificate of what it issues, as PEM text."""
        return self._get("roots/0")

    @property
    def intermediate(self) -> str:
        """The certificate that signs what it issues, as PEM text."""
        return self._get("intermediates/0")

    def _get(self, path: str) -> str:
        with requests.Session() as session:
            session.trust_env = False
            url = f"https://{self.address}:{self._management}/{path}"
            answer = session.get(url, verify=str(self.authority.root), timeout=10)
            answer.raise_for_status()
            return answer.text

    def said(self, *words: str) -> list[str]:
        """Lines of its log with all these words."""
        return [line for line in self.log if all(word in line for word in words)]

    def __enter__(self) -> Pebble:
        certificate, key = self.authority.issue("acme", self.address)
        settings = {
            "listenAddress": f"{self.address}:{self._port}",
            "managementListenAddress": f"{self.address}:{self._management}",
            "certificate": str(certificate),
            "privateKey": str(key),
            "httpPort": 80,
            "tlsPort": 443,
            "retryAfter": {"authz": 1, "order": 1},
            "profiles": {"default": {"description": "", "validityPeriod": 7776000}},
        }
        path = self.folder / "pebble.json"
        path.write_text(json.dumps({"pebble": settings}), encoding="utf-8")
        self._process = subprocess.Popen(
            [pebble(), "-config", str(path), "-dnsserver", self._dns],
            # No pause before it validates, and each order is validated anew.
            env={"PATH": os.environ["PATH"], "PEBBLE_VA_NOSLEEP": "1", "PEBBLE_AUTHZREUSE": "0"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert self._process.stdout is not None
        listening = threading.Event()

        def read() -> None:
            assert self._process.stdout is not None
            for line in self._process.stdout:
                self.log.append(line.rstrip())
                if "ACME directory available at" in line:
                    listening.set()
            listening.set()

        threading.Thread(target=read, daemon=True).start()
        assert listening.wait(30), "Pebble says nothing"
        assert self._process.poll() is None, "\n".join(self.log)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.terminate()
        self._process.wait(timeout=30)
