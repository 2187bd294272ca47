"""Tailscale: a machine that is in its tailnet as it should be, serves there what is declared, and leaves it in order.

Every command of Tailscale that could wait for a person has a time limit and nothing on its standard input.
"""

import json
import shlex
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

from pyinfra import host, logger

from boxwright import platforms
from boxwright.facts.tailscale import CLI, TailnetNode
from boxwright.guard import DEADLINE, Change
from boxwright.operations.api import Commands, Content, operation
from boxwright.operations.files import RECORDS
from boxwright.operations.guard import guarded, settled
from boxwright.settings import System
from boxwright.shell import refuse, script
from boxwright.tailnet import (
    Endpoint,
    Membership,
    Node,
    carries_session,
    compare,
    days_left,
    differing,
    endpoints,
    exposed,
    membership_step,
    named,
    off_arguments,
    on_arguments,
    preference_arguments,
    preferences_of,
    serve_problems,
    tags_problem,
    taken_name,
)

# Notes on the box: which ports and paths boxwright serves, and that it was boxwright that joined the tailnet.
SERVED, JOINED = f"{RECORDS}/tailscale-served.json", f"{RECORDS}/tailscale-joined"
# The key lies there for the moments of the join: in memory, on a Mac in the folder that is emptied at each boot.
KEYS: dict[System, str] = {
    "linux": "/run/boxwright-tailscale-key",
    "darwin": "/var/run/boxwright-tailscale-key",
}
UNKNOWN = "what Tailscale does on this box could not be examined"

# What Tailscale and its control servers say, in words that tell what to do. $said is what `tailscale up` wrote.
_EXPLAIN = (
    CLI
    + """
explain() {
    now=$(date -u '+%Y-%m-%d %H:%M UTC')
    case $said in
        *'nodeKeyExpired=true'*)
            # Headscale 0.29 does so with a node that has tags.
            echo "$control knows this box and keeps it expired: remove it where the tailnet is administered, and apply \
again" ;;
        *'not yet valid'* | *'certificate has expired'*)
            echo "the certificate of $control is not valid at the time that this box believes it is, $now: set its \
clock (timedatectl)" ;;
        *'server cert'*'failed'*'validation'*)
            echo "this box does not accept the certificate of $control: is it issued by an authority that the box \
knows, and is the clock of the box right (it says $now)?" ;;
        *'tags'*'not permitted'* | *'tag'*'invalid'* | *'requested tags'* | *'tag'*'not owned'*)
            echo "the tailnet does not give the tags ${tags:-of the key} to this key: they must stand in tagOwners of \
its policy file, and the key must be allowed to give them" ;;
        *'key'*'expired'* | *'expired'*'key'*)
            echo "the key in tailscale_auth_key has expired: make a new one where the tailnet is administered, and put \
it there" ;;
        *'already been used'* | *'already used'* | *'used already'*)
            echo "the key in tailscale_auth_key was for one join and was used: make a new one, or a reusable one" ;;
        *'invalid key'* | *'key'*'not found'* | *'key'*'not valid'* | *'key does not exist'* | *'nvalid pre auth key'*)
            echo "$control does not know the key in tailscale_auth_key: was it revoked, or made for another tailnet?" ;;
        *'not authorized'* | *'401'* | *'403'*)
            echo "$control does not accept the key in tailscale_auth_key" ;;
        *'no such host'* | *'connection refused'* | *'i/o timeout'* | *'network is unreachable'* | *'no route to host'*)
            echo "$control cannot be reached from this box" ;;
        *)
            case $(state) in
                NeedsMachineAuth)
                    echo 'the box waits for approval: somebody who administers the tailnet must approve it (admin \
console, Machines); then apply again. A key that is pre-approved spares this' ;;
                *) echo "it did not get there within $seconds s: can this box reach $control, and is its clock right \
(it says $now)?" ;;
            esac ;;
    esac
}
state() {
    limited 10 tailscale status --json --peers=false 2>/dev/null </dev/null \\
        | sed -n 's/^  "BackendState": "\\(.*\\)",*$/\\1/p'
}
"""
)

# $1 seconds, $2 key file, $3 note, $4 control server, $5 tags, then arguments of `tailscale up`; the key comes on
# standard input. The note is made first: a run that is killed after the join has noted it.
_JOIN = (
    _EXPLAIN
    + """
seconds=$1 key=$2 joined=$3 control=$4 tags=$5
shift 5
umask 077
rm -f -- "$key" || exit 1
trap 'rm -f -- "$key"' EXIT
trap 'exit 1' HUP INT TERM
set -C
cat >"$key" || exit 1
set +C
(umask 022; mkdir -p -- "$(dirname -- "$joined")" && printf '%s\\n' "$control" >"$joined") || exit 1
began=$(date +%s)
written() {
    if [ -d /System/Library ]; then
        tail -n 50 /var/log/boxwright/tailscaled/tailscaled.log
    else
        journalctl --quiet --output=cat --unit=tailscaled --since="@$began"
    fi
}
# What tailscaled tells may still be of the attempt before, which it goes on with for a moment.
up() {
    tries=0
    until said=$(limited "$((seconds + 10))" \\
        tailscale up --auth-key="file:$key" --timeout="${seconds}s" "$@" 2>&1 </dev/null); do
        tries=$((tries + 1))
        case $tries$said in 3*) return 1 ;; *'backend error'*) sleep 1 ;; *) return 1 ;; esac
    done
}
given() {
    limited 10 tailscale status --json --peers=false 2>/dev/null </dev/null | tr -d ' \\n\\t' \\
        | sed -n 's/.*"Self":{[^}]*"Tags":\\[\\([^]]*\\)\\].*/\\1/p' | tr -d '"' | tr , '\\n' | sort
}
if [ -z "$tags" ]; then
    up "$@" && exit 0
else
    up --advertise-tags="$(printf %s "$tags" | tr ' ' ,)" "$@" && exit 0
    case $said in
        *'tags'*'not permitted'*)
            # Headscale wants no tag named with a key that brings its own. What came of it is looked at.
            first=$said
            if up "$@"; then
                # They arrive a moment after the join.
                n=0
                while [ "$n" -lt 25 ]; do
                    [ "$(given)" != "$(printf '%s\\n' $tags | sort)" ] || exit 0
                    n=$((n + 1))
                    sleep 0.2
                done
                limited 20 tailscale logout >/dev/null 2>&1 </dev/null
                said=$first
            fi ;;
    esac
fi
case $said in
    *'timeout waiting'* | '')
        # Then what went wrong stands in the log.
        said="$said
$(written | grep -i -e 'register' -e 'x509' -e 'auth' -e 'dial' | tail -n 5)" ;;
esac
printf 'the box cannot join the tailnet: %s\\n' "$(explain)" >&2
printf '%s\\n' "$said" | sed -E 's/[th]skey-[A-Za-z0-9_-]+/<key>/g' | grep . | tail -n 8 >&2
exit 1
"""
)

# $1 seconds
_UP = (
    _EXPLAIN
    + """
seconds=$1 control=$2
said=$(limited "$seconds" tailscale up 2>&1 </dev/null) && exit 0
printf 'the box is not in its tailnet again: %s\\n' "$(explain)" >&2
printf '%s\\n' "$said" | tail -n 5 >&2
exit 1
"""
)


def _node(only_with: str = "") -> Node | None:
    key = KEYS[platforms.system()]
    found: Node | None = host.get_fact(TailnetNode, served=SERVED, joined=JOINED, key=key, only_with=only_with)
    return found


@operation(content=["key"])
def joined(membership: Membership, key: str | Content = "", seconds: int = 60) -> Commands:
    """The machine is in its tailnet; one that is not joins it with `key`, an auth key or an OAuth client secret.

    The key travels on standard input and lies in a file of root's in memory while the machine joins. A machine that is
    in a tailnet is left in it: its preferences are the business of `preferences`. Where nothing but a person can help
    -- a node that waits for approval, another tailnet, tags that are given at the join -- the step fails and says how.
    """
    found = _node()
    if found is None:
        yield refuse(UNKNOWN)
        return
    text = key.text if isinstance(key, Content) else key
    step = membership_step(found, membership, bool(text))
    if found.leftover:
        yield script('rm -f -- "$1"', KEYS[platforms.system()])
    if step.problem:
        yield refuse(step.problem)
    elif step.action == "join":
        arguments = (seconds, KEYS[platforms.system()], JOINED, membership.control, " ".join(membership.tags))
        yield script(_JOIN, *arguments, *membership.join_arguments, stdin=text)
    elif step.action == "up":
        yield script(_UP, seconds, membership.control)


# Arguments: the flags.
_SET = (
    CLI
    + """
if ! said=$(limited 20 tailscale set "$@" 2>&1 </dev/null); then
    printf 'tailscale set %s: %s\\n' "$*" "$said" >&2
    case $said in
        *'lose'*'ssh'* | *'accept-risk'*)
            echo 'this run comes over Tailscale SSH, which the change would end: apply it over another way' >&2 ;;
    esac
    exit 1
fi
"""
)

# Arguments: the flags. After a boot tailscaled does not answer at once.
_SET_AGAIN = (
    CLI
    + """
n=0
until said=$(limited 20 tailscale set "$@" 2>&1 </dev/null); do
    n=$((n + 1))
    if [ "$n" -ge 60 ]; then printf 'tailscale set %s: %s\\n' "$*" "$said" >&2; exit 1; fi
    sleep 1
done
"""
)

# $1 what is said when it does not come, $2 hostname. A new name comes back from the control server.
_NAMED = (
    CLI
    + """
n=0
while [ "$n" -lt 50 ]; do
    case $(limited 10 tailscale status --json --peers=false 2>/dev/null </dev/null \\
        | sed -n 's/^    "DNSName": "\\(.*\\)",*$/\\1/p') in "$2".*) exit 0 ;; esac
    n=$((n + 1))
    sleep 0.2
done
printf "%s\\n" "$1" >&2; exit 1
"""
)


def _with(flags: Sequence[str], text: str) -> str:
    """The sh script `text` with `flags` for its arguments."""
    return f"set -- {shlex.join(flags)}\n{text}"


@operation()
def preferences(membership: Membership, deadline: int = DEADLINE) -> Commands:
    """The machine's preferences are those of `membership`; what it leaves open stays. Only what differs is set.

    Tailscale SSH, a new name or the routes of others can take the way on which the operator comes. So it is done under
    the guard, whose `ready` must have been there: unless a new connection confirms the change within `deadline`
    seconds, the box takes it back. A Mac has no guard, and a run that comes over the tailnet changes nothing there.
    A machine that was given other tags, or another name since that one is taken, fails the step.
    """
    if platforms.system() == "linux":
        yield from settled("tailnet")
    found = _node()
    if found is None:
        yield refuse(UNKNOWN)
        return
    if found.state != "Running":
        return
    wanted = {**membership.preferences, "hostname": membership.hostname or None}
    changed = differing(found.preferences, wanted)
    if changed and platforms.system() == "darwin":
        yield from _set_on_a_mac(found, membership, changed)
    elif changed:
        former = {key: value for key, value in preferences_of(found.preferences).items() if key in changed}
        yield from guarded(
            Change(
                name="tailnet",
                files={},
                force=_with(preference_arguments(changed), _SET),
                restore=_with(preference_arguments(former), _SET_AGAIN),
                after="tailscaled.service",
            ),
            deadline,
        )
        if name := changed.get("hostname"):
            yield script(_NAMED, taken_name(name), name)
    elif problem := tags_problem(found, membership):
        yield refuse(problem)
    elif not named(found, membership.hostname):
        # It may be on its way, after a run that was killed or a change by hand.
        yield script(_NAMED, taken_name(membership.hostname, found.label), membership.hostname)
    with suppress(TypeError):
        left = days_left(found, datetime.now(UTC))
        if left is not None and left < 30:
            host.log(
                f"the box's key for the tailnet ends in {left:.0f} days: renew it, or switch key expiry off",
                logger.warning,
            )


def _set_on_a_mac(found: Node, membership: Membership, changed: Mapping[str, Any]) -> Commands:
    # There is no guard: launchd has no timer that outlives a process for one time alone.
    if found.entered_by_tailnet:
        yield refuse(
            f"this run comes over the tailnet, and a change of {', '.join(sorted(changed))} could end that, which a "
            "Mac does not take back by itself: apply it over another way (`ansible_host`)"
        )
        return
    yield script(_SET, *preference_arguments(changed))
    if name := changed.get("hostname"):
        yield script(_NAMED, taken_name(name), name)


# $1 note, $2 its text, then the arguments of `tailscale`. The note is written first.
_TELL = (
    CLI
    + """
note=$1 text=$2
shift 2
umask 022
mkdir -p -- "$(dirname -- "$note")" || exit 1
if [ -n "$text" ]; then
    printf '%s\\n' "$text" >"$note.new" && mv -f -- "$note.new" "$note" || exit 1
fi
said=$(limited 30 tailscale "$@" 2>&1 </dev/null) && exit 0
code=$?
printf 'tailscale %s: %s\\n' "$*" "$(printf '%s\\n' "$said" | grep . | head -n 3)" >&2
[ "$code" != 124 ] || echo 'it waited for an answer: what the tailnet must allow first was not allowed' >&2
exit 1
"""
)

_NOTE = """
umask 022
mkdir -p -- "$(dirname -- "$1")" && printf '%s\\n' "$2" >"$1.new" && mv -f -- "$1.new" "$1"
"""


# $1 note
_FORGET = 'rm -f -- "$1"; rmdir -- "$(dirname -- "$1")" 2>/dev/null; exit 0'


def _note(keys: Iterable[tuple[int, str]]) -> str:
    return json.dumps(sorted(set(keys)))


@operation()
def served(wanted: Sequence[Endpoint], remove_foreign: bool = False) -> Commands:
    """The machine serves `wanted` in its tailnet. What was made by boxwright and is wanted no longer goes.

    What somebody else serves is reported, and goes only with `remove_foreign`, or when it stands in the way of a wanted
    one. What the tailnet must allow first -- certificates, Funnel, its ports -- is asked before anything is changed.
    """
    found = _node()
    if found is None:
        yield refuse(UNKNOWN)
        return
    if found.state != "Running":
        # Also while a run is only planned, and Tailscale is not there yet.
        if wanted:
            yield refuse(f"nothing can be served: Tailscale {f'is {found.state}' if found.state else 'does not run'}")
        return
    yield from _serve(found, tuple(wanted), remove_foreign)


@operation()
def served_no_more() -> Commands:
    """The machine serves nothing in its tailnet that boxwright made; what somebody else made stays, unseen."""
    found = _node(only_with=SERVED)
    if found is None:
        yield refuse(UNKNOWN)
    elif not found.recorded:
        return
    elif found.state == "Running":
        yield from _serve(found, (), remove_foreign=False)
    elif not found.installed:
        yield script(_FORGET, SERVED)
    else:
        yield refuse(
            "what Tailscale serves cannot be taken back while the box is not in its tailnet: `sudo tailscale up`"
        )


def _serve(found: Node, wanted: tuple[Endpoint, ...], remove_foreign: bool) -> Commands:
    there = endpoints(found.serve, found.name)
    difference = compare(wanted, there, found.recorded, remove_foreign=remove_foreign)
    problems = serve_problems(found, wanted)
    problems += [
        f"{endpoint} was made by somebody else and would become public with Funnel: take it away, or set "
        "`tailscale_serve_foreign: remove`"
        for endpoint in exposed(wanted, difference.foreign)
    ]
    problems += [
        f"this run comes by {endpoint}, which it would end: apply it over another way (`ansible_host`)"
        for endpoint in carries_session(found.session, there, difference)
    ]
    if problems:
        yield refuse("\n".join(problems))
        return
    for endpoint in difference.foreign:
        host.log(f"Tailscale also serves what is not declared: {endpoint}", logger.warning)
    # What was there before, exactly as it is wanted, stays somebody else's.
    recorded = set(found.recorded)
    ours = {endpoint.key for endpoint in difference.on} | (recorded & {endpoint.key for endpoint in wanted})
    # Until the last command has run, also what is still to be taken away.
    note = _note(ours | (recorded & {endpoint.key for endpoint in there}))
    commands: list[tuple[str, ...]] = [("serve", "reset")] if difference.reset else []
    commands += [off_arguments(endpoint) for endpoint in difference.off]
    commands += [on_arguments(endpoint) for endpoint in difference.on]
    for arguments in commands:
        yield script(_TELL, SERVED, note, *arguments)
    if ours and _note(ours) not in (note if commands else "", _note(recorded)):
        yield script(_NOTE, SERVED, _note(ours))
    elif recorded and not ours:
        yield script(_FORGET, SERVED)


# $1 note of the join
_LEAVE = (
    CLI
    + """
if ! said=$(limited 30 tailscale logout 2>&1 </dev/null); then
    printf 'the box could not tell the tailnet that it leaves: %s\\n' "$said" >&2
    echo 'apply again when the control server can be reached; or remove the box where the tailnet is administered,' >&2
    echo "delete $1 on the box and apply again" >&2
    exit 1
fi
rm -f -- "$1"
rmdir -- "$(dirname -- "$1")" 2>/dev/null
exit 0
"""
)


@operation()
def left() -> Commands:
    """The machine has left the tailnet that boxwright joined, which is told so; one that somebody else joined stays."""
    found = _node(only_with=JOINED)
    if found is None:
        yield refuse(UNKNOWN)
        return
    if found.leftover:
        yield script('rm -f -- "$1"', KEYS[platforms.system()])
    if not found.joined_by_us:
        return
    if found.installed and found.state and found.state != "NeedsLogin":
        if found.entered_by_tailnet:
            yield refuse(
                "this run comes over the tailnet, which the box would leave: apply it over another way (`ansible_host`)"
            )
            return
        yield script(_LEAVE, JOINED)
    elif found.installed and not found.state:
        yield refuse("tailscaled does not run, so the box cannot leave its tailnet: start it, and apply again")
    else:
        yield script(_FORGET, JOINED)
