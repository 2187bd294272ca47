"""What a mirror's folder is filled with, one file each."""

from __future__ import annotations

from dataclasses import dataclass, field

from boxwright.errors import Failed, Problem

# Seconds in which a publisher must be connected, and send anything at all; else it is given up.
TIMEOUT = (20, 60)
FETCH_HELP = "is it reachable from this machine? what has arrived is kept: the same command goes on from there"


@dataclass(frozen=True)
class Item:
    """A file of the mirror: `path` below its folder, where it is published, and what it must be.

    `text` is its content where that is known already (lists and keys, which are read to plan). Without `size` (bytes)
    nobody tells it before the file is fetched. `token` is what the publisher wants as `Authorization: Bearer`. Several
    items of one `kind` and `name` are one thing for people, as the layers of an image are.
    """

    kind: str
    name: str
    path: str
    url: str = ""
    digest: str = ""
    size: int | None = None
    text: bytes | None = field(default=None, repr=False)
    token: str = field(default="", repr=False)


def failed(code: str, message: str, help: str = FETCH_HELP) -> Failed:
    """An error that ends the run with one problem."""
    return Failed(Problem(code=code, message=message, help=help))
