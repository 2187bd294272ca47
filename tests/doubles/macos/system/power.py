"""pmset and caffeinate; see section 3."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import common

DEFAULTS = {
    "Sleep On Power Button": "1",
    "autorestartatconnect": "0",
    "lowpowermode": "0",
    "standby": "0",
    "ttyskeepawake": "1",
    "powernap": "1",
    "displaysleep": "10",
    "womp": "1",
    "networkoversleep": "0",
    "sleep": "1",
    "tcpkeepalive": "1",
    "autorestart": "0",
    "disksleep": "10",
}
#: Words that pmset knows and a Mac Studio does not keep: taken without a word, never shown.
UNSUPPORTED = [
    "hibernatemode",
    "hibernatefile",
    "autopoweroff",
    "autopoweroffdelay",
    "standbydelay",
    "standbydelayhigh",
    "standbydelaylow",
    "highstandbythreshold",
    "ring",
    "lidwake",
    "acwake",
    "lessbright",
    "halfdim",
    "sms",
    "proximitywake",
    "gpuswitch",
    "darkwakes",
    "powermode",
    "lidwake",
    "ttysleep",
]


def supported() -> dict[str, str]:
    """Keys of this Mac and their values when it was new."""
    found = dict(DEFAULTS)
    if common.release()[:2] < (26, 5):
        del found["autorestartatconnect"]
    if common.options()["high_power_mode"]:
        del found["lowpowermode"]
        found["powermode"] = "0"
    return found


def usage() -> int:
    """On standard output."""
    print("Usage: pmset <options>")
    print("See pmset(1) for details: 'man pmset'")
    return 1


def settings() -> dict[str, str]:
    """As they are."""
    return {**supported(), **{key: value for key, value in common.peek("power").items() if key in supported()}}


def lines(*, live: bool) -> str:
    """The settings of the source."""
    held = assertions()
    found = []
    rows = list(settings().items())
    if live:
        # The order is a hash table's: another one on another Mac, and after another boot.
        random.Random((common.VOLATILE / "boot.json").read_text()).shuffle(rows)
    for key, value in rows:
        text = f" {key:<20} {value}"
        if live and key == "sleep" and (held or value != "0"):
            text += f" (sleep prevented by {', '.join(['powerd', *held])})"
        found.append(text)
    return "\n".join(found)


def assertions() -> list[str]:
    """Who keeps the Mac awake."""
    found = []
    for path in sorted((common.VOLATILE / "awake").glob("*")):
        if Path(f"/proc/{path.name}").exists():
            found.append("caffeinate")
        elif common.is_root():
            path.unlink(missing_ok=True)
    return found


def pmset(name: str, arguments: list[str]) -> int:
    """The command."""
    if not arguments:
        return usage()
    if arguments[0] == "-g":
        return show(arguments[1:])
    if arguments[0] in ("-h", "-help"):
        return usage()
    words = list(arguments)
    source = "-a"
    if words[0] in ("-a", "-b", "-c", "-u"):
        source = words.pop(0)
    if words[:1] == ["restoredefaults"]:
        if not common.is_root():
            print("You're not privileged.")
            return 1
        with common.kept("power") as power:
            power.clear()
        return 0
    if words[:1] in (["schedule"], ["repeat"], ["sleepnow"], ["displaysleepnow"], ["touch"], ["boot"]):
        return schedule(words) if words[0] in ("schedule", "repeat") else 0
    if not words:
        return usage()
    changes = {}
    while words:
        key = words.pop(0).lower()
        known = {each.lower(): each for each in supported()}
        if key not in (*known, *UNSUPPORTED, "disablesleep", "autorestartatconnect", "powermode", "lowpowermode"):
            return usage()
        if not words or (not words[0].isdigit() and key != "hibernatefile"):
            return usage()
        changes[known.get(key, key)] = words.pop(0)
    if not common.is_root():
        print(f"'{name}' must be run as root...")
        return 0 if list(changes) == ["disablesleep"] else 1
    if source in ("-b", "-u"):
        return 0
    if "tcpkeepalive" in changes and changes["tcpkeepalive"] == "0":
        print("Warning: This option disables TCP Keep Alive mechanism when sytem is sleeping. This will result in")
        print("some critical features like 'Find My Mac' not to function properly.")
    with common.kept("power") as power:
        if "disablesleep" in changes:
            power["SleepDisabled"] = "1" if changes.pop("disablesleep") != "0" else "0"
        power.update({key: value for key, value in changes.items() if key in supported()})
    if changes:
        now = {key: int(value) for key, value in settings().items()}
        if now["sleep"] and (not now["disksleep"] or now["displaysleep"] > now["sleep"]):
            common.complain('Warning: Idle sleep timings for "AC Power" may not behave as expected.')
            common.complain("- Disk sleep should be non-zero whenever system sleep is non-zero.")
    return 0


def schedule(words: list[str]) -> int:
    """Kept as it was given."""
    if not common.is_root():
        print("'pmset' must be run as root...")
        return 1
    with common.kept("schedule") as kept:
        if words[1:2] == ["cancel"]:
            kept.pop(words[0], None)
        else:
            kept[words[0]] = words[1:]
    return 0


def show(words: list[str]) -> int:
    """-g and what may stand behind it."""
    what = words[0] if words else "live"
    if what == "live":
        power = common.peek("power")
        if "SleepDisabled" in power:
            print(f"System-wide power settings:\n SleepDisabled\t\t{power['SleepDisabled']}")
        print(f"Currently in use:\n{lines(live=True)}")
    elif what in ("custom", "disk"):
        print(f"AC Power:\n{lines(live=False)}")
    elif what == "cap":
        print("Capabilities for AC Power:\n" + "\n".join(f" {key}" for key in supported()))
    elif what in ("sched", "schedule"):
        kept = common.peek("schedule")
        if not kept:
            print("No scheduled events.")
        if "repeat" in kept:
            kind, _, moment = (kept["repeat"] + ["", "", ""])[:3]
            print(f"Repeating power events:\n  {kind} at {moment} every day")
        if "schedule" in kept:
            kind, moment = (kept["schedule"] + ["", ""])[:2]
            print(f"Scheduled power events:\n [0]  {kind} at {moment}")
    elif what in ("assertions",):
        held = assertions()
        print(time.strftime("%Y-%m-%d %H:%M:%S %z ") + "\nAssertion status system-wide:")
        for key in (
            "BackgroundTask",
            "PreventUserIdleDisplaySleep",
            "PreventSystemSleep",
            "PreventUserIdleSystemSleep",
        ):
            print(f"   {key:<30} {1 if held and key == 'PreventSystemSleep' else 0}")
        print("Listed by owning process:")
        for path in sorted((common.VOLATILE / "awake").glob("*")):
            if Path(f"/proc/{path.name}").exists():
                print(f'   pid {path.name}(caffeinate): PreventSystemSleep named: "caffeinate command-line tool" ')
    elif what in ("ps", "batt"):
        print("Now drawing from 'AC Power'")
    else:
        print(f"Error: unhandled argument {what}")
        return usage()
    return 0


def caffeinate(name: str, arguments: list[str]) -> int:
    """Runs the command in its own process, so that its number and its end are the command's."""
    pairs, command, bad = common.getopt(arguments, "disumt:w:")
    if bad:
        return common.illegal(
            "caffeinate", bad, "caffeinate [-disu] [-t timeout] [-w Process ID] [command arguments...]"
        )
    options = dict(pairs)
    awake = common.VOLATILE / "awake"
    with suppress(OSError):
        (awake / str(os.getpid())).write_text(" ".join(arguments))
    if command:
        found = command[0] if "/" in command[0] else shutil.which(command[0])
        sys.stdout.flush()
        try:
            os.execv(found or command[0], command)
        except OSError as error:
            common.complain(f"caffeinate: {command[0]}: {os.strerror(error.errno or 2)}")
            return 127 if isinstance(error, FileNotFoundError) else 126
    if "w" in options:
        while Path(f"/proc/{options['w']}").exists():
            time.sleep(0.2)
    elif "t" in options:
        subprocess.run([common.linux("sleep"), options["t"]], check=False)
    else:
        signal.pause()
    return 0
