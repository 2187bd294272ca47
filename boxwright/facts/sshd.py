"""sshd: what it would do with a login, by its own word, and how the operator signs in."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pyinfra.api import StringCommand
from pyinfra.api.exceptions import FactProcessError

from boxwright.facts.api import Fact
from boxwright.facts.files import STATE, FileState, parse_state
from boxwright.shell import script


@dataclass(frozen=True)
class SshdState:
    """`file` is the drop-in. `installed`: there is an sshd. `effective` are its settings, by directive in lower case,
    for a login as `user`, the account by which this command came before sudo. `keys` counts the public keys by which
    that account can sign in; `others`: keys are accepted which no such file lists (certificates, a command).
    """

    file: FileState
    installed: bool
    user: str
    keys: int
    others: bool
    effective: Mapping[str, str]


class Sshd(Fact[SshdState]):
    """The `SshdState` with the drop-in at `path`."""

    def command(self, path: str) -> StringCommand:
        text = r"""
            describe "$1" || exit 1
            user=${SUDO_USER:-$(id -un)}
            echo "user=$user"
            command -v sshd >/dev/null || exit 0
            echo installed=yes
            # `sshd -T` wants it; where systemd holds the port it is made at the first connection.
            made=
            if [ ! -d /run/sshd ]; then mkdir -m 0755 /run/sshd 2>/dev/null && made=yes; fi
            effective=$(sshd -T -C "user=$user,host=localhost,addr=127.0.0.1" 2>/dev/null)
            [ -z "$made" ] || rmdir /run/sshd
            printf '%s\n' "$effective" | sed 's/^/set /'
            home=$(getent passwd "$user" | cut -d: -f6)
            count=0
            for file in $(printf '%s\n' "$effective" | sed -n 's/^authorizedkeysfile //p'); do
                file=$(printf '%s' "$file" | sed "s|%h|$home|g; s|%u|$user|g; s|%%|%|g")
                case $file in /*) ;; *) file=$home/$file ;; esac
                # A line may begin with options; the kind of key and the key itself are what makes it one.
                found=$(grep -Ec '(^|[[:space:]])(ssh-|ecdsa-|sk-)[^[:space:]]+[[:space:]]+AAAA' "$file" 2>/dev/null)
                count=$((count + ${found:-0}))
            done
            echo "keys=$count"
            printf '%s\n' "$effective" | grep -Eq '^(authorizedkeyscommand|trustedusercakeys) [^n]' && echo others=yes
            exit 0
            """
        return script(STATE + text, path)

    def process(self, output: Sequence[str]) -> SshdState:
        if not output:
            raise FactProcessError("nothing was said of sshd")
        pairs = [line.partition("=")[::2] for line in output[1:] if not line.startswith("set ")]
        values = dict(pairs)
        if "user" not in values:
            raise FactProcessError(f"not the state of sshd: {list(output)!r}")
        settings = [line.removeprefix("set ").partition(" ")[::2] for line in output if line.startswith("set ")]
        effective: dict[str, str] = {}
        for name, value in settings:
            # Directives such as `acceptenv` come once for each value.
            effective[name] = f"{effective[name]} {value}" if name in effective else value
        return SshdState(
            file=parse_state(output[0]),
            installed=values.get("installed") == "yes",
            user=values["user"],
            keys=int(values.get("keys") or 0),
            others=values.get("others") == "yes",
            effective=effective,
        )
