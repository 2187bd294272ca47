"""What systemd says about a service, and what its process was started with against what is on the disk now."""

from collections.abc import Sequence
from dataclasses import dataclass

from pyinfra.api import StringCommand
from pyinfra.api.exceptions import FactProcessError

from boxwright.facts.api import Fact
from boxwright.facts.files import STATE, FileState, parse_state
from boxwright.services import UNITS
from boxwright.shell import script
from boxwright.systemd import STAMP_LINES, STAMPS

_PROPERTIES = (
    "LoadState",
    "ActiveState",
    "SubState",
    "UnitFileState",
    "NeedDaemonReload",
    "MainPID",
    "InvocationID",
    "FragmentPath",
)


@dataclass(frozen=True)
class Record:
    """What a unit noted when its process was started (or read its files again): start, definition, files."""

    invocation: str
    identity: str
    files: tuple[str, ...]


@dataclass(frozen=True)
class ServiceState:
    """A service as systemd sees it; the first six fields are systemd's own properties.

    `executable` is what /proc says the process runs (ends with " (deleted)" once the file was replaced). `started` and
    `loaded` are the records of the unit, None where there is none; `started_now` and `loaded_now` are what they would
    say about the files as they are now.
    """

    load: str
    active: str
    sub: str
    enabled: str
    needs_reload: bool
    invocation: str
    fragment: str
    executable: str
    started: Record | None
    loaded: Record | None
    started_now: tuple[str, ...]
    loaded_now: tuple[str, ...]


class ServiceStatus(Fact[ServiceState]):
    """The `ServiceState` of the systemd service called `service`, whose process reads `started_with` and `reloads`."""

    def command(self, service: str, started_with: tuple[str, ...], reloads: tuple[str, ...]) -> StringCommand:
        text = f"""
lines() {{
{STAMP_LINES}}}
name=$1 count=$2
shift 2
properties=$(systemctl show --property={",".join(_PROPERTIES)} -- "$name.service") || exit 1
printf '%s\\n' "$properties"
pid=$(printf '%s\\n' "$properties" | sed -n 's/^MainPID=//p')
if [ "${{pid:-0}}" -gt 0 ]; then echo "executable=$(readlink "/proc/$pid/exe" 2>/dev/null)"; fi
for record in started loaded; do
    if [ -e "{STAMPS}/$name.$record" ]; then
        sed "s/^/$record=/" "{STAMPS}/$name.$record" || exit 1
    fi
done
# The first $count files are read at the start, the others again at each reload; each gives one line.
number=0
for path; do
    number=$((number + 1))
    if [ "$number" -le "$count" ]; then key=started_now; else key=loaded_now; fi
    printf '%s=%s\\n' "$key" "$(lines "$path")"
done
for path in {UNITS}/"$name".service.d/*.conf; do
    printf 'started_now=%s\\n' "$(lines "$path")"
done
"""
        return script(text, service, len(started_with), *started_with, *reloads)

    def process(self, output: Sequence[str]) -> ServiceState:
        values: dict[str, list[str]] = {}
        for line in output:
            key, separator, value = line.partition("=")
            if not separator:
                raise FactProcessError(f"not a property of a service: {line!r}")
            values.setdefault(key, []).append(value)
        missing = [name for name in ("LoadState", "ActiveState", "SubState", "NeedDaemonReload") if name not in values]
        if missing:
            raise FactProcessError(f"systemd did not say: {', '.join(missing)}")

        def one(key: str) -> str:
            return values.get(key, [""])[0]

        return ServiceState(
            load=one("LoadState"),
            active=one("ActiveState"),
            sub=one("SubState"),
            enabled=one("UnitFileState"),
            needs_reload=one("NeedDaemonReload") == "yes",
            invocation=one("InvocationID"),
            fragment=one("FragmentPath"),
            executable=one("executable"),
            started=parse_record(values.get("started")),
            loaded=parse_record(values.get("loaded")),
            started_now=tuple(values.get("started_now", ())),
            loaded_now=tuple(values.get("loaded_now", ())),
        )


def parse_record(lines: Sequence[str] | None) -> Record | None:
    """The `Record` in the lines of one; None where there is none."""
    if not lines:
        return None
    invocation, _, identity = lines[0].partition(" ")
    return Record(invocation, identity, tuple(lines[1:]))


@dataclass(frozen=True)
class UnitFiles:
    """The files by which a service is defined, and whether systemd has yet to read them."""

    files: tuple[FileState, ...]
    needs_reload: bool


class Unit(Fact[UnitFiles]):
    """The `UnitFiles` at `paths` of the service called `service`."""

    def command(self, service: str, paths: tuple[str, ...]) -> StringCommand:
        text = """
            service=$1
            shift
            for path; do describe "$path" || exit 1; done
            systemctl show --property=NeedDaemonReload -- "$service.service"
            """
        return script(STATE + text, service, *paths)

    def process(self, output: Sequence[str]) -> UnitFiles:
        *files, last = output
        if last not in ("NeedDaemonReload=yes", "NeedDaemonReload=no"):
            raise FactProcessError(f"systemd did not say whether it must read its units again: {last!r}")
        return UnitFiles(tuple(parse_state(line) for line in files), last.endswith("=yes"))


@dataclass(frozen=True)
class UnitTraces:
    """What is left of a service: `paths` are files and links of it, the others are what systemd still holds."""

    paths: tuple[str, ...]
    active: str
    fragment: str
    needs_reload: bool


class Traces(Fact[UnitTraces]):
    """The `UnitTraces` of the service called `service`, whose unit file or drop-in is `path`."""

    def command(self, service: str, path: str) -> StringCommand:
        text = f"""
            systemctl show --property=ActiveState,FragmentPath,NeedDaemonReload -- "$1.service" || exit 1
            for path in "$2" "$2".good "$2".bad "$2".asked \\
                {STAMPS}/"$1".started {STAMPS}/"$1".loaded {STAMPS}/"$1".loading {STAMPS}/"$1".*.new \\
                {UNITS}/*.wants/"$1".service {UNITS}/*.requires/"$1".service \\
                {UNITS}/"$1".timer {UNITS}/*.wants/"$1".timer; do
                if [ -e "$path" ] || [ -L "$path" ]; then echo "path=$path"; fi
            done
            """
        return script(text, service, path)

    def process(self, output: Sequence[str]) -> UnitTraces:
        pairs = [line.partition("=")[::2] for line in output]
        values = dict(pairs)
        if not {"ActiveState", "NeedDaemonReload"} <= values.keys():
            raise FactProcessError(f"not the traces of a service: {list(output)!r}")
        return UnitTraces(
            paths=tuple(value for key, value in pairs if key == "path"),
            active=values["ActiveState"],
            fragment=values.get("FragmentPath", ""),
            needs_reload=values["NeedDaemonReload"] == "yes",
        )


@dataclass(frozen=True)
class TimerState:
    """A timer as systemd sees it: the properties ActiveState, UnitFileState and NeedDaemonReload."""

    active: str
    enabled: str
    needs_reload: bool


class Timer(Fact[TimerState]):
    """The `TimerState` of the systemd timer called `timer`."""

    def command(self, timer: str) -> StringCommand:
        return script('systemctl show --property=ActiveState,UnitFileState,NeedDaemonReload -- "$1.timer"', timer)

    def process(self, output: Sequence[str]) -> TimerState:
        values = dict(line.partition("=")[::2] for line in output)
        if not {"ActiveState", "NeedDaemonReload"} <= values.keys():
            raise FactProcessError(f"not the state of a timer: {list(output)!r}")
        return TimerState(values["ActiveState"], values.get("UnitFileState", ""), values["NeedDaemonReload"] == "yes")
