"""Open WebUI in a Compose project, on a network that leads to the box and nowhere else."""

from hashlib import sha256

from boxwright.operations import docker, files
from boxwright.templates import render
from roles.openwebui.environment import environment
from roles.registry import Box

FOLDER = "/opt/boxwright/openwebui"
COMPOSE = f"{FOLDER}/compose.yml"
ENVIRONMENT = f"{FOLDER}/openwebui.env"
NETWORK = "openwebui"
BRIDGE = "br-openwebui"  # a network interface name has at most 15 characters


def install(box: Box) -> None:
    """The image."""
    docker.image(
        name=f"openwebui: pull {box.openwebui.reference}", reference=box.openwebui.reference, mirror=box.mirror
    )


def configure(box: Box) -> None:
    """The network and the Compose project; the secrets stand in a file that only root reads."""
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
        environment_file=ENVIRONMENT,
        environment_digest=sha256(variables.encode()).hexdigest(),
    )
    files.content(name="openwebui: write the Compose file", path=COMPOSE, text=compose, mode="0600")


def activate(box: Box) -> None:
    """Running and healthy."""
    docker.compose_project(name="openwebui: running", project="openwebui", directory=FOLDER)


def remove(box: Box, purge: bool) -> None:
    """Takes everything back; accounts and chats, which are in the volume, only with `purge`."""
    docker.compose_absent(name="openwebui: remove the containers", project="openwebui", volumes=purge)
    docker.network_absent(name="openwebui: remove the network", network=NETWORK)
    docker.image_absent(name="openwebui: remove the image", reference=box.openwebui.reference)
    # Last: as long as it is there, `tasks` knows that something is left to remove.
    files.absent(name="openwebui: remove the project", path=FOLDER, recursive=True)
