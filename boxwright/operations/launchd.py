"""The operations of boxwright/operations/services.py on a Mac, as generators of their commands."""

import shlex
from collections.abc import Iterator, Sequence

from pyinfra import host
from pyinfra.api import StringCommand
from pyinfra.api.exceptions import OperationValueError

from boxwright.facts.files import FileState
from boxwright.facts.launchd import CURRENT, LOOK, Definition, ForeignJobs, Job, JobState, Task, TaskState, Traces
from boxwright.launchd import (
    CREDENTIALS,
    DAEMONS,
    EXITS,
    KEPT,
    LOGS,
    ROTATION,
    STAMPS,
    STARTER,
    STARTER_PATH,
    as_service,
    identity,
    label,
    log_path,
    plist,
    plist_path,
    started_with,
)
from boxwright.operations.api import Commands
from boxwright.operations.files import show_difference, text_on_box, write
from boxwright.operations.roll_back import ROLL_BACK
from boxwright.services import Service
from boxwright.shell import refuse, script

_EXPLAIN = "".join(f"        {pattern}) echo {shlex.quote(text)} ;;\n" for pattern, text in EXITS.items())

# Needs the functions of LOOK, and $target, $plist and $patience (seconds that a stop may take).
_VERBS = f"""
now() {{ date +%s; }}
# Why a job ended, by what launchctl prints of it.
explain() {{
    case $1 in
{_EXPLAIN}        '' | '(never exited)') echo 'it was not started' ;;
        *) echo "ended with $1" ;;
    esac
}}
# bootout says that the job is to end, and returns; until its label is gone nothing can be loaded in its place.
boot_out() {{
    look || return 0
    said=$(launchctl bootout "$target" 2>&1)
    code=$?
    # 3: not there; 36: still ending; 5: may be either
    case $code in
        0 | 3 | 5 | 36) ;;
        *) printf '%s\\n' "$said" >&2; return 1 ;;
    esac
    until=$(($(now) + patience + 15))
    while look; do
        if [ "$(now)" -ge "$until" ]; then
            echo "$target is still there, $((patience + 15)) s after it was told to end: $said" >&2
            return 1
        fi
        sleep 0.2
    done
}}
# What a label that was just booted out is answered with, for some seconds: 37, 36, or 5, which says nothing.
bootstrap() {{
    until=$(($(now) + 20))
    while :; do
        said=$(launchctl bootstrap "${{target%/*}}" "$plist" 2>&1)
        code=$?
        case $code in
            0) return 0 ;;
            5 | 36 | 37) ;;
            *) break ;;
        esac
        [ "$(now)" -lt "$until" ] || break
        sleep 1
    done
    printf '%s\\n' "$said" >&2
    plutil -lint "$plist" >&2
    return 1
}}
define() {{
    rm -f -- {STAMPS}/"$name".ready {STAMPS}/"$name".defined
    boot_out && launchctl enable "$target" && bootstrap
}}
"""

# $1 verb, $2 name, $3 label, $4 its plist, $5 paths that are taken back, $6 $7 seconds for start and stop, $8 its log,
# $9 the words before a command that is run as the service; then its probe, the command that reloads it, the files that
# this reads (each as text that the shell reads as words, maybe none), and the command that must succeed then.
_JOB = f"""
{LOOK}
verb=$1 name=$2 unit=$3 target=system/$3 plist=$4 files=$5 seconds=$6 patience=$7 log=$8 as_service=$9
shift 9
probe=$1 reload=$2 loads=$3
shift 3
umask 077
{_VERBS}
# The process is there, and has become the service. A job that ends at once is started again and again: it is not waited
# for another time.
arrive() {{
    pushed=
    while :; do
        if ! look; then echo "$unit is not known to launchd any more" >&2; return 1; fi
        if [ -n "$pid" ] && [ "$pid" != "$before" ]; then
            first=${{first:-$pid}}
            [ "$pid" = "$first" ] || break
            who=$(invocation "$pid")
            case $(ps -o command= -p "$pid") in
                '' | *"{STARTER_PATH} start "*) ;;
                *) case $(cat {STAMPS}/"$name".started 2>/dev/null) in "$who "*) return 0 ;; esac ;;
            esac
        elif [ -z "$pid" ] && [ -n "$first" ]; then
            break
        elif [ -z "$pid" ] && [ "${{runs:-0}}" -gt "$earlier" ]; then
            break
        elif [ -z "$pid" ] && [ "$state" = 'not running' ] && [ -z "$pushed" ]; then
            # Loaded, and yet not started, as happens right after a bootout.
            launchctl kickstart "$target" >/dev/null 2>&1
            pushed=yes
        fi
        if [ "$(now)" -ge "$deadline" ]; then
            echo "$unit timed out: it was not started after $seconds s (${{state:-no state}})" >&2
            return 1
        fi
        sleep 0.1
    done
    look
    echo "$unit does not stay up: $(explain "$ended")" >&2
    return 1
}}
ready() {{
    deadline=$(($(now) + seconds))
    arrive || return 1
    rest=$((deadline - $(now)))
    [ "$rest" -gt 0 ] || rest=1
    if [ -n "$probe" ] && ! eval "$as_service --seconds $rest --main-pid $pid -- $probe" >&2; then
        was=$pid
        look
        if [ "$pid" != "$was" ]; then echo "$unit does not stay up: $(explain "$ended")" >&2; fi
        return 1
    fi
    printf '%s\\n' "$who" >{STAMPS}/"$name".ready
}}
begin() {{
    size=$(wc -c <"$log" 2>/dev/null) || size=0
    before='' first='' earlier=0
    case $1 in
        define) define && ready ;;
        restart)
            # What was taken back may be the definition.
            if [ -n "$redefine" ] || ! look; then define && ready; return; fi
            before=$pid earlier=${{runs:-0}}
            said=$(launchctl kickstart -k "$target" 2>&1) || {{ printf '%s\\n' "$said" >&2; return 1; }}
            ready ;;
        await) ready ;;
        reload)
            look && [ -n "$pid" ] || {{ echo "$unit does not run" >&2; return 1; }}
            who=$(invocation "$pid")
            now_is=$(eval "{STARTER_PATH} stamps $loads") || return 1
            line=$(head -n 1 {STAMPS}/"$name".started)
            eval "$as_service --seconds $seconds --main-pid $pid -- $reload" >&2 || return 1
            printf '%s\\n' "$who ${{line#* }}" "$now_is" >{STAMPS}/"$name".loaded.new &&
                mv -f -- {STAMPS}/"$name".loaded.new {STAMPS}/"$name".loaded ;;
    esac
}}
tell() {{
    echo "the last messages of $unit (all: $log):" >&2
    # An emptied log is shorter than it was.
    [ "$(wc -c <"$log")" -ge "$size" ] || size=0
    tail -c "+$((size + 1))" <"$log" | tail -n 20 >&2
}}
beside() {{
    case $1 in {DAEMONS}/*) printf '%s\\n' "{KEPT}/${{1##*/}}" ;; *) printf '%s\\n' "$1" ;; esac
}}
redefine=
taken_back() {{
    case $1 in {DAEMONS}/*) redefine=yes ;; esac
}}
case $files in *{DAEMONS}/*) mkdir -p -- {KEPT} || exit 1 ;; esac
{ROLL_BACK}"""

# $1 name, $2 label, $3 plist. A task is loaded, and its time decides.
_SCHEDULE = f"""
{LOOK}{CURRENT}
name=$1 target=system/$2 plist=$3 patience=$4
{_VERBS}
define || exit 1
umask 077
mkdir -p -- {STAMPS} || exit 1
note="$(boot) $({STARTER_PATH} stamps "$plist")" || exit 1
printf '%s\\n' "$note" >{STAMPS}/"$name".defined
"""

# $1 name, $2 label, $3 seconds that a stop may take; then what is removed.
_REMOVE = f"""
{LOOK}
name=$1 target=system/$2 plist='' patience=$3
shift 3
{_VERBS}
boot_out || exit 1
rm -rf -- "$@" || exit 1
for folder in {KEPT} {STAMPS} {CREDENTIALS} {LOGS} "$(dirname -- {STARTER_PATH})"; do
    rmdir -- "$folder" 2>/dev/null
done
exit 0
"""


def _words(arguments: Sequence[str]) -> str:
    """`arguments` as text that the shell reads as these words; a whole `$MAINPID` is the number of the process."""
    return " ".join('"$pid"' if word == "$MAINPID" else shlex.quote(word) for word in arguments)


def _job(verb: str, service: Service, answers: Sequence[str] = (), roll_back: Sequence[str] = ()) -> StringCommand:
    # Whoever calls it names the unit of systemd: it is the definition that is meant.
    files = [plist_path(service) if path == service.unit_path else path for path in roll_back]
    return script(
        _JOB,
        verb,
        service.name,
        label(service),
        plist_path(service),
        " ".join(files),
        service.start_timeout,
        service.stop_timeout,
        log_path(service),
        _words(as_service(service)),
        _words(service.probe),
        _words(service.reload_command),
        _words(service.reload_files),
        *answers,
    )


def _rendered(service: Service) -> str:
    try:
        return plist(service)
    except ValueError as error:
        raise OperationValueError(str(error)) from error


def unit(service: Service) -> Commands:
    """See `services.unit`. The task that bounds the logs of all services goes with each."""
    wanted = [
        (STARTER_PATH, STARTER, 0o755),
        (plist_path(ROTATION), _rendered(ROTATION), 0o644),
        (plist_path(service), _rendered(service), 0o644),
    ]
    paths = tuple(path for path, _, _ in wanted)
    folders = (f"{LOGS}/{service.name}", f"{LOGS}/{ROTATION.name}")
    found = host.get_fact(Definition, paths=paths, folders=folders, task=ROTATION.name)
    if found is None:
        yield refuse(f"the definition of {service.name} could not be examined")
        return
    if not found.perl:
        yield refuse("this Mac has no /usr/bin/perl, by which a service gives up root before it starts")
        return
    if not found.folders:
        # launchd makes a log, but no folder.
        yield script('umask 022; mkdir -p -- "$@"', *folders)
    wrote = set()
    for (path, text, mode), there in zip(wanted, found.files, strict=True):
        if not (there.holds(text) and there.is_roots(mode, "wheel")):
            yield from _put(path, text, mode, there)
            wrote.add(path)
    if plist_path(ROTATION) in wrote or not found.task.good:
        yield _schedule(ROTATION)


def _put(path: str, text: str, mode: int, there: FileState) -> Iterator[StringCommand]:
    show_difference(path, text_on_box(path, there), text)
    # A task's note says which definition launchd has: it does not hold for another one.
    note = f"{STAMPS}/{path.removeprefix(f'{DAEMONS}/boxwright.').removesuffix('.plist')}.defined"
    yield script('umask 022; mkdir -p -- "$(dirname -- "$1")" && rm -f -- "$2"', path, note)
    yield write(path, text, "root:wheel", mode)


def _schedule(service: Service) -> StringCommand:
    return script(_SCHEDULE, service.name, label(service), plist_path(service), service.stop_timeout)


def scheduled(service: Service) -> Commands:
    """See `services.scheduled`."""
    found: TaskState | None = host.get_fact(Task, service=service.name)
    if found is None:
        yield refuse(f"the task {service.name} could not be examined")
    elif not found.good:
        yield _schedule(service)


def unit_absent(service: Service) -> Commands:
    """See `services.unit_absent`. What all services share goes with the last of them."""
    found = host.get_fact(Traces, service=service.name)
    if found is None:
        yield refuse(f"what is left of {service.name} could not be examined")
        return
    if found.here or found.paths:
        yield script(_REMOVE, service.name, label(service), service.stop_timeout, *found.paths)
    ours = plist_path(ROTATION)
    if ours in found.others and set(found.others) == {ours}:
        left = host.get_fact(Traces, service=ROTATION.name)
        if left is None:
            yield refuse(f"what is left of {ROTATION.name} could not be examined")
        else:
            paths = (*left.paths, STARTER_PATH)
            yield script(_REMOVE, ROTATION.name, label(ROTATION), ROTATION.stop_timeout, *paths)


# What `launchctl print` calls a job whose process is there; the second is launchd's own, which becomes the program.
LIVING = ("running", "xpcproxy")


def stale(service: Service, found: JobState) -> str:
    """What must be done so that the process of `service` has what is on the disk: `define`, `restart` or nothing."""
    started = found.started
    if started is None or started.invocation != found.invocation or started.identity != identity(service):
        return "define"
    if started.files[:1] != found.started_now[:1]:
        return "define"
    return "restart" if started.files != found.started_now else ""


def _unread(service: Service, found: JobState) -> bool:
    """Whether files that can be read again without a restart have changed since they were read."""
    if not service.reload_files:
        return False
    loaded = found.loaded
    return loaded is None or loaded.invocation != found.invocation or loaded.files != found.loaded_now


def needed(service: Service, found: JobState) -> tuple[str, ...]:
    """What makes `service` enabled, running, ready and current, in order: `enable`, `define` (it is loaded anew, which
    enables it too), `restart`, `await` (somebody else started it, and it is not known to be ready), `reload`.
    """
    if not found.here or not found.pid or found.state not in LIVING:
        # What launchd has loaded is not known, and there is nothing to cut off: a process that is there all the same
        # is about to end.
        return ("define",)
    verb = stale(service, found)
    if verb == "define":
        return ("define",)
    verbs = ["enable"] if found.disabled else []
    if verb:
        return (*verbs, verb)
    if found.starting or (service.probe and not found.ready):
        verbs.append("await")
    if _unread(service, found):
        verbs.append("reload")
    return tuple(verbs)


def _found(service: Service) -> JobState | None:
    found: JobState | None = host.get_fact(
        Job, service=service.name, started_with=started_with(service), reloads=service.reload_files
    )
    return found


def running(service: Service, answers: Sequence[str] = (), roll_back: Sequence[str] = ()) -> Commands:
    """See `services.running`."""
    _rendered(service)
    found = _found(service)
    if found is None:
        yield refuse(f"the service {service.name} could not be examined")
        return
    for verb in needed(service, found):
        if verb == "enable":
            yield script('launchctl enable "system/$1"', label(service))
        else:
            yield _job(verb, service, answers, roll_back)


def reloaded(service: Service, answers: Sequence[str] = (), roll_back: Sequence[str] = ()) -> Commands:
    """See `services.reloaded`."""
    found = _found(service)
    if found is None or not found.running:
        yield refuse(f"{service.name} does not run on this box: `boxwright apply` starts it")
    elif _unread(service, found):
        yield _job("reload", service, answers, roll_back)


def stopped(service: str) -> Commands:
    """See `services.stopped`. A name without a dot is that of a Homebrew service, which has one of two labels."""
    labels = (service,) if "." in service else (f"homebrew.mxcl.{service}", f"sh.brew.{service}")
    found = host.get_fact(ForeignJobs, labels=labels)
    if found is None:
        yield refuse(f"the service {service} could not be examined")
        return
    for job in found:
        if not job.disabled:
            yield script('launchctl disable "$1"', job.target)
        if job.here:
            yield script(f'{LOOK}target=$1 name="" plist="" patience=30\n{_VERBS}boot_out', job.target)
