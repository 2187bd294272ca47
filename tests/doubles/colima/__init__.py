"""Colima for the double of a Mac: an engine in another machine, whose socket and ports are handed on.

On a Mac the other machine is a virtual one, and Lima does the handing on. Here it is a machine.Machine with Debian's
Docker Engine, and a program on either side does it. The names that Colima gives to the Mac are not there: nothing in a
container of this engine finds `host.docker.internal`.
"""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any

from tests.doubles.macos import ROOT, MacDouble

SOCKET = "/Users/operator/.colima/default/docker.sock"
PROGRAM = Path(__file__).with_name("forward.py")
# Where Debian has what Homebrew's formulae `docker` and `docker-compose` are on a Mac.
CLIENT = {"docker": "/usr/bin/docker", "docker-compose": "/usr/libexec/docker/cli-plugins/docker-compose"}


class Colima:
    """The engine of `machine` as `mac` has it, with one published port of the Mac's loopback, `port`."""

    def __init__(self, mac: MacDouble, machine: Any, port: int) -> None:
        from boxwright.lab import network
        from boxwright.lab.locks import locked
        from boxwright.paths import cache_dir

        self.mac, self.machine, self.port = mac, machine, port
        client = machine.container.client
        with locked(cache_dir() / "lab" / "addresses.lock"):
            book = cache_dir() / "lab" / "addresses.json"
            claimed = set(json.loads(book.read_text(encoding="utf-8"))) if book.exists() else set()
            claimed |= {
                end["IPv4Address"].partition("/")[0]
                for end in network.ensure(client).attrs.get("Containers", {}).values()
            }
            self.address = network.free_address(client, network.ensure(client), claimed)
            network.attach(network.ensure(client), machine.container, self.address)
        machine.put("/root/forward.py", PROGRAM.read_bytes())
        mac.put("/private/tmp/forward.py", PROGRAM.read_bytes())
        published = f"tcp:127.0.0.1:{port}"
        self._forward(machine, "python3", "/root/forward.py", "tcp:0.0.0.0:2375", "unix:/run/docker.sock", "0:0")
        self._forward(machine, "python3", "/root/forward.py", "tcp:0.0.0.0:2376", published, "0:0")
        mac.as_user("mkdir -p .colima/default")
        self.start()
        self._on_the_mac(published, f"tcp:{self.address}:2376")

    def _forward(self, where: Any, python: str, program: str, listens: str, leads: str, user: str) -> None:
        where.container.exec_run([python, program, listens, leads], user=user, detach=True)

    def _on_the_mac(self, listens: str, leads: str) -> None:
        self._forward(self.mac, f"{ROOT}/linux/bin/python3", "/private/tmp/forward.py", listens, leads, "501:20")

    def start(self) -> None:
        """Its socket is there."""
        self._on_the_mac(f"unix:{SOCKET}", f"tcp:{self.address}:2375")

    def stop(self) -> None:
        """Nobody listens at its socket any more; the socket itself is left."""
        self.mac.sh(f"{ROOT}/linux/bin/pkill -f 'forward.py unix:'")

    def formulae(self, folder: Path) -> None:
        """What Homebrew has: the client and the Compose plugin, those of Debian."""
        for name, path in CLIENT.items():
            chunks, _ = self.machine.container.get_archive(path)
            with tarfile.open(fileobj=io.BytesIO(b"".join(chunks))) as archive:
                member = archive.next()
                content = archive.extractfile(member) if member else None
                assert content, path
                place = folder / name / "bin" / name
                place.parent.mkdir(parents=True)
                place.write_bytes(content.read())
            place.chmod(0o755)
            self.mac.formula(name, "1.0", folder / name)
