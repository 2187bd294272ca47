"""Homebrew on a Mac: whose it is, and which of its formulae are installed and pinned."""

from collections.abc import Sequence
from dataclasses import dataclass

from pyinfra.api import StringCommand
from pyinfra.api.exceptions import FactProcessError

from boxwright.facts.api import Fact
from boxwright.shell import script

# Where it lives on Apple silicon. No PATH has it over SSH without a login shell.
PREFIX = "/opt/homebrew"

# `brew ARGUMENTS` as its owner $owner. It refuses root, and any folder that its owner may not read; macOS's sudo keeps
# HOME unless it is told otherwise.
BREW = f"""
cd / || exit 1
brew() {{
    set -- env HOMEBREW_NO_AUTO_UPDATE=1 HOMEBREW_NO_ANALYTICS=1 HOMEBREW_NO_INSTALL_CLEANUP=1 \\
        HOMEBREW_NO_ENV_HINTS=1 NONINTERACTIVE=1 {PREFIX}/bin/brew "$@"
    [ "$(id -un)" = "$owner" ] || set -- sudo -n -H -u "$owner" "$@"
    "$@"
}}
"""


@dataclass(frozen=True)
class BrewState:
    """`owner` is the account that Homebrew belongs to, empty where it is not installed; `person` the one that the
    operator came as. `installed` and `pinned` are formulae by their short names. `recorded` maps what boxwright noted
    to `asked`, `dependency` or `pinned` (it was there and was only pinned).
    """

    owner: str
    person: str
    installed: frozenset[str] = frozenset()
    pinned: frozenset[str] = frozenset()
    recorded: tuple[tuple[str, str], ...] = ()


def short(name: str) -> str:
    """How `brew list` calls the formula `name`: without the tap."""
    return name.rpartition("/")[2]


class Homebrew(Fact[BrewState]):
    """The `BrewState` of a Mac; `record` is the file in which boxwright notes what it installed."""

    def command(self, record: str) -> StringCommand:
        text = """
            echo "person=${SUDO_USER:-$(id -un)}"
            if [ -e "$1" ]; then sed 's/^/recorded=/' "$1" || exit 1; fi
            if [ -x "$2/bin/brew" ]; then
                owner=$(ls -ld "$2/bin/brew" | awk '{ print $3 }')
                echo "owner=$owner"
                # Root's own is refused by brew itself, and by us in better words.
                if [ "$owner" != root ]; then
                    said=$(brew list --formula --versions) || exit 1
                    printf '%s\\n' "$said" | awk 'NF { print "installed=" $1 }'
                    said=$(brew list --pinned) || exit 1
                    printf '%s\\n' "$said" | awk 'NF { print "pinned=" $1 }'
                fi
            fi
            echo end
            """
        return script(BREW + text, record, PREFIX)

    def process(self, output: Sequence[str]) -> BrewState:
        *lines, last = output
        if last != "end":
            raise FactProcessError(f"Homebrew's list is cut off at {last!r}")
        values: dict[str, list[str]] = {"person": [], "owner": [], "installed": [], "pinned": [], "recorded": []}
        for line in lines:
            key, _, value = line.partition("=")
            if key not in values:
                raise FactProcessError(f"not of Homebrew: {line!r}")
            values[key].append(value)
        return BrewState(
            owner="".join(values["owner"]),
            person="".join(values["person"]),
            installed=frozenset(values["installed"]),
            pinned=frozenset(short(name) for name in values["pinned"]),
            recorded=tuple((name, why) for name, _, why in (line.partition(" ") for line in values["recorded"])),
        )
