"""What `pmset` says of a Mac: the settings in force on AC power, those of the whole system, and what the Mac can."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pyinfra.api import StringCommand
from pyinfra.api.exceptions import FactProcessError

from boxwright.facts.api import Fact
from boxwright.kept import Recorded, parse_recorded
from boxwright.shell import script

# `pmset disablesleep N`: of no power source, in no list of capabilities, and shown by another name.
DISABLE_SLEEP, SHOWN_AS = "disablesleep", "SleepDisabled"


@dataclass(frozen=True)
class PowerState:
    """`values` are the settings on AC power that are numbers, and `disablesleep`, as text; `capable` are the names
    that the Mac has for them. `recorded` maps what boxwright set to the value before and the one that it set.
    """

    values: Mapping[str, str]
    capable: frozenset[str]
    recorded: Recorded


def parse_values(lines: Sequence[str], section: str) -> dict[str, str]:
    """The numbers below the line `section:` in what `pmset -g` and `pmset -g custom` print.

    The order is that of a hash table. A name may hold blanks (`Sleep On Power Button 1`), a value may be followed by
    what prevents it (`sleep 0 (sleep prevented by powerd)`), and `hibernatefile` is no number.
    """
    found: dict[str, str] = {}
    here = False
    for line in lines:
        if re.fullmatch(r"\S.*:", line.rstrip()):
            here = line.rstrip() == f"{section}:"
        elif here and (match := re.fullmatch(r"\s*(\S(?:.*\S)?)\s+(\d+)(?:\s+\(.*)?\s*", line)):
            found[match[1]] = match[2]
    return found


def parse_capable(lines: Sequence[str]) -> frozenset[str]:
    """The names in what `pmset -g cap` prints: `Capabilities for AC Power:`, then one for each line."""
    return frozenset(line.strip() for line in lines if line.strip() and not line.rstrip().endswith(":"))


class Pmset(Fact[PowerState]):
    """The `PowerState` of a Mac; `record` is the file in which boxwright notes what it set."""

    def command(self, record: str) -> StringCommand:
        text = """
            for part in live custom cap; do
                said=$(pmset -g "$part") || exit 1
                printf '%s\\n' "$said" | sed "s/^/$part|/"
            done
            if [ -e "$1" ]; then sed 's/^/record|/' "$1" || exit 1; fi
            echo end
            """
        return script(text, record)

    def process(self, output: Sequence[str]) -> PowerState:
        *lines, last = output
        if last != "end":
            raise FactProcessError(f"what pmset says is cut off at {last!r}")
        parts: dict[str, list[str]] = {"live": [], "custom": [], "cap": [], "record": []}
        for line in lines:
            part, _, text = line.partition("|")
            if part not in parts:
                raise FactProcessError(f"not what pmset says: {line!r}")
            parts[part].append(text)
        values = parse_values(parts["custom"], "AC Power")
        if not values:
            raise FactProcessError("`pmset -g custom` shows no settings for AC power")
        # Absent until it was set once.
        values[DISABLE_SLEEP] = parse_values(parts["live"], "System-wide power settings").get(SHOWN_AS, "0")
        return PowerState(values, parse_capable(parts["cap"]), parse_recorded(parts["record"]))
