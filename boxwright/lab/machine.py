"""The machine that carries the lab: commands as root, apt packages, free disk space.

Used by the lab only; a box is never touched from here.
"""

from __future__ import annotations

import getpass
import os
import shlex
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TextIO

from boxwright.errors import Failed, Problem, Refused
from boxwright.lab.locks import locked
from boxwright.paths import cache_dir

#: Lines of a failed command's output that go into the error; the whole output stays in the log file.
TAIL_LINES = 15
INOTIFY_INSTANCES = "fs.inotify.max_user_instances"


def is_root() -> bool:
    """True when this process may do everything on this machine."""
    return os.geteuid() == 0


def root_command(command: Sequence[str], *, why: str) -> list[str]:
    """`command` as it must be started to run as root: itself, or behind sudo.

    `why` completes "root is needed to ...". Raises Refused (BW301) when there is neither root nor a usable sudo. sudo
    asks for its password on a terminal once; without a terminal it must not need one.
    """
    if is_root():
        return list(command)
    user = getpass.getuser()
    if shutil.which("sudo") is None:
        raise Refused(
            [
                Problem(
                    "BW301",
                    f"root is needed to {why}, and user {user!r} has no sudo",
                    help="run the command as root, or install sudo and allow this user to use it",
                )
            ]
        )
    if subprocess.run(["sudo", "-n", "true"], capture_output=True).returncode == 0:
        return ["sudo", "-n", *command]
    if sys.stdin.isatty():
        print(f"boxwright: root is needed to {why}", file=sys.stderr)
        if subprocess.run(["sudo", "-v"]).returncode == 0:
            return ["sudo", *command]
    raise Refused(
        [
            Problem(
                "BW301",
                f"root is needed to {why}, and sudo does not let user {user!r} without a password",
                help="run the command on a terminal, so that sudo can ask for the password, or run it as root",
            )
        ]
    )


def can_be_root(why: str) -> bool:
    """True when `root_command` will not refuse; on a terminal sudo may ask for its password now."""
    try:
        root_command(["true"], why=why)
    except Refused:
        return False
    return True


def run(
    command: Sequence[str],
    *,
    what: str,
    log: Path,
    environment: Mapping[str, str] | None = None,
    code: str = "BW307",
) -> None:
    """Run `command` with its output in the file `log`; raise Failed with the last lines of it when it fails.

    `what` names the work in the error message ("building the box image").
    """
    log.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    log.unlink(missing_ok=True)
    with os.fdopen(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as output:
        output.write(f"$ {shlex.join(command)}\n")
        output.flush()
        try:
            status = _run(command, output, {**os.environ, **(environment or {})})
        except FileNotFoundError:
            output.write(f"{command[0]}: not found\n")
            status = 127
    if status != 0:
        raise Failed(
            [
                Problem(
                    code,
                    f"{what} failed: `{shlex.join(command[:3])} ...` ended with status {status}\n{tail(log)}",
                    help=f"the whole output is in {log}",
                )
            ]
        )


_running: set[subprocess.Popen[bytes]] = set()
_stopping = threading.Event()


def _run(command: Sequence[str], output: TextIO, environment: Mapping[str, str]) -> int:
    """Run the command to its end; its exit status. `stop_running` may end it before."""
    if _stopping.is_set():
        return 128 + signal.SIGTERM
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, env=environment
    )
    _running.add(process)
    try:
        return process.wait()
    except KeyboardInterrupt:
        with suppress(PermissionError):
            process.terminate()
        raise
    finally:
        _running.discard(process)


def stop_running() -> None:
    """End what `run` started in other threads, and let it start nothing more: the person wants to stop.

    What runs behind sudo cannot be ended by this user; on a terminal Ctrl-C has reached it as well.
    """
    _stopping.set()
    for process in list(_running):
        with suppress(PermissionError):
            process.terminate()


def tail(log: Path, lines: int = TAIL_LINES) -> str:
    """The last `lines` lines of a log file, indented for an error message; empty when there is no such file."""
    if not log.exists():
        return ""
    text = log.read_text(encoding="utf-8", errors="replace").splitlines()[-lines:]
    return "\n".join(f"    {line}" for line in text)


def missing_packages(packages: Sequence[str]) -> list[str]:
    """Those of the Debian packages that are not installed on this machine, in the order given."""
    query = subprocess.run(
        ["dpkg-query", "-W", "-f", "${Package} ${db:Status-Status}\n", *packages], capture_output=True, text=True
    )
    installed = {line.split()[0] for line in query.stdout.splitlines() if line.endswith(" installed")}
    return [package for package in packages if package not in installed]


def install_packages(packages: Sequence[str], *, why: str, log: Path) -> bool:
    """Make sure that the Debian packages are installed; False when they were already.

    Raises Refused (BW301, BW302) when this machine has no apt or this user may not use it, Failed (BW307) when apt
    fails.
    """
    if shutil.which("apt-get") is None:
        raise Refused(
            [
                Problem(
                    "BW302",
                    f"{', '.join(packages)} is needed to {why}, and this machine has no apt-get to install it with",
                    help="the lab runs on Debian 12 or newer and Ubuntu 22.04 or newer; elsewhere install it by hand",
                )
            ]
        )
    with locked(cache_dir() / "lab" / "apt.lock"):
        missing = missing_packages(packages)
        if missing:
            _install(missing, why, log)
    return bool(missing)


def _install(missing: Sequence[str], why: str, log: Path) -> None:
    command = ["apt-get", "-o", "DPkg::Lock::Timeout=300", "-y", "--no-install-recommends"]
    settings = ["env", "DEBIAN_FRONTEND=noninteractive", "NEEDRESTART_SUSPEND=1"]
    install = root_command([*settings, *command, "install", *missing], why=why)
    try:
        run(install, what=f"installing {', '.join(missing)}", log=log)
    except Failed:
        # The usual cause is a package list that is missing or older than the mirror: read it anew, then judge.
        run(root_command([*settings, *command, "update"], why=why), what="apt-get update", log=log)
        run(install, what=f"installing {', '.join(missing)}", log=log)


def free_bytes(path: Path) -> int:
    """Bytes that this user may still write on the file system that holds `path` or its nearest existing parent."""
    place = path
    while not place.exists():
        place = place.parent
    return shutil.disk_usage(place).free


def require_disk(path: Path, needed: int, *, why: str) -> None:
    """Raise Refused (BW305) when fewer than `needed` bytes are free where `path` is or will be."""
    free = free_bytes(path)
    if free < needed:
        raise Refused(
            [
                Problem(
                    "BW305",
                    f"too little disk space at {path}: {free / 1e9:.1f} GB free, {needed / 1e9:.1f} GB needed to {why}",
                    help="free some space, or put the lab's files elsewhere with BOXWRIGHT_CACHE_DIR=/some/other/disk",
                )
            ]
        )


def inotify_shortage(proc: Path = Path("/proc")) -> str:
    """In words, that root has used up its inotify instances; empty when some are left, or nobody can tell.

    Root in a container counts as root of the machine, and the kernel allows 128 by default (inotify(7)); a box that
    has booted holds about five. Which a process holds can be seen by root alone.
    """
    try:
        allowed = int((proc / "sys" / INOTIFY_INSTANCES.replace(".", "/")).read_text())
    except (OSError, ValueError):
        return ""
    used = 0
    for descriptor in proc.glob("[0-9]*/fd/*"):
        with suppress(OSError):
            used += descriptor.readlink().name == "anon_inode:inotify"
    # Some belong to other users: near the limit is at it.
    return f"{used} of {allowed} inotify instances of this machine are in use" if used >= allowed - 4 else ""


def architecture() -> str:
    """This machine's architecture as Debian names it: amd64 or arm64. Raises Refused (BW302) for any other."""
    names = {"x86_64": "amd64", "aarch64": "arm64", "arm64": "arm64"}
    machine = os.uname().machine
    if machine not in names:
        raise Refused([Problem("BW302", f"the lab runs on x86_64 and aarch64 machines, this one is {machine}")])
    return names[machine]


def os_release() -> dict[str, str]:
    """The fields of /etc/os-release (ID, VERSION_CODENAME ...); empty where there is no such file."""
    path = Path("/etc/os-release")
    if not path.exists():
        return {}
    pairs = (line.split("=", 1) for line in path.read_text(encoding="utf-8").splitlines() if "=" in line)
    return {key.strip(): value.strip().strip("\"'") for key, value in pairs}
