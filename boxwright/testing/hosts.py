"""The hosts of the inventory, as the tests of one session see them, and testinfra's way to them.

testinfra finds its backends by name: `boxwright://NAME` is inventory host NAME, reached as every other part of
boxwright reaches it. A sudo password goes through standard input, a login password through ssh's environment; neither
is an argument.
"""

from __future__ import annotations

import atexit
import getpass
import os
import shlex
import subprocess
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import testinfra.backend
from testinfra.backend.base import BaseBackend

from boxwright import masking, openssh
from boxwright.connection import Connection, from_variables
from boxwright.connectors.messages import sudo_problem
from boxwright.errors import Failed

testinfra.backend.BACKENDS["boxwright"] = "boxwright.testing.hosts.BoxBackend"


@dataclass
class TestedHost:
    """One inventory host in this session."""

    __test__ = False  # not a test class, whatever its name suggests to pytest

    name: str
    box: Any
    connection: Connection


_known: dict[str, TestedHost] = {}


def use(hosts: Iterable[Any]) -> list[str]:
    """Make the inventory hosts (`boxwright.inventory.InventoryHost`) known; returns testinfra's names for them."""
    _known.clear()
    for host in hosts:
        _known[host.name] = TestedHost(host.name, host.box, from_variables(host.name, host.variables))
    return [f"boxwright://{name}" for name in _known]


def named(name: str) -> TestedHost:
    """The host that `use` made known as `name`."""
    return _known[name]


class BoxBackend(BaseBackend):  # type: ignore[misc]  # testinfra is not checked
    """testinfra's commands on an inventory host, as root where the inventory says `ansible_become`."""

    NAME = "boxwright"
    _control: tempfile.TemporaryDirectory[str] | None = None

    def __init__(self, name: str, *args: Any, **kwargs: Any) -> None:
        self.tested = named(name)
        self.connection = self.tested.connection
        self._sudo: list[str] | None = None
        self._password: str | None = None
        super().__init__(name, sudo=False)

    def get_pytest_id(self) -> str:
        """The host's name in the inventory."""
        return self.tested.name

    def run(self, command: str, *args: str, **kwargs: Any) -> Any:
        """Run `command`, with `args` quoted into it as testinfra does."""
        text = self.quote(command, *args)
        if self._sudo is None:
            self._prepare_sudo()
        done = self._execute(self._as_user(text))
        return self.result(done.returncode, self.encode(text), done.stdout, done.stderr)

    def _as_user(self, text: str) -> tuple[str, bytes]:
        """Shell text that runs `text` as the right user, and its standard input."""
        if not self._sudo:
            return text, b""
        if self._password is None:
            return shlex.join([*self._sudo, "/bin/sh", "-c", text]), b""
        # The password is read by the shell and handed on through a pipe; the command itself never sees it.
        inner = shlex.join([*self._sudo, "/bin/sh", "-c", f"exec </dev/null; {text}"])
        script = f'IFS= read -r secret; printf "%s\\n" "$secret" | {inner}'
        return shlex.join(["/bin/sh", "-c", script]), f"{self._password}\n".encode()

    def _prepare_sudo(self) -> None:
        connection = self.connection
        self._sudo = []
        if not connection.become:
            return
        wanted = connection.become_user or "root"
        sudo = ["sudo", "-H", "-u", wanted]
        who = self._execute(("id -un", b"")).stdout.decode().strip()
        if who == wanted:
            return
        if self._execute((shlex.join([*sudo, "-n", "-k", "true"]), b"")).returncode == 0:
            self._sudo = [*sudo, "-n"]
            return
        self._sudo = [*sudo, "-S", "-k", "-p", ""]
        self._password = connection.become_password or self._asked()
        if (tried := self._execute(self._as_user("true"))).returncode:
            said = (tried.stderr.decode(errors="replace").strip().splitlines() or [""])[-1]
            raise Failed(sudo_problem(connection, "refused", said))

    def _asked(self) -> str:
        if not has_terminal():
            raise Failed(sudo_problem(self.connection, "unknown"))
        password = getpass.getpass(f"sudo password on {self.connection.name} ({self.connection.login}): ")
        masking.register([password])
        return password

    def _execute(self, command: tuple[str, bytes]) -> subprocess.CompletedProcess[bytes]:
        text, stdin = command
        if self.connection.kind == "local":
            return subprocess.run(["/bin/sh", "-c", text], input=stdin, capture_output=True, check=False)
        done = openssh.run(self.connection, text, *self._sharing(), stdin=stdin)
        if done.returncode == 255:  # ssh(1): 255 is ssh's own failure
            raise RuntimeError(done.stderr.decode(errors="replace").strip() or f"ssh to {self.tested.name} failed")
        return done

    @classmethod
    def _sharing(cls) -> list[str]:
        """Options by which all commands of this session share an SSH connection per host (7 ms each instead of 185)."""
        if cls._control is None:
            # A short path: a Unix socket's has at most 107 bytes (unix(7)).
            cls._control = tempfile.TemporaryDirectory(prefix="bw-", dir="/tmp")
            atexit.register(close_connections)
        return [
            "-o",
            "ControlMaster=auto",
            "-o",
            f"ControlPath={cls._control.name}/%C",
            "-o",
            "ControlPersist=120",
        ]


def has_terminal() -> bool:
    """Whether somebody can be asked. pytest replaces standard input, so that says nothing."""
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY))
    except OSError:
        return False
    return True


def close_connections() -> None:
    """End the shared SSH connections of this session."""
    control, BoxBackend._control = BoxBackend._control, None
    if control is None:
        return
    for path in Path(control.name).iterdir():
        subprocess.run(
            ["ssh", "-o", f"ControlPath={path}", "-O", "exit", "boxwright"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=dict(os.environ),
            check=False,
        )
    control.cleanup()
