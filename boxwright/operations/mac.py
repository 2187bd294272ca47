"""What only a Mac has: its names, its clock by Apple's tool, Time Machine, Screen Sharing, graphics memory."""

import re
from collections.abc import Sequence

from pyinfra import host, logger
from pyinfra.api.exceptions import OperationValueError

from boxwright import kept
from boxwright.facts.mac import (
    NAMES,
    SCREEN_SHARING,
    WIRED_LIMIT,
    ComputerNames,
    NetworkTime,
    QuietFolders,
    QuietState,
    ScreenSharing,
    Settings,
    SharingState,
    WiredLimit,
)
from boxwright.operations.api import Commands, operation
from boxwright.operations.files import RECORDS
from boxwright.shell import refuse, script

TIME_RECORD = f"{RECORDS}/network-time"
QUIET_RECORD = f"{RECORDS}/quiet-folders"
SHARING_RECORD = f"{RECORDS}/screen-sharing"
WIRED_RECORD = f"{RECORDS}/wired-limit"

# Every setter of systemsetup works, complains of an error -99, and ends with 0 whatever happened.
_TIME = """
put() {
    case $1 in
        using) systemsetup -setusingnetworktime "$2" ;;
        server) systemsetup -setnetworktimeserver "$2" ;;
    esac
}
shown() {
    case $1 in
        using) systemsetup -getusingnetworktime 2>/dev/null | sed -n 's/^Network Time: //p' | tr ONF onf ;;
        server) systemsetup -getnetworktimeserver 2>/dev/null | sed -n 's/^Network Time Server: //p' ;;
    esac
}
"""


def _network_time(wanted: dict[str, str]) -> Commands:
    found: Settings | None = host.get_fact(NetworkTime, record=TIME_RECORD)
    if found is None:
        yield refuse("who keeps the clock could not be examined")
    elif way := kept.changes(found.values, found.recorded, wanted):
        yield kept.command(_TIME, TIME_RECORD, way)


@operation()
def network_time(server: str = "") -> Commands:
    """The Mac's clock is kept by a time server: `server`, or the one that it has."""
    yield from _network_time({"using": "on", **({"server": server} if server else {})})


@operation()
def network_time_absent() -> Commands:
    """What `network_time` changed is as it was."""
    yield from _network_time({})


@operation()
def named(name: str) -> Commands:
    """The Mac is called `name`, in Finder and in the network."""
    if not re.fullmatch(r"[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?", name):
        raise OperationValueError(f"not a name that a Mac can have in a network: {name!r}")
    found: dict[str, str] | None = host.get_fact(ComputerNames)
    if found is None:
        yield refuse("the Mac's names could not be read")
    elif wrong := [kind for kind in NAMES if found.get(kind) != name]:
        yield script('name=$1; shift; for kind; do scutil --set "$kind" "$name" || exit 1; done', name, *wrong)


# $1 record, then an action and a folder, again and again: `mark`, `exclude`, and what takes them back, `unmark` and
# `include`. 80 is tmutil's answer to whom Full Disk Access is missing. A mark is made where nothing is (set -C), so
# that no link of the folder's owner is followed.
_QUIET = """
record=$1
shift
umask 022
mkdir -p "$(dirname "$record")" || exit 1
note() { forget "$1" "$2"; echo "$1 $2" >>"$record"; }
forget() {
    grep -v -x -F -e "$1 $2" "$record" >"$record.new" 2>/dev/null
    mv -f "$record.new" "$record"
}
while [ "$#" -gt 1 ]; do
    path=$2
    case $1 in
        mark) note mark "$path" && (set -C; : >"$path/.metadata_never_index") || exit 1 ;;
        unmark) rm -f "$path/.metadata_never_index" && forget mark "$path" || exit 1 ;;
        exclude)
            note excluded "$path"
            forget refused "$path"
            said=$(tmutil addexclusion "$path" 2>&1)
            case $? in
                0) ;;
                80)
                    forget excluded "$path"
                    note refused "$path"
                    echo "Time Machine goes on backing $path up: it takes orders only with Full Disk Access" >&2
                    ;;
                *) printf '%s\n' "$said" >&2; exit 1 ;;
            esac
            ;;
        include)
            said=$(tmutil removeexclusion "$path" 2>&1)
            case $? in 0 | 80) ;; *) [ ! -e "$path" ] || { printf '%s\n' "$said" >&2; exit 1; } ;; esac
            forget excluded "$path"
            forget refused "$path"
            ;;
    esac
    shift 2
done
if [ ! -s "$record" ]; then
    rm -f "$record"
    rmdir "$(dirname "$record")" 2>/dev/null
fi
exit 0
"""


def quiet_actions(found: QuietState, paths: Sequence[str]) -> list[tuple[str, str]]:
    """What must be done so that of all folders exactly `paths` are left alone, as far as boxwright is concerned."""
    back = {"mark": "unmark", "excluded": "include", "refused": "include"}
    actions = [(back[what], path) for what, path in found.recorded if path not in paths and what in back]
    actions += [("mark", path) for path in paths if path in found.indexed]
    refused = {path for what, path in found.recorded if what == "refused"}
    asked = [path for path in paths if path in found.included and (found.may_ask or path not in refused)]
    return actions + [("exclude", path) for path in asked]


def _quiet(paths: Sequence[str]) -> Commands:
    found: QuietState | None = host.get_fact(QuietFolders, record=QUIET_RECORD, paths=tuple(paths))
    if found is None:
        yield refuse("what Spotlight and Time Machine do with the folders could not be examined")
        return
    if found.absent:
        yield refuse(f"{', '.join(found.absent)} should be a folder, and is none")
        return
    actions = quiet_actions(found, paths)
    if still := [path for path in found.included if ("exclude", path) not in actions]:
        host.log(
            f"Time Machine backs up {', '.join(still)}: it takes orders only from programs with Full Disk Access "
            "(System Settings > General > Sharing > Remote Login > Allow full disk access for remote users)",
            logger.warning,
        )
    if actions:
        yield script(_QUIET, QUIET_RECORD, *(word for action in actions for word in action))


@operation()
def quiet_folders(paths: Sequence[str]) -> Commands:
    """Spotlight does not index what is in the folders `paths`, and Time Machine does not back it up, by marks that the
    folders carry with them; folders of an earlier call are as they were.

    Where Time Machine may not be told (no Full Disk Access for those who come over SSH) the operator is told how that
    is given, and the run goes on; it is tried again when the access is there.
    """
    yield from _quiet(paths)


@operation()
def quiet_folders_absent() -> Commands:
    """What `quiet_folders` did is undone; what others marked stays."""
    yield from _quiet(())


# $1 record, $2 label. A label that is disabled cannot be loaded, so it is enabled first.
_SHARE = """
umask 022
mkdir -p "$(dirname "$1")" && : >>"$1" || exit 1
launchctl enable "system/$2" || exit 1
launchctl print "system/$2" >/dev/null 2>&1 ||
    launchctl bootstrap system "/System/Library/LaunchDaemons/$2.plist" || exit 1
echo 'Screen Sharing listens; where it shows or moves nothing, switch it on once in System Settings > Sharing' >&2
"""

# 3: it is not loaded. 36: it is still stopping.
_SHARE_NO_MORE = """
launchctl bootout "system/$2"
case $? in 0 | 3 | 36) ;; *) exit 1 ;; esac
launchctl disable "system/$2" || exit 1
rm -f "$1"
rmdir "$(dirname "$1")" 2>/dev/null
exit 0
"""


@operation()
def screen_sharing() -> Commands:
    """Screen Sharing is on, from now on and at each start. It was off by default, and `screen_sharing_absent` switches
    it off again if this switched it on.
    """
    found: SharingState | None = host.get_fact(ScreenSharing, record=SHARING_RECORD)
    if found is None:
        yield refuse("Screen Sharing could not be examined")
    elif not (found.loaded and found.enabled):
        yield script(_SHARE, SHARING_RECORD, SCREEN_SHARING)


@operation()
def screen_sharing_absent() -> Commands:
    """Screen Sharing is off if boxwright switched it on; one that its owner switched on stays."""
    found: SharingState | None = host.get_fact(ScreenSharing, record=SHARING_RECORD)
    if found is None:
        yield refuse("Screen Sharing could not be examined")
    elif found.ours:
        yield script(_SHARE_NO_MORE, SHARING_RECORD, SCREEN_SHARING)


_WIRED = """
put() { sysctl "$1=$2"; }
shown() { sysctl -n "$1"; }
"""


def _wired_limit(wanted: dict[str, str]) -> Commands:
    found: Settings | None = host.get_fact(WiredLimit, record=WIRED_RECORD)
    if found is None:
        yield refuse("the limit of memory for the graphics processor could not be read")
    elif wanted and not found.values:
        yield refuse(f"this Mac has no {WIRED_LIMIT}: it is a virtual one, or has no processor of Apple's")
    elif way := kept.changes(found.values, found.recorded, wanted):
        yield kept.command(_WIRED, WIRED_RECORD, way)


@operation()
def wired_limit(megabytes: int) -> Commands:
    """The graphics processor may use `megabytes` (MiB) of memory, until the Mac starts again with its own limit."""
    yield from _wired_limit({WIRED_LIMIT: str(megabytes)})


@operation()
def wired_limit_absent() -> Commands:
    """The limit is what it was before `wired_limit`."""
    yield from _wired_limit({})
