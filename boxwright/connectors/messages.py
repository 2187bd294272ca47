"""Says why a host could not be reached or used, and what a person does about it. Pure."""

from __future__ import annotations

import errno
import re
import shlex
import socket

from paramiko import AuthenticationException, BadHostKeyException, PasswordRequiredException

from boxwright.connection import Connection, config_path, hops, known_hosts_files
from boxwright.errors import Problem


def unreachable(connection: Connection, cause: BaseException) -> Problem:
    """The problem behind `cause`, which pyinfra's SSH client raised while it connected to `connection`."""
    where = _place(connection)
    text = str(cause) or type(cause).__name__
    if unknown := re.search(r"No host key for (\S+) found in known_hosts", text):
        return _unknown_key(connection, unknown[1])
    if isinstance(cause, BadHostKeyException):
        return _changed_key(connection, cause.hostname)
    if isinstance(cause, PasswordRequiredException):
        key = connection.key_file or "the private key"
        return _problem(
            connection, "BW103", f"{key} is locked with a passphrase", f"unlock it first: ssh-add {_key(connection)}"
        )
    if isinstance(cause, AuthenticationException):
        return _refused_login(connection)
    if isinstance(cause, socket.gaierror):
        return _problem(
            connection,
            "BW104",
            f"the name {connection.address} does not resolve",
            "correct it, or set `ansible_host` to an address",
        )
    number = getattr(cause, "errno", None)
    if isinstance(cause, TimeoutError) or number == errno.ETIMEDOUT or "timed out" in text:
        return _problem(
            connection,
            "BW104",
            f"{where} did not answer within {connection.connect_timeout} s",
            "is the machine on, `ansible_host` right, and a firewall or VPN in the way? By hand: "
            + _by_hand(connection),
        )
    if number == errno.ECONNREFUSED or "Unable to connect to port" in text:
        return _problem(
            connection,
            "BW104",
            f"nothing accepts SSH connections on {where}",
            "is sshd running there, and `ansible_port` right? By hand: " + _by_hand(connection),
        )
    return _problem(
        connection, "BW104", f"no SSH connection to {where}: {text}", "by hand: " + _by_hand(connection, "-v")
    )


def sudo_problem(connection: Connection, what: str, said: str = "") -> Problem:
    """Why sudo cannot be used: `missing`, `refused` (the password; `said` is sudo's last line) or `unknown` (none)."""
    if what == "missing":
        return _problem(
            connection,
            "BW105",
            "sudo is not installed there",
            "install it as root, or log in as root: `ansible_user: root`, `ansible_become: false`",
        )
    if what == "refused":
        return _problem(
            connection,
            "BW105",
            f"sudo did not accept the password of {connection.login}" + (f" ({said})" if said else ""),
            "correct `ansible_become_password`; is that user allowed to use sudo?",
        )
    return _problem(
        connection,
        "BW106",
        f"sudo needs the password of {connection.login}, and there is no terminal to ask for it",
        "set `ansible_become_password` in a file encrypted by ansible-vault, or run this on a terminal",
    )


def _problem(connection: Connection, code: str, message: str, help_text: str) -> Problem:
    return Problem(code=code, message=message, help=help_text, host=connection.name)


def _place(connection: Connection) -> str:
    place = connection.address if connection.port in (None, 22) else f"{connection.address} port {connection.port}"
    return f"{place} (through {connection.jump})" if connection.jump else place


def _by_hand(connection: Connection, *options: str) -> str:
    return shlex.join(["ssh", *options, "-F", str(config_path(connection.name)), connection.target])


def _key(connection: Connection) -> str:
    return shlex.quote(connection.key_file) if connection.key_file else ""


def _unknown_key(connection: Connection, found: str) -> Problem:
    """`found` is the name in known_hosts form: `host` or `[host]:port`."""
    host, port = _known_host(found)
    file = known_hosts_files(connection)[0]
    first_hop = hops(connection.jump)[0].host if connection.jump else None
    if connection.jump and host != first_hop:
        # Only ssh itself gets there; it shows the fingerprint and asks.
        line = _by_hand(connection, "-o", "StrictHostKeyChecking=ask") + " true"
    else:
        line = (
            shlex.join(["ssh-keyscan", *(["-p", str(port)] if port != 22 else []), host]) + f" >> {shlex.quote(file)}"
        )
    return _problem(
        connection,
        "BW101",
        f"the host key of {host} is not known (not in {file})",
        f"if you trust the network between here and it, or after comparing fingerprints: {line}",
    )


def _changed_key(connection: Connection, found: str) -> Problem:
    host, port = _known_host(found)
    name = host if port == 22 and connection.port in (None, 22) else f"[{host}]:{connection.port or port}"
    file = known_hosts_files(connection)[0]
    return _problem(
        connection,
        "BW102",
        f"the host key of {host} is not the one in {file}: the machine was set up again, or someone stands in between",
        f"only if it was set up again: {shlex.join(['ssh-keygen', '-f', file, '-R', name])}",
    )


def _known_host(found: str) -> tuple[str, int]:
    bracketed = re.fullmatch(r"\[(.+)\]:(\d+)", found)
    return (bracketed[1], int(bracketed[2])) if bracketed else (found, 22)


def _refused_login(connection: Connection) -> Problem:
    where = _place(connection)
    who = connection.user or "your user name"
    if connection.password:
        return _problem(
            connection, "BW103", f"{where} did not accept the password of {who}", "correct `ansible_password`"
        )
    port = [] if connection.port in (None, 22) else ["-p", str(connection.port)]
    key = ["-i", f"{connection.key_file}.pub"] if connection.key_file else []
    return _problem(
        connection,
        "BW103",
        f"{where} did not accept a key of {who}",
        f"is `ansible_user` right? To allow the key: {shlex.join(['ssh-copy-id', *key, *port, connection.login])}",
    )
