"""Unpacked archives on the target."""

from collections.abc import Sequence

from pyinfra.api import StringCommand
from pyinfra.api.exceptions import FactProcessError

from boxwright.facts.api import Fact
from boxwright.shell import script

# Written last into a folder, with the digest of its archive and the state of the program that was looked at: a folder
# without it is half made.
MARKER = ".boxwright-complete"

# Prints what a person could have changed about the file $1: size, modification time (ns), mode and owner.
PROGRAM_STATE = """
program_state() { details '%s %.9Y %a %U:%G' '%z %Fm %p %Su:%Sg' "$1" 2>/dev/null; }
"""


class Unpacked(Fact[str]):
    """The digest of the archive that the folder `path` was unpacked from; empty when it is not whole.

    Of a folder of gigabytes only `program`, a path in it, is looked at: that it is the file that was unpacked.
    """

    def command(self, path: str, program: str) -> StringCommand:
        text = """
            echo examined
            if note=$(cat -- "$1/$3" 2>/dev/null); then
                [ "${note#* }" != "$(program_state "$1/$2")" ] || echo "${note%% *}"
            fi
            """
        return script(PROGRAM_STATE + text, path, program, MARKER)

    def process(self, output: Sequence[str]) -> str:
        first, *rest = output
        if first != "examined" or len(rest) > 1:
            raise FactProcessError(f"not the state of an unpacked archive: {list(output)!r}")
        return "".join(rest)
