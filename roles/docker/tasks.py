"""Tasks of the docker role."""

from typing import Any

from boxwright.artifacts import AptRepository
from boxwright.errors import Problem
from boxwright.operations import apt, apt_repositories, files, services, users
from boxwright.preflight import Machine, PreflightRefused
from boxwright.services import PackagedService
from boxwright.site_mirror.supply import Supply, Target, packages_of
from roles.registry import Box

CONFIGURATION = "/etc/docker/daemon.json"
SERVICE = PackagedService(name="docker", restart_files=(CONFIGURATION,))
# The engine and its compose plugin in the distributions' own archives. Debian 12 has no compose plugin.
DISTRIBUTION_PACKAGES = {
    ("debian", "13"): ("docker.io", "docker-cli", "docker-compose"),
    ("ubuntu", "22.04"): ("docker.io", "docker-compose-v2"),
    ("ubuntu", "24.04"): ("docker.io", "docker-compose-v2"),
    ("ubuntu", "26.04"): ("docker.io", "docker-compose-v2"),
}
# https://docs.docker.com/engine/install/debian/ and .../ubuntu/. The key is that of
# `Docker Release (CE deb) <docker@docker.com>`, as key servers have it too.
REPOSITORY = AptRepository(
    name="docker",
    url="https://download.docker.com/linux/{distribution}",
    components=("stable",),
    key_url="https://download.docker.com/linux/{distribution}/gpg",
    key_fingerprint="9DC858229FC7DD38854AE2D88D81803C0EBFCD88",
    licence="Apache-2.0",
)
DOCKER_PACKAGES = (
    "docker-ce",
    "docker-ce-cli",
    "containerd.io",
    "docker-buildx-plugin",
    "docker-compose-plugin",
)
# What cannot be installed beside the other. Docker's guides list the distributions' packages to remove; docker-cli and
# docker-buildx are Debian 13's, which hold files of Docker's under other names.
OF_DISTRIBUTION = (
    "docker.io",
    "docker-cli",
    "docker-buildx",
    "docker-compose",
    "docker-compose-v2",
    "docker-doc",
    "podman-docker",
    "containerd",
    "runc",
)
OF_DOCKER = (*DOCKER_PACKAGES, "docker-ce-rootless-extras", "docker-model-plugin")


def packages(box: Box, machine: Machine) -> tuple[str, ...]:
    """Names of the packages to install on `machine`. Raises PreflightRefused where its distribution has none."""
    if box.docker.packages:
        return box.docker.packages
    if box.docker.repository == "docker":
        return DOCKER_PACKAGES
    try:
        return DISTRIBUTION_PACKAGES[machine.distribution, machine.release]
    except KeyError:
        raise PreflightRefused(
            Problem(
                code="BW114",
                variable="docker_repository",
                host=box.name,
                message=f"{machine.distribution.capitalize()} {machine.release} has no package with "
                f"Docker's compose plugin",
                help="set `docker_repository: docker`, or name packages of a repository that the box has in "
                "`docker_packages`",
            )
        ) from None


def supply(box: Box, target: Target) -> Supply:
    """Docker's packages, where they come from its own repository."""
    if not box.docker.enabled or box.docker.repository != "docker":
        return Supply()
    return Supply(packages=(packages_of(REPOSITORY, box.docker.packages or DOCKER_PACKAGES, target),))


def configuration(box: Box, machine: Machine) -> dict[str, Any]:
    """What boxwright wants in daemon.json; everything else there is left alone."""
    wanted: dict[str, Any] = {
        "live-restore": True,
        "log-driver": "json-file",
        "log-opts": {"max-size": box.docker.log_max_size, "max-file": str(box.docker.log_max_file)},
    }
    if box.mirror.insecure_registries:
        wanted["insecure-registries"] = list(box.mirror.insecure_registries)
    if box.nvidia.enabled and box.nvidia.containers and machine.nvidia_cards:
        # Docker before 28.3 reads the specification of the cards (CDI) only when it is told to.
        wanted["features"] = {"cdi": True}
    return wanted


def apply(box: Box, machine: Machine) -> None:
    """All stages, in order."""
    if not box.docker.enabled:
        return
    install(box, machine)
    configure(box, machine)
    activate(box)


def install(box: Box, machine: Machine) -> None:
    """The engine and its compose plugin, instead of those from elsewhere."""
    wanted = packages(box, machine)
    ours = box.docker.repository == "docker"
    if ours:
        repository = REPOSITORY.on(
            distribution=machine.distribution, release=machine.release, codename=machine.codename
        )
        apt_repositories.repository(repository, box.mirror, name="docker: Docker's package repository")
    # Who names the packages knows what they go with.
    others = () if box.docker.packages else OF_DISTRIBUTION if ours else OF_DOCKER
    apt.packages(list(wanted), instead_of=others, name="docker: install the engine")
    if not ours:
        apt_repositories.repository_absent(REPOSITORY.name, name="docker: no package repository of Docker")


def configure(box: Box, machine: Machine) -> None:
    """daemon.json, accepted by the engine before it replaces the old one, and who may use the engine."""
    files.json_merge(
        name="docker: settings of the engine",
        path=CONFIGURATION,
        values=configuration(box, machine),
        validate="dockerd --validate --config-file {path}",
    )
    services.unit(name="docker: note what the engine was started with", service=SERVICE)
    users.group_members(name="docker: who may use it", group="docker", users=box.docker.users)


def activate(box: Box) -> None:
    """Running with its declared settings. Containers go on while the engine restarts (live-restore)."""
    services.running(name="docker: running", service=SERVICE)


def remove(box: Box, purge: bool) -> None:
    """Takes back settings and those packages that boxwright installed; with `purge` also what these packages keep."""
    if not box.has("docker"):
        return
    files.json_take_back(name="docker: take back the settings", path=CONFIGURATION)
    services.unit_absent(name="docker: remove the note", service=SERVICE)
    known = {*OF_DISTRIBUTION, *OF_DOCKER, *box.docker.packages}
    apt.packages_absent(sorted(known), purge=purge, name="docker: remove the engine")
    apt_repositories.repository_absent(REPOSITORY.name, name="docker: remove the package repository")
