"""Tasks of the qdrant role: program, settings, key and service.

Qdrant reads config/config.yaml below its working folder, and above that the file that `--config-path` names
(https://qdrant.tech/documentation/guides/configuration/). The former has the settings, the latter the key alone, which
the service gets as a credential. A file that is missing it passes over. So that it never serves without a key, it
counts as started only when it refuses who has none.
"""

import json
from hashlib import sha256

from boxwright import launchd, systems
from boxwright.artifacts import Download
from boxwright.facts.archives import MARKER as WHOLE
from boxwright.operations import archives, files, folders, services, users
from boxwright.preflight import Machine, Need
from boxwright.services import Service
from boxwright.site_mirror.supply import Supply, Target
from roles.registry import Box

NAME = "boxwright-qdrant"
BASE = "/opt/boxwright/qdrant"
FOLDER = "/etc/boxwright/qdrant"
# Below the working folder, by the names that it looks for; JSON is YAML, too.
CONFIGURATION = f"{FOLDER}/config/config.yaml"
KEY = f"{FOLDER}/key.yaml"
DATA = "/var/lib/boxwright/qdrant"
# Archive and program of the largest release that was seen, about.
SIZE = 160 * 1024**2


def need(box: Box) -> Need:
    """The port, disk for the program, and what of it is there."""
    if not box.qdrant.runs(box):
        return Need(files=(CONFIGURATION,))
    port = box.qdrant.port
    return Need(
        downloads={program(box): SIZE},
        ports={port: ("qdrant_port", ("qdrant",))},
        marks={port: CONFIGURATION},
        files=(CONFIGURATION,),
    )


def supply(box: Box, target: Target) -> Supply:
    """The publisher's archive, where it runs."""
    return Supply(files=(_archive(box, target.machine),)) if box.qdrant.runs(box) else Supply()


def _archive(box: Box, architecture: str) -> Download:
    return box.qdrant.download("arm64" if box.system == "darwin" else architecture)


def folder(box: Box) -> str:
    """Folder of the program: another version, or another archive of the same, is another folder."""
    digest = sha256("".join(box.qdrant.digests.values()).encode()).hexdigest()
    return f"{BASE}/{box.qdrant.version}-{digest[:12]}"


def program(box: Box) -> str:
    """Path of the program."""
    return f"{folder(box)}/qdrant"


def account(box: Box) -> str:
    """The account that it runs as."""
    return systems.account(box.system, NAME)


def configuration(box: Box) -> str:
    """Its settings, as JSON. They hold no secret."""
    values = {
        "log_level": "WARN",
        "telemetry_disabled": True,
        "service": {
            "host": "127.0.0.1",
            "http_port": box.qdrant.port,
            "grpc_port": None,
            # No page on the web asks it, it shows none, and it fetches nothing.
            "enable_cors": False,
            "enable_static_content": False,
            "enable_snapshot_url_recovery": False,
        },
        "storage": {
            "storage_path": f"{DATA}/storage",
            "snapshots_path": f"{DATA}/snapshots",
            # The box's memory is for models: what it holds is read from the disk, and the kernel's copy may go.
            "on_disk_payload": True,
            "collection": {"vectors": {"on_disk": True}},
        },
    }
    return json.dumps(values, indent=2) + "\n"


def key(box: Box) -> str:
    """The settings that are secret."""
    return json.dumps({"service": {"api_key": box.qdrant.api_key.get_secret_value()}}) + "\n"


def _credential(box: Box) -> str:
    """Where the process finds its copy of the key: systemd.exec(5) and launchd.STARTER name the folder."""
    place = f"{launchd.CREDENTIALS}/{NAME}" if box.system == "darwin" else f"/run/credentials/{NAME}.service"
    return f"{place}/key.yaml"


# Ready, and closed to who has no key. $1 its address
_READY = """\
ask() { curl --silent --noproxy '*' --max-time 5 --output /dev/null --write-out '%{http_code}' "$1"; }
until [ "$(ask "$1/readyz")" = 200 ]; do
    kill -0 "$MAINPID" 2>/dev/null || exit 1
    sleep 0.2
done
case $(ask "$1/collections") in 401 | 403) ;; *) echo 'it answers who has no key' >&2; exit 1 ;; esac
kill -0 "$MAINPID"
"""


def service(box: Box) -> Service:
    """The server as a service."""
    return Service(
        name=NAME,
        description="Vectors of passages for services of this box",
        command=(program(box), "--disable-telemetry", "--config-path", _credential(box)),
        # It says by a file that it has started, else in its working folder.
        environment={"QDRANT_INIT_FILE_PATH": f"{DATA}/initialized"},
        credentials={"key.yaml": KEY},
        restart_files=(CONFIGURATION, f"{folder(box)}/{WHOLE}"),
        user=account(box),
        group=account(box),
        working_directory=FOLDER,
        probe=("/bin/sh", "-c", _READY, "ready", f"http://127.0.0.1:{box.qdrant.port}"),
        # It reads what it holds first.
        start_timeout=600,
        stop_timeout=60,
        sandbox_exceptions={
            "ReadWritePaths": (DATA, "what it keeps"),
            "ProcSubset": ("all", "its allocator and it itself ask the kernel about memory"),
        },
        settings={"LimitNOFILE": systems.open_files(box.system)},
    )


def apply(box: Box, machine: Machine) -> None:
    """All stages, in order; where it is not wanted any more it goes, but for its data."""
    if box.qdrant.runs(box):
        install(box, machine)
        configure(box)
        services.running(name="qdrant: running", service=service(box))
        archives.prune(name="qdrant: remove older versions", base=BASE, keep=[folder(box)])
    elif CONFIGURATION in machine.files:
        remove(box, purge=False)


def install(box: Box, machine: Machine) -> None:
    """The program and its account."""
    users.system_user(account(box), home=DATA, name="qdrant: account of the service")
    files.directory(name="qdrant: folder of the program", path=BASE)
    archives.unpacked(
        name=f"qdrant: install version {box.qdrant.version}",
        path=folder(box),
        artifact=_archive(box, machine.architecture),
        program="qdrant",
        mirror=box.mirror,
    )


def configure(box: Box) -> None:
    """Key, settings and unit."""
    user = account(box)
    files.directory(name="qdrant: folder of the box's data", path="/var/lib/boxwright")
    folders.belongs_to(name="qdrant: folder of data", path=DATA, user=user)
    files.directory(name="qdrant: folder of the box's settings", path="/etc/boxwright")
    files.directory(name="qdrant: folder of the key", path=FOLDER, group=user, mode="0750")
    files.directory(name="qdrant: folder of settings", path=f"{FOLDER}/config", group=user, mode="0750")
    files.content(name="qdrant: write the key", path=KEY, text=key(box), mode="0600", secret=True)
    files.content(
        name="qdrant: write the settings", path=CONFIGURATION, text=configuration(box), group=user, mode="0640"
    )
    services.unit(name="qdrant: write the unit", service=service(box))


def remove(box: Box, purge: bool) -> None:
    """Takes everything back; the passages only with `purge`."""
    plain = Service(name=NAME, description="Qdrant", command=("/bin/true",), user=account(box))
    services.unit_absent(name="qdrant: stop and remove the service", service=plain)
    if purge:
        files.absent(name="qdrant: remove the data", path=DATA, recursive=True)
    else:
        # The next account that is made on the box may get the number of this one.
        folders.belongs_to(name="qdrant: keep the data for root", path=DATA, user="root", make=False)
    files.absent(name="qdrant: remove the program", path=BASE, recursive=True)
    users.user_absent(account(box), name="qdrant: remove the account")
    # Last: as long as it is there, `apply` knows that something is left to remove.
    files.absent(name="qdrant: remove the settings", path=FOLDER, recursive=True)
