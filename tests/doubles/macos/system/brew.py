"""Homebrew: formulae come from a folder that the test has filled; see section 6."""

from __future__ import annotations

import json
import os
import pwd
import shutil
from pathlib import Path
from typing import Any

import common

PREFIX = Path("/opt/homebrew")
#: Below it NAME/VERSION/..., as it is to lie in the Cellar; links.json beside it may hold what else is linked.
FORMULAE = common.ROOT / "formulae"
ROOT_WORDS = (
    "Error: Running Homebrew as root is extremely dangerous and no longer supported.\n"
    "As Homebrew does not drop privileges on installation you would be giving all\n"
    "build scripts full access to your system."
)


def brew(name: str, arguments: list[str]) -> int:
    """The command."""
    words = [word for word in arguments if word not in ("--quiet", "-q", "--verbose", "-v", "--formula", "--formulae")]
    verb = words[0] if words else "help"
    if common.is_root() and verb not in ("--prefix", "services", "as-console-user"):
        common.complain(ROOT_WORDS)
        return 1
    try:
        list(Path().iterdir())
    except OSError:
        common.complain(
            "Error: The current working directory must be readable to "
            f"{pwd.getpwuid(os.geteuid()).pw_name} to run brew."
        )
        return 1
    if not os.environ.get("HOME"):
        common.complain("Error: $HOME must be set to run brew.")
        return 1
    found = {
        "--prefix": prefix,
        "--version": version,
        "--cellar": cellar,
        "list": installed,
        "ls": installed,
        "pin": pin,
        "unpin": pin,
        "install": install,
        "upgrade": upgrade,
        "uninstall": uninstall,
        "remove": uninstall,
        "rm": uninstall,
        "info": info,
        "services": services,
        "update": nothing,
        "analytics": nothing,
        "trust": nothing,
        "doctor": nothing,
        "shellenv": shellenv,
        "outdated": nothing,
        "uses": nothing,
    }.get(verb)
    if found is None:
        common.complain(f"Error: Unknown command: brew {verb}")
        return 1
    return found(words)


def nothing(words: list[str]) -> int:
    """Taken without a word."""
    if words[0] == "update":
        print("Already up-to-date.")
    return 0


def version(words: list[str]) -> int:
    """Of brew."""
    print("Homebrew 6.0.9")
    return 0


def prefix(words: list[str]) -> int:
    """Of brew, or of a formula whether it is installed or not."""
    names = [word for word in words[1:] if not word.startswith("-")]
    for each in names:
        print(PREFIX / "opt" / each)
    if not names:
        print(PREFIX)
    return 0


def cellar(words: list[str]) -> int:
    """Where formulae lie."""
    print(PREFIX / "Cellar")
    return 0


def shellenv(words: list[str]) -> int:
    """To be evaluated."""
    print(f'export HOMEBREW_PREFIX="{PREFIX}";\nexport PATH="{PREFIX}/bin:{PREFIX}/sbin${{PATH+:$PATH}}";')
    return 0


def versions(name: str) -> list[str]:
    """What is installed of a formula."""
    folder = PREFIX / "Cellar" / name
    return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []


def offered(name: str) -> str:
    """The version that would be installed; "" when there is no such formula."""
    folder = FORMULAE / name
    found = sorted(path.name for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []
    return found[-1] if found else ""


def full_name(name: str) -> str:
    """An alias is its formula."""
    aliases = {"python": "python@3.13", "python3": "python@3.13"}
    return aliases.get(name, name)


def installed(words: list[str]) -> int:
    """list, with --versions and --pinned."""
    names = [full_name(word) for word in words[1:] if not word.startswith("-")]
    if "--pinned" in words:
        print("\n".join(sorted(path.name for path in (PREFIX / "var/homebrew/pinned").glob("*"))), end="")
        return 0
    everything = sorted(path.name for path in (PREFIX / "Cellar").glob("*"))
    if "--versions" in words:
        missing = False
        for each in names or everything:
            if versions(each):
                print(each, *versions(each))
            else:
                missing = True
        return 1 if missing else 0
    for each in names:
        if not versions(each):
            common.complain(f"Error: No such keg: {PREFIX}/Cellar/{each}")
            return 1
        for path in sorted((PREFIX / "Cellar" / each / versions(each)[-1]).rglob("*")):
            if path.is_file():
                print(path)
    if not names:
        print("\n".join(everything))
    return 0


def pin(words: list[str]) -> int:
    """pin and unpin."""
    for each in map(full_name, words[1:]):
        mark = PREFIX / "var/homebrew/pinned" / each
        if not versions(each):
            common.complain(f"Error: {each} not installed")
            return 1
        if words[0] == "unpin":
            mark.unlink(missing_ok=True)
        elif mark.is_symlink():
            common.complain(f"Warning: {each} already pinned")
        else:
            mark.parent.mkdir(parents=True, exist_ok=True)
            mark.symlink_to(f"../../../Cellar/{each}/{versions(each)[-1]}")
    return 0


def install(words: list[str]) -> int:
    """From the test's folder into the Cellar, with links as brew makes them."""
    for each in [full_name(word) for word in words[1:] if not word.startswith("-")]:
        wanted = offered(each)
        if not wanted:
            common.complain(f'Error: No available formula with the name "{each}".')
            return 1
        if not os.access(PREFIX / "Cellar", os.W_OK) and (PREFIX / "Cellar").exists():
            common.complain(
                f"Error: The following directories are not writable by your user:\n{PREFIX}/Cellar\n\n"
                "You should change the ownership of these directories to your user.\n"
                f"  sudo chown -R {pwd.getpwuid(os.geteuid()).pw_name} {PREFIX}/Cellar"
            )
            return 1
        if wanted in versions(each):
            common.complain(f"Warning: {each} {wanted} is already installed and up-to-date.")
            continue
        print(f"==> Fetching {each}\n==> Pouring {each}--{wanted}.arm64_tahoe.bottle.tar.gz")
        pour(each, wanted)
        print(f"🍺  {PREFIX}/Cellar/{each}/{wanted}")
    return 0


def pour(name: str, wanted: str) -> None:
    """Copies and links; a link of another version goes to this one."""
    keg = PREFIX / "Cellar" / name / wanted
    keg.parent.mkdir(parents=True, exist_ok=True)
    shutil.copytree(FORMULAE / name / wanted, keg, symlinks=True)
    receipt = {"installed_on_request": True, "source": {"tap": "homebrew/core"}}
    (keg / "INSTALL_RECEIPT.json").write_text(json.dumps(receipt))
    relink(PREFIX / "opt" / name, f"../Cellar/{name}/{wanted}")
    for kind in ("bin", "sbin"):
        for program in sorted((keg / kind).glob("*")):
            relink(PREFIX / kind / program.name, f"../Cellar/{name}/{wanted}/{kind}/{program.name}")


def relink(path: Path, target: str) -> None:
    """Makes or moves a link."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_symlink() or path.exists():
        path.unlink()
    path.symlink_to(target)


def upgrade(words: list[str]) -> int:
    """To what the folder offers now, but not what is pinned."""
    names = [full_name(word) for word in words[1:] if not word.startswith("-")]
    for each in names or sorted(path.name for path in (PREFIX / "Cellar").glob("*")):
        if not versions(each):
            common.complain(f"Error: {each} not installed")
            return 1
        wanted = offered(each)
        if (PREFIX / "var/homebrew/pinned" / each).is_symlink():
            if names:
                common.complain(f"Error: Not upgrading 1 pinned package:\n{each} {versions(each)[-1]}")
                return 1
            continue
        if not wanted or wanted in versions(each):
            if names:
                common.complain(f"Warning: {each} {versions(each)[-1]} already installed")
            continue
        old = versions(each)
        pour(each, wanted)
        for before in old:
            shutil.rmtree(PREFIX / "Cellar" / each / before)
        print(f"==> Upgrading {each}\n  {old[-1]} -> {wanted}")
    return 0


def uninstall(words: list[str]) -> int:
    """Takes a formula away, with its links."""
    for each in [full_name(word) for word in words[1:] if not word.startswith("-")]:
        if not versions(each):
            common.complain(f"Error: No such keg: {PREFIX}/Cellar/{each}")
            return 1
        keg = PREFIX / "Cellar" / each
        print(f"Uninstalling {keg}/{versions(each)[-1]}...")
        for folder in (PREFIX / "bin", PREFIX / "sbin", PREFIX / "opt", PREFIX / "var/homebrew/pinned"):
            for link in folder.glob("*") if folder.is_dir() else []:
                if link.is_symlink() and f"Cellar/{each}/" in str(link.readlink()):
                    link.unlink()
        shutil.rmtree(keg)
    return 0


def info(words: list[str]) -> int:
    """--json=v2 of formulae."""
    names = [full_name(word) for word in words[1:] if not word.startswith("-")]
    formulae: list[dict[str, Any]] = []
    for each in names:
        if not offered(each) and not versions(each):
            common.complain(f'Error: No available formula with the name "{each}".')
            return 1
        there = versions(each)
        formulae.append(
            {
                "name": each,
                "full_name": each,
                "tap": "homebrew/core",
                "versions": {"stable": offered(each) or there[-1], "head": None, "bottle": True},
                "revision": 0,
                "installed": [
                    {"version": one, "installed_as_dependency": False, "installed_on_request": True} for one in there
                ],
                "linked_keg": there[-1] if there else None,
                "pinned": (PREFIX / "var/homebrew/pinned" / each).is_symlink(),
                "outdated": bool(there) and offered(each) not in ("", *there),
                "service": None,
            }
        )
    if any(word.startswith("--json") for word in words):
        print(json.dumps({"formulae": formulae, "casks": []}))
    else:
        for each in formulae:
            print(f"==> {each['name']}: stable {each['versions']['stable']}")
            print("Installed" if each["installed"] else "Not installed")
    return 0


def services(words: list[str]) -> int:
    """list only: what somebody has put where brew puts its own."""
    folder = Path("/Library/LaunchDaemons") if common.is_root() else Path.home() / "Library/LaunchAgents"
    rows = [
        {"name": path.stem.split(".", 2)[-1], "status": "none", "user": None, "file": str(path), "exit_code": None}
        for pattern in ("homebrew.mxcl.*.plist", "sh.brew.*.plist")
        for path in sorted(folder.glob(pattern))
    ]
    if words[1:2] in (["list"], ["info"], []):
        print(json.dumps(rows) if "--json" in words else "\n".join(f"{row['name']} {row['status']}" for row in rows))
        return 0
    common.complain("Error: the double starts no services of brew")
    return 1
