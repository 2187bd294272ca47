"""Tasks of the postgresql role: an instance of its own, databases of services, and a timer that copies them."""

from pyinfra.operations import files as pyinfra_files

from boxwright import systems
from boxwright.facts.homebrew import PREFIX
from boxwright.operations import apt, files, folders, homebrew, postgresql, services, users
from boxwright.preflight import Machine, Need
from boxwright.services import Service
from boxwright.templates import render
from roles.postgresql.settings import FORMULA, RELEASES
from roles.registry import Box

NAME = "boxwright-postgresql"
FOLDER = "/etc/boxwright/postgresql"
CONFIGURATION, HBA = f"{FOLDER}/postgresql.conf", f"{FOLDER}/pg_hba.conf"
BASE = "/opt/boxwright/postgresql"
BACKUP = f"{BASE}/backup"
DATA, BACKUPS = "/var/lib/boxwright/postgresql", "/var/lib/boxwright/postgresql-backups"
# Where the administrator comes on Linux.
SOCKET = "/run/boxwright-postgresql"
# The package makes an instance of its own at its installation and starts it, on 5432 or the next port that is free.
# With this it does not (createcluster.conf(5)). What was there before goes on.
COMMON = "/etc/postgresql-common/createcluster.conf"
NO_CLUSTER = "/etc/postgresql-common/createcluster.d/boxwright.conf"


def need(box: Box) -> Need:
    """The port, and what of it is there."""
    there = (CONFIGURATION, COMMON, NO_CLUSTER, BACKUP)
    if not box.postgresql.runs(box):
        return Need(files=there)
    port = box.postgresql.port
    ports = {port: ("postgresql_port", ("postgres", "postgresql"))}
    return Need(ports=ports, marks={port: CONFIGURATION}, files=there)


def release(box: Box, machine: Machine) -> str:
    """The release of PostgreSQL that the box has packages of."""
    return FORMULA.partition("@")[2] if box.system == "darwin" else RELEASES[machine.distribution, machine.release]


def account(box: Box) -> str:
    """The account that it runs as, and its administrator."""
    return systems.account(box.system, NAME)


def socket(box: Box) -> str:
    """The folder of the socket by which the administrator comes."""
    return systems.runtime_folder(box.system, NAME)


def binaries(box: Box, machine: Machine) -> str:
    """Where the distribution, or Homebrew, has the programs."""
    number = release(box, machine)
    return f"{PREFIX}/opt/{FORMULA}/bin" if box.system == "darwin" else f"/usr/lib/postgresql/{number}/bin"


def configuration(box: Box, machine: Machine) -> str:
    """The server's settings. They hold no secret."""
    settings = box.postgresql
    return render(
        "postgresql/postgresql.conf.j2",
        data=f"{DATA}/{release(box, machine)}",
        hba=HBA,
        port=settings.port,
        socket=socket(box),
        connections=settings.connections,
        memory=settings.memory,
        options=settings.options,
    )


def hba(box: Box) -> str:
    """Who may come in."""
    names = [database.name for database in box.postgresql.databases(box)]
    return render("postgresql/pg_hba.conf.j2", account=account(box), databases=names)


# launchd ends a process by SIGTERM alone, on which PostgreSQL would wait for its clients. $1 is the program.
_ON_A_MAC = """\
"$@" &
pid=$!
trap 'kill -INT "$pid" 2>/dev/null' TERM INT
wait "$pid"
code=$?
while kill -0 "$pid" 2>/dev/null; do wait "$pid"; code=$?; done
exit "$code"
"""

# $1 folder with pg_isready, $2 folder of the socket, $3 port
_READY = """\
until "$1/pg_isready" --quiet --host="$2" --port="$3"; do kill -0 "$MAINPID" 2>/dev/null || exit 1; sleep 0.2; done
"""


def service(box: Box, machine: Machine) -> Service:
    """The server as a service."""
    mac, programs = box.system == "darwin", binaries(box, machine)
    command = (f"{programs}/postgres", "-c", f"config_file={CONFIGURATION}")
    return Service(
        name=NAME,
        description="PostgreSQL for services of this box",
        command=("/bin/sh", "-c", _ON_A_MAC, "postgresql", *command) if mac else command,
        restart_files=(CONFIGURATION, *((f"{programs}/postgres",) if mac else ())),
        reload_command=(
            "/bin/sh",
            "-c",
            'kill -HUP "$(head -n 1 "$1")"',
            "reload",
            f"{DATA}/{release(box, machine)}/postmaster.pid",
        ),
        reload_files=(HBA,),
        user=account(box),
        group=account(box),
        working_directory=DATA,
        environment={"LC_ALL": "C"},
        runtime_directory=NAME,
        probe=("/bin/sh", "-c", _READY, "ready", programs, socket(box), str(box.postgresql.port)),
        # After a power cut it first puts right what was not finished.
        start_timeout=600,
        stop_timeout=120,
        sandbox_exceptions={"ReadWritePaths": (DATA, "its data")},
        # Ends what clients do, and writes all of it to the disk: without waiting for them to leave.
        settings={} if mac else {"KillSignal": "SIGINT", "KillMode": "mixed", "OOMScoreAdjust": "-500"},
    )


def backup(box: Box) -> Service:
    """What copies the databases."""
    settings = box.postgresql
    names = [database.name for database in settings.databases(box)]
    where = (settings.programs, socket(box), str(settings.port), BACKUPS, str(settings.backups))
    return Service(
        name=f"{NAME}-backup",
        description="Copies of the databases of this box",
        command=("/bin/sh", BACKUP, *where, *names),
        user=account(box),
        group=account(box),
        schedule=f"*-*-* {settings.backup_time}",
        start_timeout=3600,
        sandbox_exceptions={
            "ReadWritePaths": (BACKUPS, "the copies"),
            "RemoveIPC": ("no", "the server runs as the same account, and would lose its shared memory"),
        },
    )


def apply(box: Box, machine: Machine) -> None:
    """All stages, in order; where it is not wanted any more it goes, but for its data."""
    if box.postgresql.runs(box):
        install(box, machine)
        configure(box, machine)
        activate(box, machine)
    elif CONFIGURATION in machine.files:
        remove(box, purge=False)


def install(box: Box, machine: Machine) -> None:
    """The programs and the account."""
    if box.system == "darwin":
        homebrew.packages((FORMULA,), name="postgresql: install the programs with Homebrew")
    else:
        if COMMON not in machine.files or NO_CLUSTER in machine.files:
            files.directory(name="postgresql: folder of the package's settings", path="/etc/postgresql-common")
            files.directory(name="postgresql: folder of ours in it", path="/etc/postgresql-common/createcluster.d")
            files.content(
                name="postgresql: keep the package's own instance from being made",
                path=NO_CLUSTER,
                text="# Written by boxwright, whose instance is another one.\ncreate_main_cluster = false\n",
            )
        apt.packages((f"postgresql-{release(box, machine)}",), name="postgresql: install the programs")
    users.system_user(account(box), home=DATA, name="postgresql: account of the service")


def configure(box: Box, machine: Machine) -> None:
    """Data folder, settings -- accepted by the program before they replace the old ones -- and units."""
    user, programs = account(box), binaries(box, machine)
    files.directory(name="postgresql: folder of the box's data", path="/var/lib/boxwright")
    folders.belongs_to(name="postgresql: folder of data", path=DATA, user=user)
    postgresql.cluster(
        name="postgresql: the instance", base=DATA, release=release(box, machine), programs=programs, account=user
    )
    files.directory(name="postgresql: folder of the box's settings", path="/etc/boxwright")
    files.directory(name="postgresql: folder of settings", path=FOLDER, group=user, mode="0750")
    files.content(name="postgresql: write who may come in", path=HBA, text=hba(box), group=user, mode="0640")
    files.content(
        name="postgresql: write the settings",
        path=CONFIGURATION,
        text=configuration(box, machine),
        group=user,
        mode="0640",
        validate=f"cd / && {systems.as_account(box.system, NAME)} {programs}/postgres -C port -c config_file={{path}}",
    )
    services.unit(name="postgresql: write the unit", service=service(box, machine))
    files.directory(name="postgresql: folder of programs", path=BASE)
    pyinfra_files.link(name="postgresql: where its programs are", path=box.postgresql.programs, target=programs)
    if copied(box):
        folders.belongs_to(name="postgresql: folder of copies", path=BACKUPS, user=user)
        files.content(
            name="postgresql: write what copies databases",
            path=BACKUP,
            text=render("postgresql/backup.sh"),
            mode="0755",
        )
        services.unit(name="postgresql: write the unit of the copies", service=backup(box))
    elif BACKUP in machine.files:
        _backup_absent(box)


def copied(box: Box) -> bool:
    """Whether copies are made."""
    return box.postgresql.backups > 0 and bool(box.postgresql.databases(box))


def activate(box: Box, machine: Machine) -> None:
    """Running, with the databases that services have."""
    settings = box.postgresql
    services.running(name="postgresql: running", service=service(box, machine))
    for database in settings.databases(box):
        postgresql.database(
            name=f"postgresql: database {database.name}",
            database=database.name,
            password=database.password.get_secret_value(),
            programs=binaries(box, machine),
            socket=socket(box),
            port=settings.port,
            account=account(box),
        )
    if copied(box):
        services.scheduled(name="postgresql: copies scheduled", service=backup(box))


def _backup_absent(box: Box) -> None:
    plain = Service(name=f"{NAME}-backup", description="Copies", command=("/bin/true",), schedule="daily")
    services.unit_absent(name="postgresql: no copies any more", service=plain)
    files.absent(name="postgresql: remove what copied databases", path=BACKUP)


def remove(box: Box, purge: bool) -> None:
    """Takes everything back; databases and their copies only with `purge`."""
    _backup_absent(box)
    plain = Service(name=NAME, description="PostgreSQL", command=("/bin/true",), user=account(box))
    services.unit_absent(name="postgresql: stop and remove the service", service=plain)
    for what, path in (("databases", DATA), ("copies", BACKUPS)):
        if purge:
            files.absent(name=f"postgresql: remove the {what}", path=path, recursive=True)
        else:
            # The next account that is made on the box may get the number of this one.
            folders.belongs_to(name=f"postgresql: keep the {what} for root", path=path, user="root", make=False)
    if box.system == "darwin":
        homebrew.packages_absent((FORMULA,), name="postgresql: remove the programs")
    else:
        names = sorted({f"postgresql-{release}" for release in RELEASES.values()})
        apt.packages_absent(names, name="postgresql: remove the programs")
        files.absent(name="postgresql: the package makes instances again", path=NO_CLUSTER)
    users.user_absent(account(box), name="postgresql: remove the account")
    files.absent(name="postgresql: remove links to the programs", path=BASE, recursive=True)
    # Last: as long as it is there, `apply` knows that something is left to remove.
    files.absent(name="postgresql: remove the settings", path=FOLDER, recursive=True)
