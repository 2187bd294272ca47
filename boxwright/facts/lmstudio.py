"""An installation of LM Studio on the target."""

from collections.abc import Sequence
from dataclasses import dataclass

from pyinfra.api import StringCommand
from pyinfra.api.exceptions import FactProcessError

from boxwright.facts.api import Fact
from boxwright.shell import script

# Written last, with the digest of the bundle and a number that no other installation has. A home without it is half
# made.
MARKER = ".boxwright-complete"


@dataclass(frozen=True)
class Installed:
    """`bundle` is the digest of what a complete installation was made from, empty without one; `command` tells whether
    its command `lms` is there, and `owner` to whom its home belongs.
    """

    bundle: str
    command: bool
    owner: str


class Processes(Fact[tuple[int, ...]]):
    """The processes of the account `user`; none where there is no such account."""

    def command(self, user: str) -> StringCommand:
        return script('echo processes; if id -u -- "$1" >/dev/null 2>&1; then pgrep -U "$1" || true; fi', user)

    def process(self, output: Sequence[str]) -> tuple[int, ...]:
        first, *rest = output
        if first != "processes" or not all(line.isdigit() for line in rest):
            raise FactProcessError(f"not a list of processes: {list(output)!r}")
        return tuple(map(int, rest))


class Installation(Fact[Installed]):
    """The `Installed` in the home `home`."""

    def command(self, home: str) -> StringCommand:
        return script(
            """
            echo "owner=$(details %U %Su "$1" 2>/dev/null)"
            if [ -f "$1/$2" ] && [ ! -L "$1/$2" ]; then echo "bundle=$(cut -d " " -f 1 <"$1/$2")"; fi
            if [ -x "$1/.lmstudio/bin/lms" ]; then echo command=yes; fi
            """,
            home,
            MARKER,
        )

    def process(self, output: Sequence[str]) -> Installed:
        values = dict(line.partition("=")[::2] for line in output)
        if "owner" not in values or not values.keys() <= {"owner", "bundle", "command"}:
            raise FactProcessError(f"not the state of an installation: {list(output)!r}")
        return Installed(values.get("bundle", ""), values.get("command") == "yes", values["owner"])
