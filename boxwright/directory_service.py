"""Accounts and groups of a Mac, which its directory service keeps: what `dscl` prints, and scripts that change them.

Neither dscl nor sysadminctl can be trusted to say by its exit code that it failed, so every script looks afterwards.
Over SSH macOS refuses much of it unless those who come by Remote Login have "Full Disk Access".
"""

from collections.abc import Iterable, Mapping

# Where a service's account is at home, and what it is given in place of a shell: what Apple's own have.
NO_HOME = "/var/empty"
NO_SHELL = "/usr/bin/false"

# The group without which nobody may sign in by SSH, on a Mac that has this group.
SSH_ACCESS = "com.apple.access_ssh"


def parse_record(lines: Iterable[str]) -> Mapping[str, str]:
    """Attributes and their values, as `dscl . -read RECORD ATTRIBUTE...` prints them.

    A value with a blank in it stands on the next line, after one blank. An attribute that there is not is missing: dscl
    says `No such key: NAME` and ends with 0. The names of attributes that are none of Apple's have a prefix there.
    """
    values: dict[str, str] = {}
    key = ""
    for line in lines:
        if line.startswith(" ") and key:
            values[key] = line[1:]
        elif not line.startswith("No such key: "):
            name, colon, value = line.removeprefix("dsAttrTypeNative:").partition(":")
            if not colon:
                raise ValueError(f"not an attribute: {line!r}")
            key, values[name] = name, value.removeprefix(" ")
    return values


# home_of NAME prints the account's home folder.
HOME_OF = """
home_of() {
    dscl . -read "/Users/$1" NFSHomeDirectory | awk '
        NR == 1 { sub(/^NFSHomeDirectory: ?/, ""); if ($0 != "") { print; exit } }
        NR == 2 { sub(/^ /, ""); print }'
}
"""

_COMMON = """
fail() { printf '%s\\n' "$1" >&2; exit 1; }
# What macOS said, and what to do about it.
refused() {
    case $1 in
        *eDSPermissionError* | *"Operation not permitted"*) fail "macOS refuses to $2: $1
allow it in System Settings > General > Sharing > Remote Login (i): Allow full disk access for remote users" ;;
        *) fail "macOS could not $2: $1" ;;
    esac
}
# there RECORD: whether there is one
there() {
    seen=$(dscl . -read "$1" RecordName 2>&1 >/dev/null)
    case $? in 0) return 0 ;; 56) return 1 ;; *) fail "cannot look at $1: $seen" ;; esac
}
"""

# $1 name, $2 home, $3 shell, $4 group (empty for one of its own), $5 and $6 the lowest and highest number to take,
# $7 1 to hide it from the login window. Completes what an interrupted run has left: what there is keeps its numbers,
# and the account's own comes last, since without it the system does not count it as an account.
CREATE = (
    _COMMON
    + """
name=$1 home=$2 shell=$3 group=$4 lowest=$5 highest=$6 hidden=$7
# value RECORD ATTRIBUTE
value() { dscl . -read "$1" "$2" 2>/dev/null | awk -v key="$2:" '$1 == key { print $2; exit }'; }
# free_in LIST NUMBER: whether it is a number that nobody in the list has
free_in() { [ -n "$2" ] && printf '%s\\n' "$1" | awk -v number="$2" '$NF == number { exit 1 }'; }
put() { said=$(dscl . -create "$@" 2>&1) || refused "$said" "write $1"; }
# Two runs would take the same number.
exec 9</etc || exit 1
wait_lock 60 || fail "another run has been making accounts for a minute"
uid= gid=
! there "/Users/$name" || uid=$(value "/Users/$name" UniqueID)
if [ -n "$group" ]; then
    gid=$(value "/Groups/$group" PrimaryGroupID)
    [ -n "$gid" ] || fail "there is no group $group on this Mac"
elif there "/Groups/$name"; then
    gid=$(value "/Groups/$name" PrimaryGroupID)
fi
if [ -z "$uid" ] || [ -z "$gid" ]; then
    users=$(dscl . -list /Users UniqueID) && groups=$(dscl . -list /Groups PrimaryGroupID) \\
        || fail "the accounts of this Mac cannot be listed"
    # The same number for both, where nobody else has it.
    if [ -z "$group" ]; then
        [ -n "$uid" ] || ! free_in "$users" "$gid" || uid=$gid
        [ -n "$gid" ] || ! free_in "$groups" "$uid" || gid=$uid
    fi
    free=$(printf '%s\\n' "$users" "$groups" | awk -v number="$lowest" -v highest="$highest" '
        { taken[$NF] = 1 }
        END { while (number in taken) number++; if (number <= highest) print number }')
    [ -n "$free" ] || fail "no number from $lowest to $highest is free for $name: remove accounts or groups that \\
nothing uses (dscl . -list /Users UniqueID; dscl . -list /Groups PrimaryGroupID)"
    [ -n "$gid" ] || gid=$free
    [ -n "$uid" ] || uid=$free
fi
# First what macOS may refuse, so that nothing else is left behind.
put "/Users/$name"
put "/Users/$name" Password '*'
if [ -z "$group" ]; then
    put "/Groups/$name"
    put "/Groups/$name" PrimaryGroupID "$gid"
    put "/Groups/$name" Password '*'
fi
put "/Users/$name" NFSHomeDirectory "$home"
put "/Users/$name" UserShell "$shell"
put "/Users/$name" RealName "$name"
[ -z "$hidden" ] || put "/Users/$name" IsHidden 1
put "/Users/$name" PrimaryGroupID "$gid"
put "/Users/$name" UniqueID "$uid"
# What the system remembers of an account that was not there takes a moment to go.
tries=0
until [ "$(id -u -- "$name" 2>/dev/null)" = "$uid" ] && [ "$(id -g -- "$name" 2>/dev/null)" = "$gid" ]; do
    tries=$((tries + 1))
    [ "$tries" -lt 50 ] || fail "the account $name was written, but the system does not know it: $(id -- "$name" 2>&1)"
    sleep 0.2
done
"""
)

# $1 name. macOS's own program fills the home from its template; where that may not, an empty one will do.
MAKE_HOME = """
home=$(home_of "$1")
[ -d "$home" ] || createhomedir -c -u "$1" >/dev/null 2>&1
[ -d "$home" ] || install -d -m 0700 -o "$1" -g "$(id -gn -- "$1")" -- "$home"
"""

# $1 name, then groups
_JOIN = """
name=$1
shift
for group; do
    there "/Groups/$group" || fail "the group '$group' does not exist"
    said=$(dseditgroup -o edit -a "$name" -t user "$group" 2>&1 </dev/null)
    dseditgroup -o checkmember -m "$name" "$group" >/dev/null 2>&1 </dev/null \\
        || refused "$said" "put $name into the group $group"
done
"""
JOIN = _COMMON + _JOIN

# $1 name: it is let in by SSH, on a Mac that has a list of those who are.
LET_IN = f'{_COMMON}there /Groups/{SSH_ACCESS} || exit 0\nset -- "$1" {SSH_ACCESS}\n{_JOIN}'

# $1 name, $2 the beginning of the path of its sudo rights, $3 1 when its home goes too, then groups that it is in. The
# account goes before its home, since macOS may refuse that: it keeps the last administrator. Of memberships the name
# stays, and a later account of that name would inherit them.
DELETE = (
    _COMMON
    + HOME_OF
    + """
name=$1 sudoers=$2 with_home=$3
shift 3
rm -f -- "$sudoers$name" || exit 1
home=
if [ -n "$with_home" ]; then
    home=$(home_of "$name")
    # That of services is everybody's.
    case $home/ in */../*) home= ;; /Users/?* | /var/lib/?* | /private/var/lib/?*) ;; *) home= ;; esac
fi
case $name in
    _*)
        if there "/Groups/$name"; then
            said=$(dscl . -delete "/Groups/$name" 2>&1)
            ! there "/Groups/$name" || refused "$said" "remove the group $name"
        fi
        said=$(dscl . -delete "/Users/$name" 2>&1) ;;
    *)
        # It ends what the account runs, too.
        said=$(sysadminctl -deleteUser "$name" -keepHome 2>&1 </dev/null)
        ! there "/Users/$name" || said="$said$(dscl . -delete "/Users/$name" 2>&1)" ;;
esac
! there "/Users/$name" || refused "$said" "remove the account $name"
for group; do dscl . -delete "/Groups/$group" GroupMembership "$name" >/dev/null 2>&1; done
if [ -n "$home" ]; then said=$(remove_tree "$home" 2>&1) || refused "$said" "remove $home"; fi
"""
)
