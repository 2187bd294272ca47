"""Graphics cards that an engine computes on: their devices, what of a sandbox they need, and whether there is one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Literal

from boxwright.errors import Problem
from boxwright.services import Value

if TYPE_CHECKING:
    # It brings pyinfra along, which settings are read without.
    from boxwright.preflight import Machine

Graphics = Literal["none", "nvidia", "amd"]

# What a driver makes when it has found a card.
DEVICES: Mapping[str, tuple[str, ...]] = {"none": (), "nvidia": ("/dev/nvidiactl",), "amd": ("/dev/kfd",)}
# What a process opens: by what /proc/devices calls the devices, since their numbers differ between machines.
_ALLOWED: Mapping[str, tuple[str, ...]] = {"nvidia": ("char-nvidia* rw",), "amd": ("char-drm rw", "char-kfd rw")}

# For sh: prints `card=ADDRESS DRIVER` for each display adapter (PCI class 03) of NVIDIA (vendor 10de), with the kernel
# driver that holds it. Needs no lspci, which not every box has.
CARDS = """
for vendor in $(grep -l -s -x 0x10de /sys/bus/pci/devices/*/vendor); do
    device=${vendor%/vendor}
    case $(cat "$device/class" 2>/dev/null) in
        0x03*) echo "card=${device##*/} $(basename "$(readlink "$device/driver")" 2>/dev/null)" ;;
    esac
done
"""
# Which variable has a run install the driver.
_INSTALLED_BY = {"nvidia": " (`nvidia_enabled: true` does both on a box with a card)"}


def sandbox(graphics: str) -> dict[str, tuple[Value, str]]:
    """Exceptions from the sandbox of a service that computes on `graphics`; none for "none"."""
    if graphics == "none":
        return {}
    why = f"computes on graphics cards ({graphics})"
    return {
        "PrivateDevices": ("no", why),
        "DeviceAllow": (_ALLOWED[graphics], why),
        "MemoryDenyWriteExecute": ("no", f"{why}: their libraries compile at run time"),
    }


# From here on macOS lends three quarters of a Mac's memory, below it two thirds.
_LARGE = 36 * 2**30


def lent(memory: int, limit: int | None) -> int:
    """Bytes that the graphics processor of a Mac with so much memory, which it shares with all else, may use.

    `limit` is what was set (`iogpu.wired_limit_mb`). Without it macOS decides: as owners have reported what Metal names
    as its recommended maximum, 10.7 GiB of 16, 21.3 of 32, 27 of 36, 48 of 64, 96 of 128, 144 of 192.
    """
    return limit if limit is not None else memory * 3 // 4 if memory >= _LARGE else memory * 2 // 3


def groups(graphics: str) -> tuple[str, ...]:
    """The groups that may open the devices; those of NVIDIA anybody may."""
    return ("render", "video") if graphics == "amd" else ()


def missing(
    graphics: str, variable: str, engine: str, help: str, machine: Machine, *, installs_nvidia: bool = False
) -> Iterable[Problem]:
    """A problem for `variable` when the machine has no card with a driver for `engine` (its name for people).

    The devices must be among the files that the preflight looks for. `help` says what to write for a machine without.
    With `installs_nvidia` the run itself installs the driver of an NVIDIA card before the engine.
    """
    if graphics == "nvidia" and installs_nvidia and machine.nvidia_cards:
        return
    for device in DEVICES[graphics]:
        if device not in machine.files:
            yield Problem(
                code="BW117",
                variable=variable,
                message=f"{engine} is to compute on a graphics card (`{variable}`), and the box has none with a "
                f"driver: {device} does not exist",
                help=f"install the driver and restart the box{_INSTALLED_BY.get(graphics, '')}, or {help}",
            )
