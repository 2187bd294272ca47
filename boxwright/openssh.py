"""Runs OpenSSH's own `ssh` towards an inventory host: same configuration file, no prompts, no secret in an argument."""

from __future__ import annotations

import os
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from boxwright.connection import Connection, write_ssh_config
from boxwright.errors import Failed, Problem
from boxwright.paths import state_dir

# ssh starts this program to ask for a password (ssh(1): SSH_ASKPASS); the secret is in ssh's environment only.
_ASKPASS = '#!/bin/sh\nprintf "%s\\n" "$BOXWRIGHT_SSH_PASSWORD"\n'


def command(connection: Connection, *options: str) -> list[str]:
    """`ssh` with `options` towards the host; append the remote command. Nothing it does can ask a person."""
    config = write_ssh_config(connection.name, connection)
    batch = [] if connection.password else ["-o", "BatchMode=yes"]
    return ["ssh", "-F", str(config), *batch, *options, connection.target]


def environment(connection: Connection) -> dict[str, str]:
    """The environment for that `ssh`: this process's, and where the login password comes from if there is one."""
    variables = dict(os.environ)
    if connection.password:
        # SSH_ASKPASS_REQUIRE=force since OpenSSH 8.4: asks the program even where there is a terminal.
        variables |= {
            "SSH_ASKPASS": str(_askpass()),
            "SSH_ASKPASS_REQUIRE": "force",
            "BOXWRIGHT_SSH_PASSWORD": connection.password,
        }
    return variables


def _askpass() -> Path:
    path = state_dir() / "ssh" / "askpass"
    if not path.is_file() or path.read_text(encoding="utf-8") != _ASKPASS:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        temporary = path.with_name(f".askpass.{os.getpid()}")
        with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o700), "w", encoding="utf-8") as file:
            file.write(_ASKPASS)
        temporary.replace(path)
    return path


@contextmanager
def tunnel(connection: Connection, address: str, port: int, timeout: float = 20.0) -> Iterator[int]:
    """Forward a port of this machine to `address`:`port` as the host sees it; yields the local port on 127.0.0.1.

    Raises Failed when ssh does not get there within `timeout` seconds.
    """
    with socket.create_server(("127.0.0.1", 0)) as probe:
        local = probe.getsockname()[1]
    bracketed = f"[{address}]" if ":" in address else address
    process = subprocess.Popen(
        command(connection, "-N", "-o", "ExitOnForwardFailure=yes", "-L", f"127.0.0.1:{local}:{bracketed}:{port}"),
        env=environment(connection),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,  # no terminal: ssh must not open /dev/tty
    )
    try:
        deadline = time.monotonic() + timeout
        while not _listens(local):
            if process.poll() is not None or time.monotonic() > deadline:
                process.terminate()
                said = (process.communicate()[1] or "no answer").strip().splitlines()[-1]
                raise Failed(
                    Problem(code="BW104", message=f"no SSH tunnel to {connection.name}: {said}", host=connection.name)
                )
            time.sleep(0.05)
        yield local
    finally:
        process.terminate()
        process.wait()
        if process.stderr:
            process.stderr.close()


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(0.2)
        return probe.connect_ex(("127.0.0.1", port)) == 0


def run(
    connection: Connection, remote: str, *options: str, stdin: bytes = b"", extra: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[bytes]:
    """Run the shell text `remote` on the host; exit status 255 means that ssh itself failed."""
    return subprocess.run(
        [*command(connection, *options), remote],
        env={**environment(connection), **(extra or {})},
        input=stdin,
        capture_output=True,
        check=False,
        start_new_session=True,
    )
