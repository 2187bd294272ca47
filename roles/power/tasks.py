"""Tasks of the power role."""

from collections.abc import Iterable

from pyinfra import host as target
from pyinfra import logger

from boxwright import unattended
from boxwright.errors import Problem
from boxwright.facts.unattended import StartState, Unattended
from boxwright.operations import pmset, services, users
from boxwright.preflight import Machine, Need
from boxwright.services import Service
from roles.registry import Box

CAFFEINATE = Service(
    name="caffeinate",
    description="Keeps the Mac awake",
    command=("/usr/bin/caffeinate", "-s"),
    # Any account may keep a Mac awake.
    user="_caffeinate",
    group="_caffeinate",
)
# The two of pmset that decide when a Mac starts by itself: both on is what System Settings takes back.
START_UP = {
    "as_is": {},
    "after_power_failure": {"autorestart": 1, "autorestartatconnect": 0},
    "when_connected": {"autorestart": 0, "autorestartatconnect": 1},
}


def settings(box: Box) -> dict[str, int]:
    """The declared settings by pmset's names."""
    power = box.power
    wanted = {"sleep": 0, "disablesleep": 1} if box.host.sleep == "never" else {}
    wanted |= START_UP[power.start_up]
    wanted["womp"] = int(power.wake_on_network)
    for name, value in (("displaysleep", power.display_sleep), ("powernap", power.nap)):
        if value is not None:
            wanted[name] = int(value)
    if power.tcp_keep_alive is not None:
        wanted["tcpkeepalive"] = int(power.tcp_keep_alive)
    return wanted


def need(box: Box) -> Need:
    """A Mac that starts by itself."""
    if not box.power.enabled:
        return Need()

    def starts(machine: Machine) -> Iterable[Problem]:
        refused = unattended.problem(machine.filevault, box.power.accept_filevault)
        return [refused] if refused else []

    return Need(conditions=(starts,))


def apply(box: Box) -> None:
    """All stages, in order; where it is not wanted, the Mac has its own settings again."""
    if not box.has("power"):
        return
    if not box.power.enabled:
        remove(box, purge=False)
        return
    found: StartState | None = target.get_fact(Unattended)
    for sentence in unattended.words(found, box.inference.agent_user) if found else ():
        target.log(sentence, logger.warning)
    configure(box)
    activate(box)


def configure(box: Box) -> None:
    """The settings, which are in force at once, and what keeps the Mac awake beside them."""
    pmset.settings(settings(box), name="power: settings on AC power")
    if box.power.caffeinate:
        users.system_user(CAFFEINATE.user, name="power: account of the service")
        services.unit(service=CAFFEINATE, name="power: write the service that keeps the Mac awake")
    else:
        no_service()


def activate(box: Box) -> None:
    """Kept awake by the service too, where that is wanted."""
    if box.power.caffeinate:
        services.running(service=CAFFEINATE, name="power: the service keeps the Mac awake")


def no_service() -> None:
    """The settings alone keep the Mac awake."""
    services.unit_absent(service=CAFFEINATE, name="power: no service keeps the Mac awake")
    users.user_absent(CAFFEINATE.user, name="power: no account of the service")


def remove(box: Box, purge: bool) -> None:
    """The Mac has the settings that it had before."""
    if not box.has("power"):
        return
    no_service()
    pmset.settings_absent(name="power: settings as they were")
