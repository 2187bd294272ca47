"""Container runtimes of a Mac: what they are, which one is meant, and what to do where none can be used.

A Mac runs containers in a virtual machine that belongs to a person. It offers the API of Docker Engine at a socket in
that person's home, and nothing else is asked of it here.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from boxwright.errors import Problem

State = Literal["answers", "silent", "denied"]

SOCKET_VARIABLE = "host_container_socket"
# Root's own copies of Docker's client and its Compose plugin, which is found below the folder of settings. Nothing of a
# person's settings is read: Docker Desktop's name a store of passwords that cannot be opened over SSH.
CLIENT = "/opt/boxwright/docker"
# How a container calls the machine that its virtual machine runs on; what comes so reaches the Mac's loopback. Docker
# Desktop and OrbStack answer it (docs.docker.com/desktop/features/networking, docs.orbstack.dev/docker/network), Colima
# in its name server (environment/vm/lima/yaml.go), Podman since 5.0 in each container's /etc/hosts (podman-run(1),
# --add-host).
HOST_NAME = "host.docker.internal"

# Kinds by their sockets, the first that fits; the part in brackets is the name of a machine of which there can be
# several. Docker Desktop: docs.docker.com/desktop/setup/install/mac-permission-requirements. Colima: docs/FAQ.md and
# config/files.go of abiosoft/colima. OrbStack: docs.orbstack.dev. Podman: pkg/machine of containers/podman (in the
# person's TMPDIR, with a link in the home).
_KINDS = (
    ("docker-desktop", re.compile(r"/\.docker/run/docker\.sock$")),
    ("orbstack", re.compile(r"/\.(?:orbstack|orb)/run/docker\.sock$")),
    ("colima", re.compile(r"/(?:\.colima|\.config/colima)/(?:([^/]+)/)?docker\.sock$")),
    ("podman", re.compile(r"/podman/([^/]+)-api\.sock$")),
    ("podman", re.compile(r"/containers/podman/machine/(?:[^/]+/)*podman\.sock$")),
)
NAMES = {
    "docker-desktop": "Docker Desktop",
    "orbstack": "OrbStack",
    "colima": "Colima",
    "podman": "Podman",
    "other": "a container engine",
}


@dataclass(frozen=True)
class Runtime:
    """A container runtime by its `socket`, an absolute path; `real` is where that leads, by links.

    It `answers`, is `silent` -- its virtual machine is off, `said` tells how that was seen -- or `denied`: the account
    that asked may not use the socket. `owner` is whose it is, `version` that of the engine, known while it answers.
    """

    kind: str
    socket: str
    real: str
    owner: str
    state: State
    machine: str = ""
    version: str = ""
    said: str = ""

    def __str__(self) -> str:
        name = NAMES[self.kind] + (f" {self.machine}" if self.machine not in ("", "default") else "")
        return f"{name} of {self.owner or 'nobody'} ({self.socket})"

    @property
    def start(self) -> str:
        """The command by which its owner starts it; empty where nobody knows what it is."""
        machine = f" {self.machine}" if self.machine else ""
        return {
            "docker-desktop": "open -a Docker",
            "orbstack": "orb start",
            "colima": "colima start" + ("" if self.machine == "default" else machine),
            "podman": "podman machine start" + machine,
        }.get(self.kind, "")


def kind_of(path: str, platform: str = "") -> tuple[str, str]:
    """What offers the socket `path`, and the name of its machine, empty where it has one only. `platform` is what the
    engine calls itself.
    """
    for kind, pattern in _KINDS:
        if found := pattern.search(path):
            return kind, (found[1] if pattern.groups and found[1] else "")
    return ("docker-desktop" if platform.startswith("Docker Desktop") else "other"), ""


def environment(socket: str) -> Mapping[str, str]:
    """Environment in which `docker` on the Mac is root's copy and asks the runtime at `socket`."""
    return {
        "DOCKER_HOST": f"unix://{socket}",
        "DOCKER_CONFIG": CLIENT,
        "PATH": f"{CLIENT}:/usr/bin:/bin:/usr/sbin:/sbin",
    }


def answering(found: Sequence[Runtime]) -> tuple[Runtime, ...]:
    """Those that can be used now."""
    return tuple(runtime for runtime in found if runtime.state == "answers")


def choose(found: Sequence[Runtime], asked: str, instead: str) -> Runtime | Problem:
    """The one that is meant: at the socket `asked`, or, where that is empty, the only one that answers.

    Else what is wrong, with what was found. `instead` is what to do where no container runtime is wanted after all.
    """
    named = [runtime for runtime in found if asked in (runtime.socket, runtime.real)] if asked else list(found)
    usable = answering(named)
    if len(usable) == 1 or (asked and usable):
        return usable[0]
    if len(usable) > 1:
        listed = ", ".join(map(str, usable))
        return _problem(
            f"several container runtimes answer on the Mac: {listed}",
            f"name the one that is meant, for example `{SOCKET_VARIABLE}: {usable[0].socket}`",
        )
    if asked and not named:
        others = ", ".join(map(str, found))
        return _problem(
            f"there is no socket at {asked}, which `{SOCKET_VARIABLE}` names"
            + (f"; found: {others}" if others else "; no container runtime was found elsewhere either"),
            "correct it, or start that runtime",
        )
    if not named:
        return _problem(
            "no container runtime was found on the Mac: Docker Desktop, OrbStack, Colima and Podman are looked for by "
            "their sockets in the home folders",
            f"start one, for example `brew install colima` and `colima start`; where its socket is elsewhere, name it "
            f"in `{SOCKET_VARIABLE}`; or {instead}",
        )
    denied = [runtime for runtime in named if runtime.state == "denied"]
    if denied:
        return _problem(
            f"the account that boxwright comes as may not use {', '.join(map(str, denied))}",
            "set `ansible_become: true`: root may",
        )
    listed = "; ".join(f"{runtime}: {runtime.said or 'no answer'}" for runtime in named)
    started = " or ".join(f"`{runtime.start}` as {runtime.owner or 'its owner'}" for runtime in named if runtime.start)
    return _problem(
        f"no container runtime of the Mac answers: {listed}",
        f"start its virtual machine{f' with {started}' if started else ''}; or {instead}",
    )


def _problem(message: str, help: str) -> Problem:
    return Problem(code="BW124", variable=SOCKET_VARIABLE, message=message, help=help)


def when_it_runs(runtime: Runtime, what: str) -> str:
    """What a person must know of a container on a Mac, in one sentence."""
    owner = runtime.owner or "its owner"
    return (
        f"{what} runs in {runtime}, and only while that does: after a restart not before {owner} has signed in and it "
        "has started"
    )
