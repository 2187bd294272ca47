"""Homebrew's formulae on a Mac: installed and pinned when missing, removed only if they are ours."""

import re
from collections.abc import Sequence

from pyinfra import host
from pyinfra.api import StringCommand
from pyinfra.api.exceptions import OperationValueError

from boxwright.facts.homebrew import BREW, PREFIX, BrewState, Homebrew, short
from boxwright.operations.api import Commands, operation
from boxwright.operations.files import RECORDS
from boxwright.shell import refuse, script

# One line for each formula that boxwright installed or pinned: its name, and why it is here (see `BrewState`).
RECORD = f"{RECORDS}/installed-formulae"

_NOTES = """
note() { grep -q -e "^$1 " "$record" 2>/dev/null || echo "$1 $2" >>"$record"; }
forget() {
    awk -v name="$1" '$1 != name' "$record" >"$record.new"
    mv -f "$record.new" "$record"
}
formulae() { brew list --formula --versions | awk 'NF { print $1 }' | sort; }
"""

# $1 record, $2 owner, then names. The names are noted before the installation, what they brought along after it.
_INSTALL = """
record=$1 owner=$2
shift 2
umask 022
mkdir -p "$(dirname "$record")" || exit 1
before=$(formulae) || exit 1
for name; do note "${name##*/}" asked; done
install() { brew install --formula "$@" >&2; }
# What it knows of its formulae may be older than what its mirror still holds.
if ! install "$@" && ! { brew update >&2 && install "$@"; }; then
    after=$(formulae)
    for name; do printf '%s\\n' "$after" | grep -q -x -F -e "${name##*/}" || forget "${name##*/}"; done
    exit 1
fi
after=$(formulae) || exit 1
printf '%s\\n' "$after" | while read -r name; do
    printf '%s\\n' "$before" | grep -q -x -F -e "$name" || note "$name" dependency
done
for name; do
    if ! printf '%s\\n' "$after" | grep -q -x -F -e "${name##*/}"; then
        forget "${name##*/}"
        echo "Homebrew installed $name under another name: declare it by that, which 'brew info $name' says first" >&2
        exit 1
    fi
done
"""

# $1 record, $2 owner, then names that are installed.
_PIN = """
record=$1 owner=$2
shift 2
umask 022
mkdir -p "$(dirname "$record")" || exit 1
for name; do note "$name" pinned; done
brew pin "$@" >&2
"""

# $1 record, $2 owner, $3 "all" when nothing that was asked for stays, then names. What others of the person's need is
# kept, and is no longer noted.
_REMOVE = """
record=$1 owner=$2 all=$3
shift 3
there() { brew list --formula --versions "$1" >/dev/null 2>&1; }
# Removes $1 unless something needs it; whether it is gone.
gone() {
    there "$1" || return 0
    needed=$(brew uses --installed --formula "$1") || return 1
    [ -z "$needed" ] || return 2
    brew unpin "$1" >/dev/null 2>&1
    brew uninstall --formula "$1" >&2 || return 1
}
for name; do
    if grep -q -x -F -e "$name pinned" "$record"; then
        ! there "$name" || brew unpin "$name" >&2 || exit 1
    else
        gone "$name"
        case $? in
            1) exit 1 ;;
            2)
                echo "$name is kept: $(echo $needed) needs it" >&2
                brew unpin "$name" >/dev/null 2>&1
                ;;
        esac
    fi
    forget "$name"
done
# What came along goes when nothing needs it any more, the last first.
again=yes
while [ -n "$again" ]; do
    again=
    for name in $(awk '$2 == "dependency" { print $1 }' "$record"); do
        gone "$name"
        case $? in
            0) forget "$name"; again=yes ;;
            1) exit 1 ;;
        esac
    done
done
if [ "$all" = all ]; then
    rm -f "$record"
    rmdir "$(dirname "$record")" 2>/dev/null
fi
exit 0
"""


def _names(names: Sequence[str]) -> tuple[str, ...]:
    for name in names:
        if not re.fullmatch(r"([a-z0-9][a-z0-9_.-]*/[a-z0-9][a-z0-9_.-]*/)?[a-z0-9][a-z0-9@+_.-]*", name):
            raise OperationValueError(f"not the name of a formula of Homebrew: {name!r}")
    return tuple(dict.fromkeys(names))


def unusable(found: BrewState) -> str:
    """Why Homebrew cannot be used, and the one command that cures it; empty when it can."""
    if not found.owner:
        return (
            f"Homebrew is not installed ({PREFIX}/bin/brew is missing), and packages are declared: sign in as "
            f"{found.person} and run the command that https://brew.sh shows first"
        )
    if found.owner != found.person:
        return (
            f"Homebrew belongs to {found.owner}, and boxwright comes as {found.person}: nobody's programs are changed "
            f"in another's name. Come as {found.owner} (`ansible_user`), or run "
            f"`sudo chown -R {found.person} {PREFIX}` on the Mac"
        )
    if found.owner == "root":
        return (
            f"Homebrew belongs to root, and refuses to run so: `sudo chown -R USER {PREFIX}` on the Mac, with the "
            f"account that shall have it, and come as that (`ansible_user`)"
        )
    return ""


def _refused(found: BrewState | None) -> StringCommand | None:
    if found is None:
        return refuse("Homebrew could not be examined")
    why = unusable(found)
    return refuse(why) if why else None


@operation()
def packages(names: Sequence[str]) -> Commands:
    """Homebrew's formulae `names` are installed, in any version, and pinned, so that `brew upgrade` leaves them alone.

    They are found and run as the account that Homebrew belongs to, which must be the one that the operator came as.
    What was not there before is noted on the box, for `packages_absent`. A formula of a tap is named with it:
    `user/tap/formula`.
    """
    wanted = _names(names)
    if not wanted:
        return
    found: BrewState | None = host.get_fact(Homebrew, record=RECORD)
    if (refused := _refused(found)) or found is None:
        yield refused or refuse("")
        return
    if missing := [name for name in wanted if short(name) not in found.installed]:
        yield script(BREW + _NOTES + _INSTALL, RECORD, found.owner, *missing)
    if loose := [short(name) for name in wanted if short(name) not in found.pinned]:
        yield script(BREW + _NOTES + _PIN, RECORD, found.owner, *loose)


@operation()
def packages_absent(names: Sequence[str] = ()) -> Commands:
    """Those of the formulae `names` that boxwright installed are removed, with what they brought and nothing needs.

    Without `names` all that boxwright installed are. What was there before stays, and is pinned no more if boxwright
    pinned it.
    """
    wanted = [short(name) for name in _names(names)]
    found: BrewState | None = host.get_fact(Homebrew, record=RECORD)
    if found is None:
        yield refuse("Homebrew could not be examined")
        return
    asked = [name for name, why in found.recorded if why != "dependency"]
    ours = [name for name in asked if not wanted or name in wanted]
    everything = not set(asked) - set(ours)
    if not ours and not (found.recorded and everything):
        return
    if not found.owner:
        # Homebrew is gone, and all that it installed.
        yield script('rm -f "$1"', RECORD)
        return
    if refused := _refused(found):
        yield refused
        return
    yield script(BREW + _NOTES + _REMOVE, RECORD, found.owner, "all" if everything else "", *ours)
