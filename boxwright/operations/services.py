"""systemd services: defined, running with what is on the disk now, or gone.

What must be done is derived from what systemd and the unit's own records say, never from what this run changed: a run
that was killed between the change of a file and the restart is completed by the next one.
"""

from collections.abc import Sequence

from pyinfra import host
from pyinfra.api import StringCommand

from boxwright.facts.services import Record, ServiceState, ServiceStatus, Timer, Traces, Unit
from boxwright.operations.api import Commands, operation
from boxwright.operations.files import show_difference, text_on_box, write
from boxwright.services import (
    RECORDER,
    RECORDER_PATH,
    STAMPS,
    UNITS,
    PackagedService,
    Service,
    systemd_timer,
    systemd_unit,
)
from boxwright.shell import refuse, script

# systemctl returns when the service is ready or has failed; its log then says why.
_JOB = """
verb=$1 unit=$2 files=$3
shift 3
# What is left of the arguments is the command that must succeed then.
answers() {
    [ "$#" -gt 0 ] || return 0
    said=$("$@" 2>&1) && return
    echo "$unit runs, but does not answer: $(printf '%s' "$said" | tail -n 1)" >&2
    return 1
}
# The command that last succeeded: the new one may ask at an address that only the new configuration has.
answers_as_before() {
    [ -e "$asked" ] || return 0
    set --
    while IFS= read -r word; do set -- "$@" "$word"; done <"$asked"
    answers "$@"
}
begin() {
    since=$(date +%s)
    systemctl "$1" -- "$unit"
}
keep() {
    for file in $files; do cp -p -- "$file" "$file.good" || exit 1; done
    [ -z "$asked" ] || [ "$#" = 0 ] || printf '%s\\n' "$@" >"$asked" || exit 1
}
tell() {
    echo "the last messages of $unit:" >&2
    journalctl --quiet --no-pager --output=cat --lines=20 --since="@$since" --unit="$unit" >&2
}
# True when something was taken back; what was there is left beside it.
take_back() {
    back='' units=''
    for file in $files; do
        [ -e "$file.good" ] && ! cmp -s -- "$file" "$file.good" || continue
        cp -p -- "$file" "$file.bad" && cp -p -- "$file.good" "$file" && back=yes
        case $file in /etc/systemd/*) units=yes ;; esac
    done
    [ -z "$units" ] || systemctl daemon-reload
    [ -n "$back" ]
}
asked=
for file in $files; do asked=$file.asked; done
if begin "$verb" && answers "$@"; then
    keep "$@"
    exit 0
fi
if [ "$verb" = reload ]; then
    tell
    if take_back; then
        # The process lives, and so does what is under way in it.
        if begin reload; then
            answers_as_before
            echo "$unit goes on with its last good configuration; the new one was taken back" >&2
            exit 1
        fi
        for file in $files; do [ ! -e "$file.bad" ] || mv -- "$file.bad" "$file"; done
    fi
    # What it runs with now may have taken away the very way by which it is told to reload.
    echo "$unit could not be reloaded, it is restarted" >&2
    if begin restart && answers "$@"; then
        keep "$@"
        exit 0
    fi
fi
tell
if take_back; then
    if begin restart && answers_as_before; then
        echo "$unit runs again with its last good configuration; the new one was taken back" >&2
    else
        echo "$unit does not work with its last good configuration either" >&2
    fi
fi
exit 1
"""


def _job(
    verb: str, service: Service | PackagedService, answers: Sequence[str] = (), roll_back: Sequence[str] = ()
) -> StringCommand:
    return script(_JOB, verb, f"{service.name}.service", " ".join(roll_back), *answers)


def _daemon_reload() -> StringCommand:
    return script("systemctl daemon-reload")


@operation()
def unit(service: Service | PackagedService) -> Commands:
    """systemd knows `service` as it is described; the process itself is left alone (see `running`).

    Unit files can be read by every user of the box: a secret belongs into the service's `environment_file`.
    """
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


@operation()
def unit_absent(service: Service | PackagedService) -> Commands:
    """`service` is stopped and gone: unit file, enablement and records. Of a packaged service only our drop-in goes.

    What the service keeps in its folders stays.
    """
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
    if found.started.identity != service.identity:
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
        fresh = found.started is not None and found.started.identity == service.identity
        verbs.append("start" if fresh and found.started and found.started.files == found.started_now else "restart")
    else:
        if found.active == "failed":
            verbs.append("reset-failed")
        verbs.append("restart" if found.active == "activating" else "start")
    return tuple(verbs)


def with_copies(path: str) -> tuple[str, ...]:
    """A file that may be rolled back, after all that `running` and `reloaded` keep beside it: what goes with it."""
    return tuple(path + kind for kind in (".good", ".bad", ".asked", ""))


@operation()
def running(service: Service | PackagedService, answers: Sequence[str] = (), roll_back: Sequence[str] = ()) -> Commands:
    """`service` starts at boot and runs, ready, with its unit and files as they are on the disk now.

    It is restarted when its unit, a drop-in, one of its `restart_files` or its program changed since its start, and
    reloaded when only `reload_files` did, or restarted where it cannot be reloaded: check such files before they are
    put in place (`validate` of `files.content`). Returns when the service is ready; a service that does not get there
    fails the step with the last 20 lines of its log.

    `answers` is a command on the box that must succeed after each start and reload. When it does not, or the service
    does not start, the files `roll_back` (paths without spaces, that of the unit may be one) get the content back with
    which it last did, which is kept beside them as `<path>.good`, the service is reloaded or restarted with it, as it
    was with the new one, and the step fails all the same. The new content is left as `<path>.bad`.
    """
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


@operation()
def scheduled(service: Service) -> Commands:
    """`service` is started at its `schedule`, now and after the next boot. It is not started here."""
    found = host.get_fact(Timer, timer=service.name)
    if found is None:
        yield refuse(f"the timer of {service.name} could not be examined")
        return
    if found.needs_reload:
        yield _daemon_reload()
    if found.enabled != "enabled" or found.active != "active":
        text = 'systemctl unmask --quiet -- "$1.timer"; systemctl enable --quiet --now -- "$1.timer"'
        yield script(text, service.name)


@operation()
def reloaded(service: Service, answers: Sequence[str] = (), roll_back: Sequence[str] = ()) -> Commands:
    """The running process of `service` has read its `reload_files` as they are now. It is not restarted, whatever else
    changed. `answers` and `roll_back` are as in `running`; a service that does not run is an error.
    """
    found = host.get_fact(
        ServiceStatus, service=service.name, started_with=service.started_with, reloads=service.reload_files
    )
    if found is None or found.active not in ("active", "reloading"):
        yield refuse(f"{service.name} does not run on this box: `boxwright apply` starts it")
    elif _unread(service, found):
        yield _job("reload", service, answers, roll_back)


@operation()
def stopped(service: str) -> Commands:
    """The systemd service `service`, whoever made it, does not run and does not start at boot; its unit stays."""
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
