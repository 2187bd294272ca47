"""NVIDIA's driver on the target: installed, loaded, handed to containers; and a restart where only that helps.

Nothing here decides by what this run changed: a run that was killed is completed by the next one.
"""

import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from paramiko import SSHException
from pyinfra import host, logger
from pyinfra.api import FunctionCommand, Host, State
from pyinfra.api.exceptions import PyinfraError

from boxwright import nvidia
from boxwright.connectors.local import NamedLocalConnector
from boxwright.facts.apt import Packages
from boxwright.facts.files import File
from boxwright.facts.nvidia import Candidate, Containers, ContainersState, Driver, Offers, Sources
from boxwright.facts.system import Boot
from boxwright.nvidia import DriverState, Modules, NoDriver
from boxwright.operations import apt, services
from boxwright.operations.api import Commands, operation
from boxwright.operations.files import RECORDS, write
from boxwright.services import PackagedService
from boxwright.shell import refuse, script

# Where Debian's packages that are not free come from, when the box itself has no source for them.
NON_FREE = "/etc/apt/sources.list.d/boxwright-non-free.sources"
_UNEXAMINED = "NVIDIA's driver could not be examined"
_PREBUILT = "linux-modules-nvidia-"


def _tell(text: str) -> None:
    host.log(text, logger.warning)


def _nested(made: Any, *args: object, **kwargs: object) -> Commands:
    """The commands of another operation."""
    yield from made._inner(*args, **kwargs)


@operation()
def non_free(package: str) -> Commands:
    """apt can install `package` from Debian's packages that are not free: where it cannot, a file is added that names
    them on the servers, and with the keys, that the box uses for the others.
    """
    found = host.get_fact(Sources, package=package, path=NON_FREE)
    if found is not None and not found.sources and not found.written:
        # apt names no source from which it has fetched nothing yet.
        yield script(apt.APT + "apt update")
        found = host.get_fact(Sources, package=package, path=NON_FREE)
    if found is None:
        yield refuse("apt's sources could not be examined")
        return
    if found.candidate or found.written:
        if found.written and not found.candidate:
            # The lists were not fetched since: a run that died in between.
            yield script(apt.APT + "apt update")
        return
    text = nvidia.non_free(found.sources)
    if not text:
        yield refuse(
            "apt knows no source of Debian's packages on this box from which those that are not free could be had, or "
            f"one whose key is written into it; configure one with the components {' '.join(nvidia.NON_FREE)}"
        )
        return
    yield write(NON_FREE, text, "root:root", 0o644)
    yield script(apt.APT + "apt update")


@operation()
def driver(driver: str, modules: Modules, distribution: str) -> Commands:
    """A driver is installed that fits the card: the one that is there when it is the declared one, or `driver` is
    `auto`; else what ubuntu-drivers chooses, or the one of Debian's archive.

    `driver` is `auto`, or a name such as `580-server`. A driver from elsewhere (NVIDIA's own repository or installer)
    is left alone: two of them destroy each other.
    """
    found: DriverState | None = host.get_fact(Driver)
    if found is None:
        yield refuse(_UNEXAMINED)
    elif not found.cards:
        return
    elif distribution == "debian":
        if not found.installed or _ours(found.packages, ("nvidia-smi", "libcuda1")):
            yield from _nested(apt.packages, nvidia.debian_packages(modules, found.architecture))
    else:
        yield from _from_ubuntu(found, driver, modules)


def _from_ubuntu(found: DriverState, driver: str, modules: Modules) -> Commands:
    flavour = _right(found, driver, modules)
    names: tuple[str, ...] = ()
    if flavour is None:
        lines = host.get_fact(Offers) or ()
        known = nvidia.offers(lines)
        try:
            offer = nvidia.choose(known, driver, modules)
        except NoDriver as error:
            said = " ".join(line for line in lines[-2:] if "udevadm" not in line)
            yield refuse(f"{error}{f' -- it says: {said}' if said and not known else ''}")
            return
        flavour, names = offer.flavour, offer.packages(found.kernel)
    prebuilt = any(name.startswith(_PREBUILT) for name in (*names, *found.packages))
    if flavour and prebuilt and not found.loaded and not found.available:
        # For the kernel that runs, too: the newest one may never have been started, or have no modules yet.
        modules_now = nvidia.modules_for(flavour, found.kernel)
        if host.get_fact(Candidate, package=modules_now):
            names += (modules_now,)
    if names:
        yield from _nested(apt.packages, names)


def _ours(packages: Sequence[str], names: Sequence[str]) -> bool:
    """Whether a driver of Debian's archive is installed, or half of one."""
    return any(name in packages for name in names)


def _right(found: DriverState, driver: str, modules: Modules) -> str | None:
    """Flavour of the installed driver when that is the declared one and complete, empty for one that is somebody
    else's; None when another one must be installed. Nothing is asked of ubuntu-drivers while it is right.
    """
    complete = {name.removeprefix("nvidia-headless-no-dkms-") for name in found.packages if "headless-no-dkms" in name}
    if not complete:
        # Packages of another kind, or NVIDIA's installer: somebody else's driver, unless another one is declared.
        return "" if found.installed and driver == "auto" and modules == "auto" else None
    for flavour in complete:
        name = flavour.removesuffix("-open")
        fits = driver in ("auto", name) and (modules == "auto" or flavour.endswith("-open") == (modules == "open"))
        built = any(package.startswith(f"{_PREBUILT}{flavour}-") for package in found.packages)
        has_modules = built or f"nvidia-dkms-{flavour}" in found.packages
        if fits and has_modules and f"nvidia-utils-{name}" in found.packages:
            return flavour
    return None


# $1 what to say of Secure Boot, $2 of a card that the module does not know. Debian's module is called nvidia-current
# and has the name nvidia as an alias. nvidia_uvm is what programs compute through; its device is made at the first use.
_LOAD = """
said=$(modprobe nvidia 2>&1) && { modprobe nvidia_uvm 2>/dev/null; exit 0; }
echo "NVIDIA's kernel module could not be loaded: $said" >&2
case $said in
    *"Key was rejected"* | *"Required key not available"* | *"Operation not permitted"*) echo "$1" >&2 ;;
    *"No such device"*) echo "$2" >&2 ;;
esac
exit 1
"""


@operation()
def loaded(distribution: str, needed: bool) -> Commands:
    """The driver is at work, as far as that needs no restart of the box: its kernel module is loaded.

    Where only a restart helps, or the driver fails, the run says so; with `needed`, because something of the box
    computes on the card, the step fails with it.
    """
    found: DriverState | None = host.get_fact(Driver)
    if found is None:
        yield refuse(_UNEXAMINED)
        return
    diagnosis = nvidia.diagnose(found)
    if diagnosis.load:
        yield script(_LOAD, nvidia.owner_key_help(distribution), nvidia.WRONG_MODULES)
    elif diagnosis.kind not in ("works", "no card"):
        text = diagnosis.text
        if diagnosis.restart:
            text += ". Restart the box and run this again, or permit it with `nvidia_reboot: when_needed`"
        if needed:
            yield refuse(text)
        else:
            _tell(text)


# How long a machine may take until it answers again: servers with much memory test it first.
_RESTART_SECONDS = 900
# For which reason the box was restarted: a restart that did not help is not repeated for ever.
RESTARTED = f"{RECORDS}/nvidia-restarted"


@operation()
def restarted(allowed: bool) -> Commands:
    """The box was restarted where only that brings the driver to work, and is reachable again. Only with `allowed`.

    A box that was restarted for this very reason already, or that provisions itself, is not restarted: the step fails.
    """
    found: DriverState | None = host.get_fact(Driver)
    if found is None:
        yield refuse(_UNEXAMINED)
        return
    diagnosis = nvidia.diagnose(found)
    before = host.get_fact(File, path=RESTARTED)
    if not diagnosis.restart:
        if before is not None and before.kind == "file" and diagnosis.kind == "works":
            yield script('rm -f -- "$1"; rmdir -- "$(dirname -- "$1")" 2>/dev/null; exit 0', RESTARTED)
        return
    if not allowed:
        return
    why = f"{diagnosis.text}\n"
    if before is not None and before.holds(why):
        yield refuse(f"the box was restarted, and that did not help: {diagnosis.text}. Remove {RESTARTED} to try again")
        return
    if isinstance(host.connector, NamedLocalConnector):
        yield refuse(f"{diagnosis.text}. This run is on that box itself: restart it by hand, then run this again")
        return
    boot = host.get_fact(Boot)
    if boot is None:
        yield refuse("the box did not say since when it runs")
        return
    yield script('umask 022; mkdir -p -- "$1"', RECORDS)
    yield write(RESTARTED, why, "root:root", 0o644)
    # Detached from the session, which ends in order before the machine does.
    yield script("sync; (sleep 1; systemctl reboot) </dev/null >/dev/null 2>&1 &")
    yield FunctionCommand(_wait_for_restart, (boot,), {})


def _wait_for_restart(state: State, host: Host, before: str) -> None:  # pyinfra hands over both by these names
    """Returns when the box runs since another moment than `before`. Raises PyinfraError when it does not in time."""
    deadline = time.monotonic() + _RESTART_SECONDS
    while time.monotonic() < deadline:
        time.sleep(1)
        with suppress(PyinfraError, OSError, EOFError, SSHException):
            host.disconnect()
        with suppress(PyinfraError, OSError, EOFError, SSHException):
            host.connect(show_errors=False)
            now = host.get_fact(Boot) if host.connected else None
            if now and now != before:
                return
    raise PyinfraError(f"the box was restarted and did not come back within {_RESTART_SECONDS} seconds")


@operation()
def persistence(service: PackagedService) -> Commands:
    """NVIDIA's persistence daemon `service` runs, where the driver is at work: without it the driver lets go of a card
    that nobody uses, and each next use begins with seconds of waiting.
    """
    found: DriverState | None = host.get_fact(Driver)
    if found is None:
        yield refuse(_UNEXAMINED)
    elif nvidia.diagnose(found).kind == "works":
        yield from _nested(services.running, service)


_REFRESH = """
since=$(date +%s)
systemctl restart nvidia-cdi-refresh.service && exit
echo "the specification of the cards for containers could not be made:" >&2
journalctl --quiet --no-pager --output=cat --lines=20 --since="@$since" --unit=nvidia-cdi-refresh.service >&2
exit 1
"""


@operation()
def containers() -> Commands:
    """Containers can be given the cards by their names (`--device nvidia.com/gpu=all`), where the driver is at work:
    the specification for that (CDI) is of the driver that runs, and is made anew by the toolkit's own units when the
    driver changes and at each boot.

    The devices are then part of what the container runtime tells systemd, so that `systemctl daemon-reload` does not
    take them away from running containers.
    """
    found: ContainersState | None = host.get_fact(Containers)
    if found is None:
        yield refuse("NVIDIA's container toolkit could not be examined")
        return
    if not found.refreshes:
        yield refuse(
            f"NVIDIA's container toolkit {found.toolkit or '(none)'} is too old: from 1.18 on it keeps the "
            "specification of the cards up to date by itself. Install a newer nvidia-container-toolkit"
        )
        return
    if not found.enabled:
        yield script("systemctl enable --quiet nvidia-cdi-refresh.service nvidia-cdi-refresh.path")
    if not found.active:
        yield script("systemctl start nvidia-cdi-refresh.path")
    if found.loaded and found.cards and not found.current:
        yield script(_REFRESH)


@operation()
def no_card() -> Commands:
    """Says that the box has no card of NVIDIA. Nothing is changed."""
    _tell("NVIDIA: there is no NVIDIA card in the box (no display adapter of PCI vendor 10de), so nothing is installed")
    yield from ()


@operation()
def persistence_absent(path: str) -> Commands:
    """The drop-in `path` that made NVIDIA's persistence daemon start at boot is gone, and its enablement with it."""
    found = host.get_fact(File, path=path)
    if found is None:
        yield refuse(f"{path} could not be examined")
    elif found.kind != "absent":
        yield script(
            """
            # While systemd still knows what it was enabled by.
            systemctl disable --quiet nvidia-persistenced.service 2>/dev/null
            rm -f -- "$1" || exit 1
            rmdir -- "$(dirname -- "$1")" 2>/dev/null
            systemctl daemon-reload
            """,
            path,
        )


@operation()
def driver_absent(others: Sequence[str] = (), purge: bool = False) -> Commands:
    """The packages of the driver that boxwright installed are removed, and of the packages `others` those that it
    installed, with what they brought along. The module that is loaded goes with the next start of the box.
    """
    noted = host.get_fact(Packages, packages=(), record=apt.RECORD)
    if noted is None:
        yield refuse("the installed packages could not be examined")
        return
    names = [name for name, why in noted.recorded if why == "asked" and (nvidia.of_driver(name) or name in others)]
    yield from _nested(apt.packages_absent, names, purge=purge)
