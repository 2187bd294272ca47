"""Variables of the openwebui role."""

from collections.abc import Iterable
from ipaddress import IPv4Network
from itertools import islice
from typing import Annotated, Any

from pydantic import Field

from boxwright.errors import Problem
from boxwright.settings import Generated, RoleSettings, Secret

# Compose reads single-quoted values to the letter; a quote or a line break inside one cannot be written down.
EnvironmentName = Annotated[str, Field(pattern=r"^[A-Z][A-Z0-9_]*$")]
EnvironmentValue = Annotated[str, Field(pattern=r"^[^'\n]*$")]


class OpenwebuiSettings(RoleSettings, prefix="openwebui"):
    """Open WebUI: the chat page, with accounts of its own, in a Compose project."""

    enabled: bool = Field(True, description="Run Open WebUI.")
    version: str = Field(
        "0.12.4",
        pattern=r"^\d+\.\d+\.\d+$",
        description="Version of Open WebUI; database migrations go one way, so going back needs a backup.",
    )
    image: str = Field(
        "ghcr.io/open-webui/open-webui",
        pattern=r"^[a-z0-9.-]+(:\d+)?/[a-z0-9._/-]+$",
        description="Container image without its tag.",
    )
    subnet: IPv4Network = Field(
        IPv4Network("172.30.77.0/24"),
        description="Network of the Compose project; its first address is the box itself, where the "
        "gateway answers the container.",
    )
    admin_email: str = Field(
        "admin@localhost",
        pattern=r"^[^@\s]+@[^@\s]+$",
        description="Sign-in name of the administrator made at the first start.",
    )
    admin_name: str = Field("Administrator", min_length=1, description="Display name of the administrator.")
    admin_password: Secret = Generated(
        bytes=18,
        description="Password of the administrator. Takes effect when the account is made, at the first start.",
    )
    secret_key: Secret = Generated(
        bytes=32, description="Signs the sessions of Open WebUI; a new one signs everybody out."
    )
    engine_key: Secret = Generated(
        bytes=32, description="Key that Open WebUI presents to the gateway's internal listener."
    )
    environment: dict[EnvironmentName, EnvironmentValue] = Field(
        {},
        description="Further environment variables of Open WebUI, handed on as they are.",
        examples=[{"WEBUI_NAME": "Our model"}],
    )

    @property
    def reference(self) -> str:
        """Image with its tag, as published."""
        return f"{self.image}:v{self.version}"

    @property
    def url(self) -> str:
        """Where the gateway reaches Open WebUI: its container's address, the second of the subnet."""
        return f"http://{self.container_address}:8080"

    @property
    def container_address(self) -> str:
        """Address of the container on the Compose network: the second of the subnet."""
        return str(next(islice(self.subnet.hosts(), 1, None)))

    @property
    def box_address(self) -> str:
        """Address of the box on the Compose network: the first of the subnet."""
        return str(next(self.subnet.hosts()))

    def problems(self, box: Any) -> Iterable[Problem]:
        """Open WebUI runs in a container and asks the engine through the gateway."""
        if self.enabled and not box.docker.enabled:
            yield Problem(
                code="BW022",
                variable="docker_enabled",
                message="Open WebUI runs in a container, but `docker_enabled` is false",
                help="set `docker_enabled: true`, or `openwebui_enabled: false`",
            )
        if self.subnet.prefixlen > 29:
            yield Problem(
                code="BW022",
                variable="openwebui_subnet",
                message=f"{self.subnet} has no room for the container",
                help="give a network of /29 or larger, such as 172.30.77.0/24",
            )
