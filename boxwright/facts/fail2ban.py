"""What Fail2Ban does on the target."""

from collections.abc import Sequence
from dataclasses import dataclass

from pyinfra.api import StringCommand
from pyinfra.api.exceptions import FactProcessError

from boxwright.facts.api import Fact
from boxwright.shell import script


@dataclass(frozen=True)
class JailState:
    """`server`: Fail2Ban runs. `live`: the jail is one of those it watches. `in_force`: whom it has banned is in the
    packet filter. `files`: those that were asked for and exist.
    """

    server: bool
    live: bool
    in_force: bool
    files: tuple[str, ...]


class Jail(Fact[JailState]):
    """State of the jail `jail`, and which of the files `paths` there are."""

    def command(self, jail: str, paths: tuple[str, ...]) -> StringCommand:
        return script(
            """
            jail=$1
            shift
            for path; do
                if [ -e "$path" ] || [ -L "$path" ]; then echo "file=$path"; fi
            done
            if [ -S /run/fail2ban/fail2ban.sock ] && fail2ban-client ping >/dev/null 2>&1; then
                echo server=yes
                if fail2ban-client status "$jail" >/dev/null 2>&1; then echo live=yes; fi
            fi
            # What fail2ban's own action nftables makes at the first ban; `nft flush ruleset` takes it away.
            sets=
            for address in $(fail2ban-client get "$jail" banip 2>/dev/null); do
                case $address in
                    *:*) sets="$sets addr6-set-$jail" ;;
                    *) sets="$sets addr-set-$jail" ;;
                esac
            done
            for set in $(printf '%s\\n' $sets | sort -u); do
                nft list set inet f2b-table "$set" >/dev/null 2>&1 || echo "not in force=$set"
            done
            echo examined=yes
            """,
            jail,
            *paths,
        )

    def process(self, output: Sequence[str]) -> JailState:
        lines = [line.partition("=")[::2] for line in output]
        if ("examined", "yes") not in lines:
            raise FactProcessError(f"not the state of a jail: {list(output)!r}")
        files = tuple(value for key, value in lines if key == "file")
        return JailState(
            server=("server", "yes") in lines,
            live=("live", "yes") in lines,
            in_force=not any(key == "not in force" for key, _ in lines),
            files=files,
        )
