"""Open WebUI in a Compose project: on Linux on a network that leads to the box and nowhere else.

On a Mac the project is the same, in the virtual machine of a container runtime (boxwright/containers.py). A network
that leads nowhere could not publish a port there, and the Mac itself is not on it. So the port is published on the
Mac's loopback, and the container asks the gateway by the name that it has for the Mac.
"""

from hashlib import sha256
from typing import Any

import yaml
from pyinfra import host as target
from pyinfra import logger

from boxwright import containers
from boxwright.containers import Runtime
from boxwright.errors import Problem
from boxwright.facts.files import Text
from boxwright.operations import containers as client
from boxwright.operations import docker, files
from boxwright.preflight import Machine
from boxwright.templates import render
from roles.openwebui.environment import environment
from roles.registry import Box

PROJECT = "openwebui"
FOLDER = "/opt/boxwright/openwebui"
COMPOSE = f"{FOLDER}/compose.yml"
ENVIRONMENT = f"{FOLDER}/openwebui.env"
NETWORK = "openwebui"
BRIDGE = "br-openwebui"  # a network interface name has at most 15 characters
# Programs that hold a published port on a Mac: those of Docker Desktop, OrbStack, Colima and Podman.
PUBLISHERS = ("com.docker.backend", "OrbStack Helper", "OrbStack", "limactl", "ssh", "colima", "gvproxy")


def runtime(box: Box, machine: Machine) -> Runtime | Problem | None:
    """The container runtime of a Mac, or what is wrong with those that it has; None on Linux, whose own it is."""
    if box.system == "linux":
        return None
    instead = "remove `openwebui_run`: Open WebUI runs without a container there"
    return containers.choose(machine.container_runtimes, box.host.container_socket, instead)


def asked(socket: str) -> dict[str, Any]:
    """Arguments of the operations of Docker: which engine they ask; the box's own where `socket` is empty."""
    return {"_env": dict(containers.environment(socket))} if socket else {}


def install(box: Box, runtime: Runtime | None) -> None:
    """The image; on a Mac the client of Docker, too."""
    if runtime:
        target.log(
            f"{containers.when_it_runs(runtime, 'Open WebUI')}. Without a container (`openwebui_run: native`) it "
            "starts with the Mac",
            logger.warning,
        )
        client.client("openwebui")
    docker.image(
        name=f"openwebui: pull {box.openwebui.reference}",
        reference=box.openwebui.reference,
        mirror=box.mirror,
        **asked(runtime.socket if runtime else ""),
    )


def configure(box: Box, runtime: Runtime | None) -> None:
    """The network and the Compose project; the secrets stand in a file that only root reads."""
    if runtime is None:
        docker.network(
            name="openwebui: network", network=NETWORK, subnet=str(box.openwebui.subnet), bridge=BRIDGE, internal=True
        )
    files.directory(name="openwebui: folder", path=FOLDER)
    variables = render("openwebui/environment.j2", environment=environment(box))
    files.content(name="openwebui: write the environment", path=ENVIRONMENT, text=variables, mode="0600", secret=True)
    compose = render(
        "openwebui/compose.yml.j2",
        image=box.openwebui.reference,
        address=box.openwebui.container_address,
        network=NETWORK,
        port=box.openwebui.port,
        socket=runtime.socket if runtime else "",
        environment_file=ENVIRONMENT,
        environment_digest=sha256(variables.encode()).hexdigest(),
    )
    files.content(name="openwebui: write the Compose file", path=COMPOSE, text=compose, mode="0600")


def activate(box: Box, machine: Machine, runtime: Runtime | None) -> None:
    """Running and healthy, and in one runtime only."""
    for other in containers.answering(machine.container_runtimes):
        if runtime and other != runtime:
            where = f"openwebui: no container in {other}"
            docker.compose_absent(name=where, project=PROJECT, volumes=False, **asked(other.socket))
    docker.compose_project(
        name="openwebui: running", project=PROJECT, directory=FOLDER, **asked(runtime.socket if runtime else "")
    )


def remove(box: Box, purge: bool) -> None:
    """Takes everything back; accounts and chats, which are in the volume, only with `purge`."""
    if box.system == "darwin":
        _remove_from_a_mac(box, purge)
        return
    _remove(box, purge, "")
    docker.network_absent(name="openwebui: remove the network", network=NETWORK)
    # Last: as long as it is there, `tasks` knows that something is left to remove.
    files.absent(name="openwebui: remove the project", path=FOLDER, recursive=True)


def _remove(box: Box, purge: bool, socket: str) -> None:
    docker.compose_absent(name="openwebui: remove the containers", project=PROJECT, volumes=purge, **asked(socket))
    docker.image_absent(name="openwebui: remove the image", reference=box.openwebui.reference, **asked(socket))


def noted(compose: str) -> str:
    """The socket of the container runtime that a Compose file of ours was written for, empty where it names none."""
    try:
        socket = yaml.safe_load(compose)["x-boxwright"]["socket"]
    except (yaml.YAMLError, KeyError, TypeError):
        return ""
    return str(socket)


def _remove_from_a_mac(box: Box, purge: bool) -> None:
    """What is in a virtual machine that is off can be neither seen nor removed, and would come back with it: then the
    first step fails, and says which socket does not answer.
    """
    compose = target.get_fact(Text, path=COMPOSE)
    if not compose:
        return
    _remove(box, purge, noted(compose) or box.host.container_socket)
    client.client_absent("openwebui")
    files.absent(name="openwebui: remove the project", path=FOLDER, recursive=True)
