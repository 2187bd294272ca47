"""Variables of the openwebui role."""

from collections.abc import Iterable
from ipaddress import IPv4Network
from itertools import islice
from typing import Annotated, Any, Literal

from pydantic import Field

from boxwright.artifacts import Requirements
from boxwright.containers import HOST_NAME
from boxwright.errors import Problem
from boxwright.settings import Generated, Port, RoleSettings, Secret

# What the role's requirements.txt has.
RELEASE = "0.12.4"

# Compose reads single-quoted values to the letter; a quote or a line break inside one cannot be written down.
EnvironmentName = Annotated[str, Field(pattern=r"^[A-Z][A-Z0-9_]*$")]
EnvironmentValue = Annotated[str, Field(pattern=r"^[^'\n]*$")]


class OpenwebuiSettings(RoleSettings, prefix="openwebui"):
    """Open WebUI: the chat page, with accounts of its own, in a Compose project or without a container."""

    enabled: bool = Field(True, description="Run Open WebUI.")
    run: Literal["container", "native"] | None = Field(
        None,
        description="How it runs: `container`, in a Compose project of Docker Engine or of a Mac's container runtime, "
        "or `native`, as a service from a virtual environment. Unset it is `container` on Linux and `native` on a Mac, "
        "where a container runs only while somebody is signed in. Accounts and chats do not move from one to the "
        "other.",
    )
    version: str = Field(
        RELEASE,
        pattern=r"^\d+\.\d+\.\d+$",
        description="Version of Open WebUI; database migrations go one way, so going back needs a backup. Without a "
        "container another one than the default needs `openwebui_requirements`.",
    )
    image: str = Field(
        "ghcr.io/open-webui/open-webui",
        pattern=r"^[a-z0-9.-]+(:\d+)?/[a-z0-9._/-]+$",
        description="Container image without its tag.",
    )
    port: Port = Field(
        8087, description="TCP port on loopback where it listens without a container, and on a Mac with one."
    )
    python: str = Field(
        "",
        pattern=r"^(/[^\s:]+)?$",
        description="Interpreter with which it runs without a container, of Python 3.11 or 3.12. Empty: that of the "
        "distribution; on a Mac that of Homebrew.",
        examples=["/usr/local/bin/python3.12"],
    )
    requirements: Requirements = Field(
        "",
        description="Text of a requirements file with hashes to install in place of that of the role, where it runs "
        "without a container.",
        examples=[f"open-webui=={RELEASE} --hash=sha256:{'0' * 64}\n"],
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

    def native(self, box: Any) -> bool:
        """Whether it runs, without a container."""
        return self.enabled and (self.run or ("native" if box.system == "darwin" else "container")) == "native"

    def in_container(self, box: Any) -> bool:
        """Whether it runs, in a container."""
        return self.enabled and not self.native(box)

    def on_a_network(self, box: Any) -> bool:
        """Whether it runs in a container on a network of the box itself, which a Mac has none of: there the network is
        inside of a virtual machine, and of it the Mac sees the published port.
        """
        return self.in_container(box) and box.system == "linux"

    def url(self, box: Any) -> str:
        """Where the gateway reaches Open WebUI: at its container's address, or on loopback."""
        return f"http://{self.container_address}:8080" if self.on_a_network(box) else f"http://127.0.0.1:{self.port}"

    @property
    def container_address(self) -> str:
        """Address of the container on the Compose network: the second of the subnet."""
        return str(next(islice(self.subnet.hosts(), 1, None)))

    def box_address(self, box: Any) -> str:
        """Address of the box where the gateway answers Open WebUI: on the Compose network the first of the subnet, else
        loopback.
        """
        return str(next(self.subnet.hosts())) if self.on_a_network(box) else "127.0.0.1"

    def engine_host(self, box: Any) -> str:
        """How Open WebUI calls the box when it asks for the engine."""
        return HOST_NAME if self.in_container(box) and box.system == "darwin" else self.box_address(box)

    def asks_from(self, box: Any) -> str:
        """The network from which Open WebUI asks for the engine. On a Mac what a container asks of it comes from the
        runtime's own program there, by loopback.
        """
        return str(self.subnet) if self.on_a_network(box) else "127.0.0.1/32"

    def believed(self, box: Any) -> str:
        """Addresses from which Open WebUI believes who a client is: the gateway's. In a container on a Mac they are
        those of the runtime's network, which each has another of: all, then, as only the Mac's loopback leads there.
        """
        return "*" if self.in_container(box) and box.system == "darwin" else self.box_address(box)

    def problems(self, box: Any) -> Iterable[Problem]:
        """On Linux a container needs Docker Engine; what runs without one is what is pinned here."""
        if not self.enabled:
            return
        if self.native(box):
            yield from self._packages()
        elif box.system == "linux" and not box.docker.enabled:
            yield Problem(
                code="BW022",
                variable="docker_enabled",
                message="Open WebUI runs in a container, but `docker_enabled` is false",
                help="set `docker_enabled: true`, `openwebui_run: native`, or `openwebui_enabled: false`",
            )
        if self.subnet.prefixlen > 29:
            yield Problem(
                code="BW022",
                variable="openwebui_subnet",
                message=f"{self.subnet} has no room for the container",
                help="give a network of /29 or larger, such as 172.30.77.0/24",
            )

    def _packages(self) -> Iterable[Problem]:
        if self.version != RELEASE and not self.requirements:
            yield Problem(
                code="BW022",
                variable="openwebui_version",
                message=f"without a container Open WebUI is installed from pinned packages, which are those of version "
                f"{RELEASE}",
                help=f"set `openwebui_version: {RELEASE}`, or give the packages of {self.version} in "
                "`openwebui_requirements`",
            )
