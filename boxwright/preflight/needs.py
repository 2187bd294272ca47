"""What a box must offer, and what is wrong with one that does not."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from boxwright.errors import Problem
from boxwright.platforms import System
from boxwright.preflight import darwin
from boxwright.preflight.machine import Machine
from boxwright.sizes import human

# Distribution and its releases that every role was written for. The releases are those of /etc/os-release.
SUPPORTED = {"debian": ("12", "13"), "ubuntu": ("22.04", "24.04", "26.04")}
ARCHITECTURES = ("x86_64", "aarch64")


@dataclass(frozen=True)
class Need:
    """What the box must offer. `ports` maps a TCP port to the variable that set it and the process names that may
    already hold it.

    `memory` is bytes, asked for by the variable `memory_variable`; `downloads` maps the path of each file on the box
    to its bytes, which are needed only while the file is missing. `files` are paths whose presence is asked, for the
    role itself. `marks` maps a port to one of them that is there since boxwright has set that service up: without it
    nobody may hold the port, however the process is called. `container_socket` asks which container runtimes a Mac
    has, None where nobody wants to know; it is a socket to look at besides the known places, or empty. `conditions`
    tell what else of a role does not fit the machine.
    """

    memory: int = 0
    memory_variable: str = ""
    downloads: Mapping[str, int] = field(default_factory=dict)
    files: tuple[str, ...] = ()
    ports: Mapping[int, tuple[str, tuple[str, ...]]] = field(default_factory=dict)
    marks: Mapping[int, str] = field(default_factory=dict)
    container_socket: str | None = None
    conditions: tuple[Callable[[Machine], Iterable[Problem]], ...] = ()

    def __add__(self, other: "Need") -> "Need":
        """What both need together."""
        return Need(
            memory=self.memory + other.memory,
            memory_variable=self.memory_variable or other.memory_variable,
            downloads={**self.downloads, **other.downloads},
            files=(*self.files, *other.files),
            ports={**self.ports, **other.ports},
            marks={**self.marks, **other.marks},
            container_socket=other.container_socket if self.container_socket is None else self.container_socket,
            conditions=(*self.conditions, *other.conditions),
        )


def examine(machine: Machine, need: Need, system: System = "linux") -> list[Problem]:
    """Everything that makes `machine`, by the inventory one with `system`, unfit for `need`; empty when it is fit."""
    if unfit := _mistaken(machine, system) or (darwin.unfit if system == "darwin" else _unfit)(machine):
        return unfit
    problems = _lacking(machine) if system == "linux" else []
    if need.memory > machine.memory:
        problems.append(
            Problem(
                code="BW111",
                variable=need.memory_variable,
                message=f"the models need {human(need.memory)} of memory, the box has {human(machine.memory)}",
                help="choose a smaller model or quantisation, or a shorter context",
            )
        )
    missing = sum(size for path, size in need.downloads.items() if path not in machine.files)
    if missing * 1.1 > machine.disk_free:
        problems.append(
            Problem(
                code="BW112",
                variable=need.memory_variable,
                message=f"{human(missing * 1.1)} of disk space are needed below /var/lib (10 % to "
                f"spare), {human(machine.disk_free)} are free",
                help="free some space, or choose a smaller model",
            )
        )
    for port, (variable, allowed) in need.ports.items():
        anothers = port in need.marks and need.marks[port] not in machine.files
        others = [name for name in machine.listeners.get(port, ()) if anothers or name not in allowed]
        if others:
            problems.append(
                Problem(
                    code="BW113",
                    variable=variable,
                    message=f"TCP port {port} of the box is taken by {', '.join(others)}"
                    + (", which boxwright did not set up" if set(others) <= set(allowed) else ""),
                    help=f"stop that program, or set `{variable}` to another port",
                )
            )
    for condition in need.conditions:
        problems += condition(machine)
    return problems


def _mistaken(machine: Machine, system: System) -> list[Problem]:
    """What the inventory gets wrong about the box."""
    if machine.kernel == "Darwin" and system == "linux":
        message = "the box is a Mac, and the inventory does not have it in the group `darwin`"
        help = "put it into the group `darwin` of the inventory, and take it out of `linux`"
    elif machine.kernel == "Linux" and system == "darwin":
        message = "the box runs Linux, and the inventory has it in the group `darwin`, which is for Macs"
        help = "put it into the group `linux` of the inventory, and take it out of `darwin`"
    else:
        return []
    return [Problem(code="BW121", message=message, help=help)]


def _unfit(machine: Machine) -> list[Problem]:
    """Why boxwright does not work on this distribution at all."""
    if machine.kernel != "Linux" or machine.release not in SUPPORTED.get(machine.distribution, ()):
        found = f"{machine.distribution or machine.kernel or 'an unknown system'} {machine.release}".strip()
        known = ", ".join(f"{name.capitalize()} {' and '.join(releases)}" for name, releases in SUPPORTED.items())
        return [
            Problem(
                code="BW110",
                message=f"the box runs {found}, which boxwright does not support",
                help=f"supported: {known}",
            )
        ]
    return []


def _lacking(machine: Machine) -> list[Problem]:
    """What a supported distribution was built for and this box does not have."""
    problems = []
    if machine.architecture not in ARCHITECTURES:
        problems.append(
            Problem(
                code="BW110",
                message=f"the box is a {machine.architecture} machine",
                help=f"supported: {', '.join(ARCHITECTURES)}",
            )
        )
    if not machine.systemd:
        problems.append(
            Problem(
                code="BW110",
                message="systemd does not run on the box",
                help="boot it with systemd as its first process; services depend on it",
            )
        )
    return problems
