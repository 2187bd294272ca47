"""Tailscale on a Mac: the open-source tailscaled, which runs from the boot on, before anybody has signed in.

Tailscale's app, from the App Store or by itself, has a daemon of its own, which runs while a person is signed in. Two
daemons on one machine take each other's name and address, so a Mac with the app, or with another tailscaled, is
refused before anything is changed.
"""

from collections.abc import Iterable

from boxwright.errors import Problem
from boxwright.facts.tailscale import PROGRAMS
from boxwright.operations import files, homebrew, programs, services
from boxwright.preflight import Machine
from boxwright.services import Service
from roles.registry import Box

FORMULA = "tailscale"
HOMEBREW = f"/opt/homebrew/opt/{FORMULA}/bin"
# Its own defaults on macOS (paths/paths.go), the same as those of `tailscaled install-system-daemon`: a Mac that was in
# a tailnet by that stays the same machine there.
STATE, SOCKET = "/Library/Tailscale/tailscaled.state", "/var/run/tailscaled.socket"

# Where others install a daemon, what that is, and how it goes without leaving the tailnet.
OTHERS = {
    "/Applications/Tailscale.app": (
        "Tailscale's app is installed, whose daemon runs only while somebody is signed in",
        "sign out of it and move the app to the bin, or set `tailscale_enabled: false`",
    ),
    "/Library/LaunchDaemons/com.tailscale.tailscaled.plist": (
        "another tailscaled is installed (com.tailscale.tailscaled)",
        "`sudo tailscaled uninstall-system-daemon` on the Mac: it stays in its tailnet as the same machine",
    ),
    "/Library/LaunchDaemons/homebrew.mxcl.tailscale.plist": (
        "Homebrew starts a tailscaled (homebrew.mxcl.tailscale)",
        "`sudo brew services stop tailscale` on the Mac: it stays in its tailnet as the same machine",
    ),
    "/Library/LaunchDaemons/sh.brew.tailscale.plist": (
        "Homebrew starts a tailscaled (sh.brew.tailscale)",
        "`sudo brew services stop tailscale` on the Mac: it stays in its tailnet as the same machine",
    ),
}


def others(box: Box, machine: Machine) -> Iterable[Problem]:
    """Refuses a Mac on which another daemon of Tailscale is installed; `machine.files` says which are."""
    for path, (message, help) in OTHERS.items():
        if path in machine.files:
            yield Problem(code="BW155", variable="tailscale_enabled", message=f"{message}: {path}", help=help)


def service(environment: dict[str, str]) -> Service:
    """tailscaled as a service of root, which it must be to make a network interface."""
    return Service(
        name="tailscaled",
        description="Tailscale's daemon",
        command=(f"{PROGRAMS}/tailscaled", f"--state={STATE}", f"--socket={SOCKET}"),
        user="root",
        group="wheel",
        environment=environment,
    )


def install(box: Box) -> None:
    """Both programs by Homebrew, and root's own copies of them."""
    homebrew.packages((FORMULA,), name="tailscale: install the program")
    for program in ("tailscaled", "tailscale"):
        programs.copied(f"{HOMEBREW}/{program}", f"{PROGRAMS}/{program}", name=f"tailscale: root's copy of {program}")


def configure(wanted: Service) -> None:
    """Its definition for launchd."""
    services.unit(name="tailscale: write the unit", service=wanted)


def remove(wanted: Service) -> None:
    """Takes everything back. What the Mac is in its tailnet is not the program's: see `tasks`."""
    services.unit_absent(name="tailscale: stop and remove the service", service=wanted)
    files.absent(name="tailscale: remove root's copies", path=PROGRAMS, recursive=True)
    homebrew.packages_absent((FORMULA,), name="tailscale: remove the program")
