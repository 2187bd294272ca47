"""The lab's network: a bridge of its own, on which the mirror and every box have fixed addresses."""

from __future__ import annotations

import ipaddress
import os
from typing import TYPE_CHECKING

from boxwright.errors import Failed, Problem, Refused
from boxwright.lab.locks import locked
from boxwright.paths import cache_dir

if TYPE_CHECKING:
    from docker import DockerClient
    from docker.models.containers import Container
    from docker.models.networks import Network
    from docker.types import EndpointConfig, NetworkingConfig

NAME = "boxwright"
#: Everything that the lab makes in the engine carries this label.
OWNER_LABELS = {"owner": "boxwright"}
ADDRESS_LABEL = "boxwright.address"
SUBNET_VARIABLE = "BOXWRIGHT_LAB_SUBNET"
DEFAULT_SUBNET = "10.213.77.0/24"

# Host parts of the fixed addresses; the engine itself has .1 (the gateway).
FILES_HOST = 2
REGISTRY_HOST = 3
FIRST_BOX = 10


def wanted_subnet() -> ipaddress.IPv4Network:
    """The subnet for a network that is yet to be made. Raises Refused (BW311) when the variable is no such thing."""
    text = os.environ.get(SUBNET_VARIABLE) or DEFAULT_SUBNET
    try:
        subnet = ipaddress.IPv4Network(text)
        if subnet.prefixlen > 26:
            raise ValueError("it has fewer than 64 addresses")
    except ValueError as error:
        raise Refused(
            Problem(
                code="BW311",
                message=f"{SUBNET_VARIABLE}={text} is not a subnet for the lab: {error}",
                variable=SUBNET_VARIABLE,
                help=f"write a private IPv4 network, for example {SUBNET_VARIABLE}={DEFAULT_SUBNET}",
            )
        ) from error
    return subnet


def subnet_of(network: Network) -> ipaddress.IPv4Network:
    """The subnet that a network has."""
    for entry in (network.attrs.get("IPAM") or {}).get("Config") or []:
        if "." in entry.get("Subnet", ""):
            return ipaddress.IPv4Network(entry["Subnet"])
    raise Failed(
        Problem(
            code="BW311",
            message=f"the engine's network {NAME!r} has no IPv4 subnet, so it is not the lab's",
            help=f"remove it with `docker network rm {NAME}` if nothing uses it",
        )
    )


def find(client: DockerClient) -> Network | None:
    """The lab's network, when the engine has it."""
    matches = client.networks.list(names=[f"^{NAME}$"])
    if not matches:
        return None
    network = matches[0]
    network.reload()
    return network


def ensure(client: DockerClient) -> Network:
    """The lab's network, made when missing. Raises Refused (BW311) when its subnet is taken."""
    import docker
    from docker.errors import APIError

    with locked(cache_dir() / "lab" / "network.lock"):
        network = find(client)
        if network is not None:
            return network
        subnet = wanted_subnet()
        pool = docker.types.IPAMPool(subnet=str(subnet), gateway=str(subnet[1]))
        try:
            client.networks.create(
                NAME,
                driver="bridge",
                ipam=docker.types.IPAMConfig(pool_configs=[pool]),
                labels=OWNER_LABELS,
                options={"com.docker.network.bridge.name": "boxwright0"},
                check_duplicate=True,
            )
        except APIError as error:
            raise Refused(
                Problem(
                    code="BW311",
                    message=f"the lab's network {subnet} cannot be made: {error.explanation}",
                    variable=SUBNET_VARIABLE,
                    help=f"choose another private subnet, for example {SUBNET_VARIABLE}=10.214.77.0/24",
                )
            ) from error
        network = find(client)
        if network is None:
            raise Failed(Problem(code="BW311", message=f"the engine lost the network {NAME!r} right after making it"))
        return network


def containers(client: DockerClient) -> list[Container]:
    """Every container of the lab, of any user and any state."""
    found = client.containers.list(all=True, filters={"label": "owner=boxwright"}, ignore_removed=True)
    return list(found)


def free_address(client: DockerClient, network: Network, reserved: set[str]) -> str:
    """The lowest box address that is neither a container's nor in `reserved`. Raises Failed (BW311) without one."""
    taken = reserved | {container.labels.get(ADDRESS_LABEL, "") for container in containers(client)}
    subnet = subnet_of(network)
    for number in range(FIRST_BOX, subnet.num_addresses - 1):
        if str(subnet[number]) not in taken:
            return str(subnet[number])
    raise Failed(
        Problem(
            code="BW311",
            message=f"every address of the lab's network {subnet} is taken",
            help="take boxes down with `boxwright lab down NAME --purge`",
        )
    )


def attach(network: Network, container: Container, address: str) -> None:
    """Make sure that the container is on this very network with this very address."""
    container.reload()
    ends = container.attrs["NetworkSettings"]["Networks"]
    end = ends.get(NAME)
    configured = ((end or {}).get("IPAMConfig") or {}).get("IPv4Address")
    if end is not None and configured == address and end.get("NetworkID") in ("", network.id):
        return
    if end is not None:
        network.disconnect(container, force=True)
    network.connect(container, ipv4_address=address)


def only_end(client: DockerClient, end: EndpointConfig) -> NetworkingConfig:
    """The networking configuration of a container that is on the lab's network and on no other."""
    # The type stubs take the mapping of names to ends for one end.
    return client.api.create_networking_config({NAME: end})  # type: ignore[arg-type]


def last_words(container: Container, lines: int = 15) -> str:
    """The last lines that a container wrote."""
    said = container.logs(tail=lines)
    return (said if isinstance(said, bytes) else b"".join(said)).decode(errors="replace").strip()


def run_inside(container: Container, *command: str) -> str:
    """What a command in a running container says, whatever its status."""
    said = container.exec_run(list(command)).output
    return (said if isinstance(said, bytes) else b"".join(said)).decode(errors="replace")
