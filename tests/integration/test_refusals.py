"""Mistakes are named before anything is touched: the variable, its place, what was expected, what to do."""

from __future__ import annotations

import re
import shlex
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from kit import Done, Lab

REFUSED = 2
MODEL = """
      inference_models:
        - name: local-llm
          url: https://models.example/tiny.gguf
          sha256: b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53
          size: 98362432
"""


class Door:
    """A TCP port on loopback that counts who knocks: refusals must come before the first connection."""

    def __init__(self) -> None:
        self.knocks = 0
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port = self._socket.getsockname()[1]
        threading.Thread(target=self._count, daemon=True).start()

    def _count(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            self.knocks += 1
            connection.close()

    def close(self) -> None:
        self._socket.close()


@dataclass
class Desk:
    """A folder with an inventory, for commands that are to be refused."""

    lab: Lab
    door: Door
    folder: Path
    inventory: Path = field(init=False)

    def __post_init__(self) -> None:
        self.inventory = self.folder / "hosts.yml"

    def write(self, variables: str, hosts: str = "box") -> None:
        """An inventory with one host, at the door, and these lines of variables."""
        lines = [
            "linux:",
            "  hosts:",
            f"    {hosts}:",
            "      ansible_host: 127.0.0.1",
            f"      ansible_port: {self.door.port}",
        ]
        for line in variables.strip("\n").splitlines():
            lines.append("      " + line if not line.startswith("      ") else line)
        self.inventory.write_text("\n".join(lines) + "\n", encoding="utf-8")

    def line_of(self, text: str) -> int:
        """Number of the line of the inventory that begins with `text`."""
        lines = self.inventory.read_text(encoding="utf-8").splitlines()
        return next(number for number, line in enumerate(lines, 1) if line.strip().startswith(text))

    def run(self, command: str) -> Done:
        return self.lab.run(*shlex.split(command), inventory=self.inventory)

    def refused(self, command: str) -> str:
        """What a command says that refuses, in words for people; it must not have knocked."""
        done = self.run(command).expect(REFUSED)
        assert self.door.knocks == 0
        assert "Traceback" not in done.text
        return done.err


@pytest.fixture(scope="module")
def nowhere() -> Iterator[Lab]:
    """A session without boxes: no container engine is needed to be refused."""
    session = Lab()
    yield session
    session.close()


@pytest.fixture
def desk(nowhere: Lab, tmp_path: Path) -> Iterator[Desk]:
    door = Door()
    yield Desk(nowhere, door, tmp_path)
    door.close()


@dataclass(frozen=True)
class Wrong:
    """Lines of variables that are wrong, the line that is to be named, and what must be said about it."""

    name: str
    variables: str
    at: str
    says: tuple[str, ...]


MINIMAL = f"gateway_names: [llm.example.internal]{MODEL}"
CASES = [
    Wrong(
        "unknown variable",
        MINIMAL + "gateway_prot: 8443",
        "gateway_prot",
        ("`gateway_prot`", "did you mean `gateway_port`?"),
    ),
    Wrong("wrong type", MINIMAL + "gateway_port: high", "gateway_port", ("`gateway_port`", "1 to 65535")),
    Wrong("outside its limits", MINIMAL + "llamacpp_port: 70000", "llamacpp_port", ("`llamacpp_port`", "65535")),
    Wrong(
        "port used twice",
        MINIMAL + "llamacpp_port: 443",
        "llamacpp_port",
        ("port 443", "`gateway_port`", "`llamacpp_port`", "another port"),
    ),
    Wrong(
        "open to a network without authentication",
        MINIMAL + 'gateway_bind: ["0.0.0.0"]\ngateway_auth: none',
        "gateway_auth",
        ("`gateway_auth`", "0.0.0.0", "gateway_auth: any"),
    ),
    Wrong(
        "larger than the memory",
        MINIMAL + "host_memory: 64MiB",
        "inference_models",
        ("inference_models", "memory", "`host_memory`", "smaller model"),
    ),
    Wrong(
        "larger than the disk",
        MINIMAL + "host_disk: 64MiB",
        "inference_models",
        ("inference_models", "disk", "`host_disk`", "smaller model"),
    ),
    Wrong(
        "no vault password",
        MINIMAL
        + "gateway_password: !vault |\n  $ANSIBLE_VAULT;1.1;AES256\n  3338626564633731643131643765396236643163623464363865653965",  # noqa: E501 -- as ansible-vault writes it
        "gateway_password",
        ("`gateway_password`", "ansible-vault", "ANSIBLE_VAULT_PASSWORD_FILE"),
    ),
    Wrong("blank secret", MINIMAL + 'gateway_password: ""', "gateway_password", ("`gateway_password`",)),
    Wrong(
        "part of a variable misspelt",
        "gateway_names: [llm.example.internal]" + MODEL.replace("sha256:", "sha265:"),
        "sha265",
        ("sha265", "`sha256`"),
    ),
    Wrong(
        "roles that contradict each other",
        MINIMAL + "docker_enabled: false",
        "docker_enabled",
        ("`docker_enabled`", "Open WebUI", "openwebui_enabled: false"),
    ),
    Wrong(
        "connection that is not supported",
        MINIMAL + "ansible_connection: winrm",
        "ansible_connection",
        ("`ansible_connection`", "ssh", "local"),
    ),
    Wrong(
        "key set twice", MINIMAL + "gateway_port: 443\ngateway_port: 8443", "gateway_port", ("`gateway_port`", "twice")
    ),
]


@pytest.mark.parametrize("wrong", CASES, ids=lambda wrong: wrong.name)
def test_refused_with_place_and_way_out(desk: Desk, wrong: Wrong) -> None:
    desk.write(wrong.variables)
    said = desk.refused("boxwright validate")
    places = [int(line) for line in re.findall(r"hosts\.yml:(\d+):\d+", said)]
    lines = {desk.line_of(wrong.at)}
    if wrong.name == "key set twice":
        lines = {lines.pop() + 1}
    assert lines <= set(places), said
    for words in wrong.says:
        assert words in said, said
    assert "help:" in said or wrong.name == "wrong type", said


ALL_AT_ONCE = (
    MINIMAL
    + 'gateway_prot: 8443\ngateway_in_flight: many\nhost_memory: 64MiB\ngateway_bind: ["0.0.0.0"]\ngateway_auth: none'
)
EVERY_COMMAND = (
    "boxwright validate",
    "boxwright plan",
    "boxwright apply",
    "boxwright remove",
    "boxwright verify",
    "pyinfra -y inventory.py deploys/stack.py",
    "pyinfra --dry inventory.py deploys/stack.py",
    "pyinfra inventory.py exec -- true",
)


@pytest.mark.parametrize("command", EVERY_COMMAND)
def test_every_command_refuses_with_everything_that_is_wrong(desk: Desk, command: str) -> None:
    desk.write(ALL_AT_ONCE)
    said = desk.refused(command)
    for variable in ("gateway_prot", "gateway_in_flight"):
        assert f"hosts.yml:{desk.line_of(variable)}:" in said
        assert f"`{variable}`" in said


def test_contradictions_are_all_said_at_once(desk: Desk) -> None:
    desk.write(MINIMAL + 'host_memory: 64MiB\ngateway_bind: ["0.0.0.0"]\ngateway_auth: none\ndocker_enabled: false')
    said = desk.refused("boxwright plan")
    for variable in ("inference_models", "gateway_auth", "docker_enabled"):
        assert f"hosts.yml:{desk.line_of(variable)}:" in said


def test_required_variables_that_are_missing(desk: Desk) -> None:
    desk.write("openwebui_enabled: false")
    said = desk.refused("boxwright plan")
    assert "`gateway_names`" in said
    desk.write("openwebui_enabled: false\ngateway_names: [llm.example]")
    said = desk.refused("boxwright plan")
    assert "no chat model is declared" in said
    assert "`inference_models`" in said


@pytest.mark.parametrize(
    "command",
    ["boxwright plan --limit bax", "boxwright apply --limit bax", "boxwright verify --limit bax",
     "pyinfra -y --limit bax inventory.py deploys/stack.py"],
)  # fmt: skip
def test_an_unknown_host_in_limit(desk: Desk, command: str) -> None:
    desk.write(MINIMAL)
    said = desk.refused(command)
    assert "bax" in said
    assert "box" in said.replace("bax", "").replace("boxwright", "")


def test_a_file_that_is_not_yaml(desk: Desk) -> None:
    desk.write(MINIMAL + "gateway_names: [unfinished")
    assert re.search(r"hosts\.yml:\d+:\d+", desk.refused("boxwright plan"))


def test_no_inventory(desk: Desk) -> None:
    desk.inventory = desk.folder / "missing.yml"
    said = desk.refused("boxwright plan")
    assert "missing.yml" in said


def test_the_same_as_json(desk: Desk) -> None:
    """Programs get code, variable, file, line and column of every problem on standard output."""
    desk.write(ALL_AT_ONCE)
    done = desk.run("boxwright plan --format json").expect(REFUSED)
    problems = {problem["variable"]: problem for problem in done.json["problems"]}
    assert {"gateway_prot", "gateway_in_flight"} <= set(problems)
    for variable in ("gateway_prot", "gateway_in_flight"):
        problem = problems[variable]
        assert re.fullmatch(r"BW\d{3}", problem["code"])
        assert Path(problem["path"]).resolve() == desk.inventory.resolve()
        assert problem["line"] == desk.line_of(variable)
        assert problem["column"] >= 7
    text = desk.inventory.read_text(encoding="utf-8").splitlines()
    typed = problems["gateway_in_flight"]
    assert text[typed["line"] - 1][typed["column"] - 1 :] == "many"
