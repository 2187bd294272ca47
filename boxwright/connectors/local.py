"""The `boxwright-local` connector: commands run on this machine, under the host's inventory name."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from typing import Any

from pyinfra.connectors.local import LocalConnector

from boxwright.connectors.base import BoxConnector


class NamedLocalConnector(BoxConnector, LocalConnector):  # type: ignore[misc]  # pyinfra is not checked
    """pyinfra's local connector, for a host that has a name of its own in the inventory."""

    @staticmethod
    def make_names_data(name: str | None = None) -> Iterator[tuple[str, dict[str, Any], list[str]]]:
        """Yield the inventory name unchanged: messages, data and groups speak of the host as its inventory does."""
        yield name or "localhost", {}, []

    def connect(self) -> None:
        """Nothing to open; a host that is provisioned through sudo is asked for a password before anything starts."""
        if self.host.data.get("_sudo"):
            self.prepare_sudo()

    def anew(self, seconds: float) -> NamedLocalConnector:
        """This machine needs no connection to itself. A session that comes over SSH could still be the last one, so its
        port must answer: raises OSError when nothing speaks SSH where it came in.
        """
        if session := os.environ.get("SSH_CONNECTION", "").split():
            with socket.create_connection((session[2], int(session[3])), timeout=min(seconds, 5.0)) as connected:
                if not connected.recv(4).startswith(b"SSH-"):
                    raise OSError(f"nothing speaks SSH on port {session[3]} any more")
        other = type(self)(self.state, self.host)
        other.like(self)
        return other

    def leave(self) -> None:
        """Nothing to close."""
