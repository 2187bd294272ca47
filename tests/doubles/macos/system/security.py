"""FileVault, integrity, Gatekeeper, signatures, updates, remote login; see sections 9 to 11."""

from __future__ import annotations

import plistlib
import sys
from contextlib import suppress
from pathlib import Path

import common

OVERRIDES = Path("/private/var/db/com.apple.xpc.launchd/disabled.plist")


def fdesetup(name: str, arguments: list[str]) -> int:
    """status, isactive; nothing can be turned on or off."""
    on = common.options()["filevault"]
    if arguments[:1] == ["status"]:
        print(f"FileVault is {'On' if on else 'Off'}.")
        if common.options()["filevault_progress"]:
            print(f"Encryption in progress: Percent completed = {common.options()['filevault_progress']}")
        return 0
    if arguments[:1] == ["isactive"]:
        print("true" if on else "false")
        return 0 if on else 1
    if not common.is_root():
        common.complain("fdesetup: root access required.")
        return 14
    if arguments[:1] == ["authrestart"]:
        common.complain("Error: FileVault is Off." if not on else "Error: Unable to unlock FileVault (-69594).")
        return 11
    common.complain("Usage: fdesetup ...")
    return 1


def csrutil(name: str, arguments: list[str]) -> int:
    """status, and no other way than by recovery."""
    if arguments[:1] == ["status"]:
        print("System Integrity Protection status: enabled.")
        return 0
    common.complain("csrutil: This tool needs to be executed from Recovery OS.")
    return 1


def spctl(name: str, arguments: list[str]) -> int:
    """--status, and the ways to turn it off that no longer are any."""
    verb = arguments[0] if arguments else ""
    if verb == "--status":
        print("assessments enabled")
        return 0
    if verb in ("--global-disable", "--master-disable"):
        if common.version() >= 15:
            common.complain("Globally disabling the assessment system needs to be confirmed in System Settings.")
            return 1
        return 0 if common.is_root() else 1
    if verb in ("--assess", "-a"):
        common.complain(f"{arguments[-1]}: rejected")
        return 3
    common.complain("System Policy Basic Usage: spctl ...")
    return 2


def codesign(name: str, arguments: list[str]) -> int:
    """Every program but a script counts as signed ad hoc."""
    path = arguments[-1] if arguments else ""
    if not Path(path).exists():
        common.complain(f"{path}: No such file or directory")
        return 1
    with Path(path).open("rb") as handle:
        program = handle.read(4) in (b"\x7fELF", b"\xcf\xfa\xed\xfe")
    if "--force" in arguments or "-f" in arguments or "-s" in arguments or "--sign" in arguments:
        common.complain(f"{path}: replacing existing signature")
        return 0
    if not program:
        common.complain(f"{path}: code object is not signed at all")
        return 1
    if any(word.startswith("-d") for word in arguments):
        common.complain(f"Executable={path}\nIdentifier={Path(path).name}\nFormat=Mach-O thin (arm64)\nSignature=adhoc")
    return 0


def softwareupdate(name: str, arguments: list[str]) -> int:
    """--schedule, -l."""
    verb = arguments[0] if arguments else ""
    if verb == "--schedule":
        if len(arguments) > 1:
            if not common.is_root():
                common.complain("softwareupdate: Must be run as root to change the schedule")
                return 1
            with common.kept("updates") as kept:
                kept["on"] = arguments[1] == "on"
        on = common.peek("updates").get("on", True)
        print(f"Automatic checking for updates is turned {'on' if on else 'off'}")
        return 0
    if verb in ("-l", "--list"):
        print("Software Update Tool\n\nFinding available software")
        sys.stdout.flush()
        common.complain("No new software available.")
        return 0
    if "--install-rosetta" in arguments:
        if "--agree-to-license" not in arguments:
            sys.stdout.write("I have read and agree to the terms of the software license agreement. ")
            print("A list of Apple SLAs may be found here: https://www.apple.com/legal/sla/")
            sys.stdout.write("Type A and press return to agree: ")
            sys.stdout.flush()
            return 0 if sys.stdin.readline().strip() == "A" else 1
        return 0
    common.complain("usage: softwareupdate <cmd> [<args> ...]")
    return 1


def systemsetup(name: str, arguments: list[str]) -> int:
    """A few getters and setters; without root it refuses on standard output, and ends with 0."""
    if not common.is_root():
        print("You need administrator access to run this tool... exiting!")
        return 0
    words = list(arguments)
    verb, value = (words[0].lower() if words else "", words[-1] if len(words) > 1 else "")
    if verb == "-getremotelogin":
        disabled = {}
        with suppress(OSError):
            disabled = plistlib.loads(OVERRIDES.read_bytes())
        print(f"Remote Login: {'Off' if disabled.get('com.openssh.sshd') else 'On'}")
        return 0
    if verb == "-setremotelogin":
        if not common.options()["full_disk_access"]:
            common.complain("setremotelogin: Turning Remote Login on or off requires Full Disk Access privileges.")
            return 1 if common.version() >= 15 else 0
        return 0
    kept_names = {
        "computersleep": ("Computer Sleep", "Never"),
        "displaysleep": ("Display Sleep", "after 10 minutes"),
        "timezone": ("Time Zone", "Europe/Berlin"),
        "restartpowerfailure": ("Restart After Power Failure", "Off"),
        "restartfreeze": ("Restart After Freeze", "Off"),
        "usingnetworktime": ("Network Time", "On"),
        "networktimeserver": ("Network Time Server", "time.apple.com"),
        "computername": ("Computer Name", "Operator's Mac Studio"),
    }
    for key, (title, first) in kept_names.items():
        if verb == f"-get{key}":
            print(f"{title}: {common.peek('systemsetup').get(key, first)}")
            return 0
        if verb == f"-set{key}":
            with common.kept("systemsetup") as kept:
                # However it was written, it is told as "On" and "Off".
                kept[key] = value.capitalize() if value.lower() in ("on", "off") else value
            common.complain(
                f"{common.stamp('systemsetup')} ### Error:-99 File:/AppleInternal/Library/BuildRoots/double/"
                "InternetServices.m Line:379"
            )
            print(f"set{key}: {value}")
            return 0
    print("systemsetup Help Information\n-------------------------------------")
    return 1


def xcode_stub(name: str, arguments: list[str]) -> int:
    """python3, git, cc, ...: the command line tools are not installed."""
    common.complain(
        "xcode-select: note: No developer tools were found, requesting install.\n"
        "If developer tools are located at a non-default location on disk, use `sudo xcode-select --switch "
        "path/to/Xcode.app` to specify the Xcode that you wish to use for command line developer tools, and cancel the "
        "installation dialog.\nSee `man xcode-select` for more details."
    )
    return 1


def xcode_select(name: str, arguments: list[str]) -> int:
    """The same."""
    if arguments[:1] in (["-p"], ["--print-path"]):
        common.complain(
            "xcode-select: error: unable to get active developer directory, use `sudo xcode-select --switch "
            "path/to/Xcode.app` to set one (or see `man xcode-select`)"
        )
        return 2
    return xcode_stub(name, arguments)
