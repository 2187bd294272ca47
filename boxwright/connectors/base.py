"""What both connectors share: a count of remote commands, and sudo with a password that never is an argument.

pyinfra itself puts the password into the command line (`env PYINFRA_SUDO_PASSWORD=... sudo`, connectors/util.py:
make_unix_command), where `ps` on the box shows it for a moment. Here the shell that starts sudo reads it from standard
input into its environment; pyinfra's askpass script on the box, which holds no secret, hands it to sudo from there.
"""

from __future__ import annotations

import functools
import getpass
import shlex
import sys
from typing import Any

from paramiko import SSHException
from pyinfra.api.command import QuoteString, StringCommand
from pyinfra.api.exceptions import ConnectError, PyinfraError
from pyinfra.connectors import util
from pyinfra.connectors.base import BaseConnector
from pyinfra.connectors.util import (
    SUDO_ASKPASS_ENV_VAR,
    CommandOutput,
    _ensure_sudo_askpass_set_for_host,
    extract_control_arguments,
    make_unix_command,
)

from boxwright import masking
from boxwright.connection import Connection
from boxwright.connectors.messages import sudo_problem
from boxwright.errors import Problem

_strict_read_buffer = util.read_buffer


@functools.wraps(_strict_read_buffer)
def _read_buffer(name: str, io: Any, *args: Any, **kwargs: Any) -> None:
    """pyinfra's, but a byte that is not UTF-8 costs that byte and not the whole output of the command."""
    lines = (line.decode("utf-8", "replace") if isinstance(line, bytes) else line for line in io)
    _strict_read_buffer(name, lines, *args, **kwargs)


util.read_buffer = _read_buffer

ATTEMPTS = 3  # as sudo's own default (sudoers(5): passwd_tries)


class NotReached(ConnectError):  # type: ignore[misc]  # pyinfra is not checked
    """A host could not be reached or used; `problem` says why and what to do. Nothing was changed on it."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(f"{problem.message}\n      help: {problem.help}" if problem.help else problem.message)
        self.problem = problem


class BoxConnector(BaseConnector):  # type: ignore[misc]  # pyinfra is not checked
    """Mixin before a pyinfra connector. `remote_commands` counts the commands that were sent to the host."""

    remote_commands = 0
    _sudo_ready = False
    _sudo_password: str | None = None
    _already_root = False

    @property
    def connection(self) -> Connection:
        """How the inventory says the host is reached; a bare one for a host of a foreign pyinfra project."""
        known = self.host.data.get("boxwright_connection")
        if isinstance(known, Connection):
            return known
        return Connection(name=self.host.name, address=str(self.host.data.get("ssh_hostname", self.host.name)))

    def like(self, other: BoxConnector) -> None:
        """Use sudo as `other` does, which has found out how: nobody is asked for a password twice."""
        self._sudo_ready = other._sudo_ready
        self._sudo_password = other._sudo_password
        self._already_root = other._already_root

    def run_shell_command(
        self, command: StringCommand, print_output: bool = False, print_input: bool = False, **arguments: Any
    ) -> tuple[bool, CommandOutput]:
        """Run `command` on the host; as pyinfra's, but for the way a sudo password takes."""
        if arguments.get("_sudo"):
            self.prepare_sudo()
            if self._already_root and arguments.get("_sudo_user") in (None, "root"):
                arguments["_sudo"] = False
            elif password := self._sudo_password or arguments.get("_sudo_password"):
                command, arguments = self._with_password(command, password, arguments)
        self.remote_commands += 1
        try:
            ran, output = super().run_shell_command(
                command, print_output=print_output, print_input=print_input, **arguments
            )
        except (PyinfraError, OSError, SSHException):  # pyinfra fails the one operation on this one host
            raise
        except Exception as error:
            raise OSError(f"{type(error).__name__}: {error}") from error
        return bool(ran), output

    def prepare_sudo(self) -> None:
        """Find out, once, whether sudo needs a password here, and have one that it accepts. Raises NotReached."""
        if self._sudo_ready:
            return
        self._sudo_ready = True
        connection = self.connection
        user = connection.become_user or "root"
        _, output = self._plainly(
            "id -u; if ! command -v sudo >/dev/null; then echo none; "
            f"elif sudo -n -k -u {shlex.quote(user)} true 2>/dev/null; "
            "then echo free; else echo asks; fi"
        )
        uid, answer = [*output.stdout_lines, "", ""][:2]
        self._already_root = uid == "0"
        if answer == "free" or (self._already_root and user == "root"):
            return
        if answer == "none":
            raise NotReached(sudo_problem(connection, "missing"))
        self._sudo_password = self._accepted_password(connection, user)

    def _accepted_password(self, connection: Connection, user: str) -> str:
        if connection.become_password:
            if (said := self._try(connection.become_password, user)) is not None:
                raise NotReached(sudo_problem(connection, "refused", said))
            return connection.become_password
        if not sys.stdin.isatty():
            raise NotReached(sudo_problem(connection, "unknown"))
        said = ""
        for _ in range(ATTEMPTS):
            password = getpass.getpass(f"sudo password on {connection.name} ({connection.login}): ")
            masking.register([password])
            if (said := self._try(password, user) or "") == "":
                return password
            print("sudo did not accept it", file=sys.stderr)
        raise NotReached(sudo_problem(connection, "refused", said))

    def _try(self, password: str, user: str) -> str | None:
        """None when sudo accepts `password`, else the last line of what it said."""
        command, arguments = self._with_password(StringCommand("true"), password, {"_sudo": True, "_sudo_user": user})
        accepted, output = super().run_shell_command(command, **arguments)
        self.remote_commands += 1
        return None if accepted else (output.stderr_lines or ["no answer"])[-1]

    def _plainly(self, script: str) -> tuple[bool, CommandOutput]:
        self.remote_commands += 1
        ran, output = super().run_shell_command(
            StringCommand("sh", "-c", QuoteString(script)),
            print_output=False,
            print_input=False,
            _shell_executable=None,
        )
        return bool(ran), output

    def _with_password(
        self, command: StringCommand, password: str, arguments: dict[str, Any]
    ) -> tuple[StringCommand, dict[str, Any]]:
        """`command` under sudo, with the password as the first line of its standard input; and the arguments left."""
        arguments = dict(arguments)
        control = extract_control_arguments(arguments)
        askpass = _ensure_sudo_askpass_set_for_host(self.host, temp_dir=arguments.get("_temp_dir"))
        arguments.pop("_sudo_password", None)
        # With a password and no askpass path make_unix_command writes `sudo -H -A -k ...` and no environment.
        inner = make_unix_command(command, _sudo_password="on standard input", **arguments)  # noqa: S106
        script = StringCommand(
            f"IFS= read -r {SUDO_ASKPASS_ENV_VAR}; export {SUDO_ASKPASS_ENV_VAR};",
            StringCommand("SUDO_ASKPASS=", QuoteString(askpass), _separator=""),
            inner,
        )
        stdin = control.get("_stdin") or []
        if hasattr(stdin, "readlines"):
            stdin = stdin.readlines()
        control["_stdin"] = [password, *([stdin] if isinstance(stdin, str) else stdin)]
        return StringCommand("sh", "-c", QuoteString(script)), {**control, "_shell_executable": None}
