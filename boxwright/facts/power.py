"""What would put the target to sleep."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pyinfra.api import StringCommand
from pyinfra.api.exceptions import FactProcessError

from boxwright.facts.api import Fact
from boxwright.facts.files import STATE, FileState, parse_state
from boxwright.shell import script


@dataclass(frozen=True)
class SleepState:
    """`masked` are those of the asked targets that cannot be reached, `recorded` those that boxwright masked.

    `settings` is the drop-in for logind, `folder` says whether boxwright made its folder; `handled` maps what logind
    handles (`HandleLidSwitch`) to what it does then, empty where logind does not run.
    """

    settings: FileState
    folder: bool
    masked: frozenset[str]
    recorded: tuple[str, ...]
    handled: Mapping[str, str]


_ASK = """
settings=$1 record=$2
shift 2
describe "$settings" || exit 1
while [ "$1" != -- ]; do
    if [ "$(readlink -- "/etc/systemd/system/$1")" = /dev/null ]; then echo "masked $1"; fi
    shift
done
shift
if [ -e "$record" ]; then sed 's/^/recorded /' -- "$record" || exit 1; fi
if systemctl is-active --quiet systemd-logind; then
    for name; do
        value=$(busctl get-property org.freedesktop.login1 /org/freedesktop/login1 org.freedesktop.login1.Manager \\
            "$name" 2>/dev/null) || continue
        echo "handled $name=$(printf %s "$value" | cut -d '"' -f 2)"
    done
fi
echo end
"""


class Sleep(Fact[SleepState]):
    """The `SleepState` for the targets `targets` and logind's properties `properties`."""

    def command(
        self, settings: str, record: str, targets: tuple[str, ...], properties: tuple[str, ...]
    ) -> StringCommand:
        return script(STATE + _ASK, settings, record, *targets, "--", *properties)

    def process(self, output: Sequence[str]) -> SleepState:
        state, *lines, last = output
        if last != "end":
            raise FactProcessError(f"what is known of sleeping is cut off at {last!r}")
        values: dict[str, list[str]] = {"masked": [], "recorded": [], "handled": []}
        for line in lines:
            key, _, value = line.partition(" ")
            if key not in values:
                raise FactProcessError(f"not what puts a machine to sleep: {line!r}")
            values[key].append(value)
        handled = dict(value.partition("=")[::2] for value in values["handled"])
        recorded = [name for name in values["recorded"] if name != "folder"]
        return SleepState(
            parse_state(state), "folder" in values["recorded"], frozenset(values["masked"]), tuple(recorded), handled
        )
