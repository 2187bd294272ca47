"""Which container runtimes a Mac has, and which of them answer."""

import json
from collections.abc import Sequence
from typing import Any, get_args

from pyinfra.api import StringCommand
from pyinfra.api.exceptions import FactProcessError

from boxwright.containers import Runtime, State, kind_of
from boxwright.facts.api import Fact
from boxwright.shell import script

# $1 a socket more, empty for none; $2 the folder of homes, $3 that of the persons' temporary folders. A socket that is
# found under several names counts once. Of the engine's two answers, /_ping is the words OK and /version an object.
_ASK = """
asked=$1 homes=$2 temporary=$3 seen=
ask() { curl --silent --show-error --max-time 10 --unix-socket "$socket" "http://localhost/$1" 2>&1; }
look() {
    socket=$1
    [ -S "$socket" ] || [ -L "$socket" ] || return 0
    real=$(readlink -f "$socket" 2>/dev/null) || real=$socket
    case "|$seen|" in *"|$real|"*) return 0 ;; esac
    seen="$seen|$real"
    echo "socket=$socket"
    echo "real=$real"
    echo "owner=$(target_details %U %Su "$socket" 2>/dev/null)"
    if [ ! -S "$socket" ]; then
        echo "state=silent"
        echo "said=the link leads nowhere"
    elif [ ! -w "$socket" ]; then
        echo "state=denied"
    elif said=$(ask _ping) && [ "$said" = OK ] && version=$(ask version); then
        echo "state=answers"
        printf 'version=%s\\n' "$(printf '%s' "$version" | tr '\\n' ' ')"
    else
        echo "state=silent"
        printf 'said=%s\\n' "$(printf '%s' "${said:-$version}" | tr '\\n' ' ')"
    fi
}
[ -z "$asked" ] || look "$asked"
for home in "$homes"/*; do
    look "$home/.docker/run/docker.sock"
    look "$home/.orbstack/run/docker.sock"
    look "$home/.orb/run/docker.sock"
    for each in "$home"/.colima/*/docker.sock "$home/.colima/docker.sock" "$home"/.config/colima/*/docker.sock; do
        look "$each"
    done
done
# The socket of Podman's machine before the link that leads to it: its name is that of the machine.
for each in "$temporary"/*/*/T/podman/*-api.sock; do look "$each"; done
for home in "$homes"/*; do
    for each in "$home"/.local/share/containers/podman/machine/podman.sock \\
        "$home"/.local/share/containers/podman/machine/*/podman.sock; do
        look "$each"
    done
done
look /var/run/docker.sock
echo end
"""


class ContainerRuntimes(Fact[tuple[Runtime, ...]]):
    """The container runtimes of a Mac, in the order in which they were found. `asked` is a socket to look at besides
    the known places.
    """

    def command(self, asked: str = "", homes: str = "/Users", temporary: str = "/var/folders") -> StringCommand:
        return script(_ASK, asked, homes, temporary)

    def process(self, output: Sequence[str]) -> tuple[Runtime, ...]:
        *lines, last = output
        if last != "end":
            raise FactProcessError(f"the list of container runtimes is cut off at {last!r}")
        found: list[dict[str, str]] = []
        for line in lines:
            key, _, value = line.partition("=")
            if key == "socket":
                found.append({})
            elif not found or key not in ("real", "owner", "state", "version", "said"):
                raise FactProcessError(f"not of a container runtime: {line!r}")
            found[-1][key] = value
        return tuple(_runtime(values) for values in found)


def _runtime(values: dict[str, str]) -> Runtime:
    socket, real, owner = values["socket"], values.get("real") or values["socket"], values.get("owner", "")
    state = values.get("state", "")
    if state not in get_args(State):
        raise FactProcessError(f"not the state of a container runtime: {state!r}")
    known: State = state  # type: ignore[assignment]  # one of them, as was just seen
    version, platform, said = "", "", values.get("said", "").strip()
    if known == "answers":
        try:
            told: dict[str, Any] = json.loads(values.get("version", ""))
            platform, version = str(told.get("Platform", {}).get("Name", "")), str(told["Version"])
        except (ValueError, KeyError, AttributeError):
            # Something answers there that is no engine.
            known, said = "silent", f"not the version of a container engine: {values.get('version', '')[:80]!r}"
    kind, machine = kind_of(real, platform)
    if kind == "other":
        kind, machine = kind_of(socket, platform)
    return Runtime(kind, socket, real, owner, known, machine, version, said)
