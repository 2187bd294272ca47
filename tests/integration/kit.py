"""Lab boxes for the tests of this folder, and tools that look at them without boxwright's own code.

Commands are run as a person runs them: the installed `boxwright` and `pyinfra`, in processes of their own, with a state
folder that only this session uses. What a box is like is asked with docker exec, curl and openssl.
"""

from __future__ import annotations

import fcntl
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from ipaddress import ip_interface
from pathlib import Path
from typing import IO, Any

import docker
import pytest
import requests
import yaml
from docker.errors import NotFound

ROOT = Path(__file__).resolve().parents[2]
STACK, REMOVE = "deploys/stack.py", "deploys/remove.py"
# Folders of this machine's sessions begin like this; what a killed session left is known by it.
PREFIX = "boxwright-tests-"
# What Docker gives to a command where the image says nothing.
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
# Without Docker and Open WebUI a box converges in seconds, through the same roles and operations otherwise.
LIGHT = {"docker_enabled": False, "openwebui_enabled": False}
# The model that the lab's boxes serve.
MODEL_ENTRY: dict[str, Any] = yaml.safe_load((ROOT / "group_vars" / "lab.yml").read_text())["inference_models"][0]


@dataclass(frozen=True)
class Done:
    """A command that ended."""

    command: tuple[str, ...]
    code: int
    out: str
    err: str
    seconds: float

    @property
    def text(self) -> str:
        """Everything it said."""
        return self.out + self.err

    def expect(self, code: int = 0) -> Done:
        """This very result; fails the test when the command ended with another code."""
        assert self.code == code, f"{' '.join(self.command)} ended with {self.code}, not {code}\n{self.text}"
        return self

    @property
    def json(self) -> Any:
        """Standard output, which must be one JSON value."""
        return json.loads(self.out)


def eventually(what: str, holds: Callable[[], Any], seconds: float = 60) -> Any:
    """What `holds` returns as soon as it is true; fails the test when it is not in time."""
    deadline = time.monotonic() + seconds
    pause = 0.05
    while not (found := holds()):
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        # Each question costs the machine more than what is waited for: what takes long is asked less often.
        time.sleep(pause)
        pause = min(pause * 1.5, 0.5)
    return found


def locked_folder(kept: str = "") -> tuple[Path, IO[str]]:
    """A new folder (or `kept`), and the open file that says as long as this process lives that it is in use."""
    folder = Path(kept or tempfile.mkdtemp(prefix=f"new-{PREFIX}"))
    folder.mkdir(mode=0o700, exist_ok=True)
    lock = (folder / "session.lock").open("w")
    fcntl.flock(lock, fcntl.LOCK_EX)
    # Without the lock, a session that begins at this very moment would take it for a leftover.
    return folder if kept else folder.rename(folder.with_name(folder.name.removeprefix("new-"))), lock


@contextmanager
def mirror_lock(*, alone: bool = False) -> Iterator[None]:
    """While commands use the lab's mirror; with `alone`, no other test of this user does."""
    path = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "boxwright" / "tests" / "mirror.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
        yield


class Lab:
    """The boxes of one test process, in a folder that only this process uses."""

    def __init__(self) -> None:
        # While tests are written: a folder whose boxes stay for the next session. Each process has its own.
        kept = os.environ.get("BOXWRIGHT_TESTS_KEEP", "")
        self.kept = bool(kept)
        self.folder, self._lock = locked_folder(kept and kept + os.environ.get("PYTEST_XDIST_WORKER", ""))
        self.state = self.folder / "state"
        self.boxes: dict[str, Box] = {}
        self._engine: docker.DockerClient | None = None
        self._neighbours = 0
        # Times in a row that `up` failed, by the name of the box.
        self._failures: dict[str, int] = {}

    @property
    def engine(self) -> docker.DockerClient:
        """The container engine; there is one as soon as a box was made."""
        if self._engine is None:
            self._engine = docker.from_env(timeout=300)
        return self._engine

    def environment(self, inventory: Path | None = None, **more: str) -> dict[str, str]:
        """What commands of this session get as their environment."""
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("BOXWRIGHT_STATE", "ANSIBLE_"))}
        kept.pop("BOXWRIGHT_INVENTORY", None)
        kept["PATH"] = f"{Path(sys.executable).parent}:{kept['PATH']}"
        kept["BOXWRIGHT_STATE_DIR"] = str(self.state)
        if inventory is not None:
            kept["BOXWRIGHT_INVENTORY"] = str(inventory)
        return {**kept, **more}

    def run(
        self,
        *command: str,
        inventory: Path | None = None,
        environment: Mapping[str, str] | None = None,
        folder: Path = ROOT,
        timeout: float = 900,
    ) -> Done:
        """Run a command to its end, without a terminal."""
        began = time.monotonic()
        with mirror_lock():
            ended = subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                cwd=folder,
                env=self.environment(inventory, **(environment or {})),
                timeout=timeout,
                check=False,
            )
        return Done(command, ended.returncode, ended.stdout, ended.stderr, time.monotonic() - began)

    def start(self, *command: str, inventory: Path | None = None) -> subprocess.Popen[str]:
        """Start a command, in a process group of its own; standard error can be read, the rest is thrown away."""
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env=self.environment(inventory),
            start_new_session=True,
        )

    def up(self, name: str, variables: Mapping[str, Any] | None = None, *options: str) -> Box:
        """A box of its own, not converged. `variables` are those of its host, as a preset would give them."""
        # Other sessions may use the same engine, where names are known to all.
        full = f"test-{name}-{self.folder.name.removeprefix(PREFIX).lower().replace('_', '0')}"[:40]
        if variables:
            preset = self.folder / "presets" / name
            preset.mkdir(parents=True, exist_ok=True)
            hosts = {"linux": {"hosts": {"box": dict(variables)}}}
            (preset / "hosts.yml").write_text(yaml.safe_dump(hosts), encoding="utf-8")
            options = ("--preset", str(preset), *options)
        # A shared box that cannot be made would be tried by every test that wants it, for minutes each time.
        if self._failures.get(name, 0) >= 2:
            pytest.fail(f"the box {name} could not be made twice; see the test that first wanted it", pytrace=False)
        self._failures[name] = self._failures.get(name, 0) + 1
        self.run("boxwright", "lab", "up", full, *options, timeout=1800).expect()
        self._failures[name] = 0
        box = self.boxes.get(name) or Box(self, full)
        self.boxes[name] = box
        return box

    def neighbour(self, box: Box, **options: Any) -> Any:
        """A container on the network of `box`, with an address at the end of it, where no box is."""
        network = ip_interface(f"{box.address}/24").network
        # Each process counts in a range of its own, and an address is not free at once when a container is gone.
        worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
        self._neighbours = self._neighbours % 40 + 1
        number = 40 * (worker % 4) + self._neighbours + 1
        end = self.engine.api.create_endpoint_config(ipv4_address=str(network[-number]))
        return self.engine.containers.run(
            box.container.image,
            ["sleep", "900"],
            network="boxwright",
            networking_config={"boxwright": end},
            detach=True,
            remove=True,
            **options,
        )

    def take_away(self, names: Iterable[str]) -> None:
        """Remove some of the boxes; nothing is kept of them."""
        if self.kept:
            return
        for name in names:
            self.run("boxwright", "lab", "down", self.boxes.pop(name).name, "--purge").expect()

    def close(self) -> None:
        """Take the boxes away, also those that a failed `lab up` has left half made."""
        if not self.kept:
            remove_boxes(self.state)
            shutil.rmtree(self.folder, ignore_errors=True)
        # Last: to another session, what has no lock is a leftover.
        self._lock.close()


def remove_boxes(state: Path) -> None:
    """Remove every box that belongs to the state folder `state`, with its volumes."""
    try:
        engine = docker.from_env()
    except docker.errors.DockerException:
        return
    for container in engine.containers.list(
        all=True, filters={"label": f"boxwright.state={state}"}, ignore_removed=True
    ):
        name = str(container.name)
        container.remove(force=True, v=True)
        for volume in (f"{name}-docker", f"{name}-apt"):
            try:
                engine.volumes.get(volume).remove()
            except NotFound:
                continue


def remove_leftovers() -> None:
    """Remove what sessions left that were killed before they could clean up."""
    try:
        engine = docker.from_env()
    except docker.errors.DockerException:
        return
    with mirror_lock(alone=True):
        containers = engine.containers.list(all=True, ignore_removed=True)
        states = {container.labels.get("boxwright.state", "") for container in containers}
        folders = {Path(state).parent for state in states if Path(state).parent.name.startswith(PREFIX)}
        folders |= {path for path in Path(tempfile.gettempdir()).glob(f"{PREFIX}*") if path.is_dir()}
        for folder in folders:
            if not _in_use(folder / "session.lock"):
                remove_boxes(folder / "state")
                shutil.rmtree(folder, ignore_errors=True)


def _in_use(lock: Path) -> bool:
    try:
        with lock.open("r+") as handle:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return False


def _belongs(process: int, container: str) -> bool:
    """Whether the process `process` is one of the container with that identifier."""
    try:
        return bool(process) and container in Path(f"/proc/{process}/cgroup").read_text(encoding="ascii")
    except OSError:
        return False


@dataclass
class Box:
    """One lab box: how commands are pointed at it, and what it says of itself to docker exec."""

    lab: Lab
    name: str
    # False while a test has changed something on the box and no later run has been seen to change nothing.
    settled: bool = field(default=False)
    # Of the container that was asked last: its identifier, its init's process number here, its environment.
    _identity: str = field(default="", init=False)
    _init: int = field(default=0, init=False)
    _environment: dict[str, str] = field(default_factory=dict, init=False)

    @property
    def host(self) -> str:
        """Its name in the inventory."""
        return f"lab-{self.name}"

    @property
    def inventory(self) -> Path:
        """The inventory that `lab up` wrote."""
        return self.lab.state / "lab" / self.name / "hosts.yml"

    @property
    def variables(self) -> dict[str, Any]:
        """The variables of its host in that inventory."""
        groups = yaml.safe_load(self.inventory.read_text(encoding="utf-8"))["all"]["children"]
        found: dict[str, Any] = groups["lab"]["hosts"][self.host]
        return found

    @property
    def address(self) -> str:
        """Its IPv4 address on the lab's network."""
        return str(self.variables["ansible_host"])

    @property
    def container(self) -> Any:
        """The container, as the engine's client has it."""
        return self.lab.engine.containers.get(f"boxwright-{self.name}")

    @property
    def secrets(self) -> dict[str, str]:
        """The generated secrets of the box, from the file on this machine."""
        path = self.lab.state / "secrets" / f"{self.host}.json"
        found: dict[str, str] = json.loads(path.read_text(encoding="utf-8"))
        return found

    @property
    def ca(self) -> Path:
        """The root certificate that a run fetched."""
        return self.lab.state / "ca" / f"{self.host}.crt"

    def with_variables(self, label: str = "varied", /, **variables: Any) -> Path:
        """Another inventory for the same host name, with some variables set otherwise; None takes one out."""
        changed = {**self.variables, **variables}
        changed = {key: value for key, value in changed.items() if value is not None}
        folder = self.lab.folder / "inventories" / self.name / label
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "hosts.yml"
        groups = {"linux": {"hosts": {self.host: None}}, "lab": {"hosts": {self.host: changed}}}
        path.write_text(yaml.safe_dump({"all": {"children": groups}}, sort_keys=False), encoding="utf-8")
        path.chmod(0o600)
        return path

    # Runs

    def run(self, *command: str, inventory: Path | None = None, **arguments: Any) -> Done:
        """Run a command that is pointed at this box."""
        return self.lab.run(*command, inventory=inventory or self.inventory, **arguments)

    def apply(self, *options: str, inventory: Path | None = None) -> Done:
        """`boxwright apply`, whatever its end. The question from outside is left to the tests."""
        return self.run("boxwright", "apply", "--json", "--no-check", *options, inventory=inventory)

    def changes(self, inventory: Path | None = None) -> list[str]:
        """Names of the operations that a run changed something with; the run must succeed."""
        found: list[str] = self.apply(inventory=inventory).expect().json["hosts"][self.host]["changed"]
        return found

    def settle(self) -> None:
        """Converge the box when it is not known to be."""
        if not self.settled:
            self.apply().expect()
            self.settled = True

    def expect_settled(self, inventory: Path | None = None) -> None:
        """A run changes nothing."""
        assert self.changes(inventory) == []
        self.settled = inventory is None

    # On the box

    def exec(self, *command: str, user: str = "root", check: bool = True) -> str:
        """What a command on the box prints. With `check` it must end with 0."""
        code, out, err = self._ask(command, user)
        text = out.decode(errors="replace")
        assert not check or code == 0, f"{command} on {self.name}: {code}\n{text}{err.decode(errors='replace')}"
        return text

    def sh(self, script: str, *, check: bool = True) -> str:
        """What a shell script on the box, run by root, prints."""
        return self.exec("sh", "-c", script, check=check)

    def succeeds(self, script: str) -> bool:
        """Whether a shell script on the box ends with 0."""
        return self._ask(("sh", "-c", script), "root")[0] == 0

    def _ask(self, command: Sequence[str], user: str) -> tuple[int, bytes, bytes]:
        """Exit code, standard output and standard error of a command on the box.

        Root enters the namespaces of the box itself: `docker exec` takes twenty times the processor time, and the tests
        ask many thousands of times.
        """
        process = self._first_process() if user == "root" and os.geteuid() == 0 and shutil.which("nsenter") else 0
        if not process:
            code, (out, err) = self.container.exec_run(list(command), user=user, demux=True)
            return int(code), out or b"", err or b""
        done = subprocess.run(
            ["nsenter", f"--target={process}", "--all", "--", *command],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            env=self._environment,
            check=False,
        )
        return done.returncode, done.stdout, done.stderr

    def _first_process(self) -> int:
        """The number that the box's init has on this machine; 0 while it is not running."""
        if not _belongs(self._init, self._identity):
            state = self.container.attrs
            self._identity, self._init = state["Id"], int(state["State"]["Pid"])
            given = dict(each.split("=", 1) for each in state["Config"]["Env"] or ())
            self._environment = {"HOME": "/root", "PATH": PATH, **given}
        return self._init

    def put(self, path: str, text: str, mode: int = 0o644) -> None:
        """A file of root's on the box; not below /tmp or /run, which only processes in the box see."""
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w") as archive:
            entry = tarfile.TarInfo(path.lstrip("/"))
            entry.size, entry.mode, entry.mtime = len(text.encode()), mode, int(time.time())
            archive.addfile(entry, io.BytesIO(text.encode()))
        self.container.put_archive("/", buffer.getvalue())

    def pid(self, service: str) -> int:
        """Process number of a systemd service."""
        return int(self.sh(f"systemctl show --value --property MainPID {service}").strip() or 0)

    def restarted(self, service: str, before: int) -> bool:
        """Whether another process than `before` runs as a systemd service, and is ready."""
        # In this order: what is active before the question about the process may be the one that just ends.
        return self.pid(service) not in (0, before) and self.succeeds(f"systemctl is-active --quiet {service}")

    def said_by_watchdog(self) -> str:
        """What the watchdog over the engines has written."""
        return self.sh("journalctl --no-pager --output cat --unit boxwright-watchdog")

    def expect_new_process_when_it_hangs(self, service: str) -> None:
        """An engine whose process is stopped is started anew by the watchdog, which says so, and answers."""
        before = self.pid(service)
        self.sh(f"kill -STOP {before}")
        eventually("another process answers", lambda: self.restarted(service, before) and self.answers(), 90)
        assert f"{service} hangs, restart number 1" in self.said_by_watchdog()

    def memory(self, service: str, kind: str) -> int:
        """KiB that all processes of a service have in memory, by a name of proc(5): VmRSS now, VmHWM at most since
        they began, or since `forget_peak`."""
        lines = self.sh(f"for pid in {self._processes(service)}; do cat /proc/$pid/status; done").splitlines()
        found = sum(int(line.split()[1]) for line in lines if line.startswith(f"{kind}:"))
        assert found, f"{service} has no process with {kind} on {self.name}"
        return found

    def forget_peak(self, service: str) -> None:
        """VmHWM counts from here on."""
        self.sh(f"for pid in {self._processes(service)}; do echo 5 >/proc/$pid/clear_refs; done")

    @staticmethod
    def _processes(service: str) -> str:
        """For a shell on the box: the numbers of all processes of a service, whichever version cgroups have there."""
        return f"$(grep -ls '/{service}.service$' /proc/[0-9]*/cgroup | cut -d/ -f3)"

    # From outside

    def http(self, method: str, path: str, *, auth: tuple[str, str] | None = None, **arguments: Any) -> Any:
        """An answer of the box to this machine, over HTTPS checked against the fetched root certificate."""
        with requests.Session() as session:
            session.trust_env = False
            session.verify = str(self.ca)
            return session.request(method, f"https://{self.address}/{path}", auth=auth, timeout=120, **arguments)

    @property
    def credentials(self) -> tuple[str, str]:
        """User and password for /v1."""
        return str(self.variables.get("gateway_user", "boxwright")), self.secrets["gateway_password"]

    def signed_in(self) -> dict[str, str]:
        """Headers with which the administrator of Open WebUI asks."""
        credentials = {"email": "admin@localhost", "password": self.secrets["openwebui_admin_password"]}
        answer = self.http("POST", "api/v1/auths/signin", json=credentials)
        assert answer.status_code == 200, answer.text
        assert answer.json()["role"] == "admin"
        return {"Authorization": f"Bearer {answer.json()['token']}"}

    def answers(self) -> bool:
        """Whether the model is listed from outside, with the right credentials and only with them."""
        try:
            refused = self.http("GET", "v1/models").status_code
            answer = self.http("GET", "v1/models", auth=self.credentials)
        except requests.RequestException:
            return False
        return refused == 401 and answer.status_code == 200 and "local-llm" in answer.text


def kill(process: subprocess.Popen[str]) -> None:
    """SIGKILL to the process and all it started on this machine."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
    process.wait(timeout=30)


def operations(done: Done) -> dict[str, Sequence[str]]:
    """From pyinfra's own --json: names of operations that changed something, of those that did not, and that failed."""
    found: dict[str, list[str]] = {"changed": [], "unchanged": [], "failed": []}
    for operation in done.json["results"]["operations"]:
        for key, kind in (("success", "changed"), ("no_change", "unchanged"), ("error", "failed")):
            if operation[key]:
                found[kind].append(operation["name"])
    return found
