"""A box that has nothing but its door: behind it stands a double of an engine, which the test process runs.

What the double has seen is the judge of what came through the door.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from engine_double import EngineDouble
from gateway_box import gateway_box, this_machine
from kit import Box, Done, Lab

MODELS = "v1/models"
CHAT = "v1/chat/completions"
LOG = "/var/log/caddy/access.log"


class Door:
    """A box with a gateway, the engine behind it, and the inventory in force."""

    def __init__(self, box: Box, engine: EngineDouble, label: str) -> None:
        self.box, self.engine, self.label = box, engine, label
        self.settings: dict[str, Any] = {}
        self.inventory: Path = box.inventory

    def declare(self, **settings: Any) -> None:
        """Write an inventory with these settings; nothing reaches the box yet."""
        self.settings = settings
        self.inventory = self.box.with_variables(self.label, **settings)

    def apply(self, *options: str) -> Done:
        """`boxwright apply` with the settings that are declared."""
        return self.box.apply(*options, inventory=self.inventory)

    def changes(self) -> list[str]:
        """What a run changes."""
        return self.box.changes(self.inventory)

    def token(self, *arguments: str) -> Done:
        """`boxwright token ...`, whatever its end."""
        return self.box.run("boxwright", "token", *arguments, inventory=self.inventory)

    def new_token(self, name: str) -> str:
        """A token for the client `name`, which has none or one that is not known here."""
        verb = "rotate" if name in [each["name"] for each in self.token("list", "--json").expect().json] else "add"
        return self.token(verb, name).expect().out.strip()

    def status(self, path: str = MODELS, **headers: str) -> int:
        """The status with which a GET of `path` is answered; names of headers have _ for -."""
        return int(self.box.http("GET", path, headers=named(headers)).status_code)

    def with_token(self, token: str, path: str = MODELS) -> int:
        """The status of a GET with a bearer token."""
        return self.status(path, Authorization=f"Bearer {token}")

    @property
    def pid(self) -> int:
        """The gateway's process."""
        return self.box.pid("caddy")

    def log(self) -> list[dict[str, Any]]:
        """The access log that is written now."""
        return [json.loads(line) for line in self.box.sh(f"cat {LOG}").splitlines()]

    def seen(self, mark: str) -> list[Any]:
        """What the engine was asked with `mark` in the target."""
        return [asked for asked in self.engine.asked if mark in asked.target]


def named(headers: dict[str, str]) -> dict[str, str]:
    """Headers from keyword arguments."""
    return {name.replace("_", "-"): value for name, value in headers.items()}


@contextmanager
def door(lab: Lab, label: str, **settings: Any) -> Iterator[Door]:
    """The box that all tests of the gateway share, converged with `settings`, in which {engine} stands for the double's
    address.

    What is declared belongs to the test file that opened it, so that every file can have settings of its own.
    """
    box = gateway_box(lab)
    with EngineDouble(this_machine(box)) as engine:
        opened = Door(box, engine, label)
        text = json.dumps({"gateway_engines": ["{engine}"], **settings}).replace("{engine}", engine.upstream)
        opened.declare(**json.loads(text))
        opened.apply().expect()
        yield opened
