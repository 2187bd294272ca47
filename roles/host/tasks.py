"""Tasks of the host role: what both systems share. The rest is in linux.py and darwin.py."""

from pyinfra import host as target
from pyinfra import logger

from boxwright.preflight import Machine, Need
from roles.host import darwin, linux
from roles.registry import Box


def clock_words(offset: float) -> str:
    """What is said of a clock that is `offset` seconds ahead of ours (negative: behind); empty when it is right."""
    if abs(offset) < 60:
        return ""
    size, unit = next((size, unit) for size, unit in ((86400, "d"), (3600, "h"), (60, "min")) if abs(offset) >= size)
    return (
        f"the clock is {abs(offset) / size:.0f} {unit} {'ahead of' if offset > 0 else 'behind'} this machine's: "
        f"certificates and package lists are refused by a wrong clock; set it, or see that a "
        f"time server can be reached (`host_time_servers`)"
    )


def need(box: Box) -> Need:
    """Memory that the machine can spare."""
    return darwin.need(box) if box.system == "darwin" else Need()


def apply(box: Box, machine: Machine) -> None:
    """All stages, in order."""
    if words := clock_words(machine.clock_offset):
        target.log(words, logger.warning)
    if box.system == "darwin":
        darwin.install(box)
        darwin.configure(box)
        darwin.activate(box)
    else:
        linux.install(box, machine)
        linux.configure(box, machine)
        linux.activate(box, machine)


def remove(box: Box, purge: bool) -> None:
    """Takes back packages, settings and boxwright's folders. Accounts and time zone stay: people may be signed in."""
    if box.system == "darwin":
        darwin.remove(box, purge)
    else:
        linux.remove(box, purge)
