"""macOS's application firewall, as `socketfilterfw` tells of it in the words of each release."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pyinfra.api import StringCommand
from pyinfra.api.exceptions import FactProcessError

from boxwright.facts.api import Fact
from boxwright.shell import script

TOOL = "/usr/libexec/ApplicationFirewall/socketfilterfw"


@dataclass(frozen=True)
class FirewallState:
    """`state` is 0 for off, 1 for on, 2 for on and closed to all programs. `programs` maps what is listed to whether
    it may be connected to. `recorded` maps what boxwright changed to `added` or `allowed`.
    """

    state: int
    programs: Mapping[str, bool]
    recorded: Mapping[str, str]


def parse_state(text: str) -> int:
    """The state in what `--getglobalstate` prints: `Firewall is enabled. (State = 1)`."""
    match = re.search(r"State = ([012])\)", text)
    if match is None:
        raise FactProcessError(f"not the state of the application firewall: {text!r}")
    return int(match[1])


def parse_programs(lines: Sequence[str]) -> dict[str, bool]:
    """The programs in what `--listapps` prints: numbered paths, each followed by a line with what is decided of it.

    macOS 14 has more blanks and empty lines than 15 and later. Rows in which name and state share a line
    (`Google Chrome (state: 4)`) name no path, and are left out.
    """
    found: dict[str, bool] = {}
    path = ""
    for line in lines:
        if match := re.fullmatch(r"\s*\d+\s*:\s*(/.*?)\s*", line):
            path = match[1]
        elif path and (match := re.search(r"\(\s*(Allow|Block)\b", line)):
            found[path] = match[1] == "Allow"
            path = ""
    return found


class ApplicationFirewall(Fact[FirewallState]):
    """The `FirewallState` of a Mac; `record` is the file in which boxwright notes what it changed."""

    def command(self, record: str) -> StringCommand:
        text = """
            said=$("$2" --getglobalstate) || exit 1
            printf 'state|%s\\n' "$said"
            said=$("$2" --listapps) || exit 1
            printf '%s\\n' "$said" | sed 's/^/program|/'
            if [ -e "$1" ]; then sed 's/^/record|/' "$1" || exit 1; fi
            echo end
            """
        return script(text, record, TOOL)

    def process(self, output: Sequence[str]) -> FirewallState:
        *lines, last = output
        if last != "end":
            raise FactProcessError(f"the application firewall's list is cut off at {last!r}")
        parts: dict[str, list[str]] = {"state": [], "program": [], "record": []}
        for line in lines:
            part, _, text = line.partition("|")
            if part not in parts:
                raise FactProcessError(f"not of the application firewall: {line!r}")
            parts[part].append(text)
        recorded = {path: what for what, _, path in (line.partition(" ") for line in parts["record"])}
        return FirewallState(parse_state("\n".join(parts["state"])), parse_programs(parts["program"]), recorded)
