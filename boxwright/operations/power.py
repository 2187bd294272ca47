"""Sleep: a machine that serves does not fall asleep, whoever asks for it: a lid, a key, a desktop, idleness."""

from pyinfra import host

from boxwright.facts.power import Sleep, SleepState
from boxwright.operations.api import Commands, operation
from boxwright.operations.files import RECORDS, show_difference, text_on_box, write
from boxwright.shell import refuse, script

TARGETS = (
    "sleep.target",
    "suspend.target",
    "hibernate.target",
    "hybrid-sleep.target",
    "suspend-then-hibernate.target",
)
SETTINGS = "/etc/systemd/logind.conf.d/boxwright.conf"
RECORD = f"{RECORDS}/sleep"
# logind.conf(5). Without them logind would try, fail at the masked targets and say so again and again.
IGNORED = (
    "HandleSuspendKey",
    "HandleHibernateKey",
    "HandleLidSwitch",
    "HandleLidSwitchExternalPower",
    "HandleLidSwitchDocked",
    "IdleAction",
)
TEXT = "# Written by boxwright: this machine serves, and does not sleep.\n[Login]\n" + "".join(
    f"{name}=ignore\n" for name in IGNORED
)

# logind reads its settings again at SIGHUP; a restart would be felt by a desktop.
_REREAD = """
process=$(systemctl show --value --property MainPID systemd-logind)
[ "${process:-0}" -gt 0 ] && kill -HUP "$process"
"""

# $1 record, then targets. What is noted first is undone also when the run is killed before it was done.
_MASK = """
record=$1
shift
umask 022
mkdir -p -- "$(dirname -- "$record")" || exit 1
for target; do
    grep -q -x -F -e "$target" -- "$record" 2>/dev/null || echo "$target" >>"$record" || exit 1
done
systemctl --quiet mask -- "$@"
"""

# $1 record, $2 settings
_FOLDER = """
folder=$(dirname -- "$2")
[ ! -d "$folder" ] || exit 0
umask 022
mkdir -p -- "$(dirname -- "$1")" && echo folder >>"$1" && mkdir -p -- "$folder"
"""

# $1 record, $2 settings, $3 "folder" or empty, then targets
_WAKE = """
record=$1 settings=$2 folder=$3
shift 3
rm -f -- "$settings" || exit 1
[ -z "$folder" ] || rmdir -- "$(dirname -- "$settings")" 2>/dev/null
if [ "$#" -gt 0 ]; then systemctl --quiet unmask -- "$@" || exit 1; fi
rm -f -- "$record"
rmdir -- "$(dirname -- "$record")" 2>/dev/null
exit 0
"""


def _found() -> SleepState | None:
    found: SleepState | None = host.get_fact(
        Sleep, settings=SETTINGS, record=RECORD, targets=TARGETS, properties=IGNORED
    )
    return found


@operation()
def stay_awake() -> Commands:
    """The machine cannot be suspended, and neither its lid nor a key nor idleness asks for it.

    What somebody else masked stays so when this is taken back.
    """
    found = _found()
    if found is None:
        yield refuse("what puts the machine to sleep could not be examined")
        return
    if missing := [target for target in TARGETS if target not in found.masked]:
        yield script(_MASK, RECORD, *missing)
    wrote = not (found.settings.holds(TEXT) and found.settings.is_roots(0o644))
    if wrote:
        show_difference(SETTINGS, text_on_box(SETTINGS, found.settings), TEXT)
        yield script(_FOLDER, RECORD, SETTINGS)
        yield write(SETTINGS, TEXT, "root:root", 0o644)
    if found.handled and (wrote or set(found.handled.values()) != {"ignore"}):
        yield script(_REREAD)


@operation()
def may_sleep() -> Commands:
    """What `stay_awake` did is undone."""
    found = _found()
    if found is None:
        yield refuse("what puts the machine to sleep could not be examined")
    elif found.settings.kind != "absent" or found.recorded or found.folder:
        ours = [target for target in found.recorded if target in found.masked]
        yield script(_WAKE, RECORD, SETTINGS, "folder" if found.folder else "", *ours)
        if found.handled:
            yield script(_REREAD)
