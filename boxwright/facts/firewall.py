"""The packet filter: a table in force against the file that describes it, and who else manages the filter."""

from collections.abc import Sequence
from dataclasses import dataclass

from pyinfra.api import StringCommand
from pyinfra.api.exceptions import FactProcessError

from boxwright.facts.api import Fact
from boxwright.facts.files import STATE, FileState, parse_state
from boxwright.shell import script


@dataclass(frozen=True)
class FirewallSurroundings:
    """What a packet filter must know before it closes anything.

    `managers` are other programs that manage the filter and are active: ufw, firewalld. `ssh_ports` are all TCP ports
    by which SSH is or may be reached, in order: sshd's configuration, its socket unit, its listeners, and the port by
    which this very command came. `ssh_client` is the address that it came from, as the box sees it; empty when it did
    not come over SSH. `uplinks` are the interfaces of the default routes.
    """

    managers: tuple[str, ...]
    ssh_ports: tuple[int, ...]
    ssh_client: str
    uplinks: tuple[str, ...]


class Surroundings(Fact[FirewallSurroundings]):
    """The `FirewallSurroundings` of the box."""

    def command(self) -> StringCommand:
        return script(
            r"""
            # `ufw disable` leaves its unit active; what counts is its own word (ufw(8), /etc/ufw/ufw.conf).
            if command -v ufw >/dev/null && grep -qsi '^ENABLED=yes' /etc/ufw/ufw.conf; then echo manager=ufw; fi
            if systemctl is-active --quiet firewalld.service 2>/dev/null; then echo manager=firewalld; fi
            if command -v sshd >/dev/null; then sshd -T 2>/dev/null | awk '$1 == "port" { print "port=" $2 }'; fi
            # Since Ubuntu 22.10 the port is held by systemd.
            if systemctl is-active --quiet ssh.socket 2>/dev/null; then
                systemctl show --property=Listen --value ssh.socket |
                    sed -n 's/^.*:\([0-9][0-9]*\) (Stream)$/port=\1/p'
            fi
            ss -Hltnp | awk '/"(sshd|sshd-session|dropbear)"/ { n = split($4, part, ":"); print "port=" part[n] }'
            # sudo takes the variable away; the shell of the session, some way up, still has it.
            pid=$$
            while [ "${pid:-0}" -gt 1 ]; do
                session=$(tr '\0' '\n' </proc/$pid/environ 2>/dev/null | sed -n 's/^SSH_CONNECTION=//p')
                if [ -n "$session" ]; then
                    set -- $session
                    echo "client=$1"
                    echo "port=$4"
                    break
                fi
                pid=$(sed -n 's/^PPid:[[:space:]]*//p' /proc/$pid/status 2>/dev/null)
            done
            for family in -4 -6; do
                ip $family route show default 2>/dev/null |
                    awk '{ for (i = 1; i < NF; i++) if ($i == "dev") print "uplink=" $(i + 1) }'
            done
            echo examined=yes
            """
        )

    def process(self, output: Sequence[str]) -> FirewallSurroundings:
        pairs = [line.partition("=")[::2] for line in output]
        if ("examined", "yes") not in pairs:
            raise FactProcessError(f"not what surrounds a packet filter: {list(output)!r}")

        def every(key: str) -> tuple[str, ...]:
            return tuple(dict.fromkeys(value for found, value in pairs if found == key))

        return FirewallSurroundings(
            managers=every("manager"),
            ssh_ports=tuple(sorted({int(port) for port in every("port") if port.isdigit()})),
            ssh_client=next(iter(every("client")), ""),
            uplinks=every("uplink"),
        )


@dataclass(frozen=True)
class TableState:
    """`file` is the file of rules. `in_force`: the kernel has the table exactly as the file describes it. `present`: it
    has one of its name. `service` is the ActiveState of the unit that loads it, `enabled` its UnitFileState.
    """

    file: FileState
    present: bool
    in_force: bool
    service: str
    enabled: str


class Table(Fact[TableState]):
    """The `TableState` of the nftables table `family table`, which the unit `service` loads from the file at `path`."""

    def command(self, family: str, table: str, path: str, service: str) -> StringCommand:
        # What the file means is asked of the kernel itself, in a network namespace of its own that ends with the
        # command: nothing must be noted when rules are loaded, and no text is compared with another's layout.
        text = """
            describe "$3" || exit 1
            if command -v nft >/dev/null; then
                live=$(nft -s list table "$1" "$2" 2>/dev/null) && echo present=yes
                if [ -n "$live" ] && [ -f "$3" ]; then
                    meant=$(unshare --net sh -c 'nft -f "$3" && nft -s list table "$1" "$2"' sh "$@" 2>/dev/null)
                    if [ "$live" = "$meant" ]; then echo in_force=yes; fi
                fi
            fi
            systemctl show --property=ActiveState,UnitFileState -- "$4.service"
            """
        return script(STATE + text, family, table, path, service)

    def process(self, output: Sequence[str]) -> TableState:
        if not output:
            raise FactProcessError("nothing was said of the table")
        pairs = dict(line.partition("=")[::2] for line in output[1:])
        if "ActiveState" not in pairs:
            raise FactProcessError(f"not the state of a table: {list(output)!r}")
        return TableState(
            file=parse_state(output[0]),
            present=pairs.get("present") == "yes",
            in_force=pairs.get("in_force") == "yes",
            service=pairs["ActiveState"],
            enabled=pairs.get("UnitFileState", ""),
        )
