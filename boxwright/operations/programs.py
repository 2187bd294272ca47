"""Programs that root runs, kept where nobody but root can change them."""

from pyinfra import host

from boxwright.facts.programs import Copy, ProgramCopy
from boxwright.operations.api import Commands, operation
from boxwright.shell import script

# $1 program, $2 its copy. As a new file: macOS kills a program whose file was written over, since it goes on with the
# signature that it knows of that file.
_COPY = """
[ -f "$1" ] || { echo "$1 is not on the box" >&2; exit 1; }
umask 022
mkdir -p -- "$(dirname -- "$2")" || exit 1
rm -f -- "$2.new" || exit 1
cp -p -- "$1" "$2.new" && chown 0:0 "$2.new" && chmod 0755 "$2.new" && move_onto "$2.new" "$2"
"""


@operation()
def copied(source: str, path: str) -> Commands:
    """At `path` is a copy of the program `source`, which is root's; its folder is made.

    For programs of Homebrew: its folders belong to a person, and what root starts from there is whatever that person's
    account puts there.
    """
    found: Copy | None = host.get_fact(ProgramCopy, source=source, path=path)
    # Also while a run is only planned, and the program is not there yet.
    if found is None or not found.source or found.source != found.copy or not found.owned:
        yield script(_COPY, source, path)
