"""Which Debian packages are installed, and which were left half installed."""

from collections.abc import Sequence
from dataclasses import dataclass

from pyinfra.api import StringCommand
from pyinfra.api.exceptions import FactProcessError

from boxwright.facts.api import Fact
from boxwright.shell import script


@dataclass(frozen=True)
class PackageState:
    """`installed` are those of the asked packages that are; `broken` is every package left in the middle of something.

    `interrupted` means that dpkg itself was killed while it wrote its database. `recorded` are the packages that
    boxwright installed, each with `asked` or `dependency`, or with `removed NAME` when it went with the package NAME
    and its configuration is still there.
    """

    installed: frozenset[str]
    broken: tuple[str, ...]
    interrupted: bool
    recorded: tuple[tuple[str, str], ...]


class Packages(Fact[PackageState]):
    """The `PackageState` of the packages `packages`; `record` is the file in which installed ones are noted."""

    def command(self, packages: tuple[str, ...], record: str) -> StringCommand:
        text = """
            record=$1
            shift
            list=$(dpkg-query --show --showformat '${db:Status-Abbrev}\\t${Package}\\t${binary:Package}\\n') || exit 1
            # The second letter is what a package is now: not installed, half-configured, installed ...
            printf '%s\\n' "$list" | awk -F '\\t' -v asked=" $* " '
                { state = substr($1, 2, 1) }
                state == "i" && index(asked, " " $2 " ") { print "installed " $2 }
                index("UFHWt", state) { print "broken " $3 }'
            for update in /var/lib/dpkg/updates/*; do
                if [ -e "$update" ]; then echo "interrupted"; break; fi
            done
            if [ -e "$record" ]; then sed 's/^/recorded /' -- "$record" || exit 1; fi
            echo end
            """
        return script(text, record, *packages)

    def process(self, output: Sequence[str]) -> PackageState:
        *lines, last = output
        if last != "end":
            raise FactProcessError(f"the list of packages is cut off at {last!r}")
        values: dict[str, list[str]] = {"installed": [], "broken": [], "interrupted": [], "recorded": []}
        for line in lines:
            key, _, value = line.partition(" ")
            if key not in values:
                raise FactProcessError(f"not the state of a package: {line!r}")
            values[key].append(value)
        recorded = tuple((name, why) for name, _, why in (value.partition(" ") for value in values["recorded"]))
        return PackageState(
            frozenset(values["installed"]), tuple(values["broken"]), bool(values["interrupted"]), recorded
        )
