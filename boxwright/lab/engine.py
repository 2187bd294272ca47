"""The container engine of this machine: found, or installed and started.

The engine that answers is used as it is (`DOCKER_HOST` is honoured). Where none answers, Debian's docker.io is
installed and started: by systemd where it runs, else `dockerd` is started in the background and stays when the command
ends.
"""

from __future__ import annotations

import getpass
import grp
import os
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn
from urllib.parse import urlsplit

from boxwright.errors import Failed, Problem, Refused
from boxwright.lab import machine
from boxwright.lab.locks import locked
from boxwright.lab.progress import Progress
from boxwright.paths import cache_dir, state_dir

if TYPE_CHECKING:
    from docker import DockerClient

SOCKET = Path("/var/run/docker.sock")
START_TIMEOUT = 60.0
#: Seconds after which a daemon that was started must at least be a process.
GRACE = 5.0
#: Run by a root shell with the log file as its argument, since only root may see and write there. In a container whose
#: first process reaps nobody, a killed daemon stays as a zombie, and the next one takes it for a running one and gives
#: up; so a process number that is not that of a live daemon is forgotten. setsid lets the daemon outlive this command.
START = """\
for daemon in docker.pid:dockerd docker/containerd/containerd.pid:containerd; do
    file="/var/run/${daemon%%:*}"
    [ -e "$file" ] || continue
    status="/proc/$(cat "$file")/status"
    if ! grep -qx "Name:.${daemon##*:}" "$status" || grep -q "^State:.Z" "$status"; then rm -f "$file"; fi
done 2>/dev/null
setsid dockerd >>"$1" 2>&1 </dev/null &
"""
#: Set while a command is started again with the group `docker`, so that it is never started a third time.
AGAIN = "BOXWRIGHT_LAB_WITH_GROUP"


class NotPermitted(Exception):
    """An engine runs, and this process may not use it."""


def connect(timeout: float = 600.0) -> DockerClient | None:
    """A client of the engine that answers, or None when none does.

    Raises NotPermitted when its socket belongs to others, Refused (BW306) when it is one that the lab cannot use.
    """
    import docker
    from docker.errors import DockerException

    host = os.environ.get("DOCKER_HOST", "")
    if not host and SOCKET.exists() and not os.access(SOCKET, os.R_OK | os.W_OK):
        raise NotPermitted
    try:
        client = docker.from_env(timeout=int(timeout))
        client.ping()
    except DockerException as error:
        if "Permission denied" in str(error):
            raise NotPermitted from error
        return None
    require_local(host, client.info())
    return client


def require_local(host: str, info: dict[str, object]) -> None:
    """Refuse (BW306) an engine whose containers this machine cannot reach by address, or that cannot run a box.

    `host` is DOCKER_HOST or empty, `info` the engine's answer to `docker info`.
    """
    where = urlsplit(host)
    reasons = []
    if where.scheme in ("tcp", "http", "https", "ssh") and where.hostname not in ("127.0.0.1", "::1", "localhost"):
        reasons.append(f"DOCKER_HOST={host} is an engine on another machine")
    options = info.get("SecurityOptions") or []
    if isinstance(options, list) and any("name=rootless" in str(option) for option in options):
        reasons.append("the engine runs rootless; a box runs an engine of its own, which that does not allow")
    if info.get("OSType") not in (None, "linux"):
        reasons.append(f"the engine runs {info.get('OSType')} containers")
    if "Docker Desktop" in str(info.get("OperatingSystem", "")):
        reasons.append("the engine is Docker Desktop, whose containers have no address that this machine can reach")
    if reasons:
        raise Refused(
            [
                Problem(
                    "BW306",
                    f"the lab cannot use this container engine: {reason}",
                    variable="DOCKER_HOST" if host else None,
                    help="unset DOCKER_HOST to let the lab use (or install) a Docker Engine on this machine",
                )
                for reason in reasons
            ]
        )


def ensure(progress: Progress) -> DockerClient:
    """A client of a running engine, which is installed and started first when that is needed.

    Raises Refused when this machine or this user does not allow that (BW301, BW302, BW304, BW306), Failed (BW303) when
    the engine does not start.
    """
    try:
        client = connect()
        if client is not None:
            return client
        host = os.environ.get("DOCKER_HOST")
        if host:
            raise Refused(
                [
                    Problem(
                        "BW303",
                        f"no container engine answers at DOCKER_HOST={host}",
                        variable="DOCKER_HOST",
                        help="start that engine, or unset DOCKER_HOST to let the lab start one on this machine",
                    )
                ]
            )
        with locked(cache_dir() / "lab" / "engine.lock"):
            client = connect()  # another command may have started it meanwhile
            if client is not None:
                return client
            with progress.step("container engine", "installing and starting") as step:
                step.result = install_and_start()
        client = connect()
    except NotPermitted:
        with_docker_group(progress)
    if client is None:
        raise _no_start("it stopped again at once")
    return client


def install_and_start() -> str:
    """Install docker.io when there is no dockerd, start it, wait until it answers; what was done, in words."""
    logs = state_dir() / "log"
    done = []
    # A machine may have the `docker` client alone, so it is the daemon that counts.
    if shutil.which("dockerd", path=os.environ.get("PATH", "") + ":/usr/sbin:/usr/local/sbin") is None:
        machine.install_packages(["docker.io"], why="run the lab's boxes", log=logs / "apt-engine.log")
        done.append("installed")
    if not SOCKET.exists() or not _answers():
        start(logs / "dockerd.log")
    done.append("started")
    began = time.monotonic()
    while not _answers():
        waited = time.monotonic() - began
        if waited > START_TIMEOUT:
            raise _no_start(f"no answer after {START_TIMEOUT:.0f} s")
        if waited > GRACE and not runs("dockerd"):
            raise _no_start("it ended at once")
        time.sleep(0.2)
    return ", ".join(done)


def start(log: Path) -> None:
    """Start the engine's daemon: as a service where systemd runs, else in the background with its output in `log`."""
    why = "start the container engine"
    if Path("/run/systemd/system").is_dir():
        machine.run(
            machine.root_command(["systemctl", "enable", "--now", "docker.service"], why=why),
            what="starting the container engine",
            log=log.with_name("systemctl-docker.log"),
            code="BW303",
        )
        return
    log.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    log.touch(mode=0o600)
    subprocess.run(machine.root_command(["sh", "-c", START, "sh", str(log)], why=why), check=True)


def process(number: int | str, proc: Path = Path("/proc")) -> str | None:
    """The name of a live process; None when there is none, or only a zombie."""
    try:
        text = (proc / str(number) / "stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    name, rest = text[text.index("(") + 1 : text.rindex(")")], text[text.rindex(")") + 2 :]
    return None if rest.startswith("Z") else name


def runs(name: str, proc: Path = Path("/proc")) -> bool:
    """True when a live process of that name exists on this machine."""
    return any(process(path.name, proc) == name for path in proc.glob("[0-9]*"))


def _answers() -> bool:
    """True when a daemon listens on the socket, also one that this user may not use."""
    try:
        return connect(timeout=10) is not None
    except NotPermitted:
        return True


def _no_start(reason: str) -> Failed:
    log = state_dir() / "log" / "dockerd.log"
    known = f"\n{machine.tail(log)}" if log.exists() else ""
    systemd = Path("/run/systemd/system").is_dir()
    return Failed(
        [
            Problem(
                "BW303",
                f"the container engine does not start: {reason}{known}",
                help="read `journalctl -u docker`" if systemd else f"its whole output is in {log}",
            )
        ]
    )


def with_docker_group(progress: Progress) -> NoReturn:
    """Start this very command again as a member of the group that owns the engine's socket, and never return.

    Somebody who may use sudo is added to the group; a new membership counts from the next login on, and `sg` makes it
    count for this command. Raises Refused (BW304) when that is not possible.
    """
    user = getpass.getuser()
    group = _socket_group()
    refused = Refused(
        [
            Problem(
                "BW304",
                f"a container engine runs, but user {user!r} may not use it ({SOCKET} belongs to group {group!r})",
                help=f"run `sudo usermod -aG {group} {user}` and log in again, or run the command as root",
            )
        ]
    )
    if os.environ.get(AGAIN) or os.environ.get("DOCKER_HOST") or group == "root" or shutil.which("sg") is None:
        raise refused
    if user not in grp.getgrnam(group).gr_mem:
        try:
            command = machine.root_command(["usermod", "-aG", group, user], why=f"add {user!r} to group {group!r}")
        except Refused:
            raise refused from None
        subprocess.run(command, check=True)
        progress.say(f"container engine: user {user!r} added to group {group!r}; its members have root's power here")
    progress.close()
    os.environ[AGAIN] = "1"
    command = [sys.executable, *sys.orig_argv[1:]]
    os.execvp("sg", ["sg", group, "-c", shlex.join(command)])  # noqa: S606 - sg's -c is a shell by itself


def _socket_group() -> str:
    try:
        return grp.getgrgid(SOCKET.stat().st_gid).gr_name
    except (OSError, KeyError):
        return "docker"
