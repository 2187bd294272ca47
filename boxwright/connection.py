"""How a host is reached: the usual Ansible connection variables, and the one OpenSSH configuration made from them.

Pure but for `write_ssh_config` and `missing_files`. The configuration text is what pyinfra's SSH client, the tests'
`ssh` and a person's own `ssh -F` read, so that all of them reach the same machine by the same way and check the same
keys.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote

from boxwright.errors import Problem, Refused

TUNNEL_PORT = 8443  # of the control machine, in the printed tunnel to a box whose door is open to itself alone
CONNECT_TIMEOUT = 10  # seconds, pyinfra's own default (Config.CONNECT_TIMEOUT)

_SSH_CONNECTIONS = {"ssh", "smart", "ansible.builtin.ssh"}
_LOCAL_CONNECTIONS = {"local", "ansible.builtin.local"}

# Options that change nothing about which machine is reached, as whom, and how its key is checked. OpenSSH gets them
# from the written configuration; pyinfra's client (paramiko) has no use for them.
_PASSED_THROUGH = {
    name.lower(): name
    for name in (
        *("AddKeysToAgent", "BatchMode", "ChallengeResponseAuthentication", "CheckHostIP", "Compression"),
        *("ConnectionAttempts", "ForwardX11", "ForwardX11Trusted", "GSSAPIAuthentication"),
        *("GSSAPIDelegateCredentials", "HashKnownHosts", "IPQoS", "KbdInteractiveAuthentication", "LogLevel"),
        *("NumberOfPasswordPrompts", "PasswordAuthentication", "PreferredAuthentications", "PubkeyAuthentication"),
        *("RequestTTY", "ServerAliveCountMax", "TCPKeepAlive", "UpdateHostKeys", "VisualHostKey"),
    )
}
# Options that pyinfra's client reads from the configuration as OpenSSH does (sshuserclient/client.py: parse_config).
_HONOURED = {
    name.lower(): name
    for name in ("CertificateFile", "ForwardAgent", "IdentityAgent", "ProxyCommand", "ServerAliveInterval")
}
# Connections are shared by a path of our own choosing, made anew for each run of the tests.
_OVERRIDDEN = {"controlmaster", "controlpath", "controlpersist"}


@dataclass(frozen=True)
class Connection:
    """How one inventory host is reached.

    `address` is what `ssh` is given: a name, an address, or an alias of the ssh configuration named in `include`.
    `jump` is a list of hops as in OpenSSH's ProxyJump. `options` are further OpenSSH options in the order given.
    """

    name: str
    kind: Literal["ssh", "local"] = "ssh"
    address: str = ""
    port: int | None = None
    user: str | None = None
    key_file: str | None = None
    password: str | None = field(default=None, repr=False)
    become: bool = False
    become_user: str | None = None
    become_password: str | None = field(default=None, repr=False)
    jump: str | None = None
    known_hosts_files: tuple[str, ...] = ()
    strict_host_keys: Literal["yes", "no", "accept-new"] = "yes"
    connect_timeout: int = CONNECT_TIMEOUT
    identities_only: bool = False
    options: tuple[tuple[str, str], ...] = ()
    include: str | None = "~/.ssh/config"

    def to_json(self) -> dict[str, Any]:
        """What pyinfra prints of it (`debug-inventory`): everything but the passwords."""
        return {
            "name": self.name,
            "kind": self.kind,
            "address": self.address,
            "port": self.port,
            "user": self.user,
            "key_file": self.key_file,
            "jump": self.jump,
            "become": self.become,
            "become_user": self.become_user,
        }

    @property
    def login(self) -> str:
        """`user@address` as a person would write it; only the address when the user is ssh's own default."""
        return f"{self.user}@{self.address}" if self.user else self.address

    @property
    def target(self) -> str:
        """What `ssh -F FILE` is given: the address, so that an alias of the user's own configuration applies.

        The inventory name instead where a jump host has the same address and differs in its port only.
        """
        shared = self.jump and self.address in {hop.host for hop in hops(self.jump)}
        return self.name if shared else self.address


@dataclass
class _Arguments:
    """What was found in the ssh argument strings, before variables of their own override it."""

    values: dict[str, str] = field(default_factory=dict)
    passed: list[tuple[str, str]] = field(default_factory=list)
    include: str | None = "~/.ssh/config"
    identities_only: bool = False

    def set(self, name: str, value: str) -> None:
        """First one wins, as on ssh's own command line."""
        self.values.setdefault(name.lower(), value)


def from_variables(name: str, variables: Mapping[str, Any]) -> Connection:
    """The `Connection` of inventory host `name` whose final Ansible variables (plain types) are `variables`.

    Raises Refused with one Problem per variable that is wrong or cannot be honoured: nothing is dropped silently.
    """
    problems: list[Problem] = []

    def refuse(variable: str, message: str, help: str) -> None:
        problems.append(Problem(code="BW100", message=message, variable=variable, help=help, host=name))

    def first(*names: str) -> tuple[str, Any]:
        """The first of `names` that is set, and its value; aliases are Ansible's own (ssh connection plugin, 2.19)."""
        for candidate in names:
            if variables.get(candidate) not in (None, ""):
                return candidate, variables[candidate]
        return names[0], None

    def text(*names: str) -> str | None:
        value = first(*names)[1]
        return None if value is None else str(value)

    def integer(low: int, high: int, *names: str) -> int | None:
        variable, value = first(*names)
        if value is None:
            return None
        if not isinstance(value, bool) and re.fullmatch(r"\d+", str(value)) and low <= int(value) <= high:
            return int(value)
        refuse(variable, f"`{variable}` is {value!r}", f"expected a whole number from {low} to {high}")
        return None

    def boolean(*names: str) -> bool | None:
        variable, value = first(*names)
        if value is None or isinstance(value, bool):
            return value
        known = {
            "true": True,
            "yes": True,
            "on": True,
            "1": True,
            "false": False,
            "no": False,
            "off": False,
            "0": False,
        }
        if (lowered := str(value).lower()) in known:
            return known[lowered]
        refuse(variable, f"`{variable}` is {value!r}", "expected true or false")
        return None

    plugin = text("ansible_connection") or "ssh"
    if plugin not in _SSH_CONNECTIONS | _LOCAL_CONNECTIONS:
        refuse("ansible_connection", f"`ansible_connection` is {plugin!r}", "expected ssh or local")
    method = text("ansible_become_method") or "sudo"
    if method not in {"sudo", "ansible.builtin.sudo"}:
        refuse(
            "ansible_become_method", f"`ansible_become_method` is {method!r}", "only sudo is supported; leave it out"
        )
    for unsupported in (
        "ansible_become_flags",
        "ansible_become_exe",
        "ansible_sftp_extra_args",
        "ansible_scp_extra_args",
    ):
        if text(unsupported) is not None:
            refuse(unsupported, f"`{unsupported}` is not supported", "leave it out")

    arguments = _Arguments()
    for variable in ("ansible_ssh_args", "ansible_ssh_common_args", "ansible_ssh_extra_args"):
        for message, help_text in _read_arguments(text(variable) or "", arguments):
            refuse(variable, f"`{variable}`: {message}", help_text)
    values = arguments.values

    checking = boolean("ansible_ssh_host_key_checking", "ansible_host_key_checking")
    strict = values.get("stricthostkeychecking", "no" if checking is False else "yes")
    jump = values.get("proxyjump")
    known_hosts = tuple(values.get("userknownhostsfile", "").split() + values.get("globalknownhostsfile", "").split())
    port = integer(1, 65535, "ansible_port", "ansible_ssh_port")
    timeout = integer(1, 3600, "ansible_ssh_timeout", "ansible_timeout")
    become = boolean("ansible_become", "ansible_ssh_become") or False
    become_user = text("ansible_become_user")
    connection = Connection(
        name=name,
        kind="local" if plugin in _LOCAL_CONNECTIONS else "ssh",
        address=values.get("hostname") or text("ansible_host", "ansible_ssh_host") or name,
        port=port or _number(values.get("port")),
        user=text("ansible_user", "ansible_ssh_user") or values.get("user"),
        key_file=text("ansible_ssh_private_key_file", "ansible_private_key_file") or values.get("identityfile"),
        password=text("ansible_password", "ansible_ssh_pass", "ansible_ssh_password"),
        become=become,
        become_user=None if become_user == "root" else become_user,
        become_password=text("ansible_become_password", "ansible_become_pass", "ansible_sudo_pass"),
        jump=None if jump in (None, "none") else ",".join(str(hop) for hop in hops(jump)),
        known_hosts_files=known_hosts,
        strict_host_keys=_strictness(strict),
        connect_timeout=timeout or _number(values.get("connecttimeout")) or CONNECT_TIMEOUT,
        identities_only=arguments.identities_only,
        options=tuple(arguments.passed),
        include=arguments.include,
    )
    for value in (connection.address, connection.user, connection.key_file, connection.jump):
        if value and ("\n" in value or value.startswith("-")):
            refuse(
                "ansible_host",
                f"{value!r} cannot be part of an ssh command",
                "remove the line break or the leading dash",
            )
    if problems:
        raise Refused(problems)
    return connection


def _number(value: str | None) -> int | None:
    return int(value) if value and value.isdigit() else None


def _strictness(value: str) -> Literal["yes", "no", "accept-new"]:
    # `ask` cannot be: boxwright also runs where nobody answers, so an unknown key is an error that says what to do.
    lowered = value.lower()
    if lowered in {"no", "off", "false"}:
        return "no"
    return "accept-new" if lowered == "accept-new" else "yes"


def _read_arguments(text: str, into: _Arguments) -> Iterator[tuple[str, str]]:
    """Read an ssh argument string as ssh would; yields (message, help) for each argument that cannot be honoured."""
    try:
        words = shlex.split(text)
    except ValueError as error:
        yield f"cannot be split into arguments ({error})", "check the quotes"
        return
    letters = {"J": "ProxyJump", "i": "IdentityFile", "p": "Port", "l": "User", "F": "", "o": ""}
    queue = iter(words)
    refused = False
    for word in queue:
        if refused and not word.startswith("-"):  # the value of what was refused
            continue
        refused = False
        if word in {
            "-C",
            "-q",
            "-T",
            "-n",
            "-x",
            "-a",
        }:  # compression, quiet, no tty, no stdin, no X11, no agent: as it is
            continue
        if word == "-A":
            into.passed.append(("ForwardAgent", "yes"))
            continue
        letter = word[1:2] if word.startswith("-") else ""
        if letter not in letters:
            refused = True
            yield (
                f"{word!r} is not supported",
                "supported: -o NAME=VALUE, -J HOST, -F FILE, -i FILE, -p PORT, -l USER, -A, -C",
            )
            continue
        value = word[2:] or next(queue, "")
        if not value:
            yield f"{word!r} lacks its value", "add the value, or remove it"
        elif letter == "F":
            into.include = None if value in {"none", "/dev/null"} else value
        elif letter == "o":
            yield from _read_option(value, into)
        else:
            into.set(letters[letter], value)


def _read_option(option: str, into: _Arguments) -> Iterator[tuple[str, str]]:
    name, _, value = (part.strip() for part in re.sub(r"^\s*(\w+)\s*[=\s]\s*", r"\1=", option, count=1).partition("="))
    lowered = name.lower()
    if not value:
        yield f"option {option!r} lacks its value", "write -o NAME=VALUE"
    elif lowered in {"user", "hostname", "proxyjump", "userknownhostsfile", "globalknownhostsfile", "identityfile"}:
        into.set(name, value)
    elif lowered in {"port", "connecttimeout"}:
        if value.isdigit():
            into.set(name, value)
        else:
            yield f"{name} is {value!r}", "expected a whole number"
    elif lowered == "stricthostkeychecking":
        if value.lower() in {"yes", "true", "no", "off", "false", "ask", "accept-new"}:
            into.set(name, value)
        else:
            yield f"{name} is {value!r}", "expected yes, accept-new or no"
    elif lowered == "identitiesonly":
        into.identities_only = value.lower() in {"yes", "true"}
    elif lowered == "proxycommand" and value.lower() == "none":
        return
    elif known := _HONOURED.get(lowered) or _PASSED_THROUGH.get(lowered):
        into.passed.append((known, value))
    elif lowered not in _OVERRIDDEN:
        yield (
            f"option {name} is not supported",
            "remove it, or put it into ~/.ssh/config where only ssh itself reads it",
        )


# The configuration file


def ssh_config(connection: Connection) -> str:
    """OpenSSH configuration for `connection` (kind ssh): `ssh -F FILE` with its `target` or its name reaches the host.

    The first value set for an option wins (ssh_config(5)), so ours come before the user's own configuration, which is
    included for aliases, agents and jump hosts. Host keys are checked for every hop alike, and nothing may ask.
    """
    names = dict.fromkeys((connection.name, connection.target))
    lines = [f"# Made by boxwright for inventory host {connection.name}; written again by each run.", _host_line(names)]
    for option, value in (
        ("User", connection.user),
        ("Port", connection.port),
        ("IdentityFile", connection.key_file),
        ("IdentitiesOnly", "yes" if connection.identities_only else None),
        ("ProxyJump", connection.jump),
        *connection.options,
    ):
        if value:
            lines.append(_option_line(option, str(value)))
    if connection.name != connection.address:
        lines += [_host_line([connection.name]), _option_line("HostName", connection.address)]
    lines += [
        "Host *",
        _option_line("StrictHostKeyChecking", connection.strict_host_keys),
        f"  UserKnownHostsFile {' '.join(known_hosts_files(connection))}",
        _option_line("ConnectTimeout", str(connection.connect_timeout)),
        _option_line("ServerAliveInterval", "15"),
        _option_line("ServerAliveCountMax", "4"),
        _option_line("NumberOfPasswordPrompts", "1"),
    ]
    if connection.include and (included := Path(connection.include).expanduser()).is_file():
        lines.append(f"Include {_quoted(str(included))}")
    if connection.jump and connection.key_file:
        # Last, so that a key that the user's own configuration names for the jump host is tried first.
        lines += [
            _host_line(hop.host for hop in hops(connection.jump)),
            _option_line("IdentityFile", connection.key_file),
        ]
    return "\n".join(lines) + "\n"


def known_hosts_files(connection: Connection) -> tuple[str, ...]:
    """The files whose host keys are trusted: those the inventory names, else ssh's own defaults that exist.

    pyinfra's client reads only the files of UserKnownHostsFile, so the machine-wide one is listed there too.
    """
    if connection.known_hosts_files:
        return tuple(str(Path(path).expanduser()) for path in connection.known_hosts_files)
    own = str(Path("~/.ssh/known_hosts").expanduser())
    return own, *(path for path in ("/etc/ssh/ssh_known_hosts",) if Path(path).is_file())


@dataclass(frozen=True)
class Hop:
    """One jump host of a ProxyJump list."""

    host: str
    port: int | None = None
    user: str | None = None

    def __str__(self) -> str:
        """As pyinfra's client reads it: without the `ssh://` that OpenSSH allows."""
        return f"{self.user + '@' if self.user else ''}{self.host}{f':{self.port}' if self.port else ''}"


def hops(jump: str) -> list[Hop]:
    """The hops of a ProxyJump value: `[user@]host[:port]` or `ssh://...`, separated by commas."""
    found = []
    for part in jump.split(","):
        user, _, rest = part.strip().removeprefix("ssh://").rpartition("@")
        match = re.fullmatch(r"\[(?P<six>.+)\](?::(?P<p6>\d+))?|(?P<host>[^:]+)(?::(?P<port>\d+))?|(?P<bare>.+)", rest)
        if match:
            port = match["p6"] or match["port"]
            host = match["six"] or match["host"] or match["bare"]
            found.append(Hop(host, int(port) if port else None, user or None))
    return found


def _host_line(names: Iterable[str]) -> str:
    return "Host " + " ".join(_quoted(name) for name in names)


def _option_line(option: str, value: str) -> str:
    # ProxyCommand takes the rest of the line as it is (ssh_config(5)).
    return f"  {option} {value if option == 'ProxyCommand' else _quoted(value)}"


def _quoted(value: str) -> str:
    return f'"{value}"' if re.search(r"\s", value) else value


def config_path(name: str) -> Path:
    """Where the ssh configuration of inventory host `name` lies on the control machine."""
    from boxwright.paths import state_dir

    return state_dir() / "ssh" / f"{quote(name, safe='')}.conf"


def write_ssh_config(name: str, connection: Connection) -> Path:
    """Write `ssh_config(connection)` below the state directory, mode 0600, whole or not at all; returns its path."""
    path = config_path(name)
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as file:
        file.write(ssh_config(connection))
    temporary.replace(path)
    return path


def missing_files(connection: Connection) -> list[Problem]:
    """Files that the connection names and that are not on this machine."""
    if connection.kind == "local":
        return []
    problems = []
    if connection.key_file and not Path(connection.key_file).expanduser().is_file():
        problems.append(
            Problem(
                code="BW107",
                message=f"the private key {connection.key_file} does not exist",
                variable="ansible_ssh_private_key_file",
                help="correct the path, or remove the variable to use ssh's own keys",
                host=connection.name,
            )
        )
    return problems


# For pyinfra


def pyinfra_data(name: str, connection: Connection) -> dict[str, Any]:
    """Host data for pyinfra; writes the host's ssh configuration. Passwords travel inside `boxwright_connection` only.

    pyinfra prints host data and puts `_sudo_password` into a command line on the host; the connectors of this
    package do neither (connectors/base.py).
    """
    data: dict[str, Any] = {"boxwright_connection": connection}
    if connection.kind == "ssh":
        data["ssh_hostname"] = connection.target
        data["ssh_config_file"] = str(write_ssh_config(name, connection))
        data["ssh_strict_host_key_checking"] = connection.strict_host_keys
        if connection.identities_only:
            data["ssh_allow_agent"] = False
            data["ssh_look_for_keys"] = False
    if connection.become:
        data["_sudo"] = True
        if connection.become_user:
            data["_sudo_user"] = connection.become_user
    return data


def pyinfra_target(name: str, variables: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """What pyinfra's inventory is given for host `name`: the name with its connector, and the connection's data.

    Raises Refused when a variable is wrong or a file that one names is missing.
    """
    connection = from_variables(name, variables)
    if problems := missing_files(connection):
        raise Refused(problems)
    connector = "boxwright-local" if connection.kind == "local" else "boxwright"
    return f"@{connector}/{name}", pyinfra_data(name, connection)
