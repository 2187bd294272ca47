"""Tasks of the openwebui role: in a container or without one, and never both."""

from collections.abc import Iterable

from boxwright.errors import Problem
from boxwright.preflight import Machine, Need
from boxwright.site_mirror.supply import Supply, Target, pinned_wheels
from roles.openwebui import container, native
from roles.registry import Box


def need(box: Box) -> Need:
    """What it listens on and a Python for it, without a container; and which of both is there."""
    there = (container.COMPOSE, native.BASE)
    if not box.openwebui.native(box):
        return Need(files=there)

    def fits(machine: Machine) -> Iterable[Problem]:
        return native.fits(box, machine)

    programs = ("python", "python3", "python3.11", "python3.12", "Python", "uvicorn")
    return Need(ports={box.openwebui.port: ("openwebui_port", programs)}, files=there, conditions=(fits,))


def supply(box: Box, target: Target) -> Supply:
    """The image, or the packages, where it runs."""
    if box.openwebui.native(box):
        return Supply(wheels=pinned_wheels(native.requirements(box)))
    return Supply(images=(box.openwebui.reference,)) if box.openwebui.enabled else Supply()


def apply(box: Box, machine: Machine) -> None:
    """All stages, in order; then the other way of running it goes, but for its data."""
    if not box.openwebui.enabled:
        return
    install(box)
    configure(box)
    activate(box)
    if box.openwebui.native(box):
        if container.COMPOSE in machine.files:
            container.remove(box, purge=False)
    elif native.BASE in machine.files:
        native.remove(box, purge=False)


def install(box: Box) -> None:
    """The image, or its packages and its account."""
    if box.openwebui.native(box):
        native.install(box)
    else:
        container.install(box)


def configure(box: Box) -> None:
    """Its environment, and what starts it."""
    if box.openwebui.native(box):
        native.configure(box)
    else:
        container.configure(box)


def activate(box: Box) -> None:
    """Running and healthy."""
    if box.openwebui.native(box):
        native.activate(box)
    else:
        container.activate(box)


def remove(box: Box, purge: bool) -> None:
    """Takes everything back, however it ran; accounts and chats only with `purge`."""
    native.remove(box, purge)
    if box.system == "linux":
        container.remove(box, purge)
