"""Tasks of the tailscale role."""

from boxwright.artifacts import AptRepository
from boxwright.guard import DEADLINE
from boxwright.operations import apt, apt_repositories, guard, services, tailscale
from boxwright.preflight import Machine
from boxwright.services import PackagedService
from boxwright.site_mirror.supply import Supply, Target, packages_of
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


def supply(box: Box, target: Target) -> Supply:
    """Tailscale's package, where it comes from its own repository."""
    if not (box.tailscale.enabled and box.tailscale.repository):
        return Supply()
    return Supply(packages=(packages_of(REPOSITORY, PACKAGES, target),))


def service(box: Box) -> PackagedService:
    """tailscaled, whose unit comes with the package. Caddy may ask it for certificates where that is declared."""
    environment = {} if box.tailscale.upload_logs else {"TS_NO_LOGS_NO_SUPPORT": "true"}
    if box.gateway.tls == "tailscale" and box.gateway.server == "caddy":
        environment["TS_PERMIT_CERT_UID"] = "caddy"
    return PackagedService(
        name="tailscaled",
        restart_files=("/etc/default/tailscaled",),
        environment=environment,
    )


def apply(box: Box, machine: Machine, deadline: int = DEADLINE) -> None:
    """The box is in its tailnet. What it serves there comes later, when there is something behind it: `serve`.

    `deadline` is in seconds: what is left to the operator to come back after a change that could cut the way off.
    """
    if not box.tailscale.enabled:
        return
    install(box, machine)
    configure(box)
    activate(box, deadline)


def install(box: Box, machine: Machine) -> None:
    """The program, from Tailscale's own repository."""
    if box.tailscale.repository:
        wanted = REPOSITORY.on(distribution=machine.distribution, release=machine.release, codename=machine.codename)
        apt_repositories.repository(wanted, box.mirror, name="tailscale: package repository")
    apt.packages(PACKAGES, name="tailscale: install the program")


def configure(box: Box) -> None:
    """The unit, and what undoes a change."""
    guard.ready(name="tailscale: ready to undo a change")
    services.unit(name="tailscale: note what tailscaled was started with", service=service(box))


def activate(box: Box, deadline: int) -> None:
    """tailscaled runs, and the box is in its tailnet as it is declared."""
    services.running(name="tailscale: running", service=service(box))
    wanted = box.tailscale.membership
    tailscale.joined(wanted, box.tailscale.key, box.tailscale.join_timeout, name="tailscale: in the tailnet")
    tailscale.preferences(wanted, deadline, name="tailscale: preferences")


def serve(box: Box) -> None:
    """What the box serves in the tailnet; nothing where it is switched off."""
    settings = box.tailscale
    if not settings.enabled:
        close(box)
        return
    foreign = settings.serve_foreign == "remove"
    tailscale.served(settings.endpoints(box), remove_foreign=foreign, name="tailscale: serve")


def close(box: Box) -> None:
    """Nothing that boxwright serves in the tailnet is served any more."""
    tailscale.served_no_more(name="tailscale: serve nothing")


def remove(box: Box, purge: bool) -> None:
    """Takes the box out of a tailnet that boxwright brought it into, and the program away if boxwright installed it."""
    tailscale.left(name="tailscale: leave the tailnet")
    services.unit_absent(name="tailscale: remove the note", service=service(box))
    apt.packages_absent(PACKAGES, purge=purge, name="tailscale: remove the program")
    apt_repositories.repository_absent("tailscale", name="tailscale: remove the package repository")
