"""Debian packages: installed when missing, repaired after a run that was killed, removed only if they are ours."""

from collections.abc import Sequence

from pyinfra import host, logger
from pyinfra.api.exceptions import OperationValueError

from boxwright.facts.apt import Packages
from boxwright.operations.api import Commands, operation
from boxwright.operations.files import RECORDS
from boxwright.shell import refuse, script

# One line for each package that was not there before boxwright installed it: its name, and `asked` or `dependency`; or,
# where it was removed and dpkg keeps its configuration, `removed` and the name with which it went.
RECORD = f"{RECORDS}/installed-packages"

# What a run that was killed began goes on on the box: two at once would spoil each other's records. No child holds the
# lock, since one that a package starts may stay.
APT = """
export DEBIAN_FRONTEND=noninteractive NEEDRESTART_MODE=a
unset TMPDIR
exec 9>/run/boxwright-apt.lock
if ! flock --timeout 300 9; then
    echo 'another run has been installing packages for 5 minutes: fuser -v /run/boxwright-apt.lock names it' >&2
    exit 1
fi
# The process that holds one of apt's locks, by the kernel's list of them; fuser and lsof may not be there.
lock_holder() {
    for lock in /var/lib/dpkg/lock-frontend /var/lib/dpkg/lock /var/lib/apt/lists/lock /var/cache/apt/archives/lock; do
        inode=$(stat -c %i -- "$lock" 2>/dev/null) || continue
        for process in $(awk -v end=":$inode$" '$2 == "POSIX" && $6 ~ end { print $5 }' /proc/locks); do
            for opened in /proc/"$process"/fd/*; do
                [ "$(readlink -- "$opened")" = "$lock" ] || continue
                command=$(tr '\\0' ' ' <"/proc/$process/cmdline" | cut -c1-100)
                holder="process $process (${command% }) holds $lock"
                return
            done
        done
    done
    return 1
}
# Unattended upgrades take minutes; killed, they would leave packages half installed.
wait_for_locks() {
    waited=0
    while lock_holder; do
        [ "$waited" -gt 0 ] || echo "apt is in use, waiting for it: $holder" >&2
        waited=$((waited + 1))
        if [ "$waited" -gt 600 ]; then
            echo "apt has been in use by another program for 10 minutes: $holder" >&2
            echo 'let it finish, or end it if it hangs, and run this again' >&2
            return 1
        fi
        sleep 1
    done
}
apt() {
    wait_for_locks || return 1
    apt-get --quiet --quiet --assume-yes -o Dpkg::Use-Pty=0 -o DPkg::Lock::Timeout=120 \\
        -o Dpkg::Options::=--force-confold -o Dpkg::Options::=--force-confdef "$@" >&2 9>&-
}
# A run killed in the middle of dpkg leaves packages that no later apt-get works around. dpkg alone cannot finish a
# package whose dependencies were still to come.
repair() {
    wait_for_locks || return 1
    dpkg --force-confold --force-confdef --configure -a >&2 9>&-
    apt --fix-broken install
}
installed() {
    dpkg-query --show --showformat '${db:Status-Abbrev} ${Package}\\n' \\
        | awk '!index("nc", substr($1, 2, 1)) { print $2 }' | sort -u
}
forget() {
    awk -v name="$1" '$1 != name' "$record" >"$record.new"
    mv -f -- "$record.new" "$record"
}
configuration_kept() {
    dpkg-query --show --showformat '${db:Status-Status}\\n' -- "$1" 2>/dev/null | grep -q -x config-files
}
tidy() {
    if [ ! -s "$record" ]; then
        rm -f -- "$record" "$(dirname -- "$record")/apt-updated"
        rmdir -- "$(dirname -- "$record")" 2>/dev/null
    fi
}
"""

# $1 record, $2 "no" to leave out recommended packages, $3 packages that go, then names. The names are noted before the
# installation, so that a run that is killed in it has noted them; what they brought along is noted after it.
_INSTALL = """
record=$1 recommends=$2 going=$3
shift 3
stamp=$(dirname -- "$record")/apt-updated
umask 022
mkdir -p -- "$(dirname -- "$record")" || exit 1
fresh=
update() { apt update && touch -- "$stamp" && fresh=yes; }
if ! ls /var/lib/apt/lists/*Packages* >/dev/null 2>&1 || [ -z "$(find "$stamp" -mtime -1 2>/dev/null)" ]; then
    # A mirror that is away for a moment is no reason to fail when the lists at hand do.
    update || ls /var/lib/apt/lists/*Packages* >/dev/null 2>&1 || exit 1
fi
note() {
    while IFS= read -r name; do
        grep -q -x -F -e "$name asked" -e "$name dependency" -- "$record" 2>/dev/null || echo "$name $1"
    done >"$record.add"
    # What was removed is there again.
    keep='FILENAME == ARGV[1] { again[$1] = 1; next } !($1 in again)'
    { cat -- "$record" 2>/dev/null | awk "$keep" "$record.add" -; cat -- "$record.add"; } >"$record.new" \\
        && mv -f -- "$record.new" "$record" && rm -f -- "$record.add"
}
before=$(mktemp) && after=$(mktemp) || exit 1
trap 'rm -f -- "$before" "$after"' EXIT
installed >"$before"
printf '%s\\n' "$@" | note asked
install() {
    # In one step with what they replace, and fetched before anything goes.
    for other in $going; do set -- "$@" "$other-"; done
    apt -o "APT::Install-Recommends=$recommends" install -- "$@"
}
if [ -n "$going" ]; then
    all=$(apt-get --simulate --quiet --quiet -o "APT::Install-Recommends=$recommends" install -- "$@" \\
        $(printf '%s- ' $going) 2>/dev/null | sed -n 's/^Remv \\([^ ]*\\).*/\\1/p')
    needing=
    for other in $all; do
        case " $going " in *" $other "*) ;; *) needing="$needing $other" ;; esac
    done
    if [ -n "$needing" ]; then
        echo "$going cannot be replaced by $*:$needing would be removed with it" >&2
        for name; do grep -q -x -F -e "$name" -- "$before" || forget "$name"; done
        exit 1
    fi
fi
if ! install "$@"; then
    # The run that was still at work may have died in the middle of it, and the lists may be too old for what the mirror
    # holds now.
    repair
    if ! { [ -n "$fresh" ] || update; } || ! install "$@"; then
        installed >"$after"
        for name; do grep -q -x -F -e "$name" -- "$after" || forget "$name"; done
        exit 1
    fi
fi
installed >"$after"
for other in $going; do forget "$other"; done
comm -13 "$before" "$after" | note dependency
"""


def _names(names: Sequence[str]) -> tuple[str, ...]:
    for name in names:
        if not name or not all(character.isalnum() or character in "+-." for character in name) or name[0] in "+-.":
            raise OperationValueError(f"not the name of a Debian package: {name!r}")
    return tuple(dict.fromkeys(names))


@operation()
def packages(names: Sequence[str], recommends: bool = False, instead_of: Sequence[str] = ()) -> Commands:
    """The Debian packages `names` are installed, in any version; `recommends` also installs what they recommend.

    When one of them must be installed, those packages go that they are `instead_of`, in the same step; their data and
    configuration stay, and the operator is told. Packages that need one of those are an error that names them.
    The package lists are fetched only when something must be installed and they are missing, older than a day, or do
    not have it. Configuration files that were edited are kept. A run that was killed while packages were installed is
    completed. What was not there before is noted on the box, for `packages_absent`.
    """
    wanted = _names(names)
    if not wanted:
        return
    others = tuple(name for name in _names(instead_of) if name not in wanted)
    found = host.get_fact(Packages, packages=(*wanted, *others), record=RECORD)
    if found is None:
        yield refuse("the installed packages could not be examined")
        return
    if found.broken or found.interrupted:
        yield script(APT + "repair")
    missing = [name for name in wanted if name not in found.installed]
    if missing:
        going = [name for name in others if name in found.installed]
        if going:
            host.log(f"{', '.join(going)} will be replaced by {', '.join(missing)}; data stays", logger.warning)
        yield script(APT + _INSTALL, RECORD, "yes" if recommends else "no", " ".join(going), *missing)


# $1 record, $2 "--purge" or empty, then names. Packages that somebody else needs by now are kept, and no longer noted;
# those that other packages of ours need that stay are kept too, and go with these.
_REMOVE = """
record=$1 purge=$2
shift 2
# Names that would go when $@ are removed, one each line.
going() { apt-get --simulate --quiet --quiet remove "$@" | sed -n 's/^Remv \\([^ ]*\\).*/\\1/p'; }
# Of the names on standard input those that are not ours, and those of ours that were asked for and are to stay.
foreign() { while read -r other; do grep -q -e "^$other " -- "$record" || printf ' %s' "$other"; done; }
staying() {
    while read -r other; do
        case "$names " in
            *" $other "*) ;;
            *) ! grep -q -x -F -e "$other asked" -- "$record" || printf ' %s' "$other" ;;
        esac
    done
}
# A package that is removed: whoever asks for a purge later means its configuration too.
gone() {
    forget "$1"
    if configuration_kept "$1"; then echo "$1 removed $2" >>"$record"; fi
}
first=$1
names=
there=$(installed)
for name; do
    # Gone by another way since it was noted, such as for a package that excludes it; apt may not even know it any more.
    if echo "$there" | grep -q -x -F -e "$name" || configuration_kept "$name"; then
        names="$names $name"
    else
        forget "$name"
    fi
done
left=$names
# Mostly nothing else needs any of them: one call of apt is much faster than one for each.
if [ -n "$names" ]; then
    would=$(going $names)
    if [ -z "$(echo "$would" | foreign)$(echo "$would" | staying)" ]; then
        apt $purge remove -- $names || exit 1
        for name in $names; do gone "$name" "$name"; done
        left=
    fi
fi
for name in $left; do
    would=$(going "$name")
    foreign=$(echo "$would" | foreign)
    if [ -n "$foreign" ]; then
        echo "$name is kept:$foreign needs it" >&2
        forget "$name"
        continue
    fi
    if [ -n "$(echo "$would" | staying)" ]; then
        forget "$name"
        echo "$name dependency" >>"$record"
        apt-mark auto "$name" >/dev/null || exit 1
        continue
    fi
    apt $purge remove -- "$name" || exit 1
    gone "$name" "$name"
done
# Of what came along only what nothing needs any more. That another package merely suggests it is no need: so python3
# would keep python3-venv's parts for ever.
while :; do
    unneeded=$(apt-get --simulate --quiet --quiet -o APT::AutoRemove::SuggestsImportant=false autoremove \\
        | sed -n 's/^Remv \\([^ ]*\\).*/\\1/p')
    mine=
    for name in $unneeded; do
        if grep -q -x -F -e "$name dependency" -- "$record"; then mine="$mine $name"; fi
    done
    [ -n "$mine" ] || break
    apt $purge remove -- $mine || exit 1
    for name in $mine; do gone "$name" "$first"; done
done
tidy
exit 0
"""

# $1 record, then names of packages that were removed. One that is there again, or purged by now, is no longer ours.
_PURGE = """
record=$1
shift
names=
for name; do
    if configuration_kept "$name"; then names="$names $name"; else forget "$name"; fi
done
if [ -n "$names" ]; then
    apt purge -- $names || exit 1
    for name in $names; do forget "$name"; done
fi
tidy
exit 0
"""


@operation()
def packages_absent(names: Sequence[str], purge: bool = False) -> Commands:
    """Those of the packages `names` that boxwright installed are removed, with what they brought and nothing needs.

    Packages that were there before, or that something else needs by now, stay. `purge` removes their configuration too,
    also of those that an earlier run removed without it.
    """
    wanted = _names(names)
    found = host.get_fact(Packages, packages=wanted, record=RECORD)
    if found is None:
        yield refuse("the installed packages could not be examined")
        return
    recorded = dict(found.recorded)
    ours = [name for name in wanted if recorded.get(name) == "asked"]
    if "asked" not in recorded.values():
        # What came along with another package goes with that; a run that was killed may have left it.
        ours = [name for name in wanted if recorded.get(name) == "dependency"]
    if ours and (found.broken or found.interrupted):
        yield script(APT + "repair")
    if ours:
        yield script(APT + _REMOVE, RECORD, "--purge" if purge else "", *ours)
    if purge:
        kept = [name for name, why in found.recorded if why.startswith("removed ") and why.split()[1] in wanted]
        if kept:
            yield script(APT + _PURGE, RECORD, *kept)
