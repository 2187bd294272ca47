"""Tasks of the openwebui role: in a container or without one, and never both."""

from collections.abc import Iterable
from dataclasses import replace

from boxwright.containers import Runtime
from boxwright.errors import Problem
from boxwright.preflight import Machine, Need, PreflightRefused
from boxwright.site_mirror.supply import Supply, Target, pinned_wheels
from roles.openwebui import container, native
from roles.registry import Box


def need(box: Box) -> Need:
    """What it listens on, and a Python or a container runtime for it; and which of both ways is there."""
    there = (container.COMPOSE, native.BASE)
    if box.openwebui.on_a_network(box) or not box.openwebui.enabled:
        return Need(files=there)

    def fits(machine: Machine) -> Iterable[Problem]:
        if box.openwebui.native(box):
            yield from native.fits(box, machine)
        elif isinstance(problem := container.runtime(box, machine), Problem):
            yield problem

    # On a Mac one way may hold the port that the other is to have.
    others = container.PUBLISHERS if box.system == "darwin" else ()
    programs = ("python", "python3", "python3.11", "python3.12", "Python", "uvicorn", *others)
    socket = None if box.openwebui.native(box) else box.host.container_socket
    ports = {box.openwebui.port: ("openwebui_port", programs)}
    return Need(ports=ports, files=there, container_socket=socket, conditions=(fits,))


def supply(box: Box, target: Target) -> Supply:
    """The image, or the packages, where it runs."""
    if box.openwebui.native(box):
        return Supply(wheels=pinned_wheels(native.requirements(box)))
    return Supply(images=(box.openwebui.reference,)) if box.openwebui.enabled else Supply()


def apply(box: Box, machine: Machine) -> None:
    """All stages, in order. The other way of running it goes, but for its data: when this one is ready, or before,
    where both have the same port.
    """
    if not box.openwebui.enabled:
        return
    runtime = container.runtime(box, machine) if box.openwebui.in_container(box) else None
    if isinstance(runtime, Problem):
        raise PreflightRefused(replace(runtime, host=box.name))
    install(box, runtime)
    configure(box, runtime)
    if box.system == "darwin":
        retire(box, machine)
    activate(box, machine, runtime)
    if box.system == "linux":
        retire(box, machine)


def retire(box: Box, machine: Machine) -> None:
    """The way of running it that is no longer declared goes; accounts and chats stay."""
    if box.openwebui.native(box):
        if container.COMPOSE in machine.files:
            container.remove(box, purge=False)
    elif native.BASE in machine.files:
        native.remove(box, purge=False)


def install(box: Box, runtime: Runtime | None) -> None:
    """The image, or its packages and its account."""
    if box.openwebui.native(box):
        native.install(box)
    else:
        container.install(box, runtime)


def configure(box: Box, runtime: Runtime | None) -> None:
    """Its environment, and what starts it."""
    if box.openwebui.native(box):
        native.configure(box)
    else:
        container.configure(box, runtime)


def activate(box: Box, machine: Machine, runtime: Runtime | None) -> None:
    """Running and healthy."""
    if box.openwebui.native(box):
        native.activate(box)
    else:
        container.activate(box, machine, runtime)


def remove(box: Box, purge: bool) -> None:
    """Takes everything back, however it ran; accounts and chats only with `purge`."""
    native.remove(box, purge)
    container.remove(box, purge)
