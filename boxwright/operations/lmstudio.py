"""LM Studio's headless program: installed from its publisher's bundle, for an account of its own.

Each bundle has a home of its own, so that a version which runs never sees another one arrive, and the one before is
there as long as the new one does not work.
"""

from pyinfra import host

from boxwright.facts.lmstudio import MARKER, Installation, Processes
from boxwright.operations.api import Commands, operation
from boxwright.shell import refuse, script

# $1 home, $2 the bundle, $3 its digest, $4 account, $5 marker. The bundle was verified when it was fetched.
_INSTALL = """
home=$1 bundle=$2 digest=$3 user=$4 marker=$5
base=$(dirname -- "$home")
unpacked=$bundle.unpacked
fail() { remove_tree "$home" "$unpacked"; printf '%s\\n' "$1" >&2; exit 1; }
umask 022
exec 9<"$(dirname -- "$bundle")" || exit 1
if ! try_lock; then
    echo "another run is installing $bundle: waiting for it" >&2
    wait_lock 3600 || { echo "another run has been installing $bundle for an hour" >&2; exit 1; }
fi
remove_tree "$home" "$unpacked" || exit 1
[ -d "$base" ] || install -d -m 0700 -o "$user" -g "$user" -- "$base" || exit 1
install -d -m 0700 -o "$user" -g "$user" -- "$home" || exit 1
mkdir -- "$unpacked" || exit 1
said=$(tar --no-same-owner -xzf "$bundle" -C "$unpacked" 2>&1) || fail "cannot unpack $bundle: $said"
[ -f "$unpacked/llmster" ] && [ -x "$unpacked/llmster" ] || fail "$bundle holds no program llmster"
# As the publisher's own script calls it, which would otherwise change the path of the account and ask.
said=$(cd "$unpacked" && as_user "$user" env -i HOME="$home" USER="$user" LOGNAME="$user" \\
    PATH=/usr/local/bin:/usr/bin:/bin LMS_BOOTSTRAP_INSTALL_SH=1 LMS_NO_MODIFY_PATH=1 \\
    perl -e 'alarm(shift); exec(@ARGV) or die("$!\\n")' 900 ./llmster bootstrap </dev/null 2>&1) \\
    || fail "llmster bootstrap failed: $(printf '%s' "$said" | tail -n 3)"
[ -x "$home/.lmstudio/bin/lms" ] \\
    || fail "llmster bootstrap left no $home/.lmstudio/bin/lms: $(printf '%s' "$said" | tail -n 3)"
remove_tree "$unpacked"
sync_disk "$home" || fail "cannot write into $home"
# The number tells this installation from an earlier one of the same bundle: what ran from that must be restarted.
number=$(od -An -N8 -tx8 /dev/urandom | tr -d ' ')
echo "$digest $number" >"$home/$marker.new" && move_onto "$home/$marker.new" "$home/$marker"
"""


@operation()
def installed(home: str, bundle: str, digest: str, user: str) -> Commands:
    """In the home `home`, which belongs to `user`, LM Studio is installed from the file `bundle` with `digest`.

    An installation that was left half made, or whose command is gone, is made anew. Nothing is started or stopped.
    """
    found = host.get_fact(Installation, home=home)
    if found is None:
        yield refuse(f"{home} could not be examined")
    elif (found.bundle, found.command, found.owner) != (digest, True, user):
        yield script(_INSTALL, home, bundle, digest, user, MARKER)


@operation()
def ended(user: str) -> Commands:
    """No process of `user` is left: launchd ends what it has started, and not the daemon that went into the background
    of that, should nobody have told it to end.
    """
    found = host.get_fact(Processes, user=user)
    if found is None:
        yield refuse(f"the processes of {user} could not be examined")
    elif found:
        yield script(
            'pkill -KILL -U "$1"; ! pgrep -U "$1" >/dev/null || { sleep 1; ! pgrep -U "$1" >/dev/null; }', user
        )
