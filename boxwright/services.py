"""One description of a service, whatever starts it. Pure: nothing here touches a box.

It is rendered for systemd by boxwright/systemd.py and for launchd by boxwright/launchd.py. Either way the service
records by itself what its process was started with: its own definition and the content of the files the process reads.
A later run compares the record with the disk, so a restart that was missed (a run was interrupted, a file was edited by
hand) is seen and done, and one that the system or an administrator did is not repeated.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

UNITS = "/etc/systemd/system"

Value = str | tuple[str, ...] | None


def _checked_name(name: str) -> None:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", name):
        raise ValueError(f"not the name of a service: {name!r}")


def _checked_paths(*paths: str) -> None:
    for path in paths:
        if not path.startswith("/") or "\n" in path:
            raise ValueError(f"not an absolute path: {path!r}")


@dataclass(frozen=True, kw_only=True)
class Service:
    """A service of the box.

    `command`, `reload_command` and `probe` are argument lists that begin with an absolute path; no shell reads them.
    The argument `$MAINPID` of the latter two stands for the number of the process.
    `probe` runs after the process was started and returns when it is ready to serve (see `http_probe`); a service with
    `notify` says so by itself, which only systemd hears: on a Mac it needs a probe. The start returns when it is ready,
    or fails after `start_timeout` seconds.

    `user` empty means a user that exists only while the service runs, which a Mac does not have. With `agent` it is a
    person of a Mac, in whose session the service runs from the login to the logout, in their home: a LaunchAgent.
    `restart_files` are read by the process at its start, `reload_files` again at each `reload_command`;
    `environment_file` counts among the former.
    `wait_for_address` is an address of the box that must exist before the start, `wait_for_files` are paths that must,
    such as the device of a graphics card whose driver loads late.
    `state_directory`, `runtime_directory` and `logs_directory` are names below /var/lib, /run and /var/log (on a Mac
    /var/lib/boxwright, /var/run and /var/log), made at each start with mode 0700 for the user.

    `credentials` maps names to files that root alone reads; the process finds a copy of each, which is its own, in the
    folder that the variable CREDENTIALS_DIRECTORY names (systemd.exec(5), LoadCredential=). They count among the files
    whose change means a restart.
    `requires` are services of the box that are started before it, without which it does not start: a `oneshot` is one
    that ends by itself, and is run at each start of who requires it. A Mac has neither.

    With `schedule`, a calendar event of systemd.time(7), it is a task that ends by itself: it is started then, on Linux
    also after the boot when the machine was off; nothing is noted of what it was started with. A Mac knows fewer
    events: see `launchd.calendar`.

    `capabilities` maps what the service may do beyond an ordinary user to the reason; `sandbox_exceptions` maps a
    directive of SANDBOX (or one to add) to its value and the reason, where None leaves the directive out.
    `settings` are further lines of the section [Service], handed on as they are. A Mac has no sandbox and no
    capabilities, starts everything at once whatever comes `after` what, and knows a few of the settings.
    """

    name: str
    description: str
    command: tuple[str, ...]
    user: str = ""
    group: str = ""
    agent: bool = False
    environment: Mapping[str, str] = field(default_factory=dict)
    environment_file: str = ""
    credentials: Mapping[str, str] = field(default_factory=dict)
    restart_files: tuple[str, ...] = ()
    reload_files: tuple[str, ...] = ()
    reload_command: tuple[str, ...] = ()
    notify: bool = False
    probe: tuple[str, ...] = ()
    start_timeout: int = 120
    stop_timeout: int = 30
    after: tuple[str, ...] = ()
    wants: tuple[str, ...] = ()
    requires: tuple[str, ...] = ()
    oneshot: bool = False
    wait_for_address: str = ""
    wait_for_files: tuple[str, ...] = ()
    working_directory: str = ""
    schedule: str = ""
    state_directory: str = ""
    runtime_directory: str = ""
    logs_directory: str = ""
    capabilities: Mapping[str, str] = field(default_factory=dict)
    sandbox_exceptions: Mapping[str, tuple[Value, str]] = field(default_factory=dict)
    settings: Mapping[str, str | tuple[str, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _checked_name(self.name)
        for arguments in (self.command, self.reload_command, self.probe):
            if arguments:
                _checked_paths(arguments[0])
        if not self.command:
            raise ValueError(f"the service {self.name} has no command")
        if self.reload_files and not self.reload_command:
            raise ValueError(f"the service {self.name} has files to reload, but no command that reloads them")
        for name in self.credentials:
            _checked_name(name)
        _checked_paths(*self.restart_files, *self.reload_files, *self.wait_for_files, *self.credentials.values())

    @property
    def ends_by_itself(self) -> bool:
        """Whether it is a task, and nothing that goes on running."""
        return bool(self.schedule) or self.oneshot

    @property
    def unit_path(self) -> str:
        """Where the unit file is kept on the box."""
        return f"{UNITS}/{self.name}.service"

    @property
    def timer_path(self) -> str:
        """Where the timer is kept on the box, of a service with a `schedule`."""
        return f"{UNITS}/{self.name}.timer"

    def __str__(self) -> str:
        return self.name

    @property
    def read_at_start(self) -> tuple[str, ...]:
        """Files that the process reads at its start alone."""
        environment = (self.environment_file,) if self.environment_file else ()
        return tuple(dict.fromkeys((*environment, *self.restart_files, *self.credentials.values())))

    @property
    def started_with(self) -> tuple[str, ...]:
        """Files whose change means that the process must be restarted, on a box with systemd."""
        return tuple(dict.fromkeys((self.unit_path, *self.read_at_start)))


@dataclass(frozen=True, kw_only=True)
class PackagedService:
    """A service whose unit comes with a distribution package; a drop-in adds the record of what it was started with.

    `restart_files` are read by the process at its start. `environment` and `settings` (lines of [Service]) go into the
    drop-in too.
    """

    name: str
    restart_files: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    settings: Mapping[str, str | tuple[str, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _checked_name(self.name)
        _checked_paths(*self.restart_files)

    @property
    def unit_path(self) -> str:
        """Where the drop-in is kept on the box."""
        return f"{UNITS}/{self.name}.service.d/boxwright.conf"

    def __str__(self) -> str:
        return self.name

    @property
    def started_with(self) -> tuple[str, ...]:
        """Files whose change means that the process must be restarted; the recorder adds the drop-ins."""
        return tuple(dict.fromkeys(self.restart_files))


def http_probe(url: str, question: tuple[str, str] | None = None, key: str = "") -> tuple[str, ...]:
    """A `probe` that returns when `url` answers with success and fails when the process has ended. Needs curl.

    `question` is an address and JSON text: what is asked there then, once, must be answered with success too. `key` is
    the variable of the service's environment that holds what is sent with it as `Authorization: Bearer`.
    """
    loop = (
        'until curl --silent --fail --output /dev/null --max-time 5 "$1"; do '
        'kill -0 "$MAINPID" 2>/dev/null || exit 1; sleep 0.2; done; '
    )
    # The answer goes to the journal only when it is an error.
    # The shell itself writes the key: it is no argument of a process.
    header = f'printf \'header = "Authorization: Bearer %s"\' "${key}" | ' if key else ""
    ask = (
        f"said=$({header}curl {'--config - ' if key else ''}--silent --show-error --fail-with-body "
        "--header 'Content-Type: application/json' "
        '--data "$3" "$2") || { printf "%s\\n" "$said" >&2; exit 1; }; '
    )
    text = loop + (ask if question else "") + 'kill -0 "$MAINPID"'
    return ("/bin/sh", "-c", text, "probe", url, *(question or ()))
