"""What the double's programs share: where things are, what the test has chosen, what is kept."""

from __future__ import annotations

import fcntl
import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, NoReturn

ROOT = Path("/usr/libexec/double")
#: Debian's own programs, where nobody's PATH finds them.
LINUX = ROOT / "linux"
#: Written by the test, read by everybody; see `Options` in ../__init__.py.
OPTIONS = ROOT / "options.json"
#: What outlives a boot, and what does not.
STATE, VOLATILE = ROOT / "state", ROOT / "volatile"
SOCKET = VOLATILE / "launchd.sock"

PATH = "/usr/bin:/bin:/usr/sbin:/sbin"

#: Of each macOS: the version, the build and the kernel's version that go with it.
RELEASES = {
    "14": ("14.8.1", "23J30", "23.6.0"),
    "15": ("15.7.3", "24G419", "24.6.0"),
    "26": ("26.5.2", "25F84", "25.5.0"),
    "27": ("27.0", "26A428", "26.0.0"),
}
#: Of each chip: the model of the Mac, and its performance and efficiency cores.
CHIPS = {
    "Apple M1 Max": ("Mac13,1", 8, 2),
    "Apple M2 Max": ("Mac14,13", 8, 4),
    "Apple M2 Ultra": ("Mac14,14", 16, 8),
    "Apple M3 Ultra": ("Mac15,14", 24, 8),
    "Apple M4 Max": ("Mac16,9", 12, 4),
}


@cache
def options() -> dict[str, Any]:
    """What the test has chosen."""
    found: dict[str, Any] = json.loads(OPTIONS.read_text())
    return found


def version() -> int:
    """14, 15, 26 or 27."""
    return int(options()["version"].split(".")[0])


def full_version() -> str:
    """Of what the test has named, or of its newest."""
    wanted: str = options()["version"]
    return wanted if "." in wanted else RELEASES[wanted][0]


def release() -> tuple[int, ...]:
    """The same in numbers."""
    return tuple(int(part) for part in full_version().split("."))


def is_root() -> bool:
    """Whether the caller may do everything."""
    return os.geteuid() == 0


def linux(name: str) -> str:
    """Path of a program of Debian's."""
    for folder in ("bin", "sbin"):
        path = LINUX / folder / name
        if path.exists():
            return str(path)
    raise FileNotFoundError(name)


def become(name: str, arguments: list[str], **environment: str) -> NoReturn:
    """Goes on as a program of Debian's, which calls itself `name` in what it says."""
    sys.stdout.flush()
    os.execve(linux(name), [name, *arguments], {**os.environ, **environment})


def say(text: str = "") -> None:
    """To standard output."""
    print(text, flush=True)


def complain(text: str = "") -> None:
    """To standard error."""
    print(text, file=sys.stderr, flush=True)


def stamp(program: str) -> str:
    """How NSLog begins a line."""
    now = time.time()
    moment = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(now))
    return f"{moment}.{int(now * 1000) % 1000:03d} {program}[{os.getpid()}:{os.getpid() * 7 % 99991:x}]"


@contextmanager
def kept(name: str, *, volatile: bool = False, write: bool = True) -> Iterator[dict[str, Any]]:
    """A dictionary that outlives this process, and the boot unless it is volatile. Only root can change it."""
    path = (VOLATILE if volatile else STATE) / f"{name}.json"
    if not write or not is_root():
        try:
            found = json.loads(path.read_text())
        except FileNotFoundError:
            found = {}
        yield found
        return
    with (path.parent / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            found = json.loads(path.read_text())
        except FileNotFoundError:
            found = {}
        before = json.dumps(found, sort_keys=True)
        yield found
        if json.dumps(found, sort_keys=True) != before:
            temporary = path.with_suffix(".new")
            temporary.write_text(json.dumps(found, indent=1))
            temporary.chmod(0o644)
            temporary.rename(path)


def peek(name: str, *, volatile: bool = False) -> dict[str, Any]:
    """The same, to look at only."""
    with kept(name, volatile=volatile, write=False) as found:
        return found


def getopt(arguments: list[str], known: str) -> tuple[list[tuple[str, str]], list[str], str]:
    """BSD's getopt(3): options, operands, and the letter that is none ("" where all are). It stops at the first
    operand; `known` has a colon after each letter that takes a value."""
    found: list[tuple[str, str]] = []
    rest = list(arguments)
    while rest and rest[0].startswith("-") and rest[0] != "-":
        word = rest.pop(0)
        if word == "--":
            break
        letters = word[1:]
        while letters:
            letter, letters = letters[0], letters[1:]
            place = known.find(letter)
            if place < 0 or letter in ":-":
                return found, rest, letter
            if known[place + 1 : place + 2] == ":":
                if not letters and not rest:
                    return found, rest, letter
                found.append((letter, letters or rest.pop(0)))
                break
            found.append((letter, ""))
    return found, rest, ""


def illegal(name: str, letter: str, usage: str, code: int = 1) -> int:
    """What BSD programs say to an option that they do not have."""
    complain(f"{name}: illegal option -- {letter}")
    complain(f"usage: {usage}")
    return code
