"""Looks for secrets in every form in which they could be written: as they are, encoded, or cut in two."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote, quote_plus

from kit import Box, eventually

# Records, as fast as it can, every command line of every process of this machine; boxes are processes of this machine.
_WATCH = """
import os, sys
seen = set()
while True:
    for number in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{number}/cmdline", "rb") as file:
                line = file.read()
        except OSError:
            continue
        if line and line not in seen:
            seen.add(line)
            sys.stdout.buffer.write(line.replace(b"\\n", b" ") + b"\\n")
            sys.stdout.buffer.flush()
"""


def forms(secret: str, user: str = "") -> set[str]:
    """Texts that give `secret` away."""
    found = {
        secret,
        quote(secret),
        quote(secret, safe=""),
        quote_plus(secret),
        json.dumps(secret)[1:-1],
        repr(secret)[1:-1],
    }
    for text in {secret, f"{user}:{secret}"}:
        for encode in (base64.b64encode, base64.urlsafe_b64encode):
            found.add(encode(text.encode()).decode().rstrip("="))
    found.add(secret.encode().hex())
    if len(secret) >= 24:
        found |= {secret[:12], secret[-12:]}
    return found


def leaks(text: str, secrets: Mapping[str, str]) -> list[str]:
    """Names of the secrets that `text` gives away."""
    return [name for name, secret in secrets.items() if any(form in text for form in forms(secret, "boxwright"))]


@contextmanager
def watched_command_lines() -> Iterator[list[str]]:
    """Command lines of all processes that were seen while the block ran; filled in when it ends."""
    seen: list[str] = []
    # Into a file: a pipe is full when a few long lines were seen, and then the watcher would stand still.
    with (
        tempfile.TemporaryFile() as output,
        subprocess.Popen([sys.executable, "-S", "-c", _WATCH], stdout=output) as job,
    ):
        try:
            eventually("the watcher has begun", lambda: os.fstat(output.fileno()).st_size)
            yield seen
        finally:
            job.terminate()
            job.wait()
            output.seek(0)
            lines = output.read().decode(errors="replace").splitlines()
            seen += [line.replace("\0", " ") for line in lines]


def readable_by_others(box: Box, secrets: Iterable[str], folders: Iterable[str]) -> list[str]:
    """Files on the box that somebody without any rights can read and that hold one of `secrets`, in any form."""
    patterns = sorted({form for secret in secrets for form in forms(secret, "boxwright")})
    box.put("/root/patterns", "\n".join(patterns) + "\n", 0o600)
    search = f"grep --recursive --files-with-matches --text --fixed-strings --file=- {' '.join(folders)}"
    try:
        # The patterns are opened by root and read by nobody.
        return box.sh(
            f"setpriv --reuid nobody --regid nogroup --clear-groups {search} </root/patterns 2>/dev/null", check=False
        ).splitlines()
    finally:
        box.sh("rm /root/patterns")


def open_to_others(folder: Path) -> list[str]:
    """Files and folders below `folder` on this machine that others may read, write or enter."""
    return [str(path) for path in [folder, *folder.rglob("*")] if not path.is_symlink() and path.stat().st_mode & 0o077]
