"""What the lab remembers about a box: its folder `<state>/lab/NAME` and the file lab.json in it.

The folder outlives the container, so that a rebuilt box is the same machine again: same address, host key, login key,
passwords.
"""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass
from pathlib import Path

from boxwright.errors import Problem, Refused
from boxwright.lab.keys import write_private
from boxwright.paths import state_dir

DEFAULT_NAME = "default"
DEFAULT_LOGIN = "operator"
DEFAULT_MEMORY = "4g"
_NAME = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,38}[a-z0-9])?")


@dataclass(frozen=True)
class Record:
    """lab.json. `memory` is a limit as the engine takes it ("4g"); `preset` is a name or a folder, or None."""

    name: str
    address: str
    login: str = DEFAULT_LOGIN
    preset: str | None = None
    memory: str = DEFAULT_MEMORY


def lab_dir() -> Path:
    """The folder with one folder per box."""
    return state_dir() / "lab"


def box_dir(name: str) -> Path:
    """The folder of one box."""
    return lab_dir() / name


def record_file(name: str) -> Path:
    """The file with the record of one box."""
    return box_dir(name) / "lab.json"


def check_name(name: str) -> str:
    """`name` itself. Raises Refused (BW308) when it cannot be a host name's part."""
    if _NAME.fullmatch(name) is None:
        raise Refused(
            [
                Problem(
                    code="BW308",
                    message=f"{name!r} cannot be the name of a lab box",
                    help="use up to 40 lower-case letters, digits and hyphens, for example `test-2`",
                )
            ]
        )
    return name


def host_name(name: str) -> str:
    """The inventory name of a box, which is also its own host name."""
    return "lab" if name == DEFAULT_NAME else f"lab-{name}"


def container_name(name: str) -> str:
    """The name of the box's container."""
    return f"boxwright-{name}"


def read(name: str) -> Record | None:
    """The record of a box; None when this user has no such box."""
    path = record_file(name)
    if not path.exists():
        return None
    return Record(**json.loads(path.read_text(encoding="utf-8")))


def write(record: Record) -> None:
    """Keep the record."""
    write_private(record_file(record.name), json.dumps(asdict(record), indent=2) + "\n")


def names() -> list[str]:
    """The names of all boxes of this user, sorted, running or not."""
    return sorted(path.parent.name for path in lab_dir().glob("*/lab.json"))
