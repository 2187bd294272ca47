"""newsyslog and log; see section 12."""

from __future__ import annotations

import bz2
import grp
import gzip
import json
import os
import pwd
import re
import signal
import subprocess
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import common

LAUNCHD_LOG = Path("/private/var/log/com.apple.xpc.launchd/launchd.log")


@dataclass
class Entry:
    """A line of a configuration."""

    path: str
    owner: tuple[int, int] | None
    mode: int
    count: int
    size: int | None
    when: str
    flags: str
    pid_file: str
    number: int


class BadLine(Exception):
    """A line that ends the whole run."""


def parse(line: str, file: str) -> Entry | None:
    """An entry of a line; None of a comment. Raises BadLine."""
    words = line.split("#", 1)[0].split()
    if not words or words[0] == "<include>":
        return None
    path, rest = words[0], words[1:]
    owner = None
    if rest and ":" in rest[0]:
        user, _, group = rest.pop(0).partition(":")
        try:
            uid = -1 if not user else int(user) if user.isdigit() else pwd.getpwnam(user).pw_uid
        except KeyError:
            raise BadLine(f"error in config file; unknown user:\n{line}") from None
        try:
            gid = -1 if not group else int(group) if group.isdigit() else grp.getgrnam(group).gr_gid
        except KeyError:
            raise BadLine(f"error in config file; unknown group:\n{line}") from None
        owner = (uid, gid)
    if len(rest) < 4:
        raise BadLine(f"malformed line (missing fields):\n{line}")
    mode, count, size, when = rest[:4]
    if not re.fullmatch(r"[0-7]{3,4}", mode):
        raise BadLine(f"error in config file; bad permissions:\n{line}")
    if not count.isdigit():
        raise BadLine(f"error in config file; bad value for count of logs to save:\n{line}")
    if size != "*" and not size.isdigit():
        raise BadLine(f"error in config file; bad size:\n{line}")
    flags = rest[4] if len(rest) > 4 else "-"
    if set(flags.upper()) - set("BCDGJNUWZR-"):
        raise BadLine(f"illegal flag in config file -- {(set(flags.upper()) - set('BCDGJNUWZR-')).pop()}")
    pid_file = rest[5] if len(rest) > 5 and rest[5].startswith("/") else ""
    text = rest[6] if pid_file and len(rest) > 6 else rest[5] if len(rest) > 5 and not pid_file else "1"
    number = int(text) if text.isdigit() else signal.Signals[f"SIG{text.upper().removeprefix('SIG')}"].value
    return Entry(
        path, owner, int(mode, 8), int(count), None if size == "*" else int(size), when, flags.upper(), pid_file, number
    )


def newsyslog(name: str, arguments: list[str]) -> int:
    """Rotates what is due; -n only says it, -v says more, -f names one file, -F turns over in any case."""
    pairs, rest, bad = common.getopt(arguments, "CFNPRa:d:f:nrsvt:S:")
    if bad:
        return common.illegal("newsyslog", bad, "newsyslog [-CFNPnrsv] [-a directory] [-d directory] [-f config_file]")
    options = dict(pairs)
    if not common.is_root() and "r" not in options:
        common.complain("newsyslog: must have root privs")
        return 1
    files = (
        [options["f"]]
        if "f" in options
        else ["/etc/newsyslog.conf", *sorted(map(str, Path("/etc/newsyslog.d").glob("*.conf")))]
    )
    entries = []
    for file in files:
        try:
            lines = Path(file).read_text().splitlines()
        except OSError as error:
            common.complain(f"newsyslog: {file}: {os.strerror(error.errno or 2)}")
            return 1
        for line in lines:
            try:
                entry = parse(line, file)
            except BadLine as error:
                common.complain(f"newsyslog: {error}")
                return 1
            if entry is not None:
                entries.append(entry)
    for entry in entries:
        paths = sorted(map(str, Path("/").glob(entry.path.lstrip("/")))) if "G" in entry.flags else [entry.path]
        for path in paths:
            if not rest or path in rest:
                rotate(entry, path, "n" in options, "v" in options or "n" in options, "F" in options, "s" in options)
    return 0


def rotate(entry: Entry, path: str, dry: bool, verbose: bool, force: bool, no_signal: bool) -> None:
    """One log."""
    mark = f"{path} <{entry.count}{'J' if 'J' in entry.flags else 'Z' if 'Z' in entry.flags else ''}>"
    file = Path(path)
    if not file.exists():
        if "C" in entry.flags and not dry:
            file.touch(entry.mode)
        if verbose:
            print(f"{mark}: does not exist, skipped.")
        return
    size = (file.stat().st_size + 1023) // 1024
    due = force or (entry.size is not None and size >= entry.size)
    limit = f" [{entry.size}]" if entry.size is not None else ""
    if verbose:
        print(f"{mark}: size (Kb): {size}{limit} --> {'trimming log....' if due else 'skipping'}")
    if dry or not due:
        return
    ending = ".bz2" if "J" in entry.flags else ".gz" if "Z" in entry.flags else ""
    for number in range(entry.count - 1, -1, -1):
        old = Path(f"{path}.{number}{ending}")
        if old.exists():
            if number + 1 >= entry.count:
                old.unlink()
            else:
                old.rename(f"{path}.{number + 1}{ending}")
    first = Path(f"{path}.0")
    about = file.stat()
    file.rename(first)
    text = ""
    if "B" not in entry.flags:
        reason = f" due to size>{entry.size}K" if entry.size is not None else ""
        now = time.strftime("%b %e %H:%M:%S")
        text = f"{now} {os.uname().nodename.split('.')[0]} newsyslog[{os.getpid()}]: logfile turned over{reason}\n"
    file.write_text(text)
    file.chmod(entry.mode)
    owner = entry.owner or (about.st_uid, about.st_gid)
    os.chown(file, owner[0], owner[1])
    if entry.pid_file and "N" not in entry.flags and not no_signal:
        with suppress(OSError, ValueError):
            os.kill(int(Path(entry.pid_file).read_text().split()[0]), entry.number)
    if ending:
        pack = bz2.compress if ending == ".bz2" else gzip.compress
        packed = Path(f"{path}.0{ending}")
        packed.write_bytes(pack(first.read_bytes()))
        packed.chmod(entry.mode)
        os.chown(packed, owner[0], owner[1])
        first.unlink()


def log(name: str, arguments: list[str]) -> int:
    """show and stream: launchd's own lines."""
    verb = arguments[0] if arguments else "help"
    if verb not in ("show", "stream"):
        common.complain("usage: log <command>")
        return 64
    members = subprocess.run([common.linux("id"), "-Gn"], capture_output=True, text=True, check=False).stdout.split()
    if not common.is_root() and "admin" not in members:
        common.complain(f"log: Must be admin to run '{verb}' command")
        return 77
    as_json = "ndjson" in arguments
    if not as_json:
        print("Timestamp                       Thread     Type        Activity             PID    TTL  ")
    if verb == "show" and LAUNCHD_LOG.exists():
        for line in LAUNCHD_LOG.read_text().splitlines():
            match = re.match(r"(\S+ \S+) (\(.*?\)) <Notice>: (.*)", line)
            if match is None:
                continue
            if as_json:
                print(
                    json.dumps({"timestamp": match[1], "process": "launchd", "eventMessage": f"{match[2]} {match[3]}"})
                )
            else:
                columns = "0x1        Default     0x0                  1      0   "
                print(f"{match[1]}+0000 {columns} launchd: {match[2]} {match[3]}")
    return 0
