"""A `Service` as a systemd unit, which records what its process was started with. Pure functions."""

import re
from collections.abc import Mapping
from hashlib import sha256
from ipaddress import IPv4Address, ip_address

from boxwright.services import UNITS, PackagedService, Service, Value

# Only root may look into it: the digest of a file with a short secret would give the secret away.
STAMPS = "/run/boxwright"

# Prints lines that change when one of the arguments does. Files of more than 64 MiB, and folders, are not read but told
# by size, modification time (ns) and inode.
STAMP_LINES = """\
for file; do
    if [ ! -e "$file" ]; then
        echo "absent  $file"
    elif [ -d "$file" ] || [ "$(stat -Lc %s "$file")" -gt 67108864 ]; then
        stat -Lc "%s %.9Y %i  %n" "$file"
    else
        sha256sum "$file"
    fi
done
"""

# The program by which a unit notes what its process was started with.
RECORDER_PATH = "/usr/local/lib/boxwright/started-with"
RECORDER = f"""\
#!/bin/sh
# Written by boxwright. Called by units: NAME RECORD IDENTITY FILE...
# Notes in {STAMPS}/NAME.RECORD which definition of the unit was in force, and what the files held.
# RECORD is "started" (with the unit's drop-ins among the files), "loaded", or "loading" (becomes "loaded" later).
umask 077
mkdir -p {STAMPS} && cd {STAMPS} || exit
name=$1 record=$2 identity=$3
shift 3
if [ "$record" = started ]; then
    # What a reload that failed has left.
    rm -f "$name.loading"
    set -- "$@" {UNITS}/"$name".service.d/*.conf
fi
lines() {{
{STAMP_LINES}}}
{{
    echo "$INVOCATION_ID $identity"
    lines "$@"
}} >"$name.$record.new" && mv -f "$name.$record.new" "$name.$record"
"""

# What every service is denied unless it says why not. A tuple stands for several lines of the same name.
SANDBOX: Mapping[str, Value] = {
    "NoNewPrivileges": "yes",
    "CapabilityBoundingSet": "",
    "AmbientCapabilities": "",
    "PrivateUsers": "yes",
    "PrivateDevices": "yes",
    "DevicePolicy": "closed",
    "PrivateTmp": "yes",
    "PrivateMounts": "yes",
    "PrivateIPC": "yes",
    "ProtectSystem": "strict",
    "ProtectHome": "yes",
    "ProtectProc": "invisible",
    "ProcSubset": "pid",
    "ProtectClock": "yes",
    "ProtectHostname": "yes",
    "ProtectKernelLogs": "yes",
    "ProtectKernelModules": "yes",
    "ProtectKernelTunables": "yes",
    "ProtectControlGroups": "yes",
    "RestrictAddressFamilies": "AF_INET AF_INET6 AF_UNIX",
    "RestrictNamespaces": "yes",
    "RestrictRealtime": "yes",
    "RestrictSUIDSGID": "yes",
    "LockPersonality": "yes",
    "MemoryDenyWriteExecute": "yes",
    "SystemCallArchitectures": "native",
    "SystemCallFilter": ("@system-service", "~@privileged @resources"),
    "SystemCallErrorNumber": "EPERM",
    "RemoveIPC": "yes",
    "KeyringMode": "private",
    "UMask": "0077",
    "IPAddressDeny": "any",
    "IPAddressAllow": "localhost",
}


def identity(service: Service | PackagedService) -> str:
    """Names the definition of `service`; also part of the unit, so that a record tells which one systemd had loaded."""
    text = _dropin(service, "") if isinstance(service, PackagedService) else _unit(service, "")
    return sha256(text.encode()).hexdigest()[:16]


def systemd_unit(service: Service | PackagedService) -> str:
    """The unit file of `service`, or the drop-in of a packaged one."""
    if isinstance(service, PackagedService):
        return _dropin(service, identity(service))
    if service.agent:
        raise ValueError(f"the service {service.name} is a LaunchAgent, which only a Mac has")
    return _unit(service, identity(service))


def systemd_timer(service: Service) -> str:
    """The timer that starts a service with a `schedule`."""
    return "\n".join(
        [
            _BANNER,
            "[Unit]",
            f"Description={_line(service.description)} ({_line(service.schedule)})",
            "",
            "[Timer]",
            f"OnCalendar={_line(service.schedule)}",
            "Persistent=yes",
            "",
            "[Install]",
            "WantedBy=timers.target",
            "",
        ]
    )


def command_line(arguments: tuple[str, ...], prefix: str = "") -> str:
    """`arguments` as systemd reads them: it interprets no variable, specifier or quote in them but a whole `$MAINPID`.

    `prefix` are systemd's own characters before the program (`-`, `+`, `!`).
    """
    program, *rest = arguments
    if "$" in program:
        raise ValueError(f"systemd cannot start a program with a dollar sign in its path: {program!r}")
    words = [argument if argument == "$MAINPID" else argument.replace("$", "$$") for argument in rest]
    return " ".join([_word(prefix + program), *map(_word, words)])


def _word(text: str) -> str:
    """`text` as one word of a systemd setting."""
    text = text.replace("%", "%%")
    if re.fullmatch(r"[A-Za-z0-9_@%+=:,./$~^-]+", text):
        return text
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n").replace("\t", "\\t")
    if any(ord(character) < 32 for character in escaped):
        raise ValueError(f"a control character cannot be written into a unit: {text!r}")
    return f'"{escaped}"'


def _line(text: str) -> str:
    """`text` for a setting that is one line of prose."""
    return " ".join(text.split()).replace("%", "%%")


def _stamp(name: str, record: str, definition: str, files: tuple[str, ...]) -> str:
    # "-": never a reason not to start; without a record the next run restarts the service once more, no worse.
    return command_line((RECORDER_PATH, name, record, definition, *files), prefix="+-")


def _wait_for(address: str) -> str:
    """Command line that returns when `address` is one of the box's own; the start timeout bounds it."""
    parsed = ip_address(address)
    if isinstance(parsed, IPv4Address):
        # /proc/net/fib_trie prints each address, and below it that it is one of the host's own.
        test = (
            'awk -v a="$1" \'$1 == "|--" { n = $2 } /host LOCAL/ && n == a { f = 1 } END { exit !f }\' '
            "/proc/net/fib_trie"
        )
        return command_line(("/bin/sh", "-c", f"until {test}; do sleep 0.2; done", "wait", address), prefix="+")
    digits = parsed.exploded.replace(":", "")
    return command_line(
        ("/bin/sh", "-c", 'until grep -q "^$1 " /proc/net/if_inet6; do sleep 0.2; done', "wait", digits), prefix="+"
    )


def _sandbox(service: Service) -> list[str]:
    exceptions = dict(service.sandbox_exceptions)
    if service.capabilities:
        names = " ".join(service.capabilities)
        reason = "; ".join(f"{name}: {why}" for name, why in service.capabilities.items())
        exceptions.setdefault("CapabilityBoundingSet", (names, reason))
        exceptions.setdefault("AmbientCapabilities", (names, reason))
        exceptions.setdefault("PrivateUsers", ("no", "a capability counts on the box only outside a user namespace"))
    lines = []
    last_reason = ""
    for directive in dict.fromkeys((*SANDBOX, *exceptions)):
        if directive == "IPAddressAllow" and exceptions.get("IPAddressDeny", ("any", ""))[0] is None:
            continue
        value, reason = exceptions.get(directive, (SANDBOX.get(directive), ""))
        if directive in exceptions:
            if not reason.strip():
                raise ValueError(f"the service {service.name} needs a reason for its exception {directive}")
            if reason != last_reason or value is None:
                left_out = f"{directive} is left out: " if value is None else ""
                lines.append(f"# {left_out}{_line(reason).replace('%%', '%')}")
            last_reason = reason
        if value is not None:
            lines += [f"{directive}={one}" for one in ((value,) if isinstance(value, str) else value)]
    return lines


def _settings(settings: Mapping[str, str | tuple[str, ...]]) -> list[str]:
    return [
        f"{name}={value}"
        for name, values in settings.items()
        for value in ((values,) if isinstance(values, str) else values)
    ]


def _environment(environment: Mapping[str, str]) -> list[str]:
    return [f"Environment={_word(f'{name}={value}')}" for name, value in environment.items()]


def _unit(service: Service, definition: str) -> str:
    unit = [f"Description={_line(service.description)}"]
    required = tuple(f"{name}.service" for name in service.requires)
    unit += [f"Wants={name}" for name in service.wants]
    unit += [f"Requires={name}" for name in required]
    after = ("network.target", *service.wants, *required, *service.after)
    unit += [f"After={name}" for name in dict.fromkeys(after)]
    # Whatever happens, it is tried again: nobody watches a box.
    unit.append("StartLimitIntervalSec=0")

    lines = [f"Type={'oneshot' if service.ends_by_itself else 'notify' if service.notify else 'exec'}"]
    if service.user:
        lines += [f"User={service.user}", f"Group={service.group or service.user}"]
    else:
        lines.append("DynamicUser=yes")
        if service.group:
            lines.append(f"SupplementaryGroups={service.group}")
    if service.working_directory:
        lines.append(f"WorkingDirectory={service.working_directory}")
    lines += _environment(service.environment)
    if service.environment_file:
        lines.append(f"EnvironmentFile={service.environment_file}")
    lines += [f"LoadCredential={name}:{_line(path)}" for name, path in sorted(service.credentials.items())]
    if service.wait_for_address:
        lines.append(f"ExecStartPre={_wait_for(service.wait_for_address)}")
    if service.wait_for_files:
        wait = 'for file; do until [ -e "$file" ]; do sleep 0.2; done; done'
        lines.append(
            f"ExecStartPre={command_line(('/bin/sh', '-c', wait, 'wait', *service.wait_for_files), prefix='+')}"
        )
    if not service.ends_by_itself:
        lines.append(f"ExecStartPre={_stamp(service.name, 'started', definition, service.started_with)}")
    if service.reload_files:
        lines.append(f"ExecStartPre={_stamp(service.name, 'loaded', definition, service.reload_files)}")
    lines.append(f"ExecStart={command_line(service.command)}")
    if service.probe:
        lines.append(f"ExecStartPost={command_line(service.probe)}")
    if service.reload_command:
        # The record is taken before the files are read again, and counts only when reading them succeeded.
        if service.reload_files:
            lines.append(f"ExecReload={_stamp(service.name, 'loading', definition, service.reload_files)}")
        lines.append(f"ExecReload={command_line(service.reload_command)}")
        if service.reload_files:
            lines.append(f"ExecReload={_keep_loading(service.name)}")
    lines += [
        f"TimeoutStartSec={service.start_timeout}",
        f"TimeoutStopSec={service.stop_timeout}",
        *(() if service.ends_by_itself else ("Restart=always", "RestartSec=2")),
    ]
    for setting, name in (
        ("StateDirectory", service.state_directory),
        ("RuntimeDirectory", service.runtime_directory),
        ("LogsDirectory", service.logs_directory),
    ):
        if name:
            lines += [f"{setting}={name}", f"{setting}Mode=0700"]
    lines += _settings(service.settings)
    sections = [
        _BANNER,
        "[Unit]",
        *unit,
        "",
        "[Service]",
        *lines,
        "",
        "# Sandbox: everything that is not needed is denied; each exception says why.",
        *_sandbox(service),
        *(() if service.ends_by_itself else ("", "[Install]", "WantedBy=multi-user.target")),
    ]
    return "\n".join(sections) + "\n"


_BANNER = "# Written by boxwright: changes made here are overwritten by the next run. Put your own into a drop-in."


def _keep_loading(name: str) -> str:
    return command_line(("/bin/mv", "-f", f"{STAMPS}/{name}.loading", f"{STAMPS}/{name}.loaded"), prefix="+-")


def _dropin(service: PackagedService, definition: str) -> str:
    lines = [
        "# Written by boxwright: changes made here are overwritten by the next run.",
        "[Service]",
        *_environment(service.environment),
        f"ExecStartPre={_stamp(service.name, 'started', definition, service.started_with)}",
    ]
    lines += _settings(service.settings)
    return "\n".join(lines) + "\n"
