"""Tasks of the tailscale role."""

from collections.abc import Iterable

from boxwright.errors import Problem
from boxwright.guard import DEADLINE
from boxwright.operations import services, tailscale
from boxwright.preflight import Machine, Need
from boxwright.services import PackagedService, Service
from boxwright.site_mirror.supply import Supply, Target, packages_of
from roles.registry import Box
from roles.tailscale import darwin, linux


def need(box: Box) -> Need:
    """On a Mac no other daemon of Tailscale."""
    if box.system == "linux" or not box.tailscale.enabled:
        return Need()

    def fits(machine: Machine) -> Iterable[Problem]:
        return darwin.others(box, machine)

    return Need(files=tuple(darwin.OTHERS), conditions=(fits,))


def supply(box: Box, target: Target) -> Supply:
    """Tailscale's package, where it comes from its own repository."""
    if box.system == "darwin" or not (box.tailscale.enabled and box.tailscale.repository):
        return Supply()
    return Supply(packages=(packages_of(linux.REPOSITORY, linux.PACKAGES, target),))


def service(box: Box) -> PackagedService | Service:
    """tailscaled. Caddy may ask it for certificates where that is declared."""
    environment = {} if box.tailscale.upload_logs else {"TS_NO_LOGS_NO_SUPPORT": "true"}
    if box.gateway.tls == "tailscale" and box.gateway.server == "caddy":
        environment["TS_PERMIT_CERT_UID"] = box.gateway.account(box)
    return darwin.service(environment) if box.system == "darwin" else linux.service(environment)


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
    """The program."""
    if box.system == "darwin":
        darwin.install(box)
    else:
        linux.install(box, machine)


def configure(box: Box) -> None:
    """The unit, and what undoes a change."""
    wanted = service(box)
    if isinstance(wanted, Service):
        darwin.configure(wanted)
    else:
        linux.configure(wanted)


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
    wanted = service(box)
    if isinstance(wanted, Service):
        darwin.remove(wanted)
    else:
        linux.remove(wanted, purge)
