"""The `boxwright` connector: pyinfra's SSH connector without the 40 ms that Nagle's algorithm costs each command.

paramiko never sets TCP_NODELAY, so each command waits for a delayed acknowledgement: 44 ms instead of 2 (bench/).
"""

from __future__ import annotations

import logging
import os
import select
import socket
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

from paramiko import Channel, ProxyCommand
from pyinfra.api.exceptions import ConnectError
from pyinfra.connectors.ssh import SSHConnector

from boxwright.connectors.base import BoxConnector, NotReached
from boxwright.connectors.messages import unreachable


def _recv(self: ProxyCommand, size: int) -> bytes:
    """paramiko's ProxyCommand.recv, but the end of the program's output ends the reading; there it never does."""
    received = b""
    output = self.process.stdout
    assert output is not None  # noqa: S101 -- paramiko asks for a pipe
    deadline = None if self.timeout is None else time.monotonic() + self.timeout
    while len(received) < size:
        left = None if deadline is None else max(0.0, deadline - time.monotonic())
        if not select.select([output], [], [], left)[0]:
            if received:
                break
            raise TimeoutError
        if not (piece := os.read(output.fileno(), size - len(received))):
            break
        received += piece
    return received


def _close(self: ProxyCommand) -> None:
    """paramiko's ProxyCommand.close for a program that may have ended already, where there a traceback is printed."""
    with suppress(ProcessLookupError):
        self.process.terminate()


ProxyCommand.recv = _recv  # type: ignore[method-assign]
ProxyCommand.close = _close  # type: ignore[method-assign]

# What paramiko logs of a failed connection, tracebacks among it, is said by messages.py; without a handler Python
# would print it on standard error.
logging.getLogger("paramiko").addHandler(logging.NullHandler())

# A box that dies in mid-command is noticed after 30 + 6 * 10 s instead of after hours (tcp(7)).
_KEEPALIVE = {"TCP_KEEPIDLE": 30, "TCP_KEEPINTVL": 10, "TCP_KEEPCNT": 6, "TCP_USER_TIMEOUT": 90_000}


class FastSSHConnector(BoxConnector, SSHConnector):  # type: ignore[misc]  # pyinfra is not checked
    """pyinfra's SSH connector for a host that has a name of its own in the inventory."""

    @staticmethod
    def make_names_data(name: str) -> Iterator[tuple[str, dict[str, Any], list[str]]]:
        """Yield the inventory name unchanged: messages, data and groups speak of the host as its inventory does."""
        yield name, {}, []

    # Seconds for the TCP connection; None: what the inventory says.
    _patience: float | None = None

    def make_paramiko_kwargs(self) -> dict[str, Any]:
        """pyinfra's arguments for paramiko, and the login password where the inventory has one."""
        arguments: dict[str, Any] = super().make_paramiko_kwargs()
        if password := self.connection.password:
            arguments["password"] = password
        arguments["timeout"] = self.connection.connect_timeout
        if self._patience is not None:
            arguments["timeout"] = max(1.0, min(float(arguments["timeout"]), self._patience))
        return arguments

    def anew(self, seconds: float) -> FastSSHConnector:
        """Another connection to the host, with a TCP connection and a login of its own, tried for about `seconds`.

        Shows that the host still lets this machine in. Whoever asked closes it. Raises NotReached.
        """
        other = type(self)(self.state, self.host)
        other._patience = seconds
        other.like(self)
        other.connect()
        return other

    def leave(self) -> None:
        """Close the connection that `anew` made."""
        if self.client is not None:
            self.client.close()

    def connect(self) -> None:
        """Connect, and find out how sudo works here. Raises NotReached, which says what to do."""
        try:
            super().connect()
        except ConnectError as error:
            raise NotReached(unreachable(self.connection, error.__context__ or error)) from error
        except Exception as error:  # paramiko raises many kinds: unreadable keys, a broken ~/.ssh/config
            raise NotReached(unreachable(self.connection, error)) from error
        for connected in self._sockets():
            connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connected.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            for option, value in _KEEPALIVE.items():
                if hasattr(socket, option):
                    connected.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)
        self._bytes_as_they_are()
        if self.host.data.get("_sudo"):
            self.prepare_sudo()

    def _bytes_as_they_are(self) -> None:
        """Have paramiko hand output over as bytes: it gives up a command's whole output for one odd byte in it."""
        assert self.client is not None  # noqa: S101 -- connected just now
        run = self.client.exec_command

        def exec_command(*args: Any, **kwargs: Any) -> Any:
            stdin, *outputs = run(*args, **kwargs)
            for output in outputs:
                output._flags |= output.FLAG_BINARY
            return stdin, *outputs

        self.client.exec_command = exec_command

    def _sockets(self) -> Iterator[socket.socket]:
        """The TCP socket under the connection; through jump hosts that of the first hop. None under a ProxyCommand."""
        assert self.client is not None  # noqa: S101 -- connected just now
        below: Any = self.client.get_transport().sock
        while isinstance(below, Channel):
            below = below.get_transport().sock
        if isinstance(below, socket.socket):
            yield below
