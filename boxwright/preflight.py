"""What is checked on the box itself before anything is changed there: operating system, memory, disk, ports.

One fact asks everything in one command; `examine` is pure and tells what is wrong.
"""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from pyinfra import host
from pyinfra.api import StringCommand
from pyinfra.api.exceptions import PyinfraError

from boxwright.errors import Problem, Refused
from boxwright.facts.api import Fact
from boxwright.graphics import CARDS
from boxwright.shell import script
from boxwright.sizes import human

# Distribution and its releases that every role was written for. The releases are those of /etc/os-release.
SUPPORTED = {"debian": ("12", "13"), "ubuntu": ("22.04", "24.04", "26.04")}
ARCHITECTURES = ("x86_64", "aarch64")


class PreflightRefused(Refused, PyinfraError):  # type: ignore[misc]  # pyinfra is not checked
    """The box itself is not fit for what was asked; nothing was changed. Also a pyinfra error, so that `pyinfra`
    prints no traceback.
    """


@dataclass(frozen=True)
class Machine:
    """What a box is: read once, before anything is changed.

    `memory` and `disk_free` are bytes; `disk_free` is that of the file system that will hold /var/lib/boxwright;
    `listeners` maps a TCP port to the names of the processes that listen on it; `files` are those that were asked for
    and exist. `graphics_memory` is that of all graphics cards of NVIDIA together, 0 where no driver tells;
    `nvidia_cards` are the PCI addresses of these cards, with or without a driver.
    `codename` is what package repositories call the release (`noble`). `container` says that the clock is that of the
    machine below; `clock_offset` are the seconds by which the clock is ahead of the control machine's (negative: is
    behind it), known to a second or two; `time_service` is the unit that keeps the clock, empty when none does.
    """

    kernel: str
    architecture: str
    distribution: str
    release: str
    systemd: bool
    memory: int
    disk_free: int
    listeners: Mapping[int, tuple[str, ...]] = field(default_factory=dict)
    files: frozenset[str] = frozenset()
    graphics_memory: int = 0
    nvidia_cards: tuple[str, ...] = ()
    codename: str = ""
    container: bool = False
    clock_offset: float = 0
    time_service: str = ""


def parse(lines: Iterable[str], now: float | None = None) -> Machine:
    """A `Machine` from the lines of `MachineFact`'s command: `key=value`, and `listen=PORT NAME`.

    `now` is the time of the control machine, in seconds since 1970, when the command was run.
    """
    values: dict[str, str] = {}
    listeners: dict[int, set[str]] = {}
    files: set[str] = set()
    cards: list[str] = []
    for line in lines:
        key, _, value = line.partition("=")
        if key == "listen":
            port, _, name = value.partition(" ")
            # What Tailscale serves, it listens for on the box's addresses in the tailnet alone.
            if port.isdigit() and name != "tailscaled":
                listeners.setdefault(int(port), set()).add(name or "another process")
        elif key == "file":
            files.add(value)
        elif key == "card":
            cards.append(value.partition(" ")[0])
        else:
            values[key] = value.strip().strip('"')
    return Machine(
        kernel=values.get("kernel", ""),
        architecture=values.get("architecture", ""),
        distribution=values.get("ID", ""),
        release=values.get("VERSION_ID", ""),
        systemd=values.get("systemd") == "yes",
        memory=int(values.get("memory") or 0) * 1024,
        disk_free=int(values.get("disk") or 0) * 1024,
        listeners={port: tuple(sorted(names)) for port, names in listeners.items()},
        files=frozenset(files),
        graphics_memory=int(values.get("graphics") or 0) * 2**20,
        nvidia_cards=tuple(cards),
        codename=values.get("VERSION_CODENAME", ""),
        container=values.get("container") == "yes",
        clock_offset=float(values["clock"]) - now if now is not None and values.get("clock") else 0,
        time_service=values.get("time_service", ""),
    )


_ASK = """
echo "kernel=$(uname -s)"
echo "architecture=$(uname -m)"
grep -E '^(ID|VERSION_ID|VERSION_CODENAME)=' /etc/os-release 2>/dev/null
if [ -d /run/systemd/system ]; then echo systemd=yes; fi
echo "clock=$(date +%s)"
if systemd-detect-virt --quiet --container 2>/dev/null; then echo container=yes; fi
for unit in chrony chronyd ntpsec ntp openntpd systemd-timesyncd; do
    if systemctl --quiet is-enabled "$unit.service" 2>/dev/null; then echo "time_service=$unit"; break; fi
done
memory=$(awk '/^MemTotal:/ { print $2 }' /proc/meminfo 2>/dev/null)
# A container's own limit counts where it is below the memory of the machine.
for file in /sys/fs/cgroup/memory.max /sys/fs/cgroup/memory/memory.limit_in_bytes; do
    limit=$(cat "$file" 2>/dev/null)
    case $limit in
        "" | *[!0-9]*) ;;
        *) if [ "${#limit}" -lt 16 ] && [ $((limit / 1024)) -lt "${memory:-0}" ]; then memory=$((limit / 1024)); fi ;;
    esac
done
echo "memory=$memory"
folder=/var/lib
if [ -d /var/lib/boxwright ]; then folder=/var/lib/boxwright; fi
echo "disk=$(df -Pk "$folder" | awk 'NR == 2 { print $4 }')"
if command -v nvidia-smi >/dev/null; then
    echo "graphics=$(nvidia-smi --query-gpu=memory.total --format=csv,noheader,nounits 2>/dev/null |
        awk '/^[0-9]+$/ { sum += $1 } END { print sum + 0 }')"
fi
ss -Hltnp 2>/dev/null | awk '{
    parts = split($4, address, ":")
    name = match($0, /users:\\(\\("[^"]*"/) ? substr($0, RSTART + 9, RLENGTH - 10) : ""
    print "listen=" address[parts] " " name
}'
for file in "$@"; do
    if [ -e "$file" ]; then echo "file=$file"; fi
done
"""


class MachineFact(Fact[Machine]):
    """Reads a `Machine` in one command. `files` are paths whose presence is asked at the same time."""

    def command(self, files: tuple[str, ...] = ()) -> StringCommand:
        return script(_ASK + CARDS, *files)

    def process(self, output: Sequence[str]) -> Machine:
        return parse(output, time.time())


@dataclass(frozen=True)
class Need:
    """What the box must offer. `ports` maps a TCP port to the variable that set it and the process names that may
    already hold it.

    `memory` is bytes, asked for by the variable `memory_variable`; `downloads` maps the path of each file on the box
    to its bytes, which are needed only while the file is missing. `files` are paths whose presence is asked, for the
    role itself. `conditions` tell what else of a role does not fit the machine.
    """

    memory: int = 0
    memory_variable: str = ""
    downloads: Mapping[str, int] = field(default_factory=dict)
    files: tuple[str, ...] = ()
    ports: Mapping[int, tuple[str, tuple[str, ...]]] = field(default_factory=dict)
    conditions: tuple[Callable[[Machine], Iterable[Problem]], ...] = ()

    def __add__(self, other: "Need") -> "Need":
        """What both need together."""
        return Need(
            memory=self.memory + other.memory,
            memory_variable=self.memory_variable or other.memory_variable,
            downloads={**self.downloads, **other.downloads},
            files=(*self.files, *other.files),
            ports={**self.ports, **other.ports},
            conditions=(*self.conditions, *other.conditions),
        )


def examine(machine: Machine, need: Need) -> list[Problem]:
    """Everything that makes `machine` unfit for `need`; empty when it is fit."""
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
        others = [name for name in machine.listeners.get(port, ()) if name not in allowed]
        if others:
            problems.append(
                Problem(
                    code="BW113",
                    variable=variable,
                    message=f"TCP port {port} of the box is taken by {', '.join(others)}",
                    help=f"stop that program, or set `{variable}` to another port",
                )
            )
    for condition in need.conditions:
        problems += condition(machine)
    return problems


def check(box: Any, need: Need) -> Machine:
    """Reads the machine and raises PreflightRefused with every problem, so that nothing is changed on a box that is
    not fit.
    """
    machine: Machine = host.get_fact(MachineFact, files=(*need.downloads, *need.files))
    problems = examine(machine, need)
    if problems:
        raise PreflightRefused(replace(problem, host=box.name) for problem in problems)
    return machine
