"""Programs of text files that are part of this checkout, put on the target as they are."""

import base64
import gzip
import io
import re
import tarfile
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path

from pyinfra import host
from pyinfra.api.exceptions import OperationValueError

from boxwright.facts.trees import Tree
from boxwright.operations.api import Commands, operation
from boxwright.shell import refuse, script

# $1 folder. A tar file in base64 comes on standard input; cut short, it is no whole gzip and nothing is replaced.
_INSTALL = """
path=$1 new=$1.new
umask 022
fail() { remove_tree "$new"; printf '%s\\n' "$1" >&2; exit 1; }
mkdir -p -- "$(dirname -- "$path")" || exit 1
exec 9<"$(dirname -- "$path")" || exit 1
wait_lock 3600 || { echo "another run has been at work beside $path for an hour" >&2; exit 1; }
remove_tree "$new" || exit 1
mkdir -- "$new" || exit 1
# Not on to tar by one more bar: what a shell learns of a row of programs is how the last one ended.
base64 -d | gzip -d >"$new.tar" || { rm -f -- "$new.tar"; fail "the files of $path did not arrive whole"; }
tar -x -f "$new.tar" -C "$new" && rm -f -- "$new.tar" || fail "cannot write into $new"
chown -R 0:0 "$new" && chmod -R u=rwX,go=rX "$new" && sync_disk "$new" || fail "cannot write into $new"
[ ! -e "$path" ] || remove_tree "$path" || exit 1
move_onto "$new" "$path"
"""
# What Python makes beside its programs.
_CACHES = ("__pycache__", ".pytest_cache", ".mypy_cache", ".ruff_cache")


def read(folder: Path) -> dict[str, str]:
    """The text of all files below `folder` of this machine by their names relative to it, without what Python caches.

    Raises UnicodeDecodeError for a file that is not text.
    """
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        if path.is_file() and not set(_CACHES) & set(name.parts) and path.suffix != ".pyc":
            found[name.as_posix()] = path.read_text(encoding="utf-8")
    return found


def digest(files: Mapping[str, str]) -> str:
    """Sixteen hexadecimal digits that name `files` and all that is in them."""
    told = "".join(f"{sha256(text.encode()).hexdigest()}  {name}\n" for name, text in sorted(files.items()))
    return sha256(told.encode()).hexdigest()[:16]


@operation()
def installed(path: str, files: Mapping[str, str]) -> Commands:
    """The folder `path` holds `files` (text by name) and nothing else, all of it root's and readable by everybody.

    Give each set of files a path of its own that ends with its `digest` (`python_packages.prune` removes older ones),
    so that a running program never sees its files change. What was changed on the target is replaced as a whole: the
    folder is another one then, which a service sees that has it among its `restart_files`.
    """
    for name in files:
        if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*(/[A-Za-z0-9_][A-Za-z0-9_.-]*)*", name):
            raise OperationValueError(f"not the name of a file in a folder: {name!r}")
    found = host.get_fact(Tree, path=path)
    wanted = {name: sha256(text.encode()).hexdigest() for name, text in files.items()}
    if found is None:
        yield refuse(f"{path} could not be examined")
    elif found.loose or found.files != wanted:
        yield script(_INSTALL, path, stdin=base64.encodebytes(_archive(files)).decode())


def _archive(files: Mapping[str, str]) -> bytes:
    """The same bytes for the same `files`."""
    kept = io.BytesIO()
    with tarfile.open(fileobj=kept, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name, text in sorted(files.items()):
            data = text.encode()
            member = tarfile.TarInfo(name)
            member.size, member.mode = len(data), 0o644
            tar.addfile(member, io.BytesIO(data))
    return gzip.compress(kept.getvalue(), mtime=0)
