"""What has another name, or lies elsewhere, on Linux and on a Mac: for roles that are otherwise the same on both."""

from typing import Any

from boxwright import launchd
from boxwright.facts.homebrew import PREFIX
from boxwright.settings import System

# A Mac has no Python of its own: what is at /usr/bin/python3 comes with Xcode's tools, in a version of Apple's choice.
# Homebrew's has a path that names the version and stays the same for its patch releases. 3.13 is what Debian 13 has, so
# that the packages of engines were tried with it.
PYTHON_FORMULA = "python@3.13"
_PYTHON = {"linux": "/usr/bin/python3", "darwin": f"{PREFIX}/opt/{PYTHON_FORMULA}/bin/python3.13"}


def python(system: System) -> str:
    """Path of the Python that programs of boxwright run with."""
    return _PYTHON[system]


def account(system: System, name: str) -> str:
    """The account of the service `name`: on a Mac those of services begin with a line below."""
    return f"_{name}" if system == "darwin" else name


def runs_as(system: System, name: str, agent: str = "") -> dict[str, Any]:
    """Whose the service `name` is, as `Service` has it: its own account's, or an agent of the person `agent`."""
    if agent:
        return {"user": agent, "agent": True}
    return {"user": account(system, name), "group": account(system, name)}


def as_account(system: System, name: str) -> str:
    """Words before a shell command that root runs as the account of the service `name`."""
    return as_user(system, account(system, name))


def as_user(system: System, user: str) -> str:
    """The same for any account."""
    return f"sudo -n -H -u {user} --" if system == "darwin" else f"runuser -u {user} --"


def state_folder(system: System, name: str) -> str:
    """Where a service with the `state_directory` `name` keeps its data."""
    return f"{launchd.STATE if system == 'darwin' else '/var/lib'}/{name}"


def runtime_folder(system: System, name: str) -> str:
    """Where a service with the `runtime_directory` `name` keeps what ends with it."""
    return f"{launchd.RUNTIME if system == 'darwin' else '/run'}/{name}"


def credentials_folder(system: System, name: str) -> str:
    """Where the service `name`, and nobody else, finds its `credentials` (systemd.exec(5), LoadCredential=)."""
    return f"{launchd.CREDENTIALS}/{name}" if system == "darwin" else f"/run/credentials/{name}.service"


def open_files(system: System) -> str:
    """How many files a service with many connections may have open. A Mac starts none that asks for more than its
    kern.maxfilesperproc, which depends on its memory; OPEN_MAX of its <sys/syslimits.h> is always there.
    """
    return "10240" if system == "darwin" else "65536"
