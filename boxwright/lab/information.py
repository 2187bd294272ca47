"""What `boxwright lab info` tells about a box: where it is and how to use its gateway."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from boxwright.errors import Problem, Refused
from boxwright.lab import boxes, state

if TYPE_CHECKING:
    from docker import DockerClient


def collect(client: DockerClient | None, record: state.Record) -> dict[str, Any]:
    """All that is known about a box. `url`, `ca_file`, `user` and `password` are those of its gateway.

    They are settings, so they are known before the box is converged. `user` and `password` are None where the gateway
    asks for none. Raises Refused (BW309) for a box that is down, or with what is wrong in its settings.
    """
    inventory = state.box_dir(record.name) / "hosts.yml"
    if not inventory.exists():
        raise Refused(
            Problem(
                code="BW309",
                message=f"lab box {record.name!r} is down",
                help=f"bring it up again with `boxwright lab up {record.name}`",
            )
        )
    from boxwright.inventory import load
    from boxwright.outside import ca_file

    host = state.host_name(record.name)
    box: Any = next(entry.box for entry in load(inventory) if entry.name == host)
    certificate = ca_file(box)
    basic = box.gateway.asks_for_password
    return {
        "name": record.name,
        "host": host,
        "container": state.container_name(record.name),
        "status": boxes.status(client, record.name),
        "address": record.address,
        "login": record.login,
        "inventory": str(inventory),
        "url": box.gateway.url,
        "ca_file": str(certificate) if certificate else None,
        "user": box.gateway.user if basic else None,
        "password": box.gateway.password.get_secret_value() if basic else None,
    }
