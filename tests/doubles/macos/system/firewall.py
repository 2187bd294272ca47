"""The application firewall and pf; see section 7. Nothing is filtered: only what the tools say is kept."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import common

FIRST = {"/usr/libexec/sshd-session": "block", "/usr/libexec/sshd-auth": "block"}


def state() -> dict[str, Any]:
    """As it is now."""
    fresh = {"global": common.options()["firewall"], "block": 0, "stealth": 0, "signed": 1, "signedapp": 1}
    return {**fresh, "apps": dict(FIRST), **common.peek("firewall")}


def socketfilterfw(name: str, arguments: list[str]) -> int:
    """The command."""
    words = list(arguments)
    if not words:
        print("usage: socketfilterfw --getglobalstate ...")
        return 1
    code = 0
    while words:
        word = words.pop(0)
        if word.startswith("--get") or word == "--listapps":
            value = words.pop(0) if word == "--getappblocked" and words else ""
            code = show(word, value)
            continue
        if word not in [
            "--setglobalstate",
            "--setblockall",
            "--setstealthmode",
            "--setallowsigned",
            "--setallowsignedapp",
            "--add",
            "--remove",
            "--unblockapp",
            "--blockapp",
        ]:
            print(f"socketfilterfw: unrecognized option `{word}'\nusage: socketfilterfw ...")
            return 1
        value = words.pop(0) if words else ""
        if not common.is_root():
            print("Must be root to change settings.")
            return 1
        if common.options()["managed"]:
            print("Firewall settings cannot be modified from command line on managed Mac computers.")
            return 0
        with common.kept("firewall") as kept:
            kept.update({**state(), **kept})
            code = change(kept, word, value)
    return code


def show(word: str, value: str) -> int:
    """What is asked for."""
    now = state()
    new = common.version() >= 15
    if word == "--getglobalstate":
        number = 2 if now["global"] and now["block"] else now["global"]
        print(f"Firewall is {'enabled' if number else 'disabled'}. (State = {number})")
    elif word == "--getblockall":
        text = "enabled" if now["block"] else "disabled"
        print(f"Firewall has block all state set to {text}." if new else f"Block all {text.upper()}! ")
    elif word == "--getstealthmode":
        on = now["stealth"]
        print(
            f"Firewall stealth mode is {'on' if on else 'off'}" if new else f"Stealth mode {'en' if on else 'dis'}abled"
        )
    elif word == "--getallowsigned":
        words = ["ENABLED" if now[key] else "DISABLED" for key in ("signed", "signedapp")]
        print(f"Automatically allow built-in signed software {words[0]}.")
        print(f"Automatically allow downloaded signed software {words[1]}.")
    elif word == "--getappblocked":
        kind = now["apps"].get(value)
        if kind is None:
            print("The application is not part of the firewall")
        else:
            print(f"Incoming connection to the application is {'blocked' if kind == 'block' else 'permitted'}")
    elif word == "--listapps":
        apps = now["apps"]
        if new:
            print(f"Total number of apps = {len(apps)}")
            for number, (path, kind) in enumerate(apps.items(), 1):
                print(f"{number} : {path}")
                print(
                    " " * 13 + ("(Block incoming connections)" if kind == "block" else "(Allow incoming connections)")
                )
        else:
            print(f"ALF: total number of apps = {len(apps)} \n")
            for number, (path, kind) in enumerate(apps.items(), 1):
                print(f"{number} :  {path} ")
                print(f" \t ( {'Block' if kind == 'block' else 'Allow'} incoming connections ) \n")
    else:
        print(f"socketfilterfw: unrecognized option `{word}'\nusage: socketfilterfw ...")
        return 1
    return 0


def change(kept: dict[str, Any], word: str, value: str) -> int:
    """Sets it."""
    on = value in ("on", "yes")
    apps = kept["apps"]
    if word == "--setglobalstate":
        kept["global"] = int(on)
        print(f"Firewall is {'enabled' if on else 'disabled'}. (State = {int(on)})")
    elif word == "--setblockall":
        kept["block"] = int(on)
        print(f"Firewall has block all state set to {'enabled' if on else 'disabled'}.")
    elif word == "--setstealthmode":
        kept["stealth"] = int(on)
        print(f"Firewall stealth mode is {'on' if on else 'off'}")
    elif word in ("--setallowsigned", "--setallowsignedapp"):
        kept["signed" if word == "--setallowsigned" else "signedapp"] = int(on)
    elif word == "--remove":
        apps.pop(value, None)
        print("The application has been removed from firewall")
    elif not Path(value).exists():
        print("The file path you specified does not exist")
    elif word == "--add":
        if value in apps:
            print("The application is already a part of the firewall")
        else:
            apps[value] = "allow"
            print(f"Application at path ( {value} ) added to firewall")
    elif value in apps:
        apps[value] = "block" if word == "--blockapp" else "allow"
        print(f"Incoming connection to the application is {'blocked' if word == '--blockapp' else 'permitted'}")
    else:
        print("The application is not part of the firewall")
    return 0


def pfctl(name: str, arguments: list[str]) -> int:
    """-e -d -E -X -s -f -n: the state alone, no rule is obeyed."""
    pairs, _, bad = common.getopt(arguments, "AdeEf:gi:nNqrRs:t:T:vX:a:F:")
    if bad:
        return common.illegal("pfctl", bad, "pfctl [-AdeghmNnOPqRrvz] ...")
    if not common.is_root():
        common.complain("pfctl: /dev/pf: Permission denied")
        return 1
    common.complain("No ALTQ support in kernel\nALTQ related functions disabled")
    with common.kept("pf", volatile=True) as kept:
        for letter, value in pairs:
            if letter == "e":
                if kept.get("on"):
                    common.complain("pfctl: pf already enabled")
                    return 1
                kept["on"] = True
                common.complain("pf enabled")
            elif letter == "E":
                kept["on"], kept["tokens"] = True, kept.get("tokens", 0) + 1
                common.complain(f"pf enabled\nToken : {1000 + kept['tokens']}")
            elif letter == "d":
                kept["on"] = False
                common.complain("pf disabled")
            elif letter == "f":
                common.complain(
                    "pfctl: Use of -f option, could result in flushing of rules\npresent in the main ruleset"
                )
                if not re.match(r"^(-|/)", value) or (value != "-" and not Path(value).exists()):
                    common.complain(f"pfctl: {value}: No such file or directory")
                    return 1
            elif letter == "s" and value.startswith("i"):
                print(
                    f"Status: {'Enabled' if kept.get('on') else 'Disabled'} for 0 days 00:01:00           Debug: Urgent"
                )
    return 0
