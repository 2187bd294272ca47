"""ps, pgrep, pkill and killall of BSD, from Linux's /proc; see section 15."""

from __future__ import annotations

import os
import pwd
import re
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import common

TICK = os.sysconf("SC_CLK_TCK")
USAGE = "ps [-AaCcEefhjlMmrSTvwXx] [-O fmt | -o fmt] [-G gid[,gid...]]"


@dataclass
class Process:
    """What is known of one."""

    pid: int
    ppid: int
    pgid: int
    uid: int
    state: str
    tty: str
    started: float
    seconds: float
    size: int
    resident: int
    nice: int
    program: str
    command: str
    # What the kernel calls it, whatever the process writes over its arguments: the file that was executed.
    executed: str


def boot_time() -> float:
    """When Linux itself was booted."""
    for line in Path("/proc/stat").read_text().splitlines():
        if line.startswith("btime"):
            return float(line.split()[1])
    return 0.0


def processes() -> Iterator[Process]:
    """All of the container."""
    boot = boot_time()
    for folder in sorted(Path("/proc").glob("[0-9]*"), key=lambda path: int(path.name)):
        with suppress(OSError, ValueError, IndexError):
            text = (folder / "stat").read_text()
            name = text[text.index("(") + 1 : text.rindex(")")]
            fields = text[text.rindex(")") + 2 :].split()
            words = [word.decode(errors="replace") for word in (folder / "cmdline").read_bytes().split(b"\0")[:-1]]
            uid = folder.stat().st_uid
            program = words[0] if words else f"({name})"
            command = " ".join(words) if words else f"({name})"
            if int(folder.name) == 1:
                program = command = "/sbin/launchd"
            elif words and "/usr/libexec/double/linux/" in words[0] and len(words) > 2 and words[1] == "-ISB":
                # A program of the double's own: what a Mac would show is what was called.
                program = words[2]
                command = " ".join(words[2:])
                name = program.rsplit("/", 1)[-1]
            tty = int(fields[4])
            yield Process(
                pid=int(folder.name),
                ppid=int(fields[1]),
                pgid=int(fields[2]),
                uid=uid,
                state={"R": "R", "S": "S", "D": "U", "Z": "Z", "T": "T", "I": "I"}.get(fields[0], "S"),
                tty=f"ttys{os.minor(tty):03d}" if tty else "??",
                started=boot + int(fields[19]) / TICK,
                seconds=(int(fields[11]) + int(fields[12])) / TICK,
                size=int(fields[20]) // 1024,
                resident=int(fields[21]) * 4,
                nice=int(fields[16]),
                program=program,
                command=command,
                # Linux keeps 15 letters of it.
                executed=name if len(name) < 15 else program.rsplit("/", 1)[-1],
            )


def user(uid: int) -> str:
    """Name or number."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def elapsed(seconds: float) -> str:
    """[[dd-]hh:]mm:ss."""
    whole = int(seconds)
    days, rest = divmod(whole, 86400)
    hours, rest = divmod(rest, 3600)
    text = f"{rest // 60:02d}:{rest % 60:02d}"
    if hours or days:
        text = f"{hours:02d}:{text}"
    return f"{days:02d}-{text}" if days else text


COLUMNS: dict[str, tuple[str, Callable[[Process], str]]] = {
    "pid": ("PID", lambda each: str(each.pid)),
    "ppid": ("PPID", lambda each: str(each.ppid)),
    "pgid": ("PGID", lambda each: str(each.pgid)),
    "uid": ("UID", lambda each: str(each.uid)),
    "user": ("USER", lambda each: user(each.uid)),
    "ruser": ("RUSER", lambda each: user(each.uid)),
    "stat": ("STAT", lambda each: each.state),
    "state": ("STAT", lambda each: each.state),
    "tty": ("TTY", lambda each: each.tty),
    "tt": ("TT", lambda each: each.tty),
    "time": ("TIME", lambda each: f"{int(each.seconds) // 60}:{each.seconds % 60:05.2f}"),
    "etime": ("ELAPSED", lambda each: elapsed(time.time() - each.started)),
    "lstart": ("STARTED", lambda each: time.strftime("%a %b %e %H:%M:%S %Y", time.localtime(each.started))),
    "start": ("STARTED", lambda each: time.strftime("%I:%M%p", time.localtime(each.started)).lstrip("0")),
    "rss": ("RSS", lambda each: str(each.resident)),
    "vsz": ("VSZ", lambda each: str(each.size)),
    "pcpu": ("%CPU", lambda each: "0.0"),
    "%cpu": ("%CPU", lambda each: "0.0"),
    "pmem": ("%MEM", lambda each: "0.0"),
    "%mem": ("%MEM", lambda each: "0.0"),
    "nice": ("NI", lambda each: str(each.nice)),
    "ni": ("NI", lambda each: str(each.nice)),
    "comm": ("COMM", lambda each: each.program),
    "ucomm": ("UCOMM", lambda each: each.executed[:16]),
    "command": ("COMMAND", lambda each: each.command),
    "args": ("ARGS", lambda each: each.command),
}
LEFT = ("USER", "RUSER", "STAT", "TTY", "TT", "STARTED", "COMM", "UCOMM", "COMMAND", "ARGS")


def ps(name: str, arguments: list[str]) -> int:
    """The command."""
    words = list(arguments)
    if words and not words[0].startswith("-") and re.fullmatch(r"[a-zA-Z]+", words[0]):
        words[0] = f"-{words[0]}"
    pairs, rest, bad = common.getopt(words, "AaCcEefG:g:hjLlMmO:o:p:rSTt:U:u:vwXx")
    if bad:
        common.complain(f"ps: illegal option -- {bad}\nusage: {USAGE}")
        return 1
    if rest and not re.fullmatch(r"\d+", rest[0]):
        common.complain(f"ps: illegal argument: {rest[0]}\nusage: {USAGE}")
        return 1
    flags = {letter for letter, _ in pairs}
    columns: list[tuple[str, str]] = []
    for letter, value in pairs:
        if letter != "o":
            continue
        for part in re.split(r"[,\s]+", value):
            key, equals, title = part.partition("=")
            if key and key not in COLUMNS:
                common.complain(f"ps: {key}: keyword not found")
                return 1
            if key:
                columns.append((key, title if equals else COLUMNS[key][0]))
    if not columns:
        keys = "pid tt time command"
        if "j" in flags:
            keys = "user pid ppid pgid tt time command"
        if "f" in flags:
            keys = "uid pid ppid start tty time command"
        if words[:1] and words[0] in ("-aux", "-auxww", "-auxw"):
            keys = "user pid %cpu %mem vsz rss tt stat start time command"
        columns = [(key, COLUMNS[key][0]) for key in keys.split()]
    users = {value for letter, value in pairs if letter in "Uu" and value not in ("x", "xww", "xw")}
    pids = {int(pid) for letter, value in pairs if letter == "p" for pid in re.split(r"[,\s]+", value) if pid.isdigit()}
    pids |= {int(word) for word in rest if word.isdigit()}
    me = os.getuid()
    found = []
    for each in processes():
        if each.pid == os.getpid() and not flags & {"A", "e", "a", "x"} and not pids:
            continue
        if pids:
            wanted = each.pid in pids
        elif users:
            wanted = user(each.uid) in users or str(each.uid) in users
        elif flags & {"A", "e"} or {"a", "x"} <= flags or "aux" in "".join(words[:1]):
            wanted = True
        elif "x" in flags:
            wanted = each.uid == me
        else:
            wanted = each.uid == me and each.tty != "??"
        if wanted:
            found.append(each)
    table = [[COLUMNS[key][1](each) for key, _ in columns] for each in found]
    titles = [title for _, title in columns]
    if any(titles):
        table.insert(0, titles)
    widths = [max((len(row[at]) for row in table), default=0) for at in range(len(columns))]
    for row in table:
        cells = []
        for at, (key, _) in enumerate(columns):
            last = at == len(columns) - 1
            left = COLUMNS[key][0] in LEFT
            cells.append(row[at] if last and left else row[at].ljust(widths[at]) if left else row[at].rjust(widths[at]))
        print(" ".join(cells))
    return 0 if found else 1


def selected(arguments: list[str], known: str, name: str) -> tuple[dict[str, str], list[Process]] | None:
    """What pgrep and pkill pick."""
    pairs, rest, bad = common.getopt(arguments, known)
    if bad or (not rest and not pairs):
        common.complain(f"{name}: illegal option -- {bad}" if bad else "")
        common.complain(f"usage: {name} [-Lafilnoqvx] [-F pidfile] [-G gid] [-P ppid] [-U uid] [-d delim] [-g pgrp]")
        common.complain("             [-t tty] [-u euid] pattern ...")
        return None
    options = dict(pairs)
    me = os.getpid()
    ancestors = set()
    everybody = {each.pid: each for each in processes()}
    at = me
    while at in everybody and at:
        ancestors.add(at)
        at = everybody[at].ppid
    found = []
    for each in everybody.values():
        # BSD leaves its own ancestors out, without -a.
        if each.pid == me or ("a" not in options and each.pid in ancestors):
            continue
        if "P" in options and str(each.ppid) not in options["P"].split(","):
            continue
        for letter in "uU":
            if letter in options and not {user(each.uid), str(each.uid)} & set(options[letter].split(",")):
                break
        else:
            text = each.command if "f" in options else each.program.rsplit("/", 1)[-1]
            flags = re.IGNORECASE if "i" in options else 0
            matcher = re.fullmatch if "x" in options else re.search
            hit = not rest or any(matcher(pattern, text, flags) for pattern in rest)
            if hit != ("v" in options):
                found.append(each)
    if "n" in options or "o" in options:
        found.sort(key=lambda each: (each.started, each.pid))
        found = found[-1:] if "n" in options else found[:1]
    return options, found


def pgrep(name: str, arguments: list[str]) -> int:
    """Numbers of processes."""
    picked = selected(arguments, "LafilnoqvxF:G:P:U:d:g:t:u:", name)
    if picked is None:
        return 2
    options, found = picked
    if "q" not in options and found:
        lines = []
        for each in found:
            text = each.command if "f" in options else each.program.rsplit("/", 1)[-1]
            lines.append(f"{each.pid} {text}" if "l" in options else str(each.pid))
        print(options.get("d", "\n").join(lines))
    return 0 if found else 1


def pkill(name: str, arguments: list[str]) -> int:
    """A signal to them."""
    words = list(arguments)
    number = signal.SIGTERM.value
    if words and re.fullmatch(r"-(\d+|SIG[A-Z0-9]+|[A-Z][A-Z0-9]+)", words[0]):
        text = words.pop(0)[1:]
        number = int(text) if text.isdigit() else signal.Signals[f"SIG{text.removeprefix('SIG')}"].value
    picked = selected(words, "LafilnovxF:G:P:U:g:t:u:", name)
    if picked is None:
        return 2
    for each in picked[1]:
        with suppress(ProcessLookupError, PermissionError):
            os.kill(each.pid, number)
    return 0 if picked[1] else 1


def killall(name: str, arguments: list[str]) -> int:
    """By name."""
    number = signal.SIGTERM.value
    names = []
    for word in arguments:
        match = re.fullmatch(r"-(\d+|SIG[A-Z0-9]+|[A-Z][A-Z0-9]+)", word)
        if match:
            number = int(match[1]) if match[1].isdigit() else signal.Signals[f"SIG{match[1].removeprefix('SIG')}"].value
        elif not word.startswith("-"):
            names.append(word)
    code = 1
    for wanted in names:
        found = [each for each in processes() if each.program.rsplit("/", 1)[-1] == wanted]
        if not found:
            common.complain("No matching processes were found")
        for each in found:
            try:
                os.kill(each.pid, number)
                code = 0
            except PermissionError:
                common.complain(f"killall: warning: kill -term {each.pid}: Operation not permitted")
    return code
