"""The operations of boxwright/operations/services.py on a box with systemd, as generators of their commands."""

from collections.abc import Sequence

from pyinfra import host
from pyinfra.api import StringCommand

from boxwright.facts.services import Record, ServiceState, ServiceStatus, Timer, Traces, Unit
from boxwright.operations.api import Commands
from boxwright.operations.files import show_difference, text_on_box, write
from boxwright.operations.roll_back import ROLL_BACK
from boxwright.services import UNITS, PackagedService, Service
from boxwright.shell import refuse, script
from boxwright.systemd import RECORDER, RECORDER_PATH, STAMPS, identity, systemd_timer, systemd_unit

# systemctl returns when the service is ready or has failed; its log then says why, or that of one that it requires.
_JOB = f"""
verb=$1 unit=$2 files=$3 required=$4
shift 4
begin() {{
    since=$(date +%s)
    systemctl "$1" -- "$unit"
}}
tell() {{
    echo "the last messages of $unit:" >&2
    for one in $required; do set -- "$@" --unit="$one"; done
    # What was said last may not be written yet.
    journalctl --quiet --sync 2>/dev/null
    journalctl --quiet --no-pager --output=cat --lines=20 --since="@$since" --unit="$unit" "$@" >&2
}}
beside() {{ printf '%s\\n' "$1"; }}
taken_back() {{
    case $1 in /etc/systemd/*) systemctl daemon-reload ;; esac
}}
{ROLL_BACK}"""


def _job(
    verb: str, service: Service | PackagedService, answers: Sequence[str] = (), roll_back: Sequence[str] = ()
) -> StringCommand:
    required = service.requires if isinstance(service, Service) else ()
    units = " ".join(f"{name}.service" for name in required)
    return script(_JOB, verb, f"{service.name}.service", " ".join(roll_back), units, *answers)


def _daemon_reload() -> StringCommand:
    return script("systemctl daemon-reload")


def unit(service: Service | PackagedService) -> Commands:
    """See `services.unit`."""
    wanted = [(service.unit_path, systemd_unit(service), 0o644)]
    if isinstance(service, Service) and service.schedule:
        wanted.append((service.timer_path, systemd_timer(service), 0o644))
    else:
        wanted.insert(0, (RECORDER_PATH, RECORDER, 0o755))
    found = host.get_fact(Unit, service=service.name, paths=tuple(path for path, _, _ in wanted))
    if found is None:
        yield refuse(f"the unit of {service.name} could not be examined")
        return
    wrote = False
    for (path, text, mode), there in zip(wanted, found.files, strict=True):
        if there.holds(text) and there.is_roots(mode):
            continue
        show_difference(path, text_on_box(path, there), text)
        yield script('umask 022; mkdir -p -- "$(dirname -- "$1")"', path)
        yield write(path, text, "root:root", mode)
        wrote = wrote or path != RECORDER_PATH
    if wrote or found.needs_reload:
        yield _daemon_reload()


def unit_absent(service: Service | PackagedService) -> Commands:
    """See `services.unit_absent`."""
    found = host.get_fact(Traces, service=service.name, path=service.unit_path)
    if found is None:
        yield refuse(f"the unit of {service.name} could not be examined")
        return
    ours = isinstance(service, Service)
    loaded = ours and found.fragment == service.unit_path
    if any(path.endswith(".timer") for path in found.paths):
        yield script('systemctl stop -- "$1.timer"', service.name)
    if loaded and found.active not in ("inactive", "failed"):
        yield script('systemctl stop -- "$1.service"', service.name)
    if found.paths:
        text = f"""
            name=$1 path=$2
            shift 2
            rm -f -- "$@" || exit 1
            rmdir -- "{UNITS}/$name.service.d" 2>/dev/null
            if ! grep -rqs -- {RECORDER_PATH} {UNITS}; then
                rm -f -- {RECORDER_PATH} || exit 1
                rmdir -- "$(dirname -- {RECORDER_PATH})" {STAMPS} 2>/dev/null
            fi
            exit 0
            """
        yield script(text, service.name, service.unit_path, *found.paths)
    if service.unit_path in found.paths or found.needs_reload:
        yield _daemon_reload()
    if ours and found.active == "failed":
        yield script('systemctl reset-failed -- "$1.service"', service.name)


def stale(service: Service | PackagedService, found: ServiceState) -> str:
    """Why the running process of `service` must be started anew; empty when it need not."""
    if found.executable.endswith(" (deleted)"):
        return "its program was replaced"
    if found.started is None or found.started.invocation != found.invocation:
        return "nothing says what it was started with"
    if found.started.identity != identity(service):
        return "its unit has changed"
    if found.started.files != found.started_now:
        return f"changed since its start: {_changed(found.started, found.started_now)}"
    return ""


def _unread(service: Service | PackagedService, found: ServiceState) -> bool:
    """Whether files that can be read again without a restart have changed since they were read."""
    if isinstance(service, PackagedService) or not service.reload_files:
        return False
    loaded = found.loaded
    return loaded is None or loaded.invocation != found.invocation or loaded.files != found.loaded_now


def _changed(then: Record, now: tuple[str, ...]) -> str:
    changed = sorted({line.partition("  ")[2] for line in set(then.files) ^ set(now)})
    return ", ".join(changed)


def needed(service: Service | PackagedService, found: ServiceState) -> tuple[str, ...]:
    """The systemctl verbs, in order, that make `service` enabled, running and current; none when it is."""
    verbs = []
    if found.enabled in ("masked", "masked-runtime"):
        verbs.append("unmask")
    if found.needs_reload:
        verbs.append("daemon-reload")
    if found.enabled in ("", "disabled", "enabled-runtime", "linked", "linked-runtime", "masked", "masked-runtime"):
        verbs.append("enable")
    if found.active in ("active", "reloading"):
        if stale(service, found):
            verbs.append("restart")
        elif _unread(service, found):
            verbs.append("reload")
    elif found.active == "activating" and found.sub != "auto-restart":
        # Being started, by the boot or by a run that was interrupted: `start` waits for it, with what it was given.
        fresh = found.started is not None and found.started.identity == identity(service)
        verbs.append("start" if fresh and found.started and found.started.files == found.started_now else "restart")
    else:
        if found.active == "failed":
            verbs.append("reset-failed")
        verbs.append("restart" if found.active == "activating" else "start")
    return tuple(verbs)


def running(service: Service | PackagedService, answers: Sequence[str] = (), roll_back: Sequence[str] = ()) -> Commands:
    """See `services.running`."""
    reloads = service.reload_files if isinstance(service, Service) else ()
    found = host.get_fact(ServiceStatus, service=service.name, started_with=service.started_with, reloads=reloads)
    if found is None:
        yield refuse(f"the service {service.name} could not be examined")
        return
    for verb in needed(service, found):
        if verb == "daemon-reload":
            yield _daemon_reload()
        elif verb in ("start", "restart", "reload"):
            yield _job(verb, service, answers, roll_back)
        elif verb == "unmask":
            yield script('systemctl unmask -- "$1"; systemctl unmask --runtime -- "$1"', f"{service.name}.service")
        else:
            yield script('systemctl "$1" --quiet -- "$2"', verb, f"{service.name}.service")


def scheduled(service: Service) -> Commands:
    """See `services.scheduled`."""
    found = host.get_fact(Timer, timer=service.name)
    if found is None:
        yield refuse(f"the timer of {service.name} could not be examined")
        return
    if found.needs_reload:
        yield _daemon_reload()
    if found.enabled != "enabled" or found.active != "active":
        text = 'systemctl unmask --quiet -- "$1.timer"; systemctl enable --quiet --now -- "$1.timer"'
        yield script(text, service.name)


def reloaded(service: Service, answers: Sequence[str] = (), roll_back: Sequence[str] = ()) -> Commands:
    """See `services.reloaded`."""
    found = host.get_fact(
        ServiceStatus, service=service.name, started_with=service.started_with, reloads=service.reload_files
    )
    if found is None or found.active not in ("active", "reloading"):
        yield refuse(f"{service.name} does not run on this box: `boxwright apply` starts it")
    elif _unread(service, found):
        yield _job("reload", service, answers, roll_back)


def stopped(service: str) -> Commands:
    """See `services.stopped`."""
    found = host.get_fact(ServiceStatus, service=service, started_with=(), reloads=())
    if found is None:
        yield refuse(f"the service {service} could not be examined")
        return
    if found.load == "not-found":
        return
    if found.active not in ("inactive", "failed"):
        yield script('systemctl stop -- "$1.service"', service)
    if found.enabled in ("enabled", "enabled-runtime"):
        yield script('systemctl disable --quiet -- "$1.service"', service)
