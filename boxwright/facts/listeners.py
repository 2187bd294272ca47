"""Who listens on TCP ports of a Mac, with account and program: a name alone does not tell ours from another's."""

from collections.abc import Sequence
from dataclasses import dataclass

from pyinfra.api import StringCommand
from pyinfra.api.exceptions import FactProcessError

from boxwright.facts.api import Fact
from boxwright.shell import script


@dataclass(frozen=True)
class Listener:
    """A process that listens on `port`: its number, whose it is, and the path of its program."""

    port: int
    process: int
    account: str
    program: str


class Listeners(Fact[tuple[Listener, ...]]):
    """The `Listener`s on `ports`; the account of those that are LaunchAgents of ours is empty."""

    def command(self, ports: tuple[int, ...]) -> StringCommand:
        text = r"""
            echo examined
            # Whether a process is one that launchd has started for us in somebody's session.
            ours() {
                session=gui/$(ps -o uid= -p "$1" | tr -d ' ')
                for plist in /Library/LaunchAgents/boxwright.*.plist; do
                    label=${plist##*/}
                    launchctl print "$session/${label%.plist}" 2>/dev/null | grep -q "^	pid = $1\$" && return
                done
                return 1
            }
            for port; do
                # Lines of one field: p and the process. Without a listener it ends with 1.
                for process in $(lsof -nP -iTCP:"$port" -sTCP:LISTEN -F p | sed -n 's/^p//p' | sort -u); do
                    if ours "$process"; then echo "$port $process"; continue; fi
                    echo "$port $process $(ps -ww -o user= -o comm= -p "$process")"
                done
            done
            """
        return script(text, *ports)

    def process(self, output: Sequence[str]) -> tuple[Listener, ...]:
        first, *lines = output
        if first != "examined":
            raise FactProcessError(f"not a list of listeners: {first!r}")
        found = []
        for line in lines:
            port, process, account, program = [*line.split(maxsplit=3), "", ""][:4]
            if not port.isdigit() or not process.isdigit():
                raise FactProcessError(f"not a listener: {line!r}")
            found.append(Listener(int(port), int(process), account, program.strip()))
        return tuple(found)
