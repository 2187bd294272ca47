"""A Debian machine with systemd that a test can break: a container of the lab's box image, thrown away at the end.

Commands of operations run in it as root; nothing of boxwright's connectors is used, so it can be judged by itself.
"""

from __future__ import annotations

import base64
import shlex
import time
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any

from harness import Asked, Result, run

LABEL = "boxwright.test-machine"


class Operated:
    """A container in which operations run, as root and without any connection."""

    container: Any
    # What an inventory says that it runs.
    system = "linux"
    shell: _Shell | None = None
    # Where the shell that is kept open finds base64, and puts what a command has said; the first it is told.
    tools, scratch, first = "", "/run", ""

    def close(self) -> None:
        """It is gone, with its volume."""
        self.container.remove(force=True, v=True)

    def sh(self, text: str) -> str:
        """What a shell command prints, errors included."""
        _, out, _ = self._exec(["sh", "-c", f"exec 2>&1; {text}"])
        return out

    def answer(self, asked: Asked) -> tuple[bool, list[str]]:
        """Runs a command of pyinfra, as a connector does."""
        # pyinfra ends what it sends with a line break.
        text = asked.stdin if asked.stdin.endswith("\n") or not asked.stdin else asked.stdin + "\n"
        code, out, err = self._exec(["sh", "-c", asked.text, "boxwright", *asked.arguments], text.encode())
        return code == 0, (out if code == 0 else err).splitlines()

    def _exec(self, command: Sequence[str], stdin: bytes = b"") -> tuple[int, str, str]:
        """Exit code, standard output and standard error of a command, run by the one shell that is kept open."""
        if self.shell is None:
            self.shell = _Shell(self.container, self.tools, self.scratch, self.first)
        return self.shell.run(command, stdin)

    def run(self, deploy: Callable[[], object], **options: Any) -> Result:
        """Run operations on it."""
        return run(deploy, self.answer, **{"system": self.system, **options})

    def put(self, path: str, content: bytes, mode: int = 0o644) -> None:
        """Write a file, without any operation."""
        script = 'cat >"$1" && chmod "$2" "$1"'
        code, _, err = self._exec(["sh", "-c", script, "put", path, f"{mode:o}"], content)
        assert code == 0, err


class Machine(Operated):
    """One such machine. `image` names its image, from the engine's client and a progress; unset, it is a box's."""

    def __init__(self, image: Callable[[Any, Any], str] | None = None) -> None:
        from boxwright.lab import engine
        from boxwright.lab.image import ensure_box
        from boxwright.lab.progress import Progress

        with Progress(plain=True) as progress:
            client = engine.ensure(progress)
            tag = (image or ensure_box)(client, progress)
        for left in client.containers.list(all=True, filters={"label": LABEL}, ignore_removed=True):
            if time.time() - _seconds(left.attrs["Created"]) > 3600:
                left.remove(force=True, v=True)
        config = client.api.create_host_config(
            cap_add=["SYS_ADMIN", "NET_ADMIN", "SYS_PTRACE"],
            security_opt=["seccomp=unconfined", "apparmor=unconfined"],
            cgroupns="host",
            binds={"/sys/fs/cgroup": {"bind": "/sys/fs/cgroup", "mode": "rw"}},
            tmpfs={"/run": "", "/run/lock": ""},
        )
        config.update(MaskedPaths=[], ReadonlyPaths=[])
        created = client.api.create_container(
            tag, labels={LABEL: ""}, stop_signal="SIGRTMIN+3", host_config=config, volumes=["/var/lib/docker"]
        )
        self.container = client.containers.get(created["Id"])
        self.container.start()
        self.wait()

    def wait(self) -> None:
        """Until systemd has finished its boot."""
        deadline = time.monotonic() + 60
        while self.sh("systemctl is-system-running").strip() not in ("running", "degraded"):
            assert time.monotonic() < deadline, self.sh("systemctl list-jobs")
            time.sleep(0.1)

    def reboot(self) -> None:
        """Stop it in order, boot it, wait."""
        self.shell = None
        self.container.restart(timeout=30)
        self.wait()


class _Shell:
    """A shell in a container, for one command after the other: a new one for each costs a tenth of a second."""

    def __init__(self, container: Any, tools: str, scratch: str, first: str) -> None:
        self.tools, self.scratch = tools, scratch
        api = container.client.api
        started = api.exec_create(container.id, ["sh"], stdin=True)
        self.socket = api.exec_start(started["Id"], socket=True)._sock
        self.socket.settimeout(300)
        self.socket.sendall(first.encode())

    def run(self, command: Sequence[str], stdin: bytes) -> tuple[int, str, str]:
        """Exit code, standard output and standard error."""
        encoded = base64.b64encode(stdin).decode()
        base64_program = f"{self.tools}base64"
        out_file, err_file = f"{self.scratch}/test.out", f"{self.scratch}/test.err"
        self.socket.sendall(
            f"printf %s {encoded} | {base64_program} -d | {shlex.join(command)} >{out_file} 2>{err_file}; "
            f'echo "$? $({base64_program} -w0 <{out_file}) $({base64_program} -w0 <{err_file}) end"\n'.encode()
        )
        answer = b""
        while not answer.endswith(b" end\n"):
            # Each piece has a header of eight bytes: which stream, and in the last four how long.
            header = self._read(8)
            answer += self._read(int.from_bytes(header[4:], "big"))
        code, out, err, _ = answer.decode().rsplit("\n", 2)[-2].split(" ")
        return int(code), base64.b64decode(out).decode(), base64.b64decode(err).decode()

    def _read(self, length: int) -> bytes:
        read = b""
        while len(read) < length:
            piece = self.socket.recv(length - len(read))
            assert piece, "the machine is gone"
            read += piece
        return read


def _seconds(created: str) -> float:
    return datetime.fromisoformat(created[:19] + "+00:00").timestamp()
