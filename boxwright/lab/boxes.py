"""Boxes: containers that behave as freshly installed machines, made, repaired and taken away.

`up` leads from any state to a running, reachable box; what already is as it should be is not touched.
"""

from __future__ import annotations

import io
import ipaddress
import json
import shutil
import socket
import tarfile
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from boxwright.errors import Failed, Problem, Refused
from boxwright.lab import inventory_text, keys, machine, network, state
from boxwright.lab.locks import locked
from boxwright.lab.progress import Progress
from boxwright.paths import ca_file, cache_dir, state_dir

if TYPE_CHECKING:
    from docker import DockerClient
    from docker.models.containers import Container

BOX_LABEL = "boxwright.box"
STATE_LABEL = "boxwright.state"
BOOT_TIMEOUT = 120.0

#: What systemd, and an engine inside the box, need beyond a plain container; `--privileged` is neither needed nor
#: always possible.
CAPABILITIES = ("SYS_ADMIN", "NET_ADMIN", "SYS_PTRACE")
SECURITY = ("seccomp=unconfined", "apparmor=unconfined")


@dataclass(frozen=True)
class Mirror:
    """Addresses of the mirror as a box uses them; empty texts where there is none.

    `variables` name what the mirror holds in a form that is not the published one.
    """

    url: str = ""
    registry: str = ""
    variables: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Seed:
    """What makes an image one certain box: its host key, who may log in, and the password of account `secured`."""

    host_key: str
    host_key_public: str
    client_key_public: str
    secured_password: str


def find(client: DockerClient, name: str) -> Container | None:
    """The box's container in any state. Raises Refused (BW312) when it belongs to another user or state folder."""
    from docker.errors import NotFound

    try:
        container = client.containers.get(state.container_name(name))
    except NotFound:
        return None
    owner = container.labels.get(STATE_LABEL)
    if owner != str(state_dir()):
        raise Refused(
            Problem(
                code="BW312",
                message=f"the container {container.name} exists already and belongs to "
                + (f"the lab whose state is in {owner}" if owner else "something else than the lab"),
                help="choose another name for this box, or remove that container",
            )
        )
    return container


def seed_of(name: str) -> Seed:
    """The box's keys and password from its folder; what is missing is made."""
    folder = state.box_dir(name)
    host = state.host_name(name)
    public = keys.key_pair(folder / "ssh_host_ed25519_key", host)
    return Seed(
        host_key=(folder / "ssh_host_ed25519_key").read_text(encoding="utf-8"),
        host_key_public=public,
        client_key_public=keys.key_pair(folder / "id_ed25519", "boxwright-lab"),
        secured_password=keys.password(folder / "secured_password"),
    )


def up(
    client: DockerClient,
    progress: Progress,
    name: str,
    *,
    box_image: str,
    mirror: Mirror,
    preset: str | None = None,
    login: str | None = None,
    memory: str | None = None,
) -> state.Record:
    """Bring the box up and write its inventory; options that are None stay as they were.

    Raises Refused for a wrong name or preset (BW308) or a foreign container (BW312), Failed (BW310) when it does not
    boot.
    """
    state.check_name(name)
    with locked(state.lab_dir() / f".{name}.lock"):
        known = state.read(name)
        record = known or state.Record(name=name, address="")
        changes = {"preset": preset, "login": login, "memory": memory}
        record = replace(record, **{key: value for key, value in changes.items() if value is not None})
        preset_folder = inventory_text.preset_dir(record.preset) if record.preset else None
        if preset_folder is not None:
            inventory_text.read_preset(preset_folder)
            if record.preset and "/" in record.preset:
                record = replace(record, preset=str(preset_folder))
        container = find(client, name)
        seed = seed_of(name)
        with progress.step(f"box {name}", "starting") as step:
            lab_network = network.ensure(client)
            before = (container.id, container.attrs["State"]["StartedAt"]) if container else None
            with locked(cache_dir() / "lab" / "addresses.lock"):
                record = _with_address(client, lab_network, record)
                state.write(record)
                if container is None:
                    container = _create(client, record, box_image)
            _start(client, lab_network, container, record, seed)
            boot_note = wait_until_ready(container, record.address)
            after = (container.id, container.attrs["State"]["StartedAt"])
            step.result = f"up at {record.address}" + (" (no change)" if before == after else "") + boot_note
            if container.labels.get("boxwright.image") != box_image:
                step.result += "; made from an older image, `lab down` and `lab up` rebuild it"
        write_inventory(record, mirror, seed)
    return record


def _with_address(client: DockerClient, lab_network: Any, record: state.Record) -> state.Record:
    """The record with an address on the lab's network: the one it had, whenever that is possible.

    Other state folders share the network. None of their boxes gets an address that a record has, also while the box of
    that record is down: `addresses.json` says which record has which. Needs the lock of addresses.
    """
    book = cache_dir() / "lab" / "addresses.json"
    try:
        claimed = dict(json.loads(book.read_text(encoding="utf-8")))
    except (OSError, ValueError):
        claimed = {}
    mine = str(state.record_file(record.name))
    claimed = {address: path for address, path in claimed.items() if path != mine and Path(path).exists()}
    container = state.container_name(record.name)
    held = {each.labels.get(network.ADDRESS_LABEL, "") for each in network.containers(client) if each.name != container}
    fits = record.address and ipaddress.IPv4Address(record.address) in network.subnet_of(lab_network)
    if not fits or record.address in held | claimed.keys():
        record = replace(record, address=network.free_address(client, lab_network, set(claimed)))
    keys.write_private(book, json.dumps({**claimed, record.address: mine}, indent=2) + "\n")
    return record


def volumes(name: str) -> tuple[str, str]:
    """The names of the box's two volumes: its engine's data, and downloaded packages (which outlive the box)."""
    container = state.container_name(name)
    return f"{container}-docker", f"{container}-apt"


def _create(client: DockerClient, record: state.Record, box_image: str) -> Container:
    """A new, stopped container for the box. Its address is taken from another container only if that is gone."""
    docker_data, packages = volumes(record.name)
    for volume in (docker_data, packages):
        client.volumes.create(volume, labels=network.OWNER_LABELS)
    host_config = client.api.create_host_config(
        cap_add=list(CAPABILITIES),
        security_opt=list(SECURITY),
        cgroupns="host",
        binds={
            "/sys/fs/cgroup": {"bind": "/sys/fs/cgroup", "mode": "rw"},
            docker_data: {"bind": "/var/lib/docker", "mode": "rw"},
            packages: {"bind": "/var/cache/apt/archives", "mode": "rw"},
        },
        tmpfs={"/run": "", "/run/lock": ""},
        mem_limit=record.memory,
        # `reboot` in the box ends the container, and the engine boots it again; so does a restart of the engine.
        restart_policy={"Name": "unless-stopped"},
        network_mode=network.NAME,
        devices=["/dev/net/tun:/dev/net/tun:rwm"] if Path("/dev/net/tun").exists() else [],
    )
    # What the docker command calls `--security-opt systempaths=unconfined`; the SDK has no name for it. Without it
    # /proc/sys cannot be written in the box, and the engine in there cannot start a container on a bridge.
    host_config.update(MaskedPaths=[], ReadonlyPaths=[])
    end = client.api.create_endpoint_config(ipv4_address=record.address)
    created = client.api.create_container(
        box_image,
        name=state.container_name(record.name),
        hostname=state.host_name(record.name),
        labels={
            **network.OWNER_LABELS,
            BOX_LABEL: record.name,
            STATE_LABEL: str(state_dir()),
            network.ADDRESS_LABEL: record.address,
            "boxwright.image": box_image,
        },
        stop_signal="SIGRTMIN+3",  # systemd's "shut down in order"
        host_config=host_config,
        networking_config=network.only_end(client, end),
    )
    return client.containers.get(created["Id"])


def _start(client: DockerClient, lab_network: Any, container: Container, record: state.Record, seed: Seed) -> None:
    """Give the container its identity where it lacks it, put it on the network, start it."""
    from docker.errors import APIError

    seeded = is_seeded(container, seed)
    if not seeded:
        container.put_archive("/", seed_archive(seed, shadow=_read(container, "/etc/shadow")))
    container.reload()
    try:
        network.attach(lab_network, container, record.address)
        if container.status == "paused":
            container.unpause()
        elif container.status != "running":
            container.start()
        elif not seeded:
            network.run_inside(container, "systemctl", "restart", "ssh.service")
    except APIError as error:
        raise Failed(
            Problem(
                code="BW310",
                message=f"the container of box {record.name!r} does not start: {error.explanation}",
                host=state.host_name(record.name),
                help=f"`boxwright lab down {record.name}` and `boxwright lab up {record.name}` make it anew",
            )
        ) from error


def seed_archive(seed: Seed, shadow: str) -> bytes:
    """A tar archive of the files that give a box its identity; `shadow` is the image's /etc/shadow."""
    authorized = f"{seed.client_key_public}\n"
    shadow = keys.with_password(shadow, "secured", keys.password_hash(seed.secured_password))
    # (path, text, mode, owner, group); names are looked up in the box by nobody, so the numbers are Debian's: useradd
    # gives the first account 1000, group operator is 37, group shadow 42.
    files = (
        ("etc/ssh/ssh_host_ed25519_key", seed.host_key, 0o600, 0, 0),
        ("etc/ssh/ssh_host_ed25519_key.pub", f"{seed.host_key_public}\n", 0o644, 0, 0),
        ("etc/shadow", shadow, 0o640, 0, 42),
        ("root/.ssh/authorized_keys", authorized, 0o600, 0, 0),
        ("home/operator/.ssh/authorized_keys", authorized, 0o600, 1000, 37),
        ("home/secured/.ssh/authorized_keys", authorized, 0o600, 1001, 1001),
    )
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for path, text, mode, owner, group in files:
            if path.endswith("authorized_keys"):
                folder = tarfile.TarInfo(str(Path(path).parent))
                folder.type, folder.mode, folder.uid, folder.gid = tarfile.DIRTYPE, 0o700, owner, group
                archive.addfile(folder)
            entry = tarfile.TarInfo(path)
            data = text.encode()
            entry.size, entry.mode, entry.uid, entry.gid, entry.mtime = len(data), mode, owner, group, int(time.time())
            archive.addfile(entry, io.BytesIO(data))
    return buffer.getvalue()


def is_seeded(container: Container, seed: Seed) -> bool:
    """True when the container has this host key and lets this login key in as root."""
    host_key = _read(container, "/etc/ssh/ssh_host_ed25519_key.pub")
    return host_key.strip() == seed.host_key_public and seed.client_key_public in _read(
        container, "/root/.ssh/authorized_keys"
    )


def _read(container: Container, path: str) -> str:
    """The text of a file in a container that need not run; empty when there is no such file."""
    from docker.errors import NotFound

    try:
        chunks, _ = container.get_archive(path)
    except NotFound:
        return ""
    with tarfile.open(fileobj=io.BytesIO(b"".join(chunks))) as archive:
        handle = archive.extractfile(archive.getmembers()[0])
        return handle.read().decode() if handle else ""


def wait_until_ready(container: Container, address: str) -> str:
    """Wait until systemd has booted and sshd answers; a note about failed units, usually empty.

    Raises Failed (BW310) with what the container last said when it ends or takes longer than `BOOT_TIMEOUT` seconds.
    """
    deadline = time.monotonic() + BOOT_TIMEOUT
    booted = ""
    container.reload()
    restarts = container.attrs["RestartCount"]
    while time.monotonic() < deadline:
        container.reload()
        if container.status == "running":
            if booted not in ("running", "degraded"):
                booted = _asked_systemd(container)
            if booted in ("running", "degraded") and answers_ssh(address):
                return "" if booted == "running" else f"; failed units: {_failed_units(container)}"
        elif container.status in ("exited", "dead") or container.attrs["RestartCount"] > restarts + 2:
            break
        time.sleep(0.15)
    if few := machine.inotify_shortage():
        raise Failed(
            Problem(
                code="BW310",
                message=f"the box does not boot: {few}, and systemd needs some of them",
                help="take boxes down that nobody needs (`boxwright lab list`), or allow more: "
                f"`sudo sysctl {machine.INOTIFY_INSTANCES}=1024`",
            )
        )
    last = network.last_words(container)
    raise Failed(
        Problem(
            code="BW310",
            message=f"the box does not boot: container {container.name} is {container.status}, systemd says "
            f"{booted or 'nothing'}, sshd at {address} {'answers' if answers_ssh(address) else 'does not answer'}"
            + (f"\n{last}" if last else ""),
            help=f"look into it with `docker exec -it {container.name} bash` and `journalctl -b`",
        )
    )


def _asked_systemd(container: Container) -> str:
    """What systemd in the container says of itself; empty when the container ends at this very moment."""
    from docker.errors import APIError

    try:
        return network.run_inside(container, "systemctl", "is-system-running").strip()
    except APIError:
        return ""


def _failed_units(container: Container) -> str:
    listed = network.run_inside(container, "systemctl", "list-units", "--failed", "--plain", "--no-legend")
    return ", ".join(line.split()[0] for line in listed.splitlines() if line.strip()) or "none any more"


def answers_ssh(address: str) -> bool:
    """True when something that speaks SSH listens on port 22 of the address."""
    try:
        with socket.create_connection((address, 22), timeout=2) as connection:
            return connection.recv(4) == b"SSH-"
    except OSError:
        return False


def facts(record: state.Record, mirror: Mirror) -> inventory_text.Facts:
    """What the box's inventory is made from."""
    folder = state.box_dir(record.name)
    password = keys.password(folder / "secured_password") if record.login == "secured" else None
    return inventory_text.Facts(
        host=state.host_name(record.name),
        address=record.address,
        login=record.login,
        key_file=folder / "id_ed25519",
        known_hosts=folder / "known_hosts",
        mirror_url=mirror.url,
        mirror_registry=mirror.registry,
        artifacts=mirror.variables,
        become_password=password,
    )


def write_inventory(record: state.Record, mirror: Mirror, seed: Seed) -> Path:
    """Write known_hosts and the inventory of the box; the path of its hosts.yml."""
    folder = state.box_dir(record.name)
    key = " ".join(seed.host_key_public.split()[:2])
    keys.write_private(folder / "known_hosts", f"{record.address} {key}\n")
    preset = inventory_text.preset_dir(record.preset) if record.preset else None
    return inventory_text.write(folder, facts(record, mirror), preset)


def down(client: DockerClient | None, name: str, *, purge: bool) -> bool:
    """Take the box away: its container, its engine's data, its inventory. False when there was nothing to take away.

    What makes it the same box again stays (address, keys, generated secrets), unless `purge`. `client` is None when no
    engine runs.
    """
    from docker.errors import NotFound

    state.check_name(name)
    with locked(state.lab_dir() / f".{name}.lock"):
        folder = state.box_dir(name)
        found = (folder / "hosts.yml").exists() or (purge and folder.exists())
        if client is not None:
            container = find(client, name)
            if container is not None:
                container.remove(force=True)
                found = True
            docker_data, packages = volumes(name)
            for volume in (docker_data, packages) if purge else (docker_data,):
                try:
                    client.volumes.get(volume).remove()
                except NotFound:
                    continue
        (folder / "hosts.yml").unlink(missing_ok=True)
        if purge:
            _forget(state.host_name(name), folder)
    return found


def _forget(host: str, folder: Path) -> None:
    """Delete everything that this control machine keeps about a host."""
    shutil.rmtree(folder, ignore_errors=True)
    leftovers: Iterable[Path] = (
        state_dir() / "secrets" / f"{host}.json",
        state_dir() / "netrc" / host,
        ca_file(host),
        *(state_dir() / "ssh").glob(f"{host}.*"),
    )
    for path in leftovers:
        path.unlink(missing_ok=True)


def status(client: DockerClient | None, name: str) -> str:
    """One word: running, exited, created, ..., or down when there is no container, unknown when no engine runs."""
    if client is None:
        return "unknown"
    container = find(client, name)
    return "down" if container is None else str(container.status)
