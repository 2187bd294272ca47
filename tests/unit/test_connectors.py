"""The connectors against a real SSH server on loopback (ssh_server.py), each case in a process of its own.

A process of its own because pyinfra replaces blocking calls of the standard library in the process it is imported into.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent

# Connects one host, runs the commands given on standard input, prints what happened as JSON.
CLIENT = """
import json, socket, sys
from boxwright import runner
from boxwright.connection import pyinfra_target
from pyinfra.api import Config, Inventory, State, StringCommand
from pyinfra.api.connect import connect_all
from pyinfra.api.exceptions import PyinfraError
given = json.load(sys.stdin)
address, data = pyinfra_target("box", given["variables"])
inventory = Inventory(([(address, data)], {}))
state = State(inventory, Config())
host = inventory.get_host("box")
told = {}
try:
    host.connect(raise_exceptions=True, show_errors=False)
except PyinfraError as error:
    told["error"] = str(error)
    told["code"] = error.problem.code
    told["help"] = error.problem.help
else:
    told["outputs"] = []
    for command, arguments in given["commands"]:
        ok, output = host.run_shell_command(StringCommand(command), **arguments)
        told["outputs"].append([ok, output.stdout, output.stderr])
    told["remote_commands"] = host.connector.remote_commands
    if hasattr(host.connector, "_sockets"):
        told["nodelay"] = [s.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) for s in host.connector._sockets()]
    host.disconnect()
json.dump(told, sys.stdout)
sys.stdout.flush()
import os; os._exit(0)
"""

# A sudo for tests: knows -n, -A, -S, -k, -H, -p, -u; wants the password in $SUDO_SECRET unless that is empty.
SUDO = """#!/bin/sh
ask=prompt; stdin=no; user=root
while [ $# -gt 0 ]; do case "$1" in
  -n) ask=never; shift;; -A) ask=program; shift;; -S) stdin=yes; shift;; -k|-H) shift;;
  -p) shift 2;; -u) user="$2"; shift 2;; *) break;; esac; done
if [ -n "$SUDO_SECRET" ]; then
  case "$ask$stdin" in
    never*) echo "sudo: a password is required" >&2; exit 1;;
    programno) given=$("$SUDO_ASKPASS" "password:");;
    promptyes) IFS= read -r given;;
    *) echo "sudo: a terminal is required" >&2; exit 1;;
  esac
  [ "$given" = "$SUDO_SECRET" ] || { echo "sudo: 1 incorrect password attempt" >&2; exit 1; }
fi
unset PYINFRA_SUDO_PASSWORD SUDO_SECRET
RAN_AS="$user" exec "$@"
"""


class Box:
    """A running SSH server and what is needed to reach it."""

    def __init__(self, folder: Path, **environment: str) -> None:
        self.folder = folder
        folder.mkdir()
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / "key"], check=True)
        (folder / "authorized.pub").write_text((folder / "key.pub").read_text())
        programs = folder / "bin"
        programs.mkdir()
        (programs / "sudo").write_text(SUDO)
        (programs / "sudo").chmod(0o755)
        (programs / "id").write_text('#!/bin/sh\n[ "$1" = -u ] && echo 1000 || echo operator\n')
        (programs / "id").chmod(0o755)
        self.process = subprocess.Popen(
            [sys.executable, HERE / "ssh_server.py", folder, "--password", "login-word", "--bin", programs],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **environment},
        )
        assert self.process.stdout
        self.port = int(self.process.stdout.readline())
        self.known_hosts = folder / "known_hosts"
        self.trust()

    def trust(self) -> None:
        key = (self.folder / "host_key.pub").read_text().split()[:2]
        self.known_hosts.write_text(f"[127.0.0.1]:{self.port} {' '.join(key)}\n")

    def variables(self, **more: Any) -> dict[str, Any]:
        return {
            "ansible_host": "127.0.0.1",
            "ansible_port": self.port,
            "ansible_user": "operator",
            "ansible_ssh_private_key_file": str(self.folder / "key"),
            "ansible_ssh_common_args": f"-o UserKnownHostsFile={self.known_hosts}",
            **more,
        }

    @property
    def commands(self) -> str:
        """Everything that the server was told to run: what `ps` on the box would show."""
        log = self.folder / "commands"
        return log.read_text() if log.exists() else ""


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Box]]:
    boxes: list[Box] = []

    def one(name: str = "box", **environment: str) -> Box:
        boxes.append(Box(tmp_path / name, **environment))
        return boxes[-1]

    yield one
    for box in boxes:
        box.process.kill()
        box.process.communicate()


@pytest.fixture
def connect(tmp_path: Path) -> Callable[..., dict[str, Any]]:
    (tmp_path / "home").mkdir()

    def call(variables: dict[str, Any], *commands: tuple[str, dict[str, Any]], check: bool = True) -> dict[str, Any]:
        done = subprocess.run(
            [sys.executable, "-c", CLIENT],
            input=json.dumps({"variables": variables, "commands": commands}),
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
            start_new_session=True,  # no terminal
            env={
                **{k: v for k, v in os.environ.items() if not k.startswith("SSH_")},
                "HOME": str(tmp_path / "home"),
                "BOXWRIGHT_STATE_DIR": str(tmp_path / "state"),
            },
        )
        assert done.returncode == 0, done.stderr
        assert "Traceback" not in done.stderr
        told: dict[str, Any] = json.loads(done.stdout)
        return told

    return call


def test_commands_run_over_a_connection_without_nagle(start: Any, connect: Any) -> None:
    box = start()
    told = connect(box.variables(), ("echo one; echo two >&2", {}), ("cat; exit 3", {"_stdin": ["typed"]}))
    assert told["outputs"] == [[True, "one", "two"], [False, "typed", ""]]
    assert told["nodelay"] == [1]
    assert told["remote_commands"] == 2


@pytest.mark.parametrize("local", [False, True])
def test_output_that_is_not_utf8_is_not_lost(start: Any, connect: Any, local: bool) -> None:
    variables = {"ansible_connection": "local"} if local else start().variables()
    told = connect(variables, ("printf 'before \\377 after\\n'; printf 'gr\\303\\266\\303\\237er\\n'", {}))
    assert told["outputs"] == [[True, "before \ufffd after\ngrößer", ""]]


def test_an_unknown_host_key_is_an_error_whose_help_cures_it(start: Any, connect: Any) -> None:
    box = start()
    box.known_hosts.write_text("")
    told = connect(box.variables(), ("true", {}))
    assert told["code"] == "BW101"
    assert box.commands == ""
    line = told["help"].partition("fingerprints: ")[2]
    subprocess.run(["sh", "-c", line], check=True, capture_output=True)
    assert connect(box.variables(), ("echo in", {}))["outputs"] == [[True, "in", ""]]


def test_a_changed_host_key_is_an_error_whose_help_cures_it(start: Any, connect: Any, tmp_path: Path) -> None:
    box = start()
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", tmp_path / "other"], check=True)
    key = (tmp_path / "other.pub").read_text().split()[:2]
    box.known_hosts.write_text(f"[127.0.0.1]:{box.port} {' '.join(key)}\n")
    told = connect(box.variables(), ("true", {}))
    assert told["code"] == "BW102"
    assert box.commands == ""
    line = told["help"].partition("set up again: ")[2]
    subprocess.run(["sh", "-c", line], check=True, capture_output=True)
    assert connect(box.variables(), ("true", {}))["code"] == "BW101"  # forgotten, so it can be learnt anew


def test_a_refused_key_says_how_to_allow_it(start: Any, connect: Any) -> None:
    box = start()
    (box.folder / "authorized.pub").unlink()
    told = connect(box.variables())
    assert told["code"] == "BW103"
    assert "ssh-copy-id" in told["help"]
    assert "operator@127.0.0.1" in told["help"]


def test_nobody_listens_and_a_name_that_does_not_resolve(start: Any, connect: Any) -> None:
    box = start()
    box.process.kill()
    box.process.wait()
    assert connect(box.variables())["code"] == "BW104"
    told = connect(box.variables(ansible_host="no-such-host.invalid"))
    assert told["code"] == "BW104"
    assert "does not resolve" in told["error"]


def test_login_by_password(start: Any, connect: Any) -> None:
    box = start()
    (box.folder / "authorized.pub").unlink()
    assert connect(box.variables(ansible_password="login-word"), ("echo in", {}))["outputs"] == [[True, "in", ""]]
    told = connect(box.variables(ansible_password="wrong-word"))
    assert told["code"] == "BW103"
    assert "wrong-word" not in told["error"]


def test_a_locked_key_says_how_to_unlock_it(start: Any, connect: Any) -> None:
    box = start()
    subprocess.run(["ssh-keygen", "-q", "-p", "-P", "", "-N", "passphrase", "-f", box.folder / "key"], check=True)
    told = connect(box.variables())
    assert told["code"] == "BW103"
    assert f"ssh-add {box.folder / 'key'}" in told["help"]


def test_through_a_jump_host_whose_key_is_checked_too(start: Any, connect: Any) -> None:
    hop, box = start("hop"), start("box")
    (hop.folder / "authorized.pub").write_text((box.folder / "key.pub").read_text())
    arguments = f"-J jumper@127.0.0.1:{hop.port} -o UserKnownHostsFile={box.known_hosts}"
    box.known_hosts.write_text(box.known_hosts.read_text() + hop.known_hosts.read_text())
    told = connect(box.variables(ansible_ssh_common_args=arguments), ("echo far", {}))
    assert told["outputs"] == [[True, "far", ""]]
    assert told["nodelay"] == [1]
    box.trust()  # forgets the hop
    told = connect(box.variables(ansible_ssh_common_args=arguments))
    assert told["code"] == "BW101"
    assert f"-p {hop.port} 127.0.0.1" in told["help"]


def test_through_a_proxy_command(start: Any, connect: Any) -> None:
    hop, box = start("hop"), start("box")
    (hop.folder / "authorized.pub").write_text((box.folder / "key.pub").read_text())
    ssh = f"ssh -i {box.folder}/key -p {hop.port} -o UserKnownHostsFile={hop.known_hosts} -W %h:%p jumper@127.0.0.1"
    arguments = f"-o UserKnownHostsFile={box.known_hosts} -o ProxyCommand='{ssh}'"
    told = connect(box.variables(ansible_ssh_common_args=arguments), ("echo far", {}))
    assert told["outputs"] == [[True, "far", ""]]


@pytest.mark.parametrize("program", ["false", "true", "no-such-program"])
def test_a_proxy_command_that_ends_is_an_error_at_once(connect: Any, program: str) -> None:
    arguments = f"-o ProxyCommand={program}"
    told = connect({"ansible_host": "192.0.2.1", "ansible_ssh_common_args": arguments})
    assert told["code"] == "BW104"


def test_a_proxy_command_that_was_waited_for_can_be_closed() -> None:
    """What paramiko does in a thread of its own: a traceback of that would be printed."""
    program = (
        "import boxwright.connectors.ssh as ssh; p = ssh.ProxyCommand('true'); p.process.wait(); p.close(); p.close()"
    )
    subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)


def test_hosts_really_run_side_by_side() -> None:
    """Blocking calls are replaced before paramiko takes them; the order of imports decides that."""
    program = (
        "import boxwright.runner, paramiko.proxy, gevent.select; print(paramiko.proxy.select is gevent.select.select)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "True\n"


def test_sudo_without_a_password(start: Any, connect: Any) -> None:
    box = start(SUDO_SECRET="")
    told = connect(
        box.variables(ansible_become=True, ansible_become_password="not-needed"),
        ("echo $RAN_AS; cat", {"_sudo": True, "_stdin": ["mine"]}),
    )
    assert told["outputs"] == [[True, "root\nmine", ""]]


def test_a_sudo_password_is_given_and_is_no_argument(start: Any, connect: Any) -> None:
    box = start(SUDO_SECRET="sesame street")
    told = connect(
        box.variables(ansible_become=True, ansible_become_password="sesame street", ansible_become_user="www"),
        ("echo $RAN_AS; env | grep -c 'same str'; cat", {"_sudo": True, "_sudo_user": "www", "_stdin": ["mine"]}),
        ("echo plain $RAN_AS", {}),
    )
    assert told["outputs"] == [[True, "www\n0\nmine", ""], [True, "plain", ""]]
    assert "sesame" not in box.commands
    assert "same str" in box.commands  # the commands were recorded


def test_a_wrong_or_missing_sudo_password_is_said_before_anything_is_done(start: Any, connect: Any) -> None:
    box = start(SUDO_SECRET="sesame street")
    told = connect(box.variables(ansible_become=True, ansible_become_password="wrong one"), ("echo done", {}))
    assert told["code"] == "BW105"
    assert "incorrect password" in told["error"]
    assert "wrong one" not in told["error"]
    told = connect(box.variables(ansible_become=True), ("echo done", {}))
    assert told["code"] == "BW106"
    assert "ansible_become_password" in told["help"]
    assert "echo done" not in box.commands


def test_a_host_without_sudo_is_said(start: Any, connect: Any) -> None:
    box = start()
    (box.folder / "bin/sudo").unlink()
    told = connect(box.variables(ansible_become=True))
    if subprocess.run(["sh", "-c", "command -v sudo"], capture_output=True, check=False).returncode == 0:
        pytest.skip("the machine of the tests has sudo itself")
    assert told["code"] == "BW105"


def test_the_local_connector_runs_here_under_its_own_name(connect: Any, tmp_path: Path) -> None:
    told = connect({"ansible_connection": "local"}, (f"echo here > {tmp_path}/made; cat {tmp_path}/made", {}))
    assert told["outputs"] == [[True, "here", ""]]
    assert (tmp_path / "made").read_text() == "here\n"
