"""The operations of boxwright/operations/services.py on a Mac, as generators of their commands."""

import shlex
from collections.abc import Iterator, Sequence
from pathlib import PurePosixPath

from pyinfra import host, logger
from pyinfra.api import StringCommand
from pyinfra.api.exceptions import OperationValueError

from boxwright.facts.files import FileState
from boxwright.facts.launchd import (
    CURRENT,
    LOOK,
    NOTED,
    Definition,
    ForeignJobs,
    Job,
    JobState,
    Task,
    TaskState,
    Traces,
)
from boxwright.launchd import (
    AGENTS,
    AGENTS_NOTES,
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
    notes,
    plist,
    plist_path,
    session,
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
    # 3: not there; 36: still ending; 5: may be either; the others: its session is ending, or has ended, by a logout
    case $code:$target in
        0:* | 3:* | 5:* | 36:* | 112:gui/* | 113:gui/* | 124:gui/* | 125:gui/*) ;;
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
# $9 the words before a command that is run as the service; then the user in whose session it runs, or nothing; where it
# notes what it was started with; its probe, the command that reloads it, the files that this reads (each as text that
# the shell reads as words, maybe none), and the command that must succeed then.
_JOB = f"""
{LOOK}{NOTED}
verb=$1 name=$2 unit=$3 plist=$4 files=$5 seconds=$6 patience=$7 log=$8 as_service=$9
shift 9
session=$1 notes=$2 probe=$3 reload=$4 loads=$5
shift 5
target=$(target_of "$unit" "$session") || exit 1
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
                *) case $(noted "$notes".started) in "$who "*) return 0 ;; esac ;;
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
    mkdir -p -- {STAMPS} && printf '%s\\n' "$who" >{STAMPS}/"$name".ready
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
    case $1 in
        {DAEMONS}/*) printf '%s\\n' "{KEPT}/${{1##*/}}" ;;
        {AGENTS}/*) printf '%s\\n' "{KEPT}/agent.${{1##*/}}" ;;
        *) printf '%s\\n' "$1" ;;
    esac
}}
redefine=
taken_back() {{
    case $1 in {DAEMONS}/* | {AGENTS}/*) redefine=yes ;; esac
}}
case $files in *{DAEMONS}/* | *{AGENTS}/*)
    # Others have folders beside it.
    (umask 022 && mkdir -p -- {PurePosixPath(KEPT).parent}) && mkdir -p -- {KEPT} || exit 1 ;;
esac
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

# $1 name, $2 seconds that a stop may take, $3 the targets by which launchd has it; then what is removed, in this order.
_REMOVE = f"""
{LOOK}
name=$1 plist='' patience=$2 targets=$3
shift 3
{_VERBS}
for target in $targets; do boot_out || exit 1; done
rm -rf -- "$@" || exit 1
for folder in {KEPT} {AGENTS_NOTES} {STAMPS} {CREDENTIALS} {LOGS} "$(dirname -- {STARTER_PATH})"; do
    rmdir -- "$folder" 2>/dev/null
done
exit 0
"""

# $1 user, $2 $3 log and folder of notes of the user's agent. Both are in folders of root's, so that nobody else can put
# something in their place; what is there of another's goes.
_HAND_OVER = """
umask 022
mkdir -p -- "$(dirname -- "$2")" "$(dirname -- "$3")" || exit 1
owner() { details '%U' '%Su' "$1" 2>/dev/null; }
[ -f "$2" ] && [ ! -L "$2" ] && [ "$(owner "$2")" = "$1" ] || rm -rf -- "$2" || exit 1
[ -d "$3" ] && [ ! -L "$3" ] && [ "$(owner "$3")" = "$1" ] || rm -rf -- "$3" || exit 1
umask 077
: >>"$2" && mkdir -p -- "$3" && chown -- "$1" "$2" "$3" && chmod 0600 "$2" && chmod 0700 "$3"
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
        session(service),
        notes(service, session(service)),
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
    # Of an agent: it cannot make them itself.
    own = (log_path(service), f"{AGENTS_NOTES}/{service.name}") if service.agent else ()
    paths = (*(path for path, _, _ in wanted), *own)
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
    if own:
        log, folder = found.files[len(wanted) :]
        right = (("file", service.user, 0o600), ("directory", service.user, 0o700))
        if tuple((there.kind, there.owner, there.mode) for there in (log, folder)) != right:
            yield script(_HAND_OVER, service.user, *own)
    wrote = set()
    for (path, text, mode), there in zip(wanted, found.files[: len(wanted)], strict=True):
        if not (there.holds(text) and there.is_roots(mode, "wheel")):
            yield from _put(path, text, mode, there)
            wrote.add(path)
    if plist_path(ROTATION) in wrote or not found.task.good:
        yield _schedule(ROTATION)


def _put(path: str, text: str, mode: int, there: FileState) -> Iterator[StringCommand]:
    show_difference(path, text_on_box(path, there), text)
    # A task's note says which definition launchd has: it does not hold for another one.
    note = f"{STAMPS}/{PurePosixPath(path).stem.removeprefix('boxwright.')}.defined"
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
    if found.jobs or found.paths:
        yield _removal(service, found.jobs, found.paths)
    ours = plist_path(ROTATION)
    if ours in found.others and set(found.others) == {ours}:
        left = host.get_fact(Traces, service=ROTATION.name)
        if left is None:
            yield refuse(f"what is left of {ROTATION.name} could not be examined")
        else:
            yield _removal(ROTATION, left.jobs, (*left.paths, STARTER_PATH))


def _removal(service: Service, jobs: Sequence[str], paths: Sequence[str]) -> StringCommand:
    return script(_REMOVE, service.name, service.stop_timeout, " ".join(jobs), *paths)


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
    """What makes `service` enabled, running, ready and current, in order: `leave` (the way in which it ran before, as a
    daemon or as somebody's agent), `enable`, `define` (it is loaded anew, which enables it too), `restart`, `await`
    (somebody else started it, and it is not known to be ready), `reload`. An agent whose user is away needs nothing.
    """
    if found.elsewhere or found.left:
        return ("leave",) if found.away else ("leave", "define")
    if found.away:
        return ()
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
        Job,
        service=service.name,
        started_with=started_with(service),
        reloads=service.reload_files,
        session=session(service),
    )
    return found


def running(service: Service, answers: Sequence[str] = (), roll_back: Sequence[str] = ()) -> Commands:
    """See `services.running`."""
    _rendered(service)
    found = _found(service)
    if found is None:
        yield refuse(f"the service {service.name} could not be examined")
        return
    if found.away:
        host.log(
            f"{service.name} does not run: it is a LaunchAgent of {service.user}, who is not signed in; it starts when "
            f"{service.user} signs in at the Mac's own screen",
            logger.warning,
        )
    for verb in needed(service, found):
        if verb == "leave":
            # What was good in that way may not be in this one, and belongs to another account.
            copies = [f"{_beside(service, path)}{kind}" for path in roll_back for kind in (".good", ".bad", ".asked")]
            yield _removal(service, found.elsewhere, (*copies, *found.left))
        elif verb == "enable":
            text = f'{LOOK}target=$(target_of "$1" "$2") && launchctl enable "$target"'
            yield script(text, label(service), session(service))
        else:
            yield _job(verb, service, answers, roll_back)


def _beside(service: Service, path: str) -> str:
    """As `beside` in _JOB."""
    if path != service.unit_path:
        return path
    return f"{KEPT}/{'agent.' if service.agent else ''}{PurePosixPath(plist_path(service)).name}"


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
