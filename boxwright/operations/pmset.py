"""Power settings of a Mac on AC power: set, seen where they really show, and put back to what they were."""

from collections.abc import Mapping

from pyinfra import host, logger
from pyinfra.api.exceptions import OperationValueError

from boxwright import kept
from boxwright.facts.pmset import Pmset, PowerState
from boxwright.operations.api import Commands, operation
from boxwright.operations.files import RECORDS
from boxwright.shell import refuse

RECORD = f"{RECORDS}/pmset"
# Either decides what happens when power comes back; with both, System Settings puts the first back to 0.
START_UP = ("autorestart", "autorestartatconnect")

_FUNCTIONS = """
put() { pmset -c "$1" "$2"; }
shown() {
    if [ "$1" = disablesleep ]; then
        pmset -g | awk '$1 == "SleepDisabled" { found = $2 } END { print found + 0 }'
    else
        pmset -g custom | awk -v name="$1" '/^[^ ].*:/ { here = /^AC Power:/ } here && $1 == name { print $2 }'
    fi
}
"""


def possible(found: PowerState, wanted: Mapping[str, int]) -> tuple[dict[str, str], tuple[str, ...]]:
    """What of `wanted` the Mac can be told, and the names that it does not have.

    A name that is to be 0 and that the Mac lacks is right as it is, and is in neither.
    """
    known = {*found.capable, *found.values}
    missing = tuple(name for name, value in wanted.items() if name not in known and value != 0)
    return {name: str(value) for name, value in wanted.items() if name in known}, missing


def _apply(wanted: Mapping[str, int]) -> Commands:
    found: PowerState | None = host.get_fact(Pmset, record=RECORD)
    if found is None:
        yield refuse("what pmset says could not be read")
        return
    can, missing = possible(found, wanted)
    for name in missing:
        host.log(f"this Mac has no `{name}`: pmset accepts it and nothing happens, so it is left out", logger.warning)
    if way := kept.changes(found.values, found.recorded, can):
        yield kept.command(_FUNCTIONS, RECORD, way)


@operation()
def settings(wanted: Mapping[str, int]) -> Commands:
    """The Mac has the settings `wanted` on AC power, by pmset's own names, `disablesleep` among them; others stay.

    What was there before is noted on the box. What an earlier call set and `wanted` has no longer is put back. A name
    that the Mac does not have (`pmset -g cap`) is said and left out: pmset itself takes anything.
    """
    if all(wanted.get(name) for name in START_UP):
        raise OperationValueError(f"{' and '.join(START_UP)} exclude each other: System Settings puts one back")
    yield from _apply(wanted)


@operation()
def settings_absent() -> Commands:
    """What `settings` changed has its value from before, unless somebody changed it since."""
    yield from _apply({})
