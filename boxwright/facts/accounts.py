"""Accounts on the target: all that are asked for in one command."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from pyinfra.api import StringCommand
from pyinfra.api.exceptions import FactProcessError

from boxwright.facts.api import Fact
from boxwright.facts.files import STATE, FileState, parse_state
from boxwright.shell import script


@dataclass(frozen=True)
class AccountState:
    """An account as the system's databases have it, with `group` the primary and `groups` all its groups.

    `keys` are the lines of its authorized_keys, None without one; `sudoers` is the file with its sudo rights.
    """

    uid: int
    group: str
    home: str
    shell: str
    groups: frozenset[str]
    keys: tuple[str, ...] | None = None
    sudoers: FileState = field(default_factory=lambda: FileState("absent"))


class Accounts(Fact[dict[str, AccountState]]):
    """The `AccountState` of those of `names` that exist.

    `sudoers` is the beginning of the path of a file with sudo rights; the account's name follows. With it empty,
    neither keys nor rights are asked for.
    """

    def command(self, names: tuple[str, ...], sudoers: str = "") -> StringCommand:
        # authorized_keys belongs to its user: a link there is not followed, and only a file of sane size is read.
        text = """
            sudoers=$1
            shift
            echo accounts
            for name; do
                line=$(getent passwd "$name")
                case $? in 0) ;; 2) continue ;; *) exit 1 ;; esac
                echo "passwd $line"
                echo "groups $(id -Gn -- "$name")" || exit 1
                echo "group $(id -gn -- "$name")" || exit 1
                [ -n "$sudoers" ] || continue
                home=$(printf '%s' "$line" | cut -d : -f 6)
                keys=$home/.ssh/authorized_keys
                if [ -f "$keys" ] && [ ! -L "$keys" ] && [ ! -L "$home/.ssh" ]; then
                    echo keys
                    head -c 1048576 <"$keys" | sed 's/^/key /'
                    echo
                fi
                state=$(describe "$sudoers$name") || exit 1
                echo "sudoers $state"
            done
            """
        return script(STATE + text, sudoers, *names)

    def process(self, output: Sequence[str]) -> dict[str, AccountState]:
        first, *lines = output
        if first != "accounts":
            raise FactProcessError(f"not a list of accounts: {first!r}")
        found: dict[str, AccountState] = {}
        name = ""
        for line in lines:
            kind, _, rest = line.partition(" ")
            if kind == "passwd":
                name, _, uid, _, _, home, shell = rest.split(":")
                found[name] = AccountState(int(uid), "", home, shell, frozenset())
            elif kind == "group":
                found[name] = replace(found[name], group=rest)
            elif kind == "groups":
                found[name] = replace(found[name], groups=frozenset(rest.split()))
            elif kind == "keys":
                found[name] = replace(found[name], keys=())
            elif kind == "key":
                found[name] = replace(found[name], keys=(*(found[name].keys or ()), rest))
            elif kind == "sudoers":
                found[name] = replace(found[name], sudoers=parse_state(rest))
            elif line:
                raise FactProcessError(f"not the state of an account: {line!r}")
        return found
