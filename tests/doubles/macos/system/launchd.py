"""Process number 1: what launchd is on a Mac, as far as daemons of the system and agents of who is signed in go.

One process and one thread: it starts what is to run, notices what has ended, and answers launchctl over a socket. It
follows section 2 of the reference (see README.md); what a job is, and when it starts again, is launchd.plist(5).
"""

from __future__ import annotations

import ctypes
import grp
import json
import os
import plistlib
import pwd
import resource
import selectors
import shutil
import signal
import socket
import struct
import sys
import time
import traceback
import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import common

OVERRIDES = Path("/private/var/db/com.apple.xpc.launchd")
LOG = Path("/private/var/log/com.apple.xpc.launchd/launchd.log")
FOLDERS = (Path("/System/Library/LaunchDaemons"), Path("/Library/LaunchDaemons"))
#: Then that of the person who signs in.
AGENTS = (Path("/System/Library/LaunchAgents"), Path("/Library/LaunchAgents"))
#: Numbers from 107 on have names of launchd's own, those below are errno's.
NAMES = {
    107: "Malformed bundle",
    108: "Invalid path",
    109: "Invalid property list",
    110: "Invalid or missing service identifier",
    111: "Invalid or missing Program/ProgramArguments",
    112: "Could not find specified domain",
    113: "Could not find specified service",
    114: "The specified username does not exist",
    115: "The specified group does not exist",
    119: "Service is disabled",
    121: "Path not searched for services",
    122: "Path had bad ownership/permissions",
    124: "Domain is tearing down",
    125: "Domain does not support specified action",
    133: "Multiple errors were returned; see stderr",
    134: "Service cannot load in requested session",
    139: "Service cannot presently execute",
    144: "Requestor lacks required entitlement",
    150: "Operation not permitted while System Integrity Protection is engaged",
    155: "Refusing to execute/trust quarantined program/file",
}
#: As Darwin has them where Linux has others, or says them differently.
ERRNO = {5: "Input/output error", 36: "Operation now in progress", 37: "Operation already in progress"}
SYSEXITS = {
    64: "EX_USAGE",
    65: "EX_DATAERR",
    66: "EX_NOINPUT",
    67: "EX_NOUSER",
    68: "EX_NOHOST",
    69: "EX_UNAVAILABLE",
    70: "EX_SOFTWARE",
    71: "EX_OSERR",
    72: "EX_OSFILE",
    73: "EX_CANTCREAT",
    74: "EX_IOERR",
    75: "EX_TEMPFAIL",
    76: "EX_PROTOCOL",
    77: "EX_NOPERM",
    78: "EX_CONFIG",
}
LIMITS = {
    "Core": resource.RLIMIT_CORE,
    "CPU": resource.RLIMIT_CPU,
    "Data": resource.RLIMIT_DATA,
    "FileSize": resource.RLIMIT_FSIZE,
    "MemoryLock": resource.RLIMIT_MEMLOCK,
    "NumberOfFiles": resource.RLIMIT_NOFILE,
    "NumberOfProcesses": resource.RLIMIT_NPROC,
    "Stack": resource.RLIMIT_STACK,
}
USAGE = "Usage: launchctl <subcommand> ... | help [subcommand]"


def error_text(number: int) -> str:
    """What launchctl calls an error."""
    return NAMES.get(number) or ERRNO.get(number) or os.strerror(number)


@dataclass
class Answer:
    """What a launchctl prints and ends with."""

    code: int = 0
    out: str = ""
    err: str = ""


@dataclass(eq=False)
class Job:
    """One loaded job."""

    label: str
    path: str
    plist: dict[str, Any]
    domain: str = "system"
    pid: int = 0
    runs: int = 0
    # As wait(2) gives it; None: it never ended.
    status: int | None = None
    exit_reason: str = ""
    spawn_failed: bool = False
    started: float = 0.0
    # Moments of time.monotonic(): when it is started again, at a fixed interval, killed, and forgotten.
    respawn_at: float | None = None
    timer_at: float | None = None
    kill_at: float | None = None
    gone_at: float | None = None
    # While it is being removed: not forgotten before this, though its process may have ended.
    gone_after: float = 0.0
    removing: bool = False
    # Not started by itself until somebody asks (see Options.sluggish).
    stuck: bool = False
    # Of kickstart: what is to be said when the next process runs.
    kicked: list[Callable[[Answer], None]] = field(default_factory=list)
    kick: bool = False

    @property
    def target(self) -> str:
        """By which it is known."""
        return f"{self.domain}/{self.label}"

    @property
    def uid(self) -> int:
        """Whose domain it is in."""
        return 0 if self.domain == "system" else int(self.domain.split("/")[1])

    @property
    def throttle(self) -> int:
        """Seconds between two starts, as the property list wants it."""
        return int(self.plist.get("ThrottleInterval", 10))

    @property
    def exit_timeout(self) -> float:
        """Seconds from SIGTERM to SIGKILL."""
        return float(self.plist.get("ExitTimeOut", 5))

    @property
    def arguments(self) -> list[str]:
        """The command."""
        found = self.plist.get("ProgramArguments")
        return [str(word) for word in found] if found else [str(self.plist["Program"])]

    @property
    def program(self) -> str:
        """What is executed."""
        return str(self.plist.get("Program") or self.arguments[0])

    @property
    def keeps(self) -> bool:
        """Whether it has any KeepAlive."""
        return bool(self.plist.get("KeepAlive", False))

    @property
    def starts(self) -> bool:
        """Whether it starts when it is loaded."""
        return bool(self.plist.get("RunAtLoad")) or self.wants_first()

    def wants_first(self) -> bool:
        """Whether KeepAlive alone starts it: SuccessfulExit implies RunAtLoad, a path decides."""
        value = self.plist.get("KeepAlive", False)
        if isinstance(value, bool):
            return value
        return "SuccessfulExit" in value or "Crashed" in value or self.wants(None)

    def wants(self, status: int | None) -> bool:
        """Whether it is started again after it ended like that."""
        value = self.plist.get("KeepAlive", False)
        if isinstance(value, bool):
            return value
        good = status is not None and os.WIFEXITED(status) and os.WEXITSTATUS(status) == 0
        if "SuccessfulExit" in value and status is not None and good == bool(value["SuccessfulExit"]):
            return True
        if "Crashed" in value and status is not None and os.WIFSIGNALED(status) == bool(value["Crashed"]):
            return True
        return any(Path(path).exists() == bool(state) for path, state in (value.get("PathState") or {}).items())


class Refusal(Exception):
    """A job that launchd does not take, by the number of its error."""

    def __init__(self, number: int, first: str = "") -> None:
        super().__init__(number)
        self.number, self.first = number, first


def read_plist(path: str, uid: int = 0) -> dict[str, Any]:
    """The property list of a job, of root or of the person in whose domain it shall be. Raises Refusal."""
    try:
        with Path(path).open("rb") as handle:
            about = os.fstat(handle.fileno())
            # Apple's parser minds no white space before the declaration, Python's does.
            data = handle.read()
    except OSError as error:
        raise Refusal(5) from error
    if about.st_uid not in (0, uid) or about.st_mode & 0o022:
        raise Refusal(122, f"{path}: Path had bad ownership/permissions")
    try:
        found = plistlib.loads(data.lstrip() if not data.startswith(b"bplist") else data)
    except Exception as error:
        raise Refusal(5) from error
    if not isinstance(found, dict) or not isinstance(found.get("Label"), str) or not found["Label"]:
        raise Refusal(5)
    if not found.get("Program") and not found.get("ProgramArguments"):
        raise Refusal(5)
    return found


def fits(plist: dict[str, Any], domain: str) -> bool:
    """Whether LimitLoadToSessionType lets a job into a domain; without that an agent is for sessions with a screen."""
    wanted = plist.get("LimitLoadToSessionType")
    if wanted is None:
        return True
    return ("System" if domain == "system" else "Aqua") in ([wanted] if isinstance(wanted, str) else wanted)


def next_calendar(wanted: Any, now: datetime) -> datetime:
    """The next minute that StartCalendarInterval names."""
    entries = wanted if isinstance(wanted, list) else [wanted]
    best = now + timedelta(days=366 * 5)
    for entry in entries:
        moment = now.replace(second=0, microsecond=0) + timedelta(minutes=1)
        while moment < best:
            weekday = (moment.weekday() + 1) % 7
            if (
                entry.get("Month", moment.month) != moment.month
                or entry.get("Day", moment.day) != moment.day
                or entry.get("Weekday", weekday) % 7 != weekday
            ):
                moment = moment.replace(hour=0, minute=0) + timedelta(days=1)
            elif entry.get("Hour", moment.hour) != moment.hour:
                moment = moment.replace(minute=0) + timedelta(hours=1)
            elif entry.get("Minute", moment.minute) != moment.minute:
                moment += timedelta(minutes=1)
            else:
                best = moment
    return best


class Launchd:
    """All jobs, and the loop that serves them."""

    def __init__(self) -> None:
        # By target.
        self.jobs: dict[str, Job] = {}
        # The domains of those who are signed in at the screen.
        self.sessions: set[str] = set()
        self.selector = selectors.DefaultSelector()
        self.ending = False
        # Of each program that was started: what it was like then, by its inode (see `killed_by_signature`).
        self.signatures: dict[tuple[int, int], tuple[int, int]] = {}
        self.just_removed: dict[str, float] = {}

    # Boot and end

    def boot(self) -> None:
        """What is done before the first job."""
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        # Darwin's default, which every process inherits: `launchctl limit maxfiles` says 256 and unlimited.
        resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
        lay_out_etc()
        for folder in (Path("/private/var/run"), Path("/private/tmp"), common.VOLATILE):
            empty(folder)
        Path("/private/var/run/sshd").mkdir(mode=0o755)
        first_boot()
        seal_system()
        awake = common.VOLATILE / "awake"
        awake.mkdir()
        awake.chmod(0o1777)
        session = {"boot": time.time(), "uuid": str(uuid.uuid4()).upper()}
        (common.VOLATILE / "boot.json").write_text(json.dumps(session))
        for folder in (OVERRIDES, LOG.parent):
            folder.mkdir(parents=True, exist_ok=True)
        self.log("launchd", "bootstrap: starting")
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        listener.bind(str(common.SOCKET))
        common.SOCKET.chmod(0o666)
        listener.listen(64)
        listener.setblocking(False)
        self.selector.register(listener, selectors.EVENT_READ, self.accept)
        self.load_all(FOLDERS, "system")
        (common.VOLATILE / "booted").touch()

    def load_all(self, folders: tuple[Path, ...], domain: str) -> None:
        """Loads what is in these folders, as at a boot or a login."""
        for path in (path for folder in folders for path in sorted(folder.glob("*.plist"))):
            try:
                plist = read_plist(str(path), 0 if domain == "system" else int(domain.split("/")[1]))
                if self.disabled(domain, plist["Label"], plist) or not fits(plist, domain):
                    continue
                self.add(Job(plist["Label"], str(path), plist, domain))
            except Exception as error:
                refusal = error if isinstance(error, Refusal) else Refusal(5)
                self.log(str(path), f"failed to bootstrap: {refusal.number}: {error_text(refusal.number)}")

    def sign_in(self, uid: int) -> Answer:
        """Somebody signs in at the screen: loginwindow asks for their domain."""
        domain = f"gui/{uid}"
        if domain not in self.sessions:
            self.sessions.add(domain)
            self.load_all((*AGENTS, Path(pwd.getpwuid(uid).pw_dir) / "Library/LaunchAgents"), domain)
        return Answer()

    def sign_out(self, uid: int) -> Answer:
        """Everything of their domain is told to end, and the domain is gone."""
        domain = f"gui/{uid}"
        for job in [job for job in self.jobs.values() if job.domain == domain]:
            self.bootout(domain, job.label)
        self.sessions.discard(domain)
        return Answer()

    def run(self) -> None:
        """Until it is told to end."""
        wake, waker = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(waker, warn_on_full_buffer=False)
        for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self.on_signal)
        self.selector.register(wake, selectors.EVENT_READ, lambda: os.read(wake, 4096))
        self.boot()
        while not self.ending:
            self.turn()
        self.shut_down()

    def on_signal(self, number: int, frame: object) -> None:
        """Python calls it between two steps of the loop; ended children are looked for in each turn anyway."""
        if number != signal.SIGCHLD:
            self.ending = True

    def turn(self) -> None:
        """Wait for something and see to it."""
        moments = [
            moment
            for job in self.jobs.values()
            for moment in (job.respawn_at, job.timer_at, job.kill_at, job.gone_at)
            if moment is not None
        ]
        timeout = max(0.0, min(moments) - time.monotonic()) if moments else None
        for work in (*(key.data for key, _ in self.selector.select(timeout)), self.reap, self.on_time):
            # The end of process 1 would be the end of the Mac.
            try:
                work()
            except Exception:
                self.log("launchd", traceback.format_exc())

    def shut_down(self) -> None:
        """SIGTERM to all, SIGKILL to what remains; the end of process 1 is the end of the machine."""
        for job in self.jobs.values():
            if job.pid:
                with suppress(ProcessLookupError):
                    os.kill(job.pid, signal.SIGTERM)
        patience = max([job.exit_timeout for job in self.jobs.values() if job.pid], default=0)
        deadline = time.monotonic() + min(patience, 8)
        while any(job.pid for job in self.jobs.values()) and time.monotonic() < deadline:
            self.selector.select(0.05)
            self.reap()
        with suppress(PermissionError, ProcessLookupError):
            os.kill(-1, signal.SIGKILL)
        sys.exit(0)

    def log(self, who: str, text: str) -> None:
        """A line of launchd's log."""
        now = datetime.now()
        with suppress(OSError), LOG.open("a") as handle:
            handle.write(f"{now:%Y-%m-%d %H:%M:%S.%f} ({who}) <Notice>: {text}\n")

    # Jobs

    def overrides(self, domain: str) -> dict[str, bool]:
        """Label to disabled, for what somebody has ever enabled or disabled."""
        try:
            return dict(plistlib.loads(self.override_file(domain).read_bytes()))
        except FileNotFoundError:
            return {}

    @staticmethod
    def override_file(domain: str) -> Path:
        """Where that is kept."""
        return OVERRIDES / ("disabled.plist" if domain == "system" else f"disabled.{domain.split('/')[1]}.plist")

    def override(self, domain: str, label: str, value: bool) -> None:
        """Keeps it."""
        found = self.overrides(domain)
        found[label] = value
        self.override_file(domain).write_bytes(plistlib.dumps(found))

    def disabled(self, domain: str, label: str, plist: dict[str, Any]) -> bool:
        """Whether a job must not be loaded."""
        return self.overrides(domain).get(label, bool(plist.get("Disabled", False)))

    def add(self, job: Job) -> None:
        """Loads a job, and starts it when it is to start."""
        self.jobs[job.target] = job
        self.arm(job)
        quick = time.monotonic() - self.just_removed.get(job.target, -1000) < 10
        if common_options().get("sluggish") and quick:
            job.stuck = True
        elif job.starts:
            self.spawn(job)

    def arm(self, job: Job) -> None:
        """Sets the next moment of its timetable."""
        job.timer_at = None
        if job.plist.get("StartInterval"):
            job.timer_at = time.monotonic() + float(job.plist["StartInterval"])
        elif job.plist.get("StartCalendarInterval"):
            now = datetime.now()
            wait = next_calendar(job.plist["StartCalendarInterval"], now) - now
            job.timer_at = time.monotonic() + wait.total_seconds()

    def on_time(self) -> None:
        """Does what has become due."""
        now = time.monotonic()
        for job in list(self.jobs.values()):
            if job.kill_at is not None and now >= job.kill_at:
                job.kill_at = None
                if job.pid:
                    self.log(job.label, "Service did not exit after SIGTERM. Sending SIGKILL.")
                    with suppress(ProcessLookupError):
                        os.kill(job.pid, signal.SIGKILL)
            if job.gone_at is not None and now >= job.gone_at:
                self.forget(job)
                continue
            if job.respawn_at is not None and now >= job.respawn_at:
                job.respawn_at = None
                if not job.pid and not job.removing:
                    self.spawn(job)
            if job.timer_at is not None and now >= job.timer_at:
                self.arm(job)
                if not job.pid and not job.removing:
                    self.spawn(job)

    def forget(self, job: Job) -> None:
        """The label is free again."""
        if self.jobs.get(job.target) is job:
            del self.jobs[job.target]
            self.just_removed[job.target] = time.monotonic()
        where = self.where(job.domain)
        self.answer_kicks(job, Answer(113, err=f'Could not find service "{job.label}" in domain for {where}\n'))

    @staticmethod
    def answer_kicks(job: Job, answer: Answer) -> None:
        """Tells all who wait for a process of the job."""
        waiting, job.kicked = job.kicked, []
        for reply in waiting:
            reply(answer)

    def spawn(self, job: Job) -> None:
        """Starts a process of the job; one that cannot be started counts as one that ended with 78."""
        job.runs += 1
        job.started = time.monotonic()
        job.stuck = job.kick = job.spawn_failed = False
        job.exit_reason = ""
        job.respawn_at = None
        why = self.quarantined(job)
        if why:
            self.failed_to_spawn(job, 155, why)
            return
        if self.killed_by_signature(job):
            job.exit_reason = "OS_REASON_CODESIGNING"
            self.log(job.label, "exited due to OS_REASON_CODESIGNING")
            self.answer_kicks(job, Answer())
            self.ended(job, signal.SIGKILL)
            return
        told, tell = os.pipe2(os.O_CLOEXEC)
        pid = os.fork()
        if pid == 0:
            try:
                become_job(job)
            except BaseException as error:
                os.write(tell, f"{type(error).__name__}: {error}".encode())
            finally:
                os._exit(78)
        os.close(tell)
        problem = os.read(told, 4096).decode(errors="replace")
        os.close(told)
        if problem:
            os.waitpid(pid, 0)
            self.failed_to_spawn(job, 78, problem)
            return
        job.pid = pid
        self.log(job.label, f"Successfully spawned {Path(job.program).name}[{pid}]")
        self.answer_kicks(job, Answer())

    def failed_to_spawn(self, job: Job, code: int, why: str) -> None:
        """As if a process had ended with that code."""
        self.log(job.label, f"Service could not initialize: {why}: spawn failed with {code}: {error_text(code)}")
        job.spawn_failed = True
        self.answer_kicks(job, Answer())
        self.ended(job, code << 8)

    @staticmethod
    def quarantined(job: Job) -> str:
        """Whether the program carries the mark of a download."""
        try:
            os.getxattr(job.program, "user.com.apple.quarantine")
        except OSError:
            return ""
        return "the program is quarantined"

    def killed_by_signature(self, job: Job) -> bool:
        """Whether the program was overwritten in place since it first ran: the kernel keeps the signature of an inode.

        Scripts have none.
        """
        try:
            with Path(job.program).open("rb") as handle:
                about = os.fstat(handle.fileno())
                if handle.read(2) == b"#!":
                    return False
        except OSError:
            return False
        now = (about.st_size, about.st_mtime_ns)
        return self.signatures.setdefault((about.st_dev, about.st_ino), now) != now

    def reap(self) -> None:
        """Sees to every child that has ended, and to orphans of others."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            for job in list(self.jobs.values()):
                if job.pid == pid:
                    # launchd.plist(5), AbandonProcessGroup: the rest of the group goes too.
                    if not job.plist.get("AbandonProcessGroup"):
                        with suppress(ProcessLookupError, PermissionError):
                            os.killpg(pid, signal.SIGKILL)
                    self.ended(job, status)

    def ended(self, job: Job, status: int) -> None:
        """Decides what comes after the end of a process."""
        ran = time.monotonic() - job.started
        job.pid = 0
        job.kill_at = None
        job.status = status
        self.log(job.label, f"exited with {describe(status)}, ran for {ran * 1000:.0f}ms")
        if job.removing:
            job.gone_at = max(time.monotonic(), job.gone_after)
            return
        if self.ending:
            return
        if job.kick:
            self.spawn(job)
        elif job.wants(status):
            # The real wait, which a test may have shortened; what is printed stays the property list's.
            wait = min(job.throttle, float(common_options().get("throttle", 10))) - ran
            if wait > 0:
                self.log(
                    job.label,
                    f"Service only ran for {int(ran)} seconds. Pushing respawn out by {job.throttle - int(ran)} "
                    "seconds.",
                )
            job.respawn_at = time.monotonic() + max(wait, 0.0)

    def stop(self, job: Job) -> None:
        """SIGTERM now, SIGKILL when its time is over."""
        if job.pid:
            with suppress(ProcessLookupError):
                os.kill(job.pid, signal.SIGTERM)
            job.kill_at = time.monotonic() + job.exit_timeout

    # launchctl

    def accept(self) -> None:
        """Somebody calls."""
        listener = next(key.fileobj for key in self.selector.get_map().values() if key.data == self.accept)
        connection, _ = listener.accept()  # type: ignore[union-attr]
        connection.setblocking(False)
        received = bytearray()

        def read() -> None:
            piece = connection.recv(65536)
            received.extend(piece)
            if piece and not received.endswith(b"\n"):
                return
            self.selector.unregister(connection)
            connection.setblocking(True)
            connection.settimeout(5)
            if not received.endswith(b"\n"):
                connection.close()
                return
            peer = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
            _, uid, _ = struct.unpack("3i", peer)

            def reply(answer: Answer) -> None:
                with suppress(OSError):
                    connection.sendall(json.dumps(answer.__dict__).encode() + b"\n")
                connection.close()

            try:
                asked = json.loads(received)
                answer = self.command(asked, uid, reply)
            except Exception:
                answer = Answer(70, err=traceback.format_exc())
            if answer is not None:
                reply(answer)

        self.selector.register(connection, selectors.EVENT_READ, read)

    def command(self, asked: dict[str, Any], uid: int, reply: Callable[[Answer], None]) -> Answer | None:
        """The answer to a command line of launchctl; None when `reply` is called later."""
        common.options.cache_clear()
        words = list(asked["argv"])
        if words[:1] == ["\0reboot"]:
            if uid != 0:
                return Answer(1, err="Operation not permitted\n")
            self.ending = True
            return Answer()
        if words[:1] in (["\0login"], ["\0logout"]):
            if uid != 0:
                return Answer(1, err="Operation not permitted\n")
            return (self.sign_in if words[0] == "\0login" else self.sign_out)(int(words[1]))
        if not words:
            return Answer(1, err=f"{USAGE}\n")
        verb, rest = words[0], words[1:]
        found = getattr(self, f"do_{verb.replace('-', '_')}", None)
        if found is None:
            return Answer(1, err=f"Unrecognized subcommand: {verb}\n{USAGE}\n")
        if verb == "kickstart":
            return self.do_kickstart(rest, uid, reply, bool(asked.get("tty")))
        if verb == "managername":
            return Answer(out=f"{asked.get('manager') or 'Background'}\n")
        answer: Answer = found(rest, uid)
        return answer

    def target(self, word: str) -> tuple[str, str] | None:
        """Domain and label of a target; None for what is no target."""
        parts = word.split("/")
        if parts[0] == "system":
            return "system", "/".join(parts[1:])
        if parts[0] in ("gui", "user", "login", "pid", "session") and len(parts) > 1 and parts[1].isdigit():
            return "/".join(parts[:2]), "/".join(parts[2:])
        return None

    @staticmethod
    def unrecognized(word: str, usage: str) -> Answer:
        """No target."""
        text = f'Unrecognized target specifier.\n"{word}" is not a target.\nUsage: launchctl {usage}\n'
        return Answer(64, err=text)

    @staticmethod
    def where(domain: str) -> str:
        """How launchctl calls a domain."""
        if domain == "system":
            return "system"
        kind, number = domain.split("/")
        return {"gui": f"user gui: {number}", "user": f"uid: {number}"}.get(kind, f"{kind}: {number}")

    def missing(self, domain: str, label: str) -> Answer:
        """No such job."""
        first = "Bad request.\n" if domain != "system" and common.version() >= 26 else ""
        return Answer(113, err=f'{first}Could not find service "{label}" in domain for {self.where(domain)}\n')

    def do_bootstrap(self, words: list[str], uid: int) -> Answer:
        """Loads property lists."""
        usage = "bootstrap <domain-target> [service-path, service-path2, ...]"
        if not words:
            return Answer(64, err=f"Usage: launchctl {usage}\n")
        found = self.target(words[0])
        if found is None:
            return self.unrecognized(words[0], usage)
        if len(words) < 2:
            return Answer(64, err=f"Usage: launchctl {usage}\n")
        if found[0] != "system" and found[0] not in self.sessions:
            return Answer(125, err=f"Bootstrap failed: 125: {error_text(125)}\n")
        if not self.may(uid, found[0]):
            text = "Bootstrap failed: 5: Input/output error\nTry re-running the command as root for richer errors.\n"
            return Answer(5, err=text)
        paths = []
        for word in words[1:]:
            paths += sorted(map(str, Path(word).glob("*.plist"))) if Path(word).is_dir() else [word]
        problems = [problem for problem in (self.bootstrap(path, found[0]) for path in paths) if problem.code]
        if len(problems) > 1:
            return Answer(133, err="".join(problem.err for problem in problems))
        return problems[0] if problems else Answer()

    @staticmethod
    def may(uid: int, domain: str) -> bool:
        """Whether somebody may change what is in a domain."""
        return uid == 0 or (domain != "system" and domain.split("/")[1] == str(uid))

    def bootstrap(self, path: str, domain: str = "system") -> Answer:
        """Loads one property list."""
        try:
            plist = read_plist(path, 0 if domain == "system" else int(domain.split("/")[1]))
            if f"{domain}/{plist['Label']}" in self.jobs:
                raise Refusal(37, f"{path}: service already loaded")
            if not fits(plist, domain):
                raise Refusal(134)
            if self.disabled(domain, plist["Label"], plist):
                raise Refusal(119)
        except Refusal as refusal:
            verb = "Load" if refusal.number == 122 else "Bootstrap"
            first = f"{refusal.first}\n" if refusal.first else ""
            return Answer(refusal.number, err=f"{first}{verb} failed: {refusal.number}: {error_text(refusal.number)}\n")
        self.add(Job(plist["Label"], os.path.realpath(path), plist, domain))
        return Answer()

    def do_bootout(self, words: list[str], uid: int) -> Answer:
        """Unloads a job. It returns before the job has ended."""
        usage = "bootout <domain-target> [service-path1, service-path2, ...] | <service-target>"
        if not words:
            return Answer(64, err=f"Usage: launchctl {usage}\n")
        found = self.target(words[0])
        if found is None:
            return self.unrecognized(words[0], usage)
        domain, label = found
        if domain != "system" and domain not in self.sessions:
            return Answer(125, err=f"Boot-out failed: 125: {error_text(125)}\n")
        if not self.may(uid, domain):
            return Answer(1, err="Boot-out failed: 1: Operation not permitted\n")
        if label:
            return self.bootout(domain, label)
        if len(words) < 2:
            # All of the system's domain: nobody who means it would ask the double.
            return Answer(150, err=f"Boot-out failed: 150: {error_text(150)}\n")
        for path in words[1:]:
            real = os.path.realpath(path)
            job = next((job for job in self.jobs.values() if (job.path, job.domain) == (real, domain)), None)
            if job is None:
                return Answer(5, err="Boot-out failed: 5: Input/output error\n")
            answer = self.bootout(domain, job.label)
            if answer.code:
                return answer
        return Answer()

    def bootout(self, domain: str, label: str) -> Answer:
        """Unloads one job."""
        job = self.jobs.get(f"{domain}/{label}")
        if job is None:
            return Answer(3, err="Boot-out failed: 3: No such process\n")
        if job.removing:
            return Answer(36, err="Boot-out failed: 36: Operation now in progress\n")
        job.removing = True
        job.respawn_at = job.timer_at = None
        if not job.pid:
            self.forget(job)
            return Answer()
        self.stop(job)
        job.kick = False
        job.gone_after = time.monotonic() + float(common_options().get("linger", 1))
        return Answer()

    def do_enable(self, words: list[str], uid: int) -> Answer:
        """Takes back a `disable`; also for labels that do not exist."""
        return self.enable(words, uid, "enable", False)

    def do_disable(self, words: list[str], uid: int) -> Answer:
        """From now on it cannot be loaded, at boot neither. What runs goes on."""
        return self.enable(words, uid, "disable", True)

    def enable(self, words: list[str], uid: int, verb: str, value: bool) -> Answer:
        """Both of them."""
        found = self.target(words[0]) if words else None
        if found is None or not found[1]:
            return self.unrecognized(words[0] if words else "", f"{verb} <service-target>")
        domain, label = found
        if uid != 0 and (domain == "system" or domain.split("/")[1] != str(uid)):
            return Answer(1, err=f"Could not {verb} service: 1: Operation not permitted\n")
        self.override(domain, label, value)
        return Answer()

    def do_kickstart(self, words: list[str], uid: int, reply: Callable[[Answer], None], tty: bool) -> Answer | None:
        """Starts a job at once, whatever its throttle; with -k the process that runs is ended first."""
        flags = "".join(word[1:] for word in words if word.startswith("-"))
        targets = [word for word in words if not word.startswith("-")]
        usage = "kickstart [-k] [-p] <service-target>"
        if set(flags) - set("kps") or len(targets) != 1:
            return Answer(64, err=f"Usage: launchctl {usage}\n")
        found = self.target(targets[0])
        if found is None or not found[1]:
            return self.unrecognized(targets[0], usage)
        domain, label = found
        if not self.may(uid, domain):
            return Answer(1, err=f'Could not kickstart service "{label}": 1: Operation not permitted\n')
        job = self.jobs.get(f"{domain}/{label}")
        if job is None:
            return Answer(113, err=f'Could not find service "{label}" in domain for {self.where(domain)}\n')
        if job.removing:
            return Answer(37, err=f'Could not kickstart service "{label}": 37: {error_text(37)}\n')
        if job.pid and "k" not in flags:
            return Answer(37)
        if job.pid and job.path.startswith("/System/"):
            return Answer(150, err=f"Could not kickstart service: 150: {error_text(150)}\n")

        def spawned(answer: Answer) -> None:
            if answer.code == 0 and "p" in flags:
                answer = Answer(out=f"service spawned with pid: {job.pid}\n" if tty else f"{job.pid}\n")
            reply(answer)

        job.kicked.append(spawned)
        if job.pid:
            job.kick = True
            self.stop(job)
        else:
            self.spawn(job)
        return None

    def do_kill(self, words: list[str], uid: int) -> Answer:
        """A signal, by name or number."""
        usage = "kill <signal-number|signal-name> <service-target>"
        found = self.target(words[1]) if len(words) == 2 else None
        if found is None or not found[1]:
            return self.unrecognized(words[1] if len(words) > 1 else "", usage)
        name = words[0].upper().removeprefix("SIG")
        try:
            number = int(name) if name.isdigit() else signal.Signals[f"SIG{name}"].value
        except KeyError:
            return Answer(64, err=f"Unknown signal: {words[0]}\nUsage: launchctl {usage}\n")
        domain, label = found
        job = self.jobs.get(f"{domain}/{label}")
        if job is None:
            return Answer(113, err=f'Could not find service "{label}" in domain for {self.where(domain)}\n')
        if not self.may(uid, domain):
            return Answer(1, err="Could not signal service: 1: Operation not permitted\n")
        if not job.pid:
            return Answer(3, err="Could not signal service: 3: No such process\n")
        os.kill(job.pid, number)
        return Answer()

    def do_print(self, words: list[str], uid: int) -> Answer:
        """Everything about a job, or about the domain."""
        found = self.target(words[0]) if words else None
        if found is None:
            return self.unrecognized(words[0] if words else "", "print <domain-target> | <service-target>")
        domain, label = found
        if not label:
            if domain != "system" and not domain.startswith("user/") and domain not in self.sessions:
                first = "Bad request.\n" if common.version() >= 26 else ""
                return Answer(112, err=f"{first}Could not find domain for {self.where(domain)}\n")
            jobs = [job for job in self.jobs.values() if job.domain == domain]
            rows = [f"\t\t{job.pid:8d}      - \t{job.label}\n" for job in jobs]
            about = ["\ttype = system\n"]
            if domain in self.sessions:
                about = ["\ttype = login\n", f"\tactive count = {len(jobs) + 1}\n", "\tcreator = loginwindow[415]\n"]
            rows = [f"{domain} = {{\n", *about, "\tservices = {\n", *rows, "\t}\n", "}\n"]
            return Answer(out="".join(rows))
        job = self.jobs.get(f"{domain}/{label}")
        return self.missing(domain, label) if job is None else Answer(out=printed(job))

    def do_print_disabled(self, words: list[str], uid: int) -> Answer:
        """What was ever enabled or disabled."""
        found = self.target(words[0]) if words else None
        if found is None:
            return self.unrecognized(words[0] if words else "", "print-disabled <domain-target>")
        rows = [
            f'\t\t"{label}" => {"disabled" if value else "enabled"}\n'
            for label, value in self.overrides(found[0]).items()
        ]
        return Answer(out="\n\tdisabled services = {\n" + "".join(rows) + "\t}\n")

    def do_list(self, words: list[str], uid: int) -> Answer:
        """All jobs of the caller's own domain, or one of them as a property list of the old kind."""
        domain = "system" if uid == 0 else f"gui/{uid}"
        jobs = {job.label: job for job in self.jobs.values() if job.domain == domain}
        if not words:
            rows = ["PID\tStatus\tLabel\n"]
            for job in jobs.values():
                code = 0 if job.status is None else os.waitstatus_to_exitcode(job.status)
                rows.append(f"{job.pid or '-'}\t{code}\t{job.label}\n")
            return Answer(out="".join(rows))
        job = jobs.get(words[0])
        if job is None:
            return Answer(113, err=f'Could not find service "{words[0]}" in domain for port\n')
        plist = job.plist
        lines = ["{"]
        for key in ("StandardOutPath", "StandardErrorPath"):
            if key in plist:
                lines.append(f'\t"{key}" = "{plist[key]}";')
        lines += [
            f'\t"LimitLoadToSessionType" = "{"System" if domain == "system" else "Aqua"}";',
            f'\t"Label" = "{job.label}";',
            f'\t"OnDemand" = {"false" if job.keeps else "true"};',
            f'\t"LastExitStatus" = {job.status or 0};',
        ]
        if job.pid:
            lines.append(f'\t"PID" = {job.pid};')
        lines.append(f'\t"Program" = "{job.program}";')
        lines += ['\t"ProgramArguments" = (', *(f'\t\t"{word}";' for word in job.arguments), "\t);", "};"]
        return Answer(out="\n".join(lines) + "\n")

    def do_managername(self, words: list[str], uid: int) -> Answer:
        """Answered by `command`."""
        return Answer()

    def do_manageruid(self, words: list[str], uid: int) -> Answer:
        """The caller's."""
        return Answer(out=f"{uid}\n")

    def do_version(self, words: list[str], uid: int) -> Answer:
        """Of launchd."""
        return Answer(out="Darwin Bootstrapper Version 7.0.0: double/RELEASE_ARM64E\n")

    def do_error(self, words: list[str], uid: int) -> Answer:
        """The name of a number."""
        number = words[-1] if words else ""
        if not number.lstrip("-").isdigit():
            return Answer(64, err="Usage: launchctl error [posix|mach|bootstrap] <code>\n")
        return Answer(out=f"{number}: {error_text(int(number))}\n")

    def do_blame(self, words: list[str], uid: int) -> Answer:
        """Why it runs."""
        found = self.target(words[0]) if words else None
        if found is None or not found[1]:
            return self.unrecognized(words[0] if words else "", "blame <service-target>")
        job = self.jobs.get("/".join(found))
        if job is None:
            return self.missing(*found)
        return Answer(out=f"{reason(job) or '(not running)'}\n")

    def do_limit(self, words: list[str], uid: int) -> Answer:
        """What processes may use at most."""
        rows = {
            "cpu": "unlimited      unlimited",
            "maxfiles": "256            unlimited",
            "maxproc": "5333           8000",
        }
        wanted = [words[0]] if words else list(rows)
        return Answer(out="".join(f"\t{name:<12}{rows.get(name, '')}      \n" for name in wanted))

    def do_help(self, words: list[str], uid: int) -> Answer:
        """Which subcommands there are."""
        return Answer(1, err=f"{USAGE}\n")

    # Legacy subcommands, as tailscaled uses them

    def do_load(self, words: list[str], uid: int) -> Answer:
        """Ends with 0 whatever happened."""
        paths = [word for word in words if not word.startswith("-")]
        said = ""
        for path in paths:
            if uid != 0:
                said += f"Load failed: 5: {error_text(5)}\n"
                said += "Try running `launchctl bootstrap` as root for richer errors.\n"
                continue
            if "-w" in words:
                with suppress(Refusal):
                    self.override("system", read_plist(path)["Label"], False)
            answer = self.bootstrap(path)
            if answer.code:
                said += f"Load failed: 5: {error_text(5)}\n"
                said += "Try running `launchctl bootstrap` as root for richer errors.\n"
        return Answer(err=said)

    def do_unload(self, words: list[str], uid: int) -> Answer:
        """Ends with 0 whatever happened."""
        said = ""
        for path in [word for word in words if not word.startswith("-")]:
            with suppress(Refusal):
                label = read_plist(path)["Label"]
                if "-w" in words and uid == 0:
                    self.override("system", label, True)
                if uid == 0 and not self.bootout("system", label).code:
                    continue
            said += f"Unload failed: 5: {error_text(5)}\n"
            said += "Try running `launchctl bootout` as root for richer errors.\n"
        return Answer(err=said)

    def do_start(self, words: list[str], uid: int) -> Answer:
        """By label."""
        job = self.jobs.get(f"system/{words[0]}") if words and uid == 0 else None
        if job is None:
            return Answer(3)
        if not job.pid and not job.removing:
            self.spawn(job)
        return Answer()

    def do_stop(self, words: list[str], uid: int) -> Answer:
        """By label."""
        job = self.jobs.get(f"system/{words[0]}") if words and uid == 0 else None
        if job is None:
            return Answer(3)
        self.stop(job)
        return Answer()

    def do_remove(self, words: list[str], uid: int) -> Answer:
        """By label."""
        return Answer(3) if not words or uid != 0 or self.bootout("system", words[0]).code else Answer()


def common_options() -> dict[str, Any]:
    """The options as they are now: a test may have changed them."""
    common.options.cache_clear()
    return common.options()


def describe(status: int) -> str:
    """How `print` says the end of a process."""
    if os.WIFSIGNALED(status):
        return f"{signal.strsignal(os.WTERMSIG(status))}: {os.WTERMSIG(status)}"
    code = os.WEXITSTATUS(status)
    if code == 155:
        return f"155: {NAMES[155]}"
    return f"{code}: {SYSEXITS[code]}" if code in SYSEXITS else str(code)


def reason(job: Job) -> str:
    """Why the process runs."""
    if not job.pid:
        return ""
    return "speculative" if job.starts else "non-ipc demand"


def printed(job: Job) -> str:
    """What `launchctl print` says of a job: one tab before each line, two inside a block."""
    plist = job.plist
    scheduled = job.respawn_at is not None
    state = "running" if job.pid else "spawn scheduled" if scheduled else "not running"
    kind = "LaunchDaemon" if job.domain == "system" else "LaunchAgent"
    lines = [f"active count = {1 if job.pid else 0}", f"path = {job.path}", f"type = {kind}", f"state = {state}"]
    lines += ["", f"program = {job.program}", "arguments = {", *(f"\t{word}" for word in job.arguments), "}"]
    if plist.get("WorkingDirectory"):
        lines += ["", f"working directory = {plist['WorkingDirectory']}"]
    lines.append("")
    for key, name in (("StandardOutPath", "stdout path"), ("StandardErrorPath", "stderr path")):
        if plist.get(key):
            lines.append(f"{name} = {plist[key]}")
    lines += ["default environment = {", f"\tPATH => {common.PATH}", "}", "", "environment = {"]
    lines += [f"\t{key} => {value}" for key, value in (plist.get("EnvironmentVariables") or {}).items()]
    # Behind the domain of a session stands its number of the audit.
    lines += [f"\tXPC_SERVICE_NAME => {job.label}", "}", "", f"domain = {job.domain}{' [100020]' if job.uid else ''}"]
    if plist.get("UserName"):
        lines.append(f"username = {plist['UserName']}")
    if plist.get("GroupName"):
        lines.append(f"group = {plist['GroupName']}")
    lines += [f"minimum runtime = {job.throttle}", f"exit timeout = {plist.get('ExitTimeOut', 5)}"]
    lines.append(f"runs = {job.runs}")
    if job.pid:
        lines += [f"pid = {job.pid}", f"immediate reason = {reason(job)}", "forks = 0", "execs = 1", "initialized = 1"]
    if job.exit_reason:
        lines.append(f"last exit reason = {job.exit_reason}")
    elif job.status is None:
        lines.append("last exit code = (never exited)")
    elif os.WIFSIGNALED(job.status):
        lines.append(f"last terminating signal = {describe(job.status)}")
    else:
        lines.append(f"last exit code = {describe(job.status)}")
    active = "active" if job.pid else "inactive"
    for kind in ("resource", "jetsam"):
        lines += ["", f"{kind} coalition = {{", "\tID = 777", f"\ttype = {kind}", f"\tstate = {active}"]
        lines += ["\tactive count = 1", f"\tname = {job.label}", "}"]
    kind = {"Interactive": "interactive (4)", "Background": "background (5)", "Adaptive": "adaptive (6)"}
    lines += ["", f"spawn type = {kind.get(plist.get('ProcessType', ''), 'daemon (3)')}", "jetsam priority = 40"]
    inside = "running" if job.pid else "spawn failed" if job.spawn_failed else "exited"
    lines += [f"job state = {inside}", ""]
    names = [
        ("keepalive", job.keeps),
        ("runatload", plist.get("RunAtLoad")),
        ("inferred program", "Program" not in plist),
    ]
    lines.append("properties = " + " | ".join(name for name, there in names if there))
    return f"{job.target} = {{\n" + "".join(f"\t{line}\n" if line else "\n" for line in lines) + "}\n"


def become_job(job: Job) -> None:
    """In the child: everything that the property list says, then the program. Raises what goes wrong."""
    plist = job.plist
    os.setsid()
    for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGPIPE):
        signal.signal(number, signal.SIG_DFL)
    environment = {"PATH": common.PATH, "XPC_FLAGS": "0x0", "XPC_SERVICE_NAME": job.label}
    for key, which in (("SoftResourceLimits", 0), ("HardResourceLimits", 1)):
        for name, value in (plist.get(key) or {}).items():
            soft, hard = resource.getrlimit(LIMITS[name])
            limits = (
                (int(value), hard) if which == 0 else (min(soft, int(value)) if soft >= 0 else int(value), int(value))
            )
            if which == 0 and 0 <= hard < int(value):
                limits = (int(value), int(value))
            resource.setrlimit(LIMITS[name], limits)
    if "Nice" in plist:
        os.nice(int(plist["Nice"]))
    os.umask(int(str(plist["Umask"]), 8) if isinstance(plist.get("Umask"), str) else int(plist.get("Umask", 0o022)))
    user = pwd.getpwnam(plist["UserName"]) if plist.get("UserName") else None
    if job.uid:
        # UserName and GroupName are for the system's jobs alone.
        user, plist = pwd.getpwuid(job.uid), {**plist, "GroupName": None}
    group = grp.getgrnam(plist["GroupName"]).gr_gid if plist.get("GroupName") else user.pw_gid if user else 0
    if user is not None:
        environment |= {"HOME": user.pw_dir, "USER": user.pw_name, "LOGNAME": user.pw_name, "SHELL": user.pw_shell}
        if plist.get("InitGroups", True):
            os.initgroups(user.pw_name, group)
        else:
            os.setgroups([group])
    else:
        os.setgroups([group])
    os.setgid(group)
    if user is not None:
        os.setuid(user.pw_uid)
    environment |= {str(key): str(value) for key, value in (plist.get("EnvironmentVariables") or {}).items()}
    os.chdir(plist.get("WorkingDirectory") or "/")
    os.dup2(os.open(plist.get("StandardInPath") or "/dev/null", os.O_RDONLY), 0)
    for key, number in (("StandardOutPath", 1), ("StandardErrorPath", 2)):
        path = plist.get(key) or "/dev/null"
        os.dup2(os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666), number)
    program = job.program if "/" in job.program else shutil.which(job.program, path=common.PATH) or job.program
    os.execve(program, job.arguments, environment)


def empty(folder: Path) -> None:
    """Takes everything out of a folder."""
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def lay_out_etc() -> None:
    """Makes /etc a link to private/etc, once. The engine makes each container a folder /etc of its own, with mounts
    in it, in front of whatever the image has."""
    etc = Path("/etc")
    if etc.is_symlink():
        return
    for name in ("hosts", "hostname", "resolv.conf"):
        content = (etc / name).read_bytes()
        unmount(etc / name)
        if name != "hostname":
            (Path("/private/etc") / name).write_bytes(content)
    shutil.rmtree(etc)
    etc.symlink_to("private/etc")


SEED = common.ROOT / "seed.json"


def first_boot() -> None:
    """Makes the container one certain Mac, of what the test has put there: keys, a password, Homebrew."""
    if not SEED.exists():
        return
    import accounts

    seed = json.loads(SEED.read_text())
    options = common_options()
    for path, text, mode in (
        ("/private/etc/ssh/ssh_host_ed25519_key", seed["host_key"], 0o600),
        ("/private/etc/ssh/ssh_host_ed25519_key.pub", seed["host_key_public"] + "\n", 0o644),
    ):
        Path(path).write_text(text)
        Path(path).chmod(mode)
    folder = Path("/Users/operator/.ssh")
    folder.mkdir(mode=0o700, exist_ok=True)
    keys = folder / "authorized_keys"
    keys.write_text(seed["client_key_public"] + "\n")
    keys.chmod(0o600)
    for path in (folder, keys):
        os.chown(path, 501, 20)
    records = json.loads(accounts.STATE_FILE.read_text())
    owner = 501
    if options["brew"] == "other":
        records["Users"]["installer"] = accounts.user_record(
            "installer", 502, 20, "/Users/installer", "/bin/zsh", "Ivo"
        )
        records["Groups"]["admin"]["GroupMembership"].append("installer")
        accounts.STATE_FILE.write_text(json.dumps(records))
        owner = 502
    accounts.write_linux(records, {"operator": seed["password_hash"]})
    if options["passwordless_sudo"]:
        rule = Path("/private/etc/sudoers.d/operator")
        rule.write_text("operator ALL=(ALL) NOPASSWD: ALL\n")
        rule.chmod(0o440)
    if options["brew"] != "missing":
        prefix = Path("/opt/homebrew")
        for name in ("bin", "sbin", "opt", "Cellar", "etc", "var/homebrew/pinned"):
            (prefix / name).mkdir(parents=True, exist_ok=True)
        shutil.copyfile(common.ROOT / "tool", prefix / "bin" / "brew")
        (prefix / "bin" / "brew").chmod(0o755)
        for path in (prefix, *prefix.rglob("*")):
            os.chown(path, owner, 80)
    if common.version() < 15:
        Path("/usr/bin/jq").unlink(missing_ok=True)
    SEED.unlink()


def unmount(path: Path) -> None:
    """umount2(2), detaching."""
    library = ctypes.CDLL(None, use_errno=True)
    library.umount2(str(path).encode(), 2)


def seal_system() -> None:
    """The folders of the sealed system volume are read-only, for root too."""
    library = ctypes.CDLL(None, use_errno=True)
    bind, remount, read_only = 4096, 32, 1
    for folder in ("/bin", "/sbin", "/usr/bin", "/usr/sbin", "/usr/lib", "/usr/share", "/System"):
        name = folder.encode()
        if library.mount(name, name, None, bind, None) == 0:
            library.mount(None, name, None, bind | remount | read_only, None)


if __name__ == "__main__":
    Launchd().run()
