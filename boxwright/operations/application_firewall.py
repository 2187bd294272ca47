"""macOS's application firewall: whether it lets a program be reached. On, off and stealth mode are its owner's."""

from collections.abc import Sequence
from pathlib import PurePosixPath

from pyinfra import host, logger
from pyinfra.api.exceptions import OperationValueError

from boxwright.facts.application_firewall import TOOL, ApplicationFirewall, FirewallState
from boxwright.operations.api import Commands, operation
from boxwright.operations.files import RECORDS
from boxwright.shell import refuse, script

# One line for each program: `added` (it was not listed) or `allowed` (it was listed as blocked), and its path.
RECORD = f"{RECORDS}/application-firewall"

# $1 record, $2 tool, $3 `added` or `allowed`, $4 path. Noted first, so that a run that is killed is undone too, and
# once: one that we added and somebody blocked meanwhile is still one that was not there. What
# the tool prints differs by release: what counts is what it lists afterwards.
_ALLOW = """
record=$1 tool=$2 what=$3 path=$4
umask 022
mkdir -p "$(dirname "$record")" || exit 1
grep -q -x -F -e "added $path" -e "allowed $path" "$record" 2>/dev/null || echo "$what $path" >>"$record" || exit 1
said=$({ [ "$what" = allowed ] || "$tool" --add "$path"; "$tool" --unblockapp "$path"; } 2>&1)
if ! "$tool" --listapps | awk -v path="$path" '
    !/\\([ ]*(Allow|Block)/ { listed = index($0, path) && substr($0, index($0, path)) ~ "^" path "[ ]*$"; next }
    listed && /\\([ ]*Allow/ { allowed = 1 }
    END { exit !allowed }'
then
    printf '%s\\n' "the application firewall does not let $path be reached: ${said:-it said nothing}" >&2
    case $said in
        *managed*) echo "the Mac is managed: let its administrator allow $path, or turn the firewall off" >&2 ;;
    esac
    exit 1
fi
"""

# $1 record, $2 tool, then `added`, `allowed` or `gone` (somebody else took it back) and a path, again and again.
_TAKE_BACK = """
record=$1 tool=$2
shift 2
while [ "$#" -gt 1 ]; do
    case $1 in
        added) "$tool" --remove "$2" >/dev/null || exit 1 ;;
        allowed) "$tool" --blockapp "$2" >/dev/null || exit 1 ;;
    esac
    grep -v -x -F -e "added $2" -e "allowed $2" "$record" >"$record.new"
    mv -f "$record.new" "$record" || exit 1
    shift 2
done
if [ ! -s "$record" ]; then
    rm -f "$record"
    rmdir "$(dirname "$record")" 2>/dev/null
fi
exit 0
"""


def _taken_back(found: FirewallState, keep: Sequence[str]) -> Commands:
    words: list[str] = []
    for path, what in found.recorded.items():
        if path not in keep:
            words += (what if found.programs.get(path, False) else "gone", path)
    if words:
        yield script(_TAKE_BACK, RECORD, TOOL, *words)


@operation()
def reachable(programs: Sequence[str]) -> Commands:
    """The application firewall lets the programs with the paths `programs` be reached, where it is on.

    A path must be the one that the process has: absolute, without links. What an earlier call allowed and is not among
    `programs` is taken back. Where the firewall is off nothing is changed, and where it is closed to all programs the
    operator is told.
    """
    for path in programs:
        if not path.startswith("/") or ".." in PurePosixPath(path).parts:
            raise OperationValueError(f"not an absolute path: {path!r}")
    found: FirewallState | None = host.get_fact(ApplicationFirewall, record=RECORD)
    if found is None:
        yield refuse("the application firewall could not be examined")
        return
    yield from _taken_back(found, programs)
    if found.state == 0:
        return
    if found.state == 2:
        host.log(
            "the application firewall blocks all incoming connections: nobody but the Mac itself reaches what it "
            "serves; turn that off in System Settings > Network > Firewall > Options",
            logger.warning,
        )
    for path in programs:
        if not found.programs.get(path, False):
            yield script(_ALLOW, RECORD, TOOL, "allowed" if path in found.programs else "added", path)


@operation()
def reachable_no_more() -> Commands:
    """What `reachable` allowed is taken back, before the programs themselves go; what others allowed stays."""
    found: FirewallState | None = host.get_fact(ApplicationFirewall, record=RECORD)
    if found is None:
        yield refuse("the application firewall could not be examined")
        return
    yield from _taken_back(found, ())
