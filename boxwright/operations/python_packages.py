"""Python programs in virtual environments of their own, installed from wheels with pinned digests."""

import re
from collections.abc import Sequence
from hashlib import sha256

from pyinfra import host

from boxwright.artifacts import MirrorSettings
from boxwright.facts.files import Entries
from boxwright.facts.python_packages import MARKER, PYTHON_VERSION, VirtualEnvironment
from boxwright.operations.api import Commands, operation
from boxwright.shell import refuse, script

# That of Debian. A role names another for a Mac, where this one is Apple's, in a version of Apple's choice.
PYTHON = "/usr/bin/python3"

# $1 path, $2 interpreter, $3 marker, $4 digest of the requirements, $5 where packages come from, then arguments for
# pip; the requirements come on standard input.
_INSTALL = """
path=$1 python=$2 marker=$3 digest=$4 origin=$5
shift 5
requirements=$(cat)
fail() { rm -rf -- "$path"; printf '%s\\n' "$1" >&2; exit 1; }
base=$(dirname -- "$path")
umask 022
mkdir -p -- "$base" || exit 1
has_python "$python" || { echo "cannot make $path: $python is not installed on this box" >&2; exit 1; }
version=$(python_version "$python") || exit 1
# A run that was interrupted may have left its command running here: wait for it, then see what it achieved.
exec 9<"$base" || exit 1
if ! try_lock; then
    echo "another run is making an environment in $base: waiting for it" >&2
    wait_lock 3600 || { echo "another run has been busy in $base for an hour" >&2; exit 1; }
    if [ "$(cat -- "$path/$marker" 2>/dev/null)" = "$version $digest" ]; then exit 0; fi
fi
rm -rf -- "$path" || exit 1
hint=" (is python3-venv installed?)"
[ ! -d /System/Library ] || hint=
said=$("$python" -m venv -- "$path" 2>&1) || fail "cannot make $path$hint: $said"
printf '%s\\n' "$requirements" >"$path/requirements.txt" || fail "cannot write into $path"
"$path/bin/python" -m pip --disable-pip-version-check --no-input install --quiet --no-cache-dir \\
    --retries 2 --require-hashes --no-deps --only-binary :all: "$@" --requirement "$path/requirements.txt" >&2 \\
    || fail "pip could not install $(cut -d ' ' -f 1 "$path/requirements.txt" | tr '\\n' ' ')from $origin"
sync_disk "$path" || fail "cannot write into $path"
echo "$version $digest" >"$path/$marker.new" && mv -f -- "$path/$marker.new" "$path/$marker"
"""


def venv_path(base: str, requirements: str, python: str = PYTHON) -> str:
    """Where the environment with exactly `requirements` is below `base`: `<base>/<16 hexadecimal digits>`.

    Known before it exists, so that a unit file can name it. Another set of requirements is another folder, so a running
    program never sees its environment change.
    """
    return f"{base}/{sha256(f'{python} {requirements}'.encode()).hexdigest()[:16]}"


def venv_marker(path: str) -> str:
    """The file in the environment `path` that changes when it is made anew: one of a service's `restart_files`."""
    return f"{path}/{MARKER}"


@operation()
def venv(
    base: str, requirements: str, mirror: MirrorSettings | None = None, python: str = PYTHON, index: str = ""
) -> Commands:
    """Below `base` there is the virtual environment with `requirements` (see `artifacts.requirements`).

    Its path is `venv_path(base, requirements)`. pip takes wheels with the named digests only, from `mirror` when it is
    set, else from the package index at the address `index`, else from the one that the box is configured for; it
    resolves nothing. An environment that was left half made, or that was made for another version of Python, is made
    anew. Needs python3-venv on a Debian.
    """
    path = venv_path(base, requirements, python)
    digest = sha256(requirements.encode()).hexdigest()
    found = host.get_fact(VirtualEnvironment, path=path, python=python)
    if found is None:
        yield refuse(f"{path} could not be examined")
    elif not found.python or found.made_for != f"{found.python} {digest}":
        pip = mirror.pip_arguments() if mirror else ()
        origin = "the package index this box is configured for"
        if mirror and pip:
            origin = f"the mirror {mirror.url}"
        elif index:
            pip, origin = ("--index-url", index), index
        yield script(PYTHON_VERSION + _INSTALL, path, python, MARKER, digest, origin, *pip, stdin=requirements)


@operation()
def prune(base: str, keep: Sequence[str]) -> Commands:
    """Of the environments that `venv` made below `base` only those at the paths `keep` are left.

    To be called when the services run from the new ones.
    """
    found = host.get_fact(Entries, path=base)
    if found is None:
        yield refuse(f"{base} could not be examined")
        return
    kept = {path.rpartition("/")[2] for path in keep}
    old = [f"{base}/{name}" for name in found if re.fullmatch(r"[0-9a-f]{16}", name) and name not in kept]
    if old:
        yield script('remove_tree "$@"', *old)
