"""Accounts on the target: all that are asked for in one command."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from pyinfra.api import StringCommand
from pyinfra.api.exceptions import FactProcessError

from boxwright.directory_service import HOME_OF, SSH_ACCESS, parse_record
from boxwright.facts.api import Fact
from boxwright.facts.files import STATE, FileState, parse_state
from boxwright.shell import script


@dataclass(frozen=True)
class AccountState:
    """An account as the system's databases have it, with `group` the primary and `groups` all its groups.

    `keys` are the lines of its authorized_keys, None without one; `sudoers` is the file with its sudo rights. Of a Mac
    alone: `hidden` from the login window; not `let_in` by SSH, by the list of those who are. An account that was left
    half made there has -1 for its `uid`.
    """

    uid: int
    group: str
    home: str
    shell: str
    groups: frozenset[str]
    keys: tuple[str, ...] | None = None
    sudoers: FileState = field(default_factory=lambda: FileState("absent"))
    hidden: bool = False
    let_in: bool = True


# For each system: `account NAME` prints what its database says, and returns 2 for an account that there is not;
# `home NAME`, after that, prints its home folder.
_ACCOUNT = {
    "linux": """
account() {
    line=$(getent passwd "$1")
    case $? in 0) ;; 2) return 2 ;; *) exit 1 ;; esac
    echo "passwd $line"
}
home() { printf '%s' "$line" | cut -d : -f 6; }
let_in() { :; }
""",
    "darwin": HOME_OF
    + f"""
account() {{
    said=$(dscl . -read "/Users/$1" UniqueID NFSHomeDirectory UserShell IsHidden 2>&1)
    case $? in 0) ;; 56) return 2 ;; *) printf '%s\\n' "$said" >&2; exit 1 ;; esac
    echo "account $1"
    printf '%s\\n' "$said" | sed 's/^/record /'
    # Of one that was left half made the system knows nothing more.
    id -u -- "$1" >/dev/null 2>&1 || return 2
}}
home() {{ home_of "$1"; }}
let_in() {{
    dscl . -read /Groups/{SSH_ACCESS} RecordName >/dev/null 2>&1 || return 0
    dseditgroup -o checkmember -m "$1" {SSH_ACCESS} >/dev/null 2>&1 </dev/null || echo shut_out
}}
""",
}


class Accounts(Fact[dict[str, AccountState]]):
    """The `AccountState` of those of `names` that exist, on a host that runs `system`.

    `sudoers` is the beginning of the path of a file with sudo rights; the account's name follows. With it empty,
    neither keys nor rights are asked for.
    """

    def command(self, names: tuple[str, ...], sudoers: str = "", system: str = "linux") -> StringCommand:
        # authorized_keys belongs to its user: a link there is not followed, and only a file of sane size is read.
        text = """
            sudoers=$1
            shift
            echo accounts
            for name; do
                account "$name" || continue
                echo "groups $(id -Gn -- "$name")" || exit 1
                echo "group $(id -gn -- "$name")" || exit 1
                [ -n "$sudoers" ] || continue
                home=$(home "$name")
                keys=$home/.ssh/authorized_keys
                if [ -f "$keys" ] && [ ! -L "$keys" ] && [ ! -L "$home/.ssh" ]; then
                    echo keys
                    head -c 1048576 <"$keys" | sed 's/^/key /'
                    echo
                fi
                state=$(describe "$sudoers$name") || exit 1
                echo "sudoers $state"
                let_in "$name"
            done
            """
        return script(STATE + _ACCOUNT[system] + text, sudoers, *names)

    def process(self, output: Sequence[str]) -> dict[str, AccountState]:
        first, *lines = output
        if first != "accounts":
            raise FactProcessError(f"not a list of accounts: {first!r}")
        found: dict[str, AccountState] = {}
        records: dict[str, list[str]] = {}
        name = ""
        for line in lines:
            kind, _, rest = line.partition(" ")
            if kind == "passwd":
                name, _, uid, _, _, home, shell = rest.split(":")
                found[name] = AccountState(int(uid), "", home, shell, frozenset())
            elif kind == "account":
                name = rest
                found[name] = AccountState(-1, "", "", "", frozenset())
            elif kind == "record":
                records.setdefault(name, []).append(rest)
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
            elif kind == "shut_out":
                found[name] = replace(found[name], let_in=False)
            elif line:
                raise FactProcessError(f"not the state of an account: {line!r}")
        for name, attributes in records.items():
            found[name] = _with_record(found[name], attributes)
        return found


def _with_record(account: AccountState, lines: Sequence[str]) -> AccountState:
    try:
        record = parse_record(lines)
        return replace(
            account,
            uid=int(record.get("UniqueID", "-1")),
            home=record.get("NFSHomeDirectory", ""),
            shell=record.get("UserShell", ""),
            hidden=record.get("IsHidden") == "1",
        )
    except ValueError as error:
        raise FactProcessError(f"not the record of an account: {error}") from error
