"""Tailscale on Linux: Tailscale's own package, whose unit starts tailscaled."""

from boxwright.artifacts import AptRepository
from boxwright.operations import apt, apt_repositories, guard, services
from boxwright.preflight import Machine
from boxwright.services import PackagedService
from roles.registry import Box

PACKAGES = ("tailscale",)
# https://pkgs.tailscale.com/stable: one folder for each distribution, one suite and one key file for each release.
REPOSITORY = AptRepository(
    name="tailscale",
    url="https://pkgs.tailscale.com/stable/{distribution}",
    key_url="https://pkgs.tailscale.com/stable/{distribution}/{codename}.noarmor.gpg",
    key_fingerprint="2596A99EAAB33821893C0A79458CA832957F5868",
    licence="BSD-3-Clause",
)


def service(environment: dict[str, str]) -> PackagedService:
    """tailscaled, whose unit comes with the package."""
    return PackagedService(
        name="tailscaled",
        restart_files=("/etc/default/tailscaled",),
        environment=environment,
    )


def install(box: Box, machine: Machine) -> None:
    """The program, from Tailscale's own repository."""
    if box.tailscale.repository:
        wanted = REPOSITORY.on(distribution=machine.distribution, release=machine.release, codename=machine.codename)
        apt_repositories.repository(wanted, box.mirror, name="tailscale: package repository")
    apt.packages(PACKAGES, name="tailscale: install the program")


def configure(wanted: PackagedService) -> None:
    """The unit, and what undoes a change."""
    guard.ready(name="tailscale: ready to undo a change")
    services.unit(name="tailscale: note what tailscaled was started with", service=wanted)


def remove(wanted: PackagedService, purge: bool) -> None:
    """The program, if boxwright installed it."""
    services.unit_absent(name="tailscale: remove the note", service=wanted)
    apt.packages_absent(PACKAGES, purge=purge, name="tailscale: remove the program")
    apt_repositories.repository_absent("tailscale", name="tailscale: remove the package repository")
