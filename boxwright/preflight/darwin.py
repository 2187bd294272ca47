"""What the preflight asks a Mac, and what makes one unfit."""

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING, Literal

from boxwright.errors import Problem

if TYPE_CHECKING:
    from boxwright.preflight.machine import Machine

FileVault = Literal["on", "off", ""]

# The oldest release that every role was written for; before 26, releases had another number each year.
OLDEST = 14

# A program that was built for an old macOS is told an old version, unless it asks for the true one. Of the disks it is
# the data volume that is written to: what is at / is Apple's and read-only.
ASK = """
SYSTEM_VERSION_COMPAT=0 sw_vers | sed 's/^/sw_vers=/'
echo "translated=$(sysctl -n sysctl.proc_translated 2>/dev/null)"
echo "chip=$(sysctl -n machdep.cpu.brand_string 2>/dev/null)"
echo "memory=$(($(sysctl -n hw.memsize) / 1024))"
folder=/System/Volumes/Data
if [ -d /var/lib/boxwright ]; then folder=/var/lib/boxwright; fi
echo "disk=$(df -Pk "$folder" | awk 'NR == 2 { print $4 }')"
fdesetup status 2>/dev/null | sed 's/^/fdesetup=/'
lsof -nP -iTCP -sTCP:LISTEN +c 0 -F pcn 2>/dev/null | sed 's/^/lsof=/'
"""


def release(lines: Iterable[str]) -> str:
    """The version of macOS that `sw_vers` says, empty when it says none."""
    for line in lines:
        key, _, value = line.partition(":")
        if key == "ProductVersion":
            return value.strip()
    return ""


def filevault(lines: Iterable[str]) -> FileVault:
    """Whether the disk waits for a password at boot, by `fdesetup status`; empty when that says something else.

    One that is to be switched on by the next restart counts as on.
    """
    first = next(iter(lines), "")
    if first.startswith("FileVault is On") or "will be enabled after the next restart" in first:
        return "on"
    return "off" if first.startswith("FileVault is Off") else ""


def listeners(lines: Iterable[str]) -> Iterable[tuple[int, str]]:
    """TCP ports and the names of the processes that listen on them, as `lsof -F pcn` prints them: one field in each
    line, blanks in names as `\\x20`.
    """
    name = ""
    for line in lines:
        if line.startswith("p"):
            name = ""
        elif line.startswith("c"):
            name = re.sub(r"\\x([0-9a-f]{2})", lambda match: chr(int(match[1], 16)), line[1:])
        elif line.startswith("n") and (port := line.rpartition(":")[2]).isdigit():
            yield int(port), name


def unfit(machine: "Machine") -> list[Problem]:
    """Why boxwright does not work on this Mac at all; empty when it does."""
    problems = []
    if machine.translated:
        problems.append(
            Problem(
                code="BW110",
                message="on the Mac the commands of boxwright are run for an Intel processor, translated by Rosetta",
                help="give the account that boxwright comes as a shell of macOS: chsh -s /bin/zsh",
            )
        )
    elif machine.architecture != "arm64":
        problems.append(
            Problem(
                code="BW110",
                message=f"the box is a Mac with another processor than Apple's ({machine.architecture or 'unknown'})",
                help="supported: Macs with Apple silicon (M1 or later)",
            )
        )
    major = machine.release.partition(".")[0]
    if not major.isdigit() or int(major) < OLDEST:
        problems.append(
            Problem(
                code="BW110",
                message=f"the box runs macOS {machine.release or 'in an unknown version'}, which boxwright does not "
                "support",
                help=f"update it to macOS {OLDEST} or later, in System Settings > General > Software Update",
            )
        )
    return problems
