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

# After the boot tailscaled answers NoState, then Starting, until it has read its state and reached the control server.
_ASK = """
wait=$1 served=$2 joined=$3 key=$4 only=$5
if [ -e "$served" ]; then echo '== recorded'; cat -- "$served"; fi
if [ -e "$joined" ]; then echo '== joined'; fi
if [ -e "$key" ]; then echo '== leftover'; fi
if { [ -z "$only" ] || [ -e "$only" ]; } && command -v tailscale >/dev/null; then
    echo '== installed'
    state=$(systemctl is-active tailscaled.service)
    if [ "$state" = active ] || [ "$state" = reloading ]; then
        until=$(($(date +%s) + wait))
        while :; do
            status=$(timeout 10 tailscale status --json --peers=false 2>/dev/null </dev/null)
            case $status in
                *'"BackendState": "NoState"'* | *'"BackendState": "Starting"'* | '')
                    [ "$(date +%s)" -lt "$until" ] || break
                    sleep 0.2 ;;
                *) break ;;
            esac
        done
        printf '== status\\n%s\\n' "$status"
        # sudo keeps nothing of the connection in the environment, but a process above it has it.
        process=$$
        while [ "${process:-0}" -gt 1 ]; do
            if session=$(tr '\\0' '\\n' <"/proc/$process/environ" 2>/dev/null | grep '^SSH_CONNECTION='); then
                printf '== session\\n%s\\n' "${session#*=}"
                break
            fi
            process=$(sed -n 's/^PPid:[[:space:]]*//p' "/proc/$process/status" 2>/dev/null)
        done
        printf '== preferences\\n%s\\n' "$(timeout 10 tailscale debug prefs 2>/dev/null </dev/null)"
        printf '== serve\\n%s\\n' "$(timeout 10 tailscale serve status --json 2>/dev/null </dev/null)"
    fi
fi
echo '== examined'
"""


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
