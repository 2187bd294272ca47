"""launchctl: asks launchd and says what it answers."""

from __future__ import annotations

import json
import os
import socket
import sys
from pathlib import Path

import common


def launchctl(name: str, arguments: list[str]) -> int:
    """The command."""
    # A daemon's own calls are in the session of the system, those of a login over SSH in its own.
    manager = "System" if os.environ.get("XPC_SERVICE_NAME", "0") not in ("0", "com.openssh.sshd") else "Background"
    paths = {"bootstrap", "bootout", "load", "unload"}
    words = list(arguments)
    if words[:1] and words[0] in paths:
        words = [words[0]] + [
            word if word.startswith("-") or not Path(word).exists() else str(Path.cwd() / word) for word in words[1:]
        ]
    return ask({"argv": words, "tty": sys.stdout.isatty(), "manager": manager})


def ask(question: dict[str, object]) -> int:
    """Puts a question to launchd."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.connect(str(common.SOCKET))
        connection.sendall(json.dumps(question).encode() + b"\n")
        received = b""
        while piece := connection.recv(65536):
            received += piece
    answer = json.loads(received) if received else {"code": 1, "out": "", "err": "launchd is gone\n"}
    sys.stdout.write(answer["out"])
    sys.stdout.flush()
    sys.stderr.write(answer["err"])
    return int(answer["code"])


def loginwindow(name: str, arguments: list[str]) -> int:
    """`loginwindow login UID`, `loginwindow logout UID`: somebody signs in at the screen, or out. No Mac has it so."""
    return ask({"argv": [f"\0{arguments[0]}", arguments[1]]})


def shutdown(name: str, arguments: list[str]) -> int:
    """`shutdown -r now`, `reboot`, `halt`: a container has no other state than booted, so it always comes back."""
    if not common.is_root():
        common.complain(f"{name}: NOT super-user" if name == "shutdown" else f"{name}: Operation not permitted")
        return 1
    if name == "shutdown" and (len(arguments) < 2 or arguments[0] not in ("-r", "-h")):
        common.complain("usage: shutdown [-] [-h [-u] [-n] | -r [-n] | -s | -k] time [warning-message ...]")
        return 1
    if name == "shutdown" and arguments[1] not in ("now", "+0"):
        common.complain("shutdown: the double knows no other time than now")
        return 1
    return ask({"argv": ["\0reboot"]})
