"""Container runtimes of a Mac: what their sockets say, which one is meant, and what is written for it."""

from __future__ import annotations

import json
import re
import shutil
import socket
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from socketserver import ThreadingMixIn, UnixStreamServer
from typing import Any

import pytest
import yaml
from pyinfra.api.exceptions import FactProcessError

from boxwright import containers
from boxwright.containers import Runtime, choose, kind_of
from boxwright.errors import Problem, Refused
from boxwright.facts.containers import ContainerRuntimes
from boxwright.preflight import Machine, Need, examine
from boxwright.settings import parse_box
from boxwright.templates import render
from roles.gateway import caddy
from roles.openwebui import container, native
from roles.openwebui import tasks as openwebui
from roles.openwebui.environment import environment
from roles.registry import Box

MODEL = {"name": "local-llm", "url": "https://models.example/a/b/tiny.gguf", "sha256": "ab" * 32, "size": 1000}
MAC = Machine("Darwin", "arm64", "macos", "26.1", systemd=False, memory=2**36, disk_free=2**38)
INSTEAD = "remove `openwebui_run`"

# What GET /version says, cut to what tells the engines apart: Docker Desktop 4.x, Colima (Docker's own engine in its
# virtual machine), OrbStack, and Podman's compatible API.
DESKTOP = {
    "Platform": {"Name": "Docker Desktop 4.53.0 (211793)"},
    "Components": [{"Name": "Engine", "Version": "29.1.1", "Details": {"ApiVersion": "1.52"}}],
    "Version": "29.1.1",
    "ApiVersion": "1.52",
    "Os": "linux",
    "Arch": "arm64",
}
COLIMA = {**DESKTOP, "Platform": {"Name": "Docker Engine - Community"}, "Version": "28.4.0"}
ORBSTACK = {**DESKTOP, "Platform": {"Name": "Docker Engine - Community"}, "Version": "28.5.2"}
PODMAN = {
    "Platform": {"Name": "linux/arm64/fedora-42"},
    "Components": [{"Name": "Podman Engine", "Version": "5.7.0", "Details": {"APIVersion": "5.7.0"}}],
    "Version": "5.7.0",
    "ApiVersion": "1.41",
    "Os": "linux",
    "Arch": "arm64",
}


def lines(path: str, real: str = "", owner: str = "ada", **said: Any) -> list[str]:
    found = [f"socket={path}", f"real={real or path}", f"owner={owner}"]
    if "version" in said:
        return [*found, "state=answers", f"version={json.dumps(said['version'])}"]
    return [*found, *(f"{key}={value}" for key, value in said.items())]


def parsed(*parts: list[str]) -> tuple[Runtime, ...]:
    return ContainerRuntimes().process([line for part in parts for line in part] + ["end"])


def a_box(system: str = "darwin", **variables: Any) -> Box:
    defaults = {"gateway_names": ["llm.example.com"], "gateway_port": 8443, "inference_models": [MODEL]}
    return parse_box(Box, "mac", (system,), {**defaults, **variables}, None, None)


def in_a_container(**variables: Any) -> Box:
    return a_box(openwebui_run="container", **variables)


def answer(path: str, owner: str = "ada") -> Runtime:
    (found,) = parsed(lines(path, owner=owner, version=COLIMA))
    return found


COLIMAS = answer("/Users/ada/.colima/default/docker.sock")
ORBS = answer("/Users/eve/.orbstack/run/docker.sock", "eve")
OFF = replace(COLIMAS, state="silent", version="", said="curl: (7) Couldn't connect to server")


# What they say


@pytest.mark.parametrize(
    ("path", "real", "version", "kind", "machine", "number", "start"),
    [
        ("/Users/ada/.docker/run/docker.sock", "", DESKTOP, "docker-desktop", "", "29.1.1", "open -a Docker"),
        # The link that Docker Desktop makes for programs that know no other place.
        ("/var/run/docker.sock", "/Users/ada/.docker/run/docker.sock", DESKTOP, "docker-desktop", "", "29.1.1", "open"),
        # A place that nobody knows, where the engine tells who it is.
        ("/opt/docker.sock", "", DESKTOP, "docker-desktop", "", "29.1.1", "open -a Docker"),
        ("/Users/ada/.colima/default/docker.sock", "", COLIMA, "colima", "default", "28.4.0", "colima start"),
        ("/Users/ada/.colima/big/docker.sock", "", COLIMA, "colima", "big", "28.4.0", "colima start big"),
        ("/Users/ada/.config/colima/big/docker.sock", "", COLIMA, "colima", "big", "28.4.0", "colima start big"),
        ("/Users/ada/.colima/docker.sock", "", COLIMA, "colima", "", "28.4.0", "colima start"),
        ("/Users/ada/.orbstack/run/docker.sock", "", ORBSTACK, "orbstack", "", "28.5.2", "orb start"),
        (
            "/Users/ada/.local/share/containers/podman/machine/podman.sock",
            "/private/var/folders/1c/_h1n/T/podman/podman-machine-default-api.sock",
            PODMAN,
            "podman",
            "podman-machine-default",
            "5.7.0",
            "podman machine start podman-machine-default",
        ),
        (
            "/Users/ada/.local/share/containers/podman/machine/applehv/podman.sock",
            "",
            PODMAN,
            "podman",
            "",
            "5.7.0",
            "podman machine start",
        ),
        ("/Users/ada/elsewhere.sock", "", COLIMA, "other", "", "28.4.0", ""),
    ],
)
def test_a_runtime_is_known_by_its_socket(
    path: str, real: str, version: dict[str, Any], kind: str, machine: str, number: str, start: str
) -> None:
    (found,) = parsed(lines(path, real, version=version))
    assert (found.kind, found.machine, found.version, found.owner) == (kind, machine, number, "ada")
    assert found.state == "answers"
    assert found.start.startswith(start)
    assert path in str(found)


def test_what_does_not_answer_is_no_engine() -> None:
    dead, denied, web = parsed(
        lines("/Users/ada/.colima/default/docker.sock", state="silent", said="curl: (7) Couldn't connect"),
        lines("/Users/eve/.orbstack/run/docker.sock", owner="eve", state="denied"),
        lines("/opt/web.sock", version=[]),
    )
    assert (dead.state, dead.said) == ("silent", "curl: (7) Couldn't connect")
    assert (denied.state, denied.owner) == ("denied", "eve")
    assert web.state == "silent"
    assert containers.answering((dead, denied, web, ORBS)) == (ORBS,)
    assert parsed() == ()


@pytest.mark.parametrize("output", [["socket=/a"], ["owner=ada", "end"], ["socket=/a", "kind=x", "end"], lines("/a")])
def test_an_answer_of_another_form_is_not_taken_for_nothing(output: list[str]) -> None:
    with pytest.raises(FactProcessError):
        ContainerRuntimes().process(output if output[-1] == "end" else [*output, "cut"])
    with pytest.raises(FactProcessError):
        ContainerRuntimes().process([*lines("/a"), "end"])


# Which one is meant


def test_the_only_one_that_answers_is_meant() -> None:
    off = replace(ORBS, state="silent", version="")
    assert choose((COLIMAS, off), "", INSTEAD) == COLIMAS
    # By either of its names.
    linked = replace(ORBS, socket="/var/run/docker.sock")
    assert choose((COLIMAS, linked), ORBS.socket, INSTEAD) == linked
    assert choose((COLIMAS, linked), "/var/run/docker.sock", INSTEAD) == linked


@pytest.mark.parametrize(
    ("found", "asked", "message", "help"),
    [
        ((), "", "no container runtime was found", "colima start"),
        (
            (COLIMAS, ORBS),
            "",
            f"several.*{COLIMAS.socket}.*OrbStack of eve",
            f"host_container_socket: {COLIMAS.socket}",
        ),
        (
            (OFF,),
            "",
            "no container runtime of the Mac answers: Colima of ada.*Couldn't connect",
            "`colima start` as ada",
        ),
        (
            (COLIMAS,),
            "/opt/mine.sock",
            f"no socket at /opt/mine.sock.*found: Colima of ada .{COLIMAS.socket}",
            "correct",
        ),
        ((), "/opt/mine.sock", "no container runtime was found elsewhere either", "correct"),
        ((OFF, ORBS), OFF.socket, "no container runtime of the Mac answers", "`colima start` as ada"),
        ((replace(ORBS, state="denied"),), "", "may not use OrbStack of eve", "ansible_become"),
    ],
)
def test_what_cannot_be_used_is_listed_with_the_way_out(
    found: tuple[Runtime, ...], asked: str, message: str, help: str
) -> None:
    problem = choose(found, asked, INSTEAD)
    assert isinstance(problem, Problem)
    assert (problem.code, problem.variable) == ("BW124", "host_container_socket")
    assert re.search(message, problem.message), problem.message
    assert help in (problem.help or "")


@pytest.mark.parametrize(
    ("found", "fits"), [((), False), ((COLIMAS,), True), ((COLIMAS, ORBS), False), ((OFF,), False)]
)
def test_a_mac_without_one_is_refused_before_anything_is_changed(found: tuple[Runtime, ...], fits: bool) -> None:
    need = openwebui.need(in_a_container())
    assert need.container_socket == ""
    problems = examine(replace(MAC, container_runtimes=found), Need() + need, "darwin")
    assert [problem.code for problem in problems] == ([] if fits else ["BW124"])


def test_nobody_else_asks_for_one() -> None:
    assert openwebui.need(a_box()).container_socket is None
    assert openwebui.need(a_box("linux")).container_socket is None
    mine = openwebui.need(in_a_container(host_container_socket=ORBS.socket)) + Need()
    assert mine.container_socket == ORBS.socket
    with pytest.raises(Refused, match="means nothing on Linux"):
        a_box("linux", host_container_socket=ORBS.socket)


# What is written for it


def compose(box: Box, socket: str) -> dict[str, Any]:
    text = render(
        "openwebui/compose.yml.j2",
        image=box.openwebui.reference,
        address=box.openwebui.container_address,
        network=container.NETWORK,
        port=box.openwebui.port,
        socket=socket,
        environment_file=container.ENVIRONMENT,
        environment_digest="0" * 64,
    )
    if socket:
        assert container.noted(text) == socket
    found: dict[str, Any] = yaml.safe_load(text)
    return found


def test_the_container_is_that_of_linux_but_for_its_way_in() -> None:
    linux, mac = compose(a_box("linux"), ""), compose(in_a_container(openwebui_port=8100), COLIMAS.socket)
    on_linux, on_a_mac = linux["services"]["openwebui"], mac["services"]["openwebui"]
    assert on_a_mac.pop("ports") == ["127.0.0.1:8100:8080"]
    assert on_linux.pop("networks") == {"openwebui": {"ipv4_address": "172.30.77.2"}}
    assert on_a_mac == on_linux
    assert mac["volumes"] == linux["volumes"] == {"openwebui-data": {"name": "openwebui-data"}}
    assert "networks" not in mac
    assert "x-boxwright" not in linux


@pytest.mark.skipif(shutil.which("docker") is None, reason="there is no docker here")
def test_compose_reads_it(tmp_path: Path) -> None:
    if subprocess.run(["docker", "compose", "version"], capture_output=True, check=False).returncode:
        pytest.skip("there is no Compose here")
    found = compose(in_a_container(), "/Users/a person/.colima/default/docker.sock")
    (tmp_path / "openwebui.env").write_text("A='b'\n")
    found["services"]["openwebui"]["env_file"] = [str(tmp_path / "openwebui.env")]
    (tmp_path / "compose.yml").write_text(yaml.safe_dump(found))
    command = ["docker", "compose", "--file", str(tmp_path / "compose.yml"), "config", "--quiet"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("text", ["", "{", "name: openwebui", "x-boxwright: 1"])
def test_a_compose_file_that_names_no_runtime(text: str) -> None:
    assert container.noted(text) == ""


def test_it_asks_the_gateway_by_the_name_that_it_has_for_the_mac() -> None:
    box = in_a_container(openwebui_port=8100, gateway_internal_port=8101)
    told = environment(box)
    assert told["OPENAI_API_BASE_URL"] == "http://host.docker.internal:8101/v1"
    assert told["FORWARDED_ALLOW_IPS"] == "*"
    native = environment(a_box(gateway_internal_port=8101))
    assert {key for key in told if told[key] != native[key]} <= {
        "OPENAI_API_BASE_URL",
        "FORWARDED_ALLOW_IPS",
        "WEBUI_SECRET_KEY",
        "WEBUI_ADMIN_PASSWORD",
        "OPENAI_API_KEY",
    }
    text = caddy.caddyfile(box)
    assert "reverse_proxy http://127.0.0.1:8100 {" in text
    internal = text.partition("http://127.0.0.1:8101, http://host.docker.internal:8101 {")[2].partition("\n}\n")[0]
    assert "bind 127.0.0.1\n" in internal
    assert "remote_ip 127.0.0.1/32" in internal
    # There is no address of a container network that Caddy could wait for.
    assert not box.openwebui.on_a_network(box)
    assert a_box("linux").openwebui.on_a_network(a_box("linux"))


def test_its_port_is_one_of_the_mac() -> None:
    with pytest.raises(Refused, match="port 8443 is used twice"):
        in_a_container(openwebui_port=8443)
    taken = replace(MAC, container_runtimes=(COLIMAS,), listeners={8087: ("nginx",)})
    (problem,) = examine(taken, openwebui.need(in_a_container()), "darwin")
    assert (problem.code, problem.variable) == ("BW113", "openwebui_port")
    own = replace(taken, listeners={8087: ("limactl",)})
    assert examine(own, openwebui.need(in_a_container()), "darwin") == []


def test_the_client_reads_nothing_of_a_persons() -> None:
    found = containers.environment("/Users/ada/.colima/default/docker.sock")
    assert found["DOCKER_HOST"] == "unix:///Users/ada/.colima/default/docker.sock"
    assert found["DOCKER_CONFIG"] == containers.CLIENT
    assert found["PATH"].split(":")[0] == containers.CLIENT


# The one command, on this machine, with sockets that answer as engines do


class _Engine(ThreadingMixIn, UnixStreamServer):
    daemon_threads = True
    version: dict[str, Any]


class _Answer(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        assert isinstance(self.server, _Engine)
        body = b"OK" if self.path == "/_ping" else json.dumps(self.server.version, indent=1).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def address_string(self) -> str:
        return "somebody"

    def log_message(self, *words: object) -> None: ...


@contextmanager
def engine(path: Path, version: dict[str, Any]) -> Iterator[None]:
    path.parent.mkdir(parents=True, exist_ok=True)
    server = _Engine(str(path), _Answer)
    server.version = version
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture
def top() -> Iterator[Path]:
    """A folder with a short name: that of a socket has about a hundred characters."""
    with tempfile.TemporaryDirectory(prefix="mac-") as folder:
        yield Path(folder).resolve()


@pytest.mark.skipif(shutil.which("curl") is None, reason="there is no curl here")
def test_the_sockets_of_a_mac_are_found_and_asked(top: Path) -> None:
    homes, temporary = top / "Users", top / "folders"
    colima = homes / "ada/.colima/default/docker.sock"
    podman = temporary / "1c/_h1n/T/podman/podman-machine-default-api.sock"
    link = homes / "eve/.local/share/containers/podman/machine/podman.sock"
    dead = homes / "eve/.docker/run/docker.sock"
    asked = top / "my engine.sock"
    for folder in (link.parent, dead.parent):
        folder.mkdir(parents=True)
    link.symlink_to(podman)
    (homes / "ada/.colima").mkdir(parents=True)
    # Colima keeps its former place as a link.
    (homes / "ada/.colima/docker.sock").symlink_to(colima)
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(dead))  # and nobody listens there
    with engine(colima, COLIMA), engine(podman, PODMAN), engine(asked, DESKTOP):
        command = ContainerRuntimes().command(str(asked), str(homes), str(temporary))
        done = subprocess.run(
            ["sh", "-c", str(command.get_raw_value())], capture_output=True, text=True, check=True, timeout=60
        )
    found = [one for one in ContainerRuntimes().process(done.stdout.splitlines()) if str(top) in one.real]
    assert [(one.kind, one.socket, one.state, one.version) for one in found] == [
        ("docker-desktop", str(asked), "answers", "29.1.1"),
        ("colima", str(colima), "answers", "28.4.0"),
        ("docker-desktop", str(dead), "silent", ""),
        ("podman", str(podman), "answers", "5.7.0"),
    ]
    assert all(one.owner for one in found)
    assert "connect" in found[2].said.lower()
    assert kind_of(str(link)) == ("podman", "")


# Which engine the steps ask


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """The steps of the role, none of which is done: name, and the socket that it asks, empty for the box's own."""
    done: list[tuple[str, str]] = []

    def step(*words: Any, name: str = "", **arguments: Any) -> None:
        done.append((name, arguments.get("_env", {}).get("DOCKER_HOST", "").removeprefix("unix://")))

    for module in (container.docker, container.files, container.client):
        for called in ("image", "image_absent", "network", "network_absent", "compose_project", "compose_absent"):
            if hasattr(module, called):
                monkeypatch.setattr(module, called, step)
    for called in ("content", "directory", "absent"):
        monkeypatch.setattr(container.files, called, step)
    monkeypatch.setattr(container.client, "client", lambda role: step(name=f"{role}: client"))
    monkeypatch.setattr(container.client, "client_absent", lambda role: step(name=f"{role}: no client"))
    for called in ("install", "configure", "activate", "remove"):
        monkeypatch.setattr(native, called, lambda *words, called=called, **more: step(name=f"native: {called}"))
    return done


class Target:
    """The host of a run: keeps what is said of it, and has a Compose file."""

    def __init__(self, text: str) -> None:
        self.text, self.said = text, ""

    def get_fact(self, fact: object, path: str) -> str:
        return self.text

    def log(self, words: str, *how: object) -> None:
        self.said += words


def test_the_runtime_is_asked_and_its_container_is_in_no_other(
    monkeypatch: pytest.MonkeyPatch, steps: list[tuple[str, str]]
) -> None:
    monkeypatch.setattr(container, "target", target := Target(""))
    machine = replace(MAC, container_runtimes=(COLIMAS, ORBS, OFF))
    openwebui.apply(in_a_container(host_container_socket=ORBS.socket), machine)
    asked = [(name, where) for name, where in steps if where]
    assert [where for _, where in asked] == [ORBS.socket, COLIMAS.socket, ORBS.socket]
    assert asked[1][0] == f"openwebui: no container in {COLIMAS}"
    assert asked[2][0] == "openwebui: running"
    assert "openwebui: network" not in dict(steps)
    assert "before eve has signed in" in target.said


def test_on_linux_the_boxs_own_engine_is_asked(steps: list[tuple[str, str]]) -> None:
    linux = replace(MAC, kernel="Linux", distribution="debian", release="13", systemd=True)
    openwebui.apply(a_box("linux"), linux)
    assert {where for _, where in steps} == {""}
    assert "openwebui: network" in dict(steps)
    assert "openwebui: client" not in dict(steps)


@pytest.mark.parametrize("text", [f"x-boxwright:\n  socket: {ORBS.socket}\n", "name: openwebui\n"])
def test_what_is_changed_over_from_goes_before_its_port_is_needed(
    monkeypatch: pytest.MonkeyPatch, steps: list[tuple[str, str]], text: str
) -> None:
    monkeypatch.setattr(container, "target", Target(text))
    there = replace(MAC, files=frozenset({container.COMPOSE, native.BASE}), container_runtimes=(COLIMAS,))
    openwebui.apply(a_box(host_container_socket=ORBS.socket), there)
    names = [name for name, _ in steps]
    # Where it was started, which the Compose file says, else the variable.
    assert dict(steps)["openwebui: remove the containers"] == ORBS.socket
    assert names.index("openwebui: remove the project") < names.index("native: activate")
    steps.clear()
    openwebui.apply(in_a_container(), there)
    names = [name for name, _ in steps]
    assert names.index("native: remove") < names.index("openwebui: running")


def test_without_a_project_no_runtime_is_asked_when_it_is_removed(
    monkeypatch: pytest.MonkeyPatch, steps: list[tuple[str, str]]
) -> None:
    monkeypatch.setattr(container, "target", Target(""))
    openwebui.remove(a_box(), purge=True)
    assert [name for name, _ in steps] == ["native: remove"]
