"""A Mac Studio for tests: a container that behaves as one to whoever connects over SSH. See README.md."""

from __future__ import annotations

import hashlib
import io
import json
import socket
import tarfile
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from machine import Operated

if TYPE_CHECKING:
    from docker import DockerClient

FOLDER = Path(__file__).resolve().parent
REPOSITORY = "boxwright-macos-double"
LABEL = "boxwright.test-mac"
ROOT = "/usr/libexec/double"
PASSWORD = "a mac's password"


@dataclass(frozen=True)
class Options:
    """What kind of Mac it is. Those about launchd and the system can be changed while it runs: `MacDouble.set`."""

    # 14, 15, 26, 27, or a full version such as 26.4.1.
    version: str = "26"
    version_extra: str = ""
    # A name as of machdep.cpu.brand_string; one that does not begin with Apple makes it an Intel Mac.
    chip: str = "Apple M2 Max"
    # Processes of the session run translated: uname says x86_64, sysctl.proc_translated 1.
    rosetta: bool = False
    # Bytes; what sysctl says.
    memory: int = 64 * 2**30
    # Whether iogpu.wired_limit_mb exists.
    wired_limit: bool = True
    filevault: bool = False
    filevault_progress: str = ""
    # 0 off, 1 on.
    firewall: int = 0
    managed: bool = False
    mds_off: bool = False
    high_power_mode: bool = False
    # "operator" (installed, owned by the operator), "other" (owned by another admin), "missing".
    brew: str = "operator"
    passwordless_sudo: bool = True
    # Full Disk Access for remote users, which is off on a fresh Mac.
    full_disk_access: bool = False
    # launchd: seconds that a restart by KeepAlive waits at most, whatever ThrottleInterval is printed; seconds that a
    # label stays at least after bootout of a running job; whether a job that is loaded soon after its removal does not
    # start by itself.
    throttle: float = 10
    linger: float = 1
    sluggish: bool = False


def content_digest(base: str) -> str:
    """16 hexadecimal digits that name everything the image is made of."""
    found = hashlib.sha256(base.encode())
    for path in sorted(FOLDER.rglob("*")):
        if path.is_file() and "__pycache__" not in path.parts and path.suffix != ".md" and path != Path(__file__):
            found.update(f"{path.relative_to(FOLDER)}\0".encode() + path.read_bytes() + b"\0")
    return found.hexdigest()[:16]


def ensure_image(client: DockerClient, base: str) -> str:
    """The name of the double's image, built from the box image `base` when the engine does not have it."""
    from boxwright.lab import image
    from boxwright.lab.locks import locked
    from boxwright.paths import cache_dir

    tag = f"{REPOSITORY}:{content_digest(base)}"
    with locked(cache_dir() / "lab" / "macos-double.lock"):
        if not image.has_image(client, tag):
            buffer = io.BytesIO()
            with tarfile.open(fileobj=buffer, mode="w") as archive:
                for path in ("Dockerfile", "gate", "tool", "build.py", "system"):
                    archive.add(
                        FOLDER / path, path, filter=lambda entry: None if "__pycache__" in entry.name else entry
                    )
            buffer.seek(0)
            client.images.build(
                fileobj=buffer, custom_context=True, tag=tag, buildargs={"BASE": base}, rm=True, forcerm=True
            )
    return tag


class MacDouble(Operated):
    """One such Mac, on the lab's network. `options` are those of `Options`; `limited` maps folders to sizes such as
    64m, which are then file systems of that size (and empty again after each boot).

    Commands of operations run in it as root, as in a machine.Machine; with `inventory` it is an ordinary host.
    """

    system = "darwin"
    user = "operator"
    password = PASSWORD
    port = 22
    tools, scratch = f"{ROOT}/linux/bin/", f"{ROOT}/volatile"
    # Commands that come by the engine have its limit otherwise, and not launchd's.
    first = "ulimit -Sn 256\n"

    def __init__(self, *, limited: Mapping[str, str] | None = None, name: str = "mac", **options: Any) -> None:
        from boxwright.lab import engine, image, keys, network
        from boxwright.lab.locks import locked
        from boxwright.lab.progress import Progress
        from boxwright.paths import cache_dir

        self.options = Options(**options)
        self.name = name
        self._folder = tempfile.TemporaryDirectory(prefix="boxwright-mac-")
        self.folder = Path(self._folder.name)
        with Progress(plain=True) as progress:
            client = engine.ensure(progress)
            self.image = ensure_image(client, image.ensure_box(client, progress))
        for left in client.containers.list(all=True, filters={"label": LABEL}, ignore_removed=True):
            if time.time() - _seconds(left.attrs["Created"]) > 7200:
                left.remove(force=True, v=True)
        self.key_file, host_key = self.folder / "id_ed25519", self.folder / "host_key"
        seed = {
            "client_key_public": keys.key_pair(self.key_file, "boxwright-tests"),
            "host_key_public": keys.key_pair(host_key, name),
            "host_key": host_key.read_text(encoding="utf-8"),
            "password_hash": keys.password_hash(PASSWORD),
        }
        config = client.api.create_host_config(
            cap_add=["SYS_ADMIN", "NET_ADMIN", "SYS_PTRACE"],
            security_opt=["seccomp=unconfined", "apparmor=unconfined"],
            network_mode=network.NAME,
            tmpfs={path: f"size={size},mode=0755" for path, size in (limited or {}).items()},
            restart_policy={"Name": "unless-stopped"},
        )
        lab_network = network.ensure(client)
        with locked(cache_dir() / "lab" / "addresses.lock"):
            book = cache_dir() / "lab" / "addresses.json"
            claimed = set(json.loads(book.read_text(encoding="utf-8"))) if book.exists() else set()
            self.address = network.free_address(client, lab_network, claimed)
            end = client.api.create_endpoint_config(ipv4_address=self.address)
            created = client.api.create_container(
                self.image,
                hostname="Operators-Mac-Studio.local",
                labels={**network.OWNER_LABELS, LABEL: "", network.ADDRESS_LABEL: self.address},
                host_config=config,
                networking_config=network.only_end(client, end),
            )
        self.container = client.containers.get(created["Id"])
        try:
            self._put_files(
                {"options.json": (json.dumps(asdict(self.options)), 0o644), "seed.json": (json.dumps(seed), 0o600)}
            )
            (self.folder / "known_hosts").write_text(
                f"{self.address} {' '.join(seed['host_key_public'].split()[:2])}\n"
            )
            self.container.start()
            self.wait()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> MacDouble:
        return self

    def __exit__(self, *problem: object) -> None:
        self.close()

    # Its life

    def wait(self) -> None:
        """Until launchd has started what is to start, and sshd answers."""
        from docker.errors import APIError

        deadline = time.monotonic() + 90
        while True:
            self.container.reload()
            if self.container.status == "running":
                probe = ["/usr/libexec/double/linux/bin/test", "-e", f"{ROOT}/volatile/booted"]
                # It may be restarting by now.
                with suppress(APIError):
                    if self.container.exec_run(probe).exit_code == 0 and self._answers():
                        return
            assert time.monotonic() < deadline, self.container.logs(tail=30).decode(errors="replace")
            time.sleep(0.1)

    def _answers(self) -> bool:
        try:
            with socket.create_connection((self.address, self.port), timeout=2) as connection:
                return connection.recv(4) == b"SSH-"
        except OSError:
            return False

    def reboot(self) -> None:
        """Stop it in order, boot it, wait."""
        self.shell = None
        self.container.restart(timeout=30)
        self.wait()

    def power_cut(self) -> None:
        """It is off in the middle of everything, then boots."""
        self.shell = None
        self.container.kill()
        self.container.start()
        self.wait()

    def login(self, user: str) -> None:
        """`user` signs in at the screen. Over SSH nobody has a session with a screen."""
        self._window("login", user)

    def logout(self, user: str) -> None:
        """`user` signs out there: what runs in the session is told to end."""
        self._window("logout", user)

    def _window(self, verb: str, user: str) -> None:
        program = f"{ROOT}/linux/bin/python3 -ISB {ROOT}/system/tool.py loginwindow"
        code, _, err = self.as_root(f'{program} {verb} "$(id -u {user})"')
        assert code == 0, err

    def close(self) -> None:
        """It is gone."""
        super().close()
        self._folder.cleanup()

    def set(self, **changes: Any) -> None:
        """Change options while it runs."""
        self.options = replace(self.options, **changes)
        self._put_files({"options.json": (json.dumps(asdict(self.options)), 0o644)})

    # As root, without SSH

    def as_root(self, text: str, stdin: bytes = b"") -> tuple[int, str, str]:
        """Exit code, standard output and standard error of a shell command of root's."""
        return self._exec(["/bin/sh", "-c", text], stdin)

    def as_user(self, text: str, stdin: bytes = b"") -> tuple[int, str, str]:
        """The same of a shell command of the operator's, in the environment of an SSH session, without sudo."""
        home = f"/Users/{self.user}"
        environment = [f"HOME={home}", f"USER={self.user}", f"LOGNAME={self.user}", "SHELL=/bin/zsh"]
        setpriv = [f"{ROOT}/linux/bin/setpriv", "--reuid=501", "--regid=20", "--init-groups"]
        path = "PATH=/usr/bin:/bin:/usr/sbin:/sbin"
        command = ["/usr/bin/env", "-i", *environment, path, *setpriv, "/bin/sh", "-c", f'cd "$HOME"; {text}']
        return self._exec(command, stdin)

    def strays(self) -> list[str]:
        """What stands at the top of the file system that no Mac would let anybody put there."""
        script = f"ls -1A / | {ROOT}/linux/bin/grep -vxFf {ROOT}/top.txt || true"
        return [name for name in self.sh(script).split() if name not in (".dockerenv", "dev", "proc", "sys")]

    def formula(self, name: str, version: str, source: Path) -> None:
        """Offer a formula to brew: a folder as it is to lie in the Cellar (bin/...)."""
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w") as archive:
            archive.add(source, f"formulae/{name}/{version}", filter=_roots)
        self.container.put_archive(ROOT, buffer.getvalue())

    def _put_files(self, files: Mapping[str, tuple[str, int]]) -> None:
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w") as archive:
            for name, (text, mode) in files.items():
                entry = tarfile.TarInfo(name)
                entry.size, entry.mode, entry.mtime = len(text.encode()), mode, int(time.time())
                archive.addfile(entry, io.BytesIO(text.encode()))
        self.container.put_archive(ROOT, buffer.getvalue())

    # Over SSH

    @property
    def variables(self) -> dict[str, Any]:
        """Connection variables of its host in an inventory."""
        return {
            "ansible_connection": "ssh",
            "ansible_host": self.address,
            "ansible_port": self.port,
            "ansible_user": self.user,
            "ansible_ssh_private_key_file": str(self.key_file),
            "ansible_ssh_common_args": f"-o UserKnownHostsFile={self.folder / 'known_hosts'}",
            "ansible_become": True,
            **({} if self.options.passwordless_sudo else {"ansible_become_password": PASSWORD}),
        }

    def inventory(self, folder: Path | None = None, *, groups: Sequence[str] = (), **variables: Any) -> Path:
        """Writes an inventory with this Mac in `darwin` and in these groups, with these variables more; the path of
        hosts.yml. Its gateway is meant to be called by address, as that of a lab box is.
        """
        path = (folder or self.folder) / "hosts.yml"
        door = {"gateway_names": [self.address], "gateway_bind": ["0.0.0.0"]}
        hosts = {"darwin": {"hosts": {self.name: {**self.variables, **door, **variables}}}}
        hosts |= {group: {"hosts": {self.name: None}} for group in groups}
        path.write_text(yaml.safe_dump({"all": {"children": hosts}}, sort_keys=False), encoding="utf-8")
        path.chmod(0o600)
        return path

    def ssh_command(self, *words: str) -> list[str]:
        """OpenSSH's client, as a person would call it, for `subprocess.run`."""
        options = ["-o", "BatchMode=yes", "-o", f"UserKnownHostsFile={self.folder / 'known_hosts'}"]
        return ["ssh", *options, "-i", str(self.key_file), f"{self.user}@{self.address}", *words]


def _roots(entry: tarfile.TarInfo) -> tarfile.TarInfo:
    entry.uid = entry.gid = 0
    entry.uname = entry.gname = ""
    return entry


def _seconds(created: str) -> float:
    return datetime.fromisoformat(created[:19] + "+00:00").timestamp()
