"""The host role on a Mac."""

import plistlib
from collections.abc import Iterable

from boxwright.errors import Problem
from boxwright.facts.mac import WIRED_LIMIT
from boxwright.operations import files, homebrew, mac, system, users
from boxwright.operations.files import RECORDS
from boxwright.preflight import Machine, Need
from roles.host.settings import spared
from roles.registry import Box

LABEL = "boxwright.wired-limit"
# Begun by launchd at each start of the Mac, when the limit is macOS's own again; it sets ours and ends.
DAEMON = f"/Library/LaunchDaemons/{LABEL}.plist"
FOLDERS = ("/etc/boxwright", "/opt/boxwright", "/var/run/boxwright")
LOGS = "/var/log/boxwright"


def wired_megabytes(box: Box) -> int:
    """The declared limit of memory for the graphics processor as the kernel counts it (MiB); 0 where none is."""
    return int(box.host.wired_memory or 0) // 2**20


def wired_daemon(megabytes: int) -> str:
    """The property list of what sets the limit at each start."""
    arguments = ["/usr/sbin/sysctl", f"{WIRED_LIMIT}={megabytes}"]
    return plistlib.dumps({"Label": LABEL, "ProgramArguments": arguments, "RunAtLoad": True}).decode()


def quiet_folders(box: Box) -> tuple[str, ...]:
    """Folders with models: of no use to Spotlight, and too large for a backup of what can be fetched again."""
    return (RECORDS, *box.host.model_folders)


def need(box: Box) -> Need:
    """Memory that the Mac can spare for its graphics processor."""

    def fits(machine: Machine) -> Iterable[Problem]:
        return spared(box.host.wired_memory, machine.memory, "the box has")

    return Need(conditions=(fits,))


def install(box: Box) -> None:
    """Packages."""
    if box.host.packages:
        homebrew.packages(box.host.packages, name="host: install packages with Homebrew")


def configure(box: Box) -> None:
    """Names, time zone, accounts, and what macOS leaves alone."""
    if box.host.computer_name:
        mac.named(box.host.computer_name, name="host: name of the Mac")
    system.timezone(name="host: set the time zone", zone=box.host.timezone)
    users.users(box.host.users, name="host: accounts")
    files.directory(name="host: folder of data", path=RECORDS)
    mac.quiet_folders(quiet_folders(box), name="host: neither index nor back up models")
    if limit := wired_megabytes(box):
        files.content(name="host: memory for graphics at each start", path=DAEMON, text=wired_daemon(limit))
    else:
        files.absent(name="host: macOS's own memory for graphics at each start", path=DAEMON)


def activate(box: Box) -> None:
    """A clock that is kept, and what is asked for by name."""
    if box.host.time_sync:
        mac.network_time(next(iter(box.host.time_servers), ""), name="host: the clock is kept")
    else:
        mac.network_time_absent(name="host: the clock is kept as it was")
    if limit := wired_megabytes(box):
        mac.wired_limit(limit, name="host: memory for graphics")
    else:
        mac.wired_limit_absent(name="host: macOS's own memory for graphics")
    if box.host.screen_sharing:
        mac.screen_sharing(name="host: Screen Sharing on")
    else:
        mac.screen_sharing_absent(name="host: Screen Sharing as it was")


def remove(box: Box, purge: bool) -> None:
    """Takes back packages, settings and boxwright's folders. Accounts, names and time zone stay."""
    mac.screen_sharing_absent(name="host: Screen Sharing as it was")
    files.absent(name="host: macOS's own memory for graphics at each start", path=DAEMON)
    mac.wired_limit_absent(name="host: macOS's own memory for graphics")
    mac.network_time_absent(name="host: the clock is kept as it was")
    mac.quiet_folders_absent(name="host: folders are indexed and backed up again")
    homebrew.packages_absent(name="host: remove packages of Homebrew")
    for folder in FOLDERS:
        files.absent(name=f"host: remove {folder}", path=folder, recursive=True)
    if purge:
        for folder in (RECORDS, LOGS):
            files.absent(name=f"host: remove {folder}", path=folder, recursive=True)
