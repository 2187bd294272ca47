"""What Tailscale says of the target."""

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from pyinfra.api import StringCommand
from pyinfra.api.exceptions import FactProcessError

from boxwright.facts.api import Fact
from boxwright.shell import script
from boxwright.tailnet import Node, node

# The Mac's own copy of the program (see roles/tailscale/darwin.py); on Linux there is no such folder.
PROGRAMS = "/opt/boxwright/tailscale"
LABEL = "boxwright.tailscaled"

# `tailscale` is found, and `limited SECONDS COMMAND...` ends a command that takes longer, with status 124. macOS has no
# program for that.
CLI = f"""
[ ! -d {PROGRAMS} ] || PATH={PROGRAMS}:$PATH
limited() {{
    if [ -d /System/Library ]; then
        perl -e '
            my $seconds = shift;
            my $child = fork // die("fork: $!\\n");
            if (!$child) {{ setpgrp; exec @ARGV; exit 127 }}
            $SIG{{ALRM}} = sub {{ kill("TERM", -$child); sleep 2; kill("KILL", -$child); exit 124 }};
            alarm $seconds;
            waitpid $child, 0;
            exit($? & 127 ? 128 + ($? & 127) : $? >> 8)' "$@"
    else
        timeout --kill-after=5 "$@"
    fi
}}
"""

# Whether tailscaled was started, and the addresses of the SSH connection by which this came, as SSH_CONNECTION of
# ssh(1) has them. sudo keeps nothing of it in the environment, but a process above has it; a Mac shows nobody the
# environment of Apple's own programs, so there the connection itself is looked for.
_SYSTEM = f"""
if [ -d /System/Library ]; then
    started() {{ launchctl print system/{LABEL} >/dev/null 2>&1; }}
    parent() {{ ps -o ppid= -p "$1" 2>/dev/null | tr -d ' '; }}
    session_of() {{
        # Lines such as n192.0.2.1:22->192.0.2.9:50000, with brackets around addresses of IPv6.
        lsof -nP -a -p "$1" -iTCP -sTCP:ESTABLISHED -F n 2>/dev/null | sed -n 's/^n\\(.*\\)->\\(.*\\)$/\\2 \\1/p' \\
            | tr -d '[]' | sed 's/:\\([0-9]*\\) / \\1 /; s/:\\([0-9]*\\)$/ \\1/' | grep .
    }}
else
    started() {{
        state=$(systemctl is-active tailscaled.service)
        [ "$state" = active ] || [ "$state" = reloading ]
    }}
    parent() {{ sed -n 's/^PPid:[[:space:]]*//p' "/proc/$1/status" 2>/dev/null; }}
    session_of() {{
        tr '\\0' '\\n' <"/proc/$1/environ" 2>/dev/null | sed -n 's/^SSH_CONNECTION=//p' | grep .
    }}
fi
"""

# After the boot tailscaled answers NoState, then Starting, until it has read its state and reached the control server.
_ASK = (
    CLI
    + _SYSTEM
    + """
wait=$1 served=$2 joined=$3 key=$4 only=$5
if [ -e "$served" ]; then echo '== recorded'; cat -- "$served"; fi
if [ -e "$joined" ]; then echo '== joined'; fi
if [ -e "$key" ]; then echo '== leftover'; fi
if { [ -z "$only" ] || [ -e "$only" ]; } && command -v tailscale >/dev/null; then
    echo '== installed'
    if started; then
        until=$(($(date +%s) + wait))
        while :; do
            status=$(limited 10 tailscale status --json --peers=false 2>/dev/null </dev/null)
            case $status in
                *'"BackendState": "NoState"'* | *'"BackendState": "Starting"'* | '')
                    [ "$(date +%s)" -lt "$until" ] || break
                    sleep 0.2 ;;
                *) break ;;
            esac
        done
        printf '== status\\n%s\\n' "$status"
        process=$$
        while [ "${process:-0}" -gt 1 ]; do
            if session=$(session_of "$process"); then
                printf '== session\\n%s\\n' "$(printf '%s\\n' "$session" | head -n 1)"
                break
            fi
            process=$(parent "$process")
        done
        printf '== preferences\\n%s\\n' "$(limited 10 tailscale debug prefs 2>/dev/null </dev/null)"
        printf '== serve\\n%s\\n' "$(limited 10 tailscale serve status --json 2>/dev/null </dev/null)"
    fi
fi
echo '== examined'
"""
)


class TailnetNode(Fact[Node]):
    """The target in its tailnet; waits at most `wait` seconds for a tailscaled that is starting.

    `served` and `joined` are the notes of boxwright on the target, `key` where a key lies while it joins.
    With `only_with`, the path of a note, Tailscale is not asked where there is no such note.
    """

    def command(self, served: str, joined: str, key: str, wait: int = 30, only_with: str = "") -> StringCommand:
        return script(_ASK, wait, served, joined, key, only_with)

    def process(self, output: Sequence[str]) -> Node:
        return parse(output)


def parse(output: Sequence[str]) -> Node:
    """A `Node` from the lines of the fact's command. Raises FactProcessError for any others."""
    parts: dict[str, list[str]] = {}
    lines: list[str] = []
    for line in output:
        if line.startswith("== "):
            lines = parts.setdefault(line.removeprefix("== "), [])
        else:
            lines.append(line)
    if "examined" not in parts:
        raise FactProcessError(f"not what Tailscale says: {list(output)[:5]!r}")
    found = Node(installed="installed" in parts)
    if status := _json(parts, "status"):
        found = node(status, _json(parts, "preferences"), _json(parts, "serve"))
    elif "status" in parts:
        found = Node(installed=True, state="silent")
    recorded = _json(parts, "recorded") or []
    # SSH_CONNECTION (ssh(1)): the client's address and port, then the server's.
    session = " ".join(parts.get("session", ())).split()
    return replace(
        found,
        session=(session[2].partition("%")[0], int(session[3])) if len(session) == 4 else None,
        recorded=tuple((int(port), str(path)) for port, path in recorded),
        joined_by_us="joined" in parts,
        leftover="leftover" in parts,
    )


def _json(parts: dict[str, list[str]], name: str) -> Any:
    text = "\n".join(parts.get(name, ())).strip()
    if not text:
        return None
    try:
        return json.loads(text)
    except ValueError as error:
        raise FactProcessError(f"Tailscale's {name} is not JSON: {text[:80]!r}") from error
