"""What launchd says about a job, and what its process was started with against what is on the disk now."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pyinfra.api import StringCommand
from pyinfra.api.exceptions import FactProcessError

from boxwright.facts.api import Fact
from boxwright.facts.files import STATE, FileState, parse_state
from boxwright.facts.services import Record, parse_record
from boxwright.launchd import (
    AGENTS,
    AGENTS_NOTES,
    CREDENTIALS,
    DAEMONS,
    KEPT,
    LOGS,
    STAMPS,
    STARTER_PATH,
    label,
    notes,
    plist_path,
)
from boxwright.shell import script

# `look` asks launchd about $target; it is true when the job is loaded, and then prints a few of what `launchctl print`
# says of it. Its exit status is the interface: 113 is the one way in which it says that there is no such job, and 1 or
# 5 mean that it does not know. Where nobody of that number is signed in, there is no session to ask about (112, or 125
# where they came by SSH), and nothing of it runs. Of the text only lines with exactly one tab outside of blocks are
# read: blocks repeat the same words about other things, and an argument with line breaks can look like anything. The
# environment, which is in the text too, is never printed.
LOOK = r"""
look() {
    said=$(launchctl print "$target" 2>&1)
    case $?:$target in
        0:*) ;;
        113:* | 112:gui/* | 125:gui/*) return 1 ;;
        *) printf 'launchctl cannot say whether %s is loaded: %s\n' "$target" "$(printf '%s' "$said" | tail -n 1)" >&2
           exit 1 ;;
    esac
    seen=$(printf '%s\n' "$said" | awk '
        block { if ($0 == "\t}") block = 0; next }
        /^\t[^\t].*[{]$/ { block = 1; next }
        /^\t[^\t]/ {
            at = index($0, " = ")
            name = substr($0, 2, at - 2)
            if (at && !(name in known) && name ~ /^(state|pid|runs|last exit code|last exit reason)$/) {
                known[name] = 1
                print name "=" substr($0, at + 3)
            }
        }')
    state=$(value state) pid=$(value pid) runs=$(value runs) ended=$(value 'last exit code')
    case $pid in *[!0-9]*) pid='' ;; esac
    case $runs in *[!0-9]*) runs='' ;; esac
    why=$(value 'last exit reason')
    # The code is that of the time before it was last killed by something that has no code.
    [ -z "$why" ] || ended=$why
}
# The job with the label $1: in the session of the user $2, or the system's where there is none.
target_of() {
    if [ -z "$2" ]; then
        echo "system/$1"
    else
        number=$(id -u "$2" 2>/dev/null) || { echo "there is no user $2" >&2; return 1; }
        echo "gui/$number/$1"
    fi
}
# Whether the user $1 is signed in at the Mac itself: that is a session of its own, with a screen.
signed_in() {
    number=$(id -u "$1" 2>/dev/null) || { echo "there is no user $1" >&2; exit 1; }
    launchctl print "gui/$number" >/dev/null 2>&1
    case $? in
        0) ;;
        112 | 113 | 125) return 1 ;;
        *) echo "launchctl cannot say whether $1 is signed in" >&2; exit 1 ;;
    esac
}
# Whether the service $1 with the label $2 is, or was, an agent.
agent() { [ -e @AGENTS@/"$2".plist ] || [ -e @NOTES@/"$1" ]; }
# Where else than at $target launchd has that label: as a daemon, or, of an agent, in the session of anybody.
elsewhere() {
    here=$target
    people=
    if agent "$1" "$2"; then people=$(dscl . -list /Users UniqueID) || exit 1; fi
    for domain in system $(printf '%s\n' "$people" | awk '$2 >= 500 { print "gui/" $2 }'); do
        target=$domain/$2
        if [ "$target" != "$here" ] && look; then echo "$target"; fi
    done
    target=$here
}
value() { printf '%s\n' "$seen" | sed -n "s/^$1=//p"; }
# Names the process $1 for good, as the starter does when it becomes the service (boxwright/launchd.py).
invocation() {
    printf '%s@%s\n' "$1" "$(LC_ALL=C TZ=UTC0 ps -o lstart= -p "$1" | awk '{ OFS = "_"; $1 = $1; print }')"
}
# Whether the label is one that launchd must not load. Rows are `"LABEL" => disabled`, until macOS 12 `=> true`.
disabled() {
    rows=$(launchctl print-disabled "${target%/*}") || return 1
    printf '%s\n' "$rows" | awk -v name="\"${target##*/}\"" '
        $1 == name && $2 == "=>" && ($3 == "disabled" || $3 == "true") { found = 1 }
        END { exit !found }'
}
""".replace("@AGENTS@", AGENTS).replace("@NOTES@", AGENTS_NOTES)

# `noted FILE` prints a record. That of an agent is in a folder of its user's, and is read as they would read it.
NOTED = """
noted() { if [ -n "$session" ]; then as_user "$session" cat -- "$1"; else cat -- "$1"; fi 2>/dev/null; }
"""


@dataclass(frozen=True)
class JobState:
    """A job as launchd sees it; `state`, `pid` (0: no process) and `ended` (how it last did) are what it prints.

    Of an agent, `away` says that its user is not signed in, so that there is nothing to ask. `elsewhere` are targets by
    which launchd has the service in other ways, and `left` the files of the other way: a daemon's, or an agent's.

    `invocation` names the process, `starting` says that it is still the starter, which waits, and `ready` that a run
    has seen it ready. `started` and `loaded` are the records of the starter, None where there is none; `started_now`
    and `loaded_now` are what they would say about the files as they are now; the first of the former is the definition.
    """

    here: bool
    disabled: bool
    away: bool = False
    elsewhere: tuple[str, ...] = ()
    left: tuple[str, ...] = ()
    state: str = ""
    pid: int = 0
    ended: str = ""
    invocation: str = ""
    starting: bool = False
    ready: bool = False
    started: Record | None = None
    loaded: Record | None = None
    started_now: tuple[str, ...] = ()
    loaded_now: tuple[str, ...] = ()

    @property
    def running(self) -> bool:
        """Whether the process is the service itself."""
        return self.pid > 0 and not self.starting


class Job(Fact[JobState]):
    """The `JobState` of the service called `service`, whose process reads `started_with` and `reloads`. `session` is
    the user in whose session it runs, empty for a daemon.
    """

    def command(
        self, service: str, started_with: tuple[str, ...], reloads: tuple[str, ...], session: str = ""
    ) -> StringCommand:
        text = f"""
name=$1 label=$2 session=$3 notes=$4 count=$5
shift 5
target=$(target_of "$label" "$session") || exit 1
places=$(elsewhere "$name" "$label") || exit 1
for place in $places; do echo "elsewhere=$place"; done
left() {{ for path; do if [ -e "$path" ]; then echo "left=$path"; fi; done; }}
if [ -n "$session" ]; then
    left {KEPT}/"$label".plist.* {DAEMONS}/"$label".plist
elif agent "$name" "$label"; then
    # Its log is its user's. The last of these tells that something is left.
    left {KEPT}/agent."$label".plist.* {AGENTS}/"$label".plist {LOGS}/"$name"/"$name".log* {AGENTS_NOTES}/"$name"
fi
if [ -n "$session" ] && ! signed_in "$session"; then
    echo away=yes
    echo here=no
    exit 0
fi
if disabled; then echo disabled=yes; fi
if look; then
    printf '%s\\n' here=yes "state=$state" "pid=$pid" "ended=$ended"
    if [ -n "$pid" ]; then
        invocation=$(invocation "$pid")
        echo "invocation=$invocation"
        case $(ps -o command= -p "$pid") in *"{STARTER_PATH} start "*) echo starting=yes ;; esac
        if [ "$(cat {STAMPS}/"$name".ready 2>/dev/null)" = "$invocation" ]; then echo ready=yes; fi
    fi
else
    echo here=no
fi
for record in started loaded; do
    noted "$notes.$record" | sed "s/^/$record=/" || exit 1
done
# The first $count files are read at the start, the others again at each reload; each gives one line.
[ -x {STARTER_PATH} ] || exit 0
# What the user of an agent may not read, its starter could not either.
set -- {STARTER_PATH} stamps "$@"
[ -z "$session" ] || set -- as_user "$session" "$@"
"$@" | awk -v count="$count" '{{ print (NR <= count ? "started_now=" : "loaded_now=") $0 }}'
"""
        where = (label(service), session, notes(service, session))
        return script(LOOK + NOTED + text, service, *where, len(started_with), *started_with, *reloads)

    def process(self, output: Sequence[str]) -> JobState:
        values = _values(output, {"here"})
        pid = _one(values, "pid") or "0"
        return JobState(
            here=_one(values, "here") == "yes",
            disabled="disabled" in values,
            away="away" in values,
            elsewhere=tuple(values.get("elsewhere", ())),
            left=tuple(values.get("left", ())),
            state=_one(values, "state"),
            pid=int(pid),
            ended=_one(values, "ended"),
            invocation=_one(values, "invocation"),
            starting="starting" in values,
            ready="ready" in values,
            started=parse_record(values.get("started")),
            loaded=parse_record(values.get("loaded")),
            started_now=tuple(values.get("started_now", ())),
            loaded_now=tuple(values.get("loaded_now", ())),
        )


def _values(output: Sequence[str], needed: set[str]) -> dict[str, list[str]]:
    values: dict[str, list[str]] = {}
    for line in output:
        key, separator, value = line.partition("=")
        if not separator:
            raise FactProcessError(f"not what is known of a job of launchd: {line!r}")
        values.setdefault(key, []).append(value)
    if not needed <= values.keys():
        raise FactProcessError(f"launchd did not say: {', '.join(sorted(needed - values.keys()))}")
    return values


def _one(values: Mapping[str, list[str]], key: str) -> str:
    return values.get(key, [""])[0]


# Whether launchd has the definition of the task $name as it is on the disk at $plist. A task has no process whose
# record would tell: what was loaded by a run is noted by it with the boot; without a note it was loaded at the boot,
# which a definition that is older than the boot was.
CURRENT = f"""
boot() {{ sysctl -n kern.bootsessionuuid; }}
current() {{
    note=$(cat {STAMPS}/"$name".defined 2>/dev/null)
    case $note in
        "$(boot) "*) [ "$note" = "$(boot) $({STARTER_PATH} stamps "$plist")" ] ;;
        *) [ "$(perl -e 'print +(stat shift)[10] // 9999999999' "$plist")" -lt \\
            "$(sysctl -n kern.boottime | sed 's/^[^0-9]*\\([0-9]*\\).*/\\1/')" ] ;;
    esac
}}
"""

_TASK = """
task() {
    name=$1 target=system/$2 plist=$3
    if disabled; then echo disabled=yes; fi
    if look; then
        echo here=yes
        if current; then echo current=yes; fi
    else
        echo here=no
    fi
}
"""


@dataclass(frozen=True)
class TaskState:
    """A scheduled job: whether launchd knows it, with the definition that is on the disk, and may not load it."""

    here: bool
    current: bool
    disabled: bool

    @property
    def good(self) -> bool:
        """Whether it will be started as the disk says."""
        return self.here and self.current and not self.disabled


def _task(output: Sequence[str]) -> TaskState:
    values = _values(output, {"here"})
    return TaskState(_one(values, "here") == "yes", "current" in values, "disabled" in values)


class Task(Fact[TaskState]):
    """The `TaskState` of the scheduled service called `service`."""

    def command(self, service: str) -> StringCommand:
        text = LOOK + CURRENT + _TASK + 'task "$@"'
        return script(text, service, label(service), plist_path(service))

    def process(self, output: Sequence[str]) -> TaskState:
        return _task(output)


@dataclass(frozen=True)
class DefinitionState:
    """The files by which a service is defined, and a task that goes with each of them.

    `perl` says that the program is there by which a service gives up root, `folders` that all those asked for are.
    """

    files: tuple[FileState, ...]
    perl: bool
    folders: bool
    task: TaskState


class Definition(Fact[DefinitionState]):
    """The `DefinitionState` of files at `paths`, of `folders`, and of the scheduled service `task`."""

    def command(self, paths: tuple[str, ...], folders: tuple[str, ...], task: str) -> StringCommand:
        text = """
            name=$1 label=$2 plist=$3
            shift 3
            while [ "$1" != -- ]; do
                describe "$1" || exit 1
                shift
            done
            shift
            if [ -x /usr/bin/perl ]; then echo perl=yes; fi
            folders=yes
            for folder; do [ -d "$folder" ] || folders=no; done
            echo "folders=$folders"
            task "$name" "$label" "$plist"
            """
        functions = STATE + LOOK + CURRENT + _TASK
        return script(functions + text, task, label(task), plist_path(task), *paths, "--", *folders)

    def process(self, output: Sequence[str]) -> DefinitionState:
        files = tuple(parse_state(line) for line in output if "=" not in line)
        lines = [line for line in output if "=" in line]
        values = _values(lines, {"here", "folders"})
        return DefinitionState(files, "perl" in values, _one(values, "folders") == "yes", _task(lines))


@dataclass(frozen=True)
class JobTraces:
    """What is left of a service: `paths` are files and folders of it, `jobs` the targets by which launchd has it.

    `others` are the definitions of the other services that need the starter.
    """

    paths: tuple[str, ...]
    jobs: tuple[str, ...]
    others: tuple[str, ...]


class Traces(Fact[JobTraces]):
    """The `JobTraces` of the service called `service`."""

    def command(self, service: str) -> StringCommand:
        text = f"""
            name=$1 target=
            echo traces=
            places=$(elsewhere "$1" "$2") || exit 1
            for place in $places; do echo "job=$place"; done
            for path in {DAEMONS}/"$2".plist {KEPT}/"$2".plist.good {KEPT}/"$2".plist.bad {KEPT}/"$2".plist.asked \\
                {KEPT}/agent."$2".plist.* {AGENTS}/"$2".plist {AGENTS_NOTES}/"$name" \\
                {STAMPS}/"$name".started {STAMPS}/"$name".loaded {STAMPS}/"$name".loading {STAMPS}/"$name".ready \\
                {STAMPS}/"$name".defined {STAMPS}/"$name".*.new {CREDENTIALS}/"$name" {LOGS}/"$name"; do
                if [ -e "$path" ] || [ -L "$path" ]; then echo "path=$path"; fi
            done
            for path in {DAEMONS}/*.plist {AGENTS}/*.plist; do
                case $path in {DAEMONS}/"$2".plist | {AGENTS}/"$2".plist) continue ;; esac
                grep -q -s -F -- {STARTER_PATH} "$path" && echo "other=$path"
            done
            exit 0
            """
        return script(LOOK + text, service, label(service))

    def process(self, output: Sequence[str]) -> JobTraces:
        values = _values(output, {"traces"})
        return JobTraces(*(tuple(values.get(key, ())) for key in ("path", "job", "other")))


class SignedIn(Fact[bool]):
    """Whether `user` is signed in at the Mac itself, so that LaunchAgents of theirs run."""

    def command(self, user: str) -> StringCommand:
        return script(LOOK + 'if signed_in "$1"; then echo yes; else echo no; fi', user)

    def process(self, output: Sequence[str]) -> bool:
        if list(output) not in (["yes"], ["no"]):
            raise FactProcessError(f"neither yes nor no: {list(output)!r}")
        return list(output) == ["yes"]


@dataclass(frozen=True)
class ForeignJob:
    """A job of another's making: its target (`system/LABEL`, `gui/501/LABEL`), and whether it is loaded or disabled."""

    target: str
    here: bool
    disabled: bool


class ForeignJobs(Fact[tuple[ForeignJob, ...]]):
    """Those of `labels` that launchd knows or would load at the next boot or login, for the system and for each user.

    Those of somebody who is not logged in cannot be asked about: nothing of them runs.
    """

    def command(self, labels: tuple[str, ...]) -> StringCommand:
        text = r"""
            echo jobs=
            seek() {
                for label; do
                    target=$domain/$label state=no
                    # 112: nobody of that number is logged in.
                    launchctl print "$target" >/dev/null 2>&1
                    case $? in
                        0) state=here ;;
                        112 | 113) ;;
                        *) echo "launchctl cannot say whether $target is loaded" >&2; exit 1 ;;
                    esac
                    file=no
                    for folder in "$home"/Library/LaunchAgents "$shared"; do
                        if [ -n "$folder" ] && [ -e "$folder/$label.plist" ]; then file=yes; fi
                    done
                    if [ "$state" = no ] && [ "$file" = no ]; then continue; fi
                    if disabled 2>/dev/null; then state=$state,disabled; fi
                    echo "$target=$state"
                done
            }
            domain=system home=/var/empty shared=/Library/LaunchDaemons
            seek "$@"
            for home in /Users/*; do
                number=$(ls -ldn "$home" | awk '{ print $3 }')
                # Folders of root such as Shared are nobody's home.
                [ "${number:-0}" -ge 500 ] || continue
                shared=/Library/LaunchAgents
                domain=gui/$number
                if launchctl print-disabled "$domain" >/dev/null 2>&1; then seek "$@"; fi
                shared='' domain=user/$number home=/var/empty
                if launchctl print-disabled "$domain" >/dev/null 2>&1; then seek "$@"; fi
            done
            """
        return script(LOOK + text, *labels)

    def process(self, output: Sequence[str]) -> tuple[ForeignJob, ...]:
        first, *lines = output
        if first != "jobs=":
            raise FactProcessError(f"not a list of jobs: {first!r}")
        found = []
        for line in lines:
            target, _, state = line.rpartition("=")
            words = state.split(",")
            if not target or words[0] not in ("here", "no"):
                raise FactProcessError(f"not a job of launchd: {line!r}")
            found.append(ForeignJob(target, words[0] == "here", "disabled" in words))
        return tuple(found)
