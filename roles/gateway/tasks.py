"""Tasks of the gateway role: the declared server, and never two of them."""

from collections.abc import Iterable

from pyinfra import host
from pyinfra.operations import files as pyinfra_files

from boxwright import paths
from boxwright.errors import Problem
from boxwright.facts.files import File
from boxwright.preflight import Machine, Need
from boxwright.site_mirror.supply import Supply, Target
from roles.gateway import caddy, nginx
from roles.registry import Box

# Whoever of these holds a port gives it up before the declared one takes it.
PROGRAMS = ("caddy", "nginx")


def need(box: Box) -> Need:
    """The ports of the door and beside it, and a program for the machine."""
    gateway = box.gateway
    ports = {gateway.port: ("gateway_port", PROGRAMS), gateway.metrics_port: ("gateway_metrics_port", PROGRAMS)}
    if box.openwebui.enabled:
        ports[gateway.internal_port] = ("gateway_internal_port", PROGRAMS)
    if gateway.http_port:
        ports[gateway.http_port] = ("gateway_acme_challenge", PROGRAMS)

    def fits(machine: Machine) -> Iterable[Problem]:
        return nginx.fits(box, machine) if gateway.server == "nginx" else caddy.fits(box, machine)

    return Need(ports=ports, files=(nginx.CONFIGURATION,), conditions=(fits,))


def supply(box: Box, target: Target) -> Supply:
    """The stock Caddy; a custom one is built on the control machine, and nginx is the distribution's."""
    return Supply(wheels=(caddy.CADDY,)) if box.gateway.server == "caddy" and not caddy.custom(box) else Supply()


def apply(box: Box, machine: Machine) -> None:
    """All stages, in order."""
    install(box, machine)
    configure(box)
    activate(box)


def install(box: Box, machine: Machine) -> None:
    """The program and its account."""
    if box.gateway.server == "nginx":
        nginx.install(box)
    else:
        caddy.install(box, machine)


def configure(box: Box) -> None:
    """Its configuration and its unit."""
    if box.gateway.server == "nginx":
        nginx.configure(box)
    else:
        caddy.configure(box)


def activate(box: Box) -> None:
    """Running, with the declared configuration; its certificate authority is known on the control machine. The other
    server goes before, so that there are never two listeners, but only when this one has accepted its configuration;
    the other's data stays.
    """
    if box.gateway.server == "nginx":
        if _is_set_up(caddy.FOLDER):
            caddy.remove(box, purge=False)
        nginx.activate(box)
        root = nginx.ROOT_CERTIFICATE
    else:
        if box.system == "linux" and _is_set_up(nginx.FOLDER):
            nginx.remove(box, purge=False)
        caddy.activate(box)
        root = box.gateway.own_authority(box)
    if box.gateway.tls == "internal":
        pyinfra_files.get(
            name="gateway: keep the root certificate",
            src=root,
            dest=str(paths.ca_file(box.name)),
            create_local_dir=True,
        )


def _is_set_up(folder: str) -> bool:
    """Whether a server was ever set up whose settings are in `folder`: one question in place of all those of its
    removal, which ends with this folder."""
    found = host.get_fact(File, path=folder)
    return found is None or found.kind != "absent"


def admit(box: Box) -> None:
    """Tokens as they are declared now, without a restart."""
    if box.gateway.server == "nginx":
        nginx.admit(box)
    else:
        caddy.admit(box)


def remove(box: Box, purge: bool) -> None:
    """Takes everything back, whichever server it was; certificates and logs only with `purge`."""
    caddy.remove(box, purge)
    if box.system == "linux":
        nginx.remove(box, purge)
