"""Programs that are published as archives: each version unpacked in a folder of its own."""

import re
from collections.abc import Sequence

from pyinfra import host

from boxwright.artifacts import Download, MirrorSettings
from boxwright.facts.archives import MARKER, PROGRAM_STATE, Unpacked
from boxwright.facts.files import Entries
from boxwright.operations.api import Commands, operation
from boxwright.operations.files import fetch
from boxwright.shell import refuse, script

# Names of what `unpacked` makes.
_OURS = re.compile(r".+-[0-9a-f]{12}(\.new|\.archive(\.part|\.sha256)?)?")

# $1 folder, $2 archive, $3 program in it, $4 digest of the archive, $5 marker, $6 name for messages
_UNPACK = """
folder=$1 archive=$2 program=$3 digest=$4 marker=$5 name=$6
new=$folder.new
fail() { remove_tree "$new"; printf '%s\\n' "$1" >&2; exit 1; }
umask 022
exec 9<"$(dirname -- "$folder")" || exit 1
wait_lock 3600 || { echo "another run has been unpacking beside $folder for an hour" >&2; exit 1; }
remove_tree "$new" || exit 1
mkdir -- "$new" || exit 1
said=$(tar --extract --no-same-owner --no-same-permissions --file="$archive" --directory="$new" 2>&1) \\
    || fail "$name could not be unpacked in $folder: $(printf '%s' "$said" | tail -n 2)"
[ -x "$new/$program" ] || fail "$name has no program $program"
sync_disk "$new" || fail "cannot write into $folder"
echo "$digest $(program_state "$new/$program")" >"$new/$marker" || fail "cannot write into $folder"
remove_tree "$folder" && move_onto "$new" "$folder" && rm -f -- "$archive" "$archive.sha256"
"""


@operation()
def unpacked(path: str, artifact: Download, program: str, mirror: MirrorSettings | None = None) -> Commands:
    """The folder `path`, in a folder that exists, holds the content of the archive `artifact`.

    Give each version a path of its own that ends in `-` and twelve hexadecimal digits (see `prune`), so that a running
    program never changes. The archive is a tar file, compressed with anything that the target has a program for. It is
    fetched as by `files.download`, and is gone when it was unpacked. `program` is an executable file in it
    ("bin/tool"); when that was changed or is missing, the archive is fetched and unpacked again.
    """
    found = host.get_fact(Unpacked, path=path, program=program)
    if found is None:
        yield refuse(f"{path} could not be examined")
    elif found != artifact.sha256:
        archive = f"{path}.archive"
        yield from fetch(archive, artifact, mirror)
        yield script(PROGRAM_STATE + _UNPACK, path, archive, program, artifact.sha256, MARKER, artifact.name)


@operation()
def prune(base: str, keep: Sequence[str]) -> Commands:
    """Of the folders that `unpacked` made in the folder `base`, and of what it left half made, only those at the paths
    `keep` are left.

    To be called when the services run from the new ones.
    """
    found = host.get_fact(Entries, path=base)
    if found is None:
        yield refuse(f"{base} could not be examined")
        return
    old = [path for name in found if _OURS.fullmatch(name) and (path := f"{base}/{name}") not in keep]
    if old:
        yield script('remove_tree "$@"', *old)
