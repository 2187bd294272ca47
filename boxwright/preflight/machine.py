"""What a box is: one command that asks everything, and a parser of its answer."""

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from pyinfra.api import StringCommand

from boxwright.containers import Runtime
from boxwright.facts.api import Fact
from boxwright.preflight import darwin, linux
from boxwright.preflight.darwin import FileVault
from boxwright.shell import script


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
    Of a Mac alone: its `chip`, whether our commands are `translated` by Rosetta, whether FileVault is on, which
    leaves the box to wait for a password at boot, and its `container_runtimes`, where a role needs one.
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
    chip: str = ""
    translated: bool = False
    filevault: FileVault = ""
    container_runtimes: tuple[Runtime, ...] = ()


def parse(lines: Iterable[str], now: float | None = None) -> Machine:
    """A `Machine` from the lines of `MachineFact`'s command: `key=value`, and `listen=PORT NAME`; on a Mac
    also lines of its own programs, as `PROGRAM=LINE`.

    `now` is the time of the control machine, in seconds since 1970, when the command was run.
    """
    values: dict[str, str] = {}
    listening: list[tuple[int, str]] = []
    files: set[str] = set()
    cards: list[str] = []
    printed: dict[str, list[str]] = {"sw_vers": [], "fdesetup": [], "lsof": []}
    for line in lines:
        key, _, value = line.partition("=")
        if key == "listen":
            port, _, name = value.partition(" ")
            if port.isdigit():
                listening.append((int(port), name))
        elif key in printed:
            printed[key].append(value)
        elif key == "file":
            files.add(value)
        elif key == "card":
            cards.append(value.partition(" ")[0])
        else:
            values[key] = value.strip().strip('"')
    listeners: dict[int, set[str]] = {}
    for number, name in (*listening, *darwin.listeners(printed["lsof"])):
        # What Tailscale serves, it listens for on the box's addresses in the tailnet alone.
        if name != "tailscaled":
            listeners.setdefault(number, set()).add(name or "another process")
    return Machine(
        kernel=values.get("kernel", ""),
        architecture=values.get("architecture", ""),
        distribution=values.get("ID", "") or ("macos" if printed["sw_vers"] else ""),
        release=values.get("VERSION_ID", "") or darwin.release(printed["sw_vers"]),
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
        chip=values.get("chip", ""),
        translated=values.get("translated") == "1",
        filevault=darwin.filevault(printed["fdesetup"]),
    )


# Asked of either system, whatever the inventory says that it is.
_ASK = f"""
echo "kernel=$(uname -s)"
echo "architecture=$(uname -m)"
echo "clock=$(date +%s)"
if [ -d /System/Library ]; then
{darwin.ASK}
else
{linux.ASK}
fi
for file in "$@"; do
    if [ -e "$file" ]; then echo "file=$file"; fi
done
"""


class MachineFact(Fact[Machine]):
    """Reads a `Machine` in one command. `files` are paths whose presence is asked at the same time."""

    def command(self, files: tuple[str, ...] = ()) -> StringCommand:
        return script(_ASK, *files)

    def process(self, output: Sequence[str]) -> Machine:
        return parse(output, time.time())
