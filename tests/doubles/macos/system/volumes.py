"""Spotlight, Time Machine and disks; see section 8."""

from __future__ import annotations

import os
from pathlib import Path

import common

ROOTS = ("/", "/System/Volumes/Data", "/System/Volumes/Preboot")


def mdutil(name: str, arguments: list[str]) -> int:
    """-s, -i, -E, -d, -a: it ends with 0 whatever happened."""
    pairs, rest, bad = common.getopt(arguments, "pi:dEsavLPXt:")
    if bad or (not pairs):
        common.complain("Usage: mdutil -pEsa -i (on|off) -d volume ...")
        return 0 if not bad else 1
    options = dict(pairs)
    if common.options()["mds_off"]:
        print("Spotlight server is disabled.")
        return 0
    paths = list(ROOTS) if "a" in options else rest
    if ("i" in options or "E" in options or "d" in options) and not common.is_root():
        print("Error: you must be root to perform this operation.")
        return 0
    for path in paths:
        real = os.path.realpath(path)
        if not Path(real).exists():
            print(f"Error: invalid path `{path}'.")
            continue
        print(f"{real}:")
        if real not in ROOTS:
            print("Error: invalid operation.")
            continue
        if real != "/":
            print("\tError: invalid operation.\n\tError: unknown indexing state." if real == ROOTS[2] else refused())
            continue
        with common.kept("spotlight") as kept:
            if "i" in options:
                kept["on"] = options["i"] == "on"
                level = "FSSearchOnly" if not kept["on"] else "Default"
                verb = "disabling" if not kept["on"] else "enabling"
                print(f"{common.stamp('mdutil')} mdutil {verb} Spotlight: / -> kMDConfigSearchLevel{level}")
            print(f"\tIndexing {'enabled' if kept.get('on', True) else 'disabled'}. ")
    return 0


def refused() -> str:
    """Of the data volume."""
    return "\tError: unable to perform operation.  (-1)"


def tmutil(name: str, arguments: list[str]) -> int:
    """isexcluded, addexclusion, removeexclusion; most else needs Full Disk Access."""
    verb, rest = (arguments[0], arguments[1:]) if arguments else ("", [])
    fixed = "-p" in rest
    paths = [word for word in rest if not word.startswith("-")]
    if verb == "version":
        print("tmutil version 4.0.0 (built Jul 14 2026)")
        return 0
    if verb not in ("isexcluded", "addexclusion", "removeexclusion"):
        if verb in (
            "latestbackup",
            "listbackups",
            "removedestination",
            "destinationinfo",
            "status",
            "disable",
            "enable",
        ):
            return full_disk_access(verb) if verb not in ("destinationinfo", "status") else 0
        common.complain("Usage: tmutil help <verb>")
        return 64
    with common.kept("timemachine") as kept:
        excluded = kept.setdefault("fixed", []) if common.is_root() else list(kept.get("fixed", []))
        code = 0
        for path in paths:
            real = os.path.realpath(path)
            if verb == "isexcluded":
                out = real in excluded or any(real.startswith(f"{each}/") for each in excluded) or marked(real)
                print(f"{'[Excluded]' if out else '[Included]'}    {real}")
            elif fixed:
                if not common.is_root():
                    common.complain(f"tmutil: {verb} requires root privileges.")
                    return 80
                if not common.options()["full_disk_access"]:
                    return full_disk_access(verb)
                if verb == "addexclusion" and real not in excluded:
                    excluded.append(real)
                elif verb == "removeexclusion" and real in excluded:
                    excluded.remove(real)
            elif not Path(real).exists():
                common.complain(f"{path}: The operation couldn\u2019t be completed. (OSStatus error -43.)")
                code = 213
            elif verb == "addexclusion":
                os.setxattr(real, MARK, b"com.apple.backupd")
            elif marked(real):
                os.removexattr(real, MARK)
    return code


MARK = "user.com.apple.metadata:com_apple_backup_excludeItem"


def marked(path: str) -> bool:
    """Whether the item carries the attribute."""
    try:
        return MARK in os.listxattr(path)
    except OSError:
        return False


def full_disk_access(verb: str) -> int:
    """How it refuses."""
    if common.options()["full_disk_access"]:
        return 0
    common.complain(f"tmutil: {verb} requires Full Disk Access privileges.")
    common.complain("To allow this operation, select Full Disk Access in the Privacy")
    common.complain("tab of the Security & Privacy preference pane, and add Terminal")
    common.complain("to the list of applications which are allowed Full Disk Access.")
    return 80


def diskutil(name: str, arguments: list[str]) -> int:
    """info of / in a few lines."""
    if arguments[:1] == ["info"]:
        print(
            "   Device Identifier:         disk3s1s1\n   File System Personality:   APFS\n"
            "   Mount Point:               /"
        )
        return 0
    if arguments[:1] in (["list"], ["apfs"]):
        print("/dev/disk3 (synthesized):\n   0:      APFS Container Scheme -                      +994.7 GB   disk3")
        return 0
    common.complain("Disk Utility Tool")
    return 1
