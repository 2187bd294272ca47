"""Variables of the docker role."""

from typing import Literal

from pydantic import Field

from boxwright.settings import RoleSettings


class DockerSettings(RoleSettings, prefix="docker", systems={"linux"}):
    """Docker Engine with the compose plugin, for the parts that run in containers."""

    enabled: bool = Field(True, description="Install Docker Engine. Open WebUI needs it.")
    repository: Literal["distribution", "docker"] = Field(
        "distribution",
        description="Where the engine comes from: the distribution's own packages, or those of Docker, whose package "
        "repository is then added with its key pinned. When it is changed on a box that has the other ones, these are "
        "replaced; images, volumes and containers stay. Debian 12 has no compose plugin of its own.",
    )
    packages: tuple[str, ...] = Field(
        (),
        description="Packages that hold the engine and its compose plugin. Empty means those of `docker_repository`; "
        "name others when the box has another repository configured.",
        examples=[["moby-engine", "moby-cli", "moby-compose"]],
    )
    users: tuple[str, ...] = Field(
        (), description="Accounts put into the group docker. Such an account can become root.", examples=[["ada"]]
    )
    log_max_size: str = Field(
        "10m", pattern=r"^[1-9][0-9]*[kmg]$", description="A container's log file is rotated at this size."
    )
    log_max_file: int = Field(3, ge=1, le=100, description="Rotated log files kept for each container.")
