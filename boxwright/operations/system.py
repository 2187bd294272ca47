"""The time zone of the target, its time service, and units of the system that must be enabled."""

import re
from collections.abc import Sequence

from pyinfra import host
from pyinfra.api.exceptions import OperationValueError

from boxwright.facts.system import Enabled, TimeZone
from boxwright.operations.api import Commands, operation
from boxwright.shell import refuse, script

_SET = """
if [ ! -f "/usr/share/zoneinfo/$1" ]; then
    echo "the time zone $1 is not in /usr/share/zoneinfo: correct its name, or install the package tzdata" >&2
    exit 1
fi
if command -v systemsetup >/dev/null; then
    # Only macOS has it. It writes to its own log, and its exit code says nothing.
    systemsetup -settimezone "$1" >/dev/null 2>&1 </dev/null
    case $(readlink /etc/localtime) in
        */zoneinfo/"$1") ;;
        *) ln -sfn -- "/usr/share/zoneinfo/$1" /etc/localtime || exit 1 ;;
    esac
elif [ -d /run/systemd/system ] && command -v timedatectl >/dev/null && timedatectl set-timezone "$1" 2>/dev/null; then
    # It keeps /etc/localtime alone; /etc/timezone is what Debian's own programs read, where it exists.
    :
else
    ln -sfn -- "/usr/share/zoneinfo/$1" /etc/localtime.new && move_onto /etc/localtime.new /etc/localtime || exit 1
fi
umask 022
[ ! -e /etc/timezone ] || echo "$1" >/etc/timezone
"""


@operation()
def timezone(zone: str) -> Commands:
    """The box lives in the time zone `zone`, a name below /usr/share/zoneinfo."""
    if not re.fullmatch(r"[A-Za-z0-9_+-]+(/[A-Za-z0-9_+-]+)*", zone):
        raise OperationValueError(f"not the name of a time zone: {zone!r}")
    found = host.get_fact(TimeZone)
    if found is None:
        yield refuse("the time zone could not be examined")
        return
    localtime, named = found
    if localtime != zone or named not in ("", zone):
        yield script(_SET, zone)


@operation()
def enabled(units: Sequence[str]) -> Commands:
    """The systemd units `units` (`x.service`, `x.timer`) start at boot and have been started, also when masked before.

    For units that the distribution ships and nothing of boxwright configures; see `services.running` for others.
    """
    found = host.get_fact(Enabled, units=tuple(units))
    if found is None:
        yield refuse(f"{', '.join(units)} could not be examined")
    elif missing := [unit for unit in units if unit not in found]:
        yield script('systemctl --quiet unmask -- "$@" && systemctl --quiet enable --now -- "$@"', *missing)
