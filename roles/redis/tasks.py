"""Tasks of the redis role: an instance of its own, beside whatever the package starts.

The unit is ours and not the package's: that one differs between the distributions, a Mac has none, and an instance that
was there before keeps its data, its settings and its port.
"""

from pyinfra import host
from pyinfra.operations import files as pyinfra_files

from boxwright import systems
from boxwright.facts.apt import Packages
from boxwright.facts.files import File
from boxwright.facts.homebrew import PREFIX
from boxwright.operations import apt, files, folders, homebrew, programs, services, users
from boxwright.preflight import Machine, Need
from boxwright.services import UNITS, Service
from boxwright.templates import render
from roles.registry import Box

NAME = "boxwright-redis"
FOLDER = "/etc/boxwright/redis"
CONFIGURATION, PASSWORD = f"{FOLDER}/redis.conf", f"{FOLDER}/password.conf"
DATA = "/var/lib/boxwright/redis"
# What has Valkey: https://packages.debian.org and https://packages.ubuntu.com, of `valkey-server`.
WITH_VALKEY = {("debian", "13"), ("ubuntu", "26.04")}
# Package, and unit and program of the same name.
VALKEY, REDIS = "valkey-server", "redis-server"
# On a Mac: Homebrew's formula, and root's own copy of the programs in it.
FORMULA = "valkey"
MAC_FOLDER = "/opt/boxwright/redis"


def need(box: Box) -> Need:
    """The port, and what of it is there."""
    if not box.redis.runs(box):
        return Need(files=(CONFIGURATION,))
    names = (REDIS, VALKEY, "redis", "valkey")
    port = box.redis.port
    return Need(ports={port: ("redis_port", names)}, marks={port: CONFIGURATION}, files=(CONFIGURATION,))


def package(box: Box, machine: Machine) -> str:
    """The package that has the server, which is called the same."""
    return VALKEY if (machine.distribution, machine.release) in WITH_VALKEY else REDIS


def program(box: Box, machine: Machine) -> str:
    """Path of the server on the box."""
    return f"{MAC_FOLDER}/{VALKEY}" if box.system == "darwin" else f"/usr/bin/{package(box, machine)}"


def client(box: Box, machine: Machine) -> str:
    """Path of its command-line client."""
    return program(box, machine).replace("-server", "-cli")


def account(box: Box) -> str:
    """The account that it runs as."""
    return systems.account(box.system, NAME)


def configuration(box: Box) -> str:
    """Its settings. They hold no secret."""
    return render(
        "redis/redis.conf.j2",
        port=box.redis.port,
        supervised="no" if box.system == "darwin" else "systemd",
        data=DATA,
        memory=box.redis.memory,
        password=PASSWORD,
    )


# Whoever has no password is told so as soon as it answers. $1 its client, $2 the port
_READY = """\
while :; do
    case $("$1" -h 127.0.0.1 -p "$2" ping 2>&1) in *NOAUTH* | *PONG*) exit 0 ;; esac
    kill -0 "$MAINPID" 2>/dev/null || exit 1
    sleep 0.2
done
"""


def service(box: Box, machine: Machine) -> Service:
    """The server as a service."""
    return Service(
        name=NAME,
        description="Counters and limits of services of this box",
        command=(program(box, machine), CONFIGURATION),
        restart_files=(CONFIGURATION, PASSWORD),
        user=account(box),
        group=account(box),
        working_directory=DATA,
        # It says so when it has read what it keeps.
        notify=box.system == "linux",
        probe=("/bin/sh", "-c", _READY, "ready", client(box, machine), str(box.redis.port)),
        start_timeout=300,
        stop_timeout=60,
        sandbox_exceptions={"ReadWritePaths": (DATA, "what it keeps")},
        settings={"LimitNOFILE": systems.open_files(box.system)},
    )


def apply(box: Box, machine: Machine) -> None:
    """All stages, in order; where it is not wanted any more it goes, but for its data."""
    if box.redis.runs(box):
        install(box, machine)
        configure(box, machine)
        services.running(name="redis: running", service=service(box, machine))
    elif CONFIGURATION in machine.files:
        remove(box, purge=False)


def install(box: Box, machine: Machine) -> None:
    """The program and its account. The package would start an instance of its own on 6379."""
    users.system_user(account(box), home=DATA, name="redis: account of the service")
    if box.system == "darwin":
        homebrew.packages((FORMULA,), name="redis: install the program with Homebrew")
        for name in (VALKEY, VALKEY.replace("-server", "-cli")):
            programs.copied(
                f"{PREFIX}/opt/{FORMULA}/bin/{name}", f"{MAC_FOLDER}/{name}", name=f"redis: root's copy of {name}"
            )
        return
    name = package(box, machine)
    there = host.get_fact(Packages, packages=(name,), record=apt.RECORD)
    if there is not None and name not in there.installed:
        _folders(box)
        files.content(name="redis: note that the package's service is kept from starting", path=_note(name), text="")
        pyinfra_files.link(
            name="redis: keep the package's own service from starting", path=_mask(name), target="/dev/null"
        )
    apt.packages((name,), name="redis: install the program")


def _mask(name: str) -> str:
    return f"{UNITS}/{name}.service"


def _note(name: str) -> str:
    return f"{FOLDER}/kept-from-starting-{name}"


def _folders(box: Box) -> None:
    files.directory(name="redis: folder of the box's settings", path="/etc/boxwright")
    files.directory(name="redis: folder of settings", path=FOLDER, group=account(box), mode="0750")


def configure(box: Box, machine: Machine) -> None:
    """Password, settings and unit."""
    user = account(box)
    files.directory(name="redis: folder of the box's data", path="/var/lib/boxwright")
    folders.belongs_to(name="redis: folder of data", path=DATA, user=user)
    _folders(box)
    secret = f"requirepass {box.redis.password.get_secret_value()}\n"
    files.content(name="redis: write the password", path=PASSWORD, text=secret, group=user, mode="0640", secret=True)
    files.content(
        name="redis: write the settings", path=CONFIGURATION, text=configuration(box), group=user, mode="0640"
    )
    services.unit(name="redis: write the unit", service=service(box, machine))


def remove(box: Box, purge: bool) -> None:
    """Takes everything back; what it counted only with `purge`."""
    plain = Service(name=NAME, description="Redis", command=("/bin/true",), user=account(box))
    services.unit_absent(name="redis: stop and remove the service", service=plain)
    if purge:
        files.absent(name="redis: remove the data", path=DATA, recursive=True)
    else:
        # The next account that is made on the box may get the number of this one.
        folders.belongs_to(name="redis: keep the data for root", path=DATA, user="root", make=False)
    if box.system == "darwin":
        files.absent(name="redis: remove root's copy of the programs", path=MAC_FOLDER, recursive=True)
        homebrew.packages_absent((FORMULA,), name="redis: remove the program")
    else:
        # Purged: nobody used the package's own settings.
        apt.packages_absent((VALKEY, REDIS), purge=True, name="redis: remove the program")
        for name in (VALKEY, REDIS):
            if (noted := host.get_fact(File, path=_note(name))) is None or noted.kind != "absent":
                files.absent(name=f"redis: {name} of the package may start again", path=_mask(name))
    users.user_absent(account(box), name="redis: remove the account")
    # Last: as long as it is there, `apply` knows that something is left to remove.
    files.absent(name="redis: remove the settings", path=FOLDER, recursive=True)
