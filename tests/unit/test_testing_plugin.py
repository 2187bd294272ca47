"""The pytest plugin and `boxwright verify`, on small projects of their own in processes of their own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from test_connectors import Box

from boxwright.connection import from_variables
from boxwright.errors import Failed
from boxwright.testing import hosts
from boxwright.testing.plugin import role_of

HOST = """
    {name}:
      ansible_connection: local
      docker_enabled: {enabled}
      openwebui_enabled: false
      gateway_names: [{name}.test]
      inference_models:
        - name: local-llm
          url: https://models.test/one.gguf
          sha256: abababababababababababababababababababababababababababababababab
          size: 98362432
"""

CHECKS = {
    "docker": '''
def test_runs(host, box):
    """It runs.

    More words that nobody reads."""
    assert host.check_output("echo %s", box.name) == box.name


def test_odd(host):
    """One is two."""
    assert host.run("echo one").stdout.strip() == "two"
''',
    "host": '''
import pytest


def test_only_host(host):
    """Commands run."""
    assert host.run("exit 3").rc == 3


@pytest.mark.system("darwin")
def test_of_a_mac(host):
    """Never run on Linux."""
    raise AssertionError
''',
}


@pytest.fixture
def project(tmp_path: Path) -> Path:
    hosts = HOST.format(name="one", enabled="true") + HOST.format(name="two", enabled="false")
    (tmp_path / "hosts.yml").write_text("linux:\n  hosts:\n" + hosts)
    (tmp_path / "pyproject.toml").write_text(
        '[tool.pytest.ini_options]\naddopts = ["--import-mode=importlib", "-ra"]\n'
    )
    # The real roles are known before pytest meets a folder of that name here.
    (tmp_path / "conftest.py").write_text("from boxwright.inventory import box_class\n\nbox_class()\n")
    for role, text in CHECKS.items():
        (tmp_path / "roles" / role).mkdir(parents=True)
        (tmp_path / "roles" / role / "checks.py").write_text(text)
    return tmp_path


def execute(project: Path, *command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *command],
        cwd=project,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        env={
            **os.environ,
            "BOXWRIGHT_STATE_DIR": str(project / "state"),
            "BOXWRIGHT_INVENTORY": str(project / "hosts.yml"),
            **environment,
        },
    )


VERIFY = """
import pathlib, boxwright.testing.verify as verify
verify.repository_root = lambda: pathlib.Path(".").absolute()
from boxwright.cli import main
main()
"""


def test_checks_run_once_for_each_host_that_has_the_role(project: Path) -> None:
    done = execute(project, "-m", "pytest", "-v", "-o", "python_files=checks.py", "roles")
    lines = [line.split(" ")[0:2] for line in done.stdout.splitlines() if line.startswith("roles/") and "[" in line]
    assert sorted(line[0] for line in lines) == [
        "roles/docker/checks.py::test_odd[one]",
        "roles/docker/checks.py::test_runs[one]",
        "roles/host/checks.py::test_only_host[one]",
        "roles/host/checks.py::test_only_host[two]",
    ]
    assert "1 failed, 3 passed, 4 deselected" in done.stdout


def test_the_limit_and_the_inventory_can_be_chosen(project: Path) -> None:
    (project / "hosts.yml").rename(project / "other.yml")
    arguments = (
        "-q",
        "-o",
        "python_files=checks.py",
        "--boxwright-inventory",
        "other.yml",
        "--boxwright-limit",
        "two",
        "roles",
    )
    assert "1 passed, 3 deselected" in execute(project, "-m", "pytest", *arguments).stdout


def test_a_refused_inventory_is_said_in_our_words(project: Path) -> None:
    done = execute(project, "-m", "pytest", "-o", "python_files=checks.py", "--boxwright-limit", "nosuch", "roles")
    assert done.returncode == 4
    assert (done.stdout + done.stderr).count("error[BW006]") == 1
    assert "Traceback" not in done.stdout + done.stderr


def test_other_tests_of_testinfra_are_left_alone(project: Path) -> None:
    (project / "test_mine.py").write_text(
        'testinfra_hosts = ["local://"]\n\n\n'
        'def test_mine(host):\n    assert host.backend.get_connection_type() == "local"\n'
    )
    (project / "test_yours.py").write_text(
        'def test_yours(host):\n    assert host.backend.get_connection_type() == "local"\n'
    )
    (project / "hosts.yml").unlink()  # it is not even asked for
    assert "2 passed" in execute(project, "-m", "pytest", "-q", "test_mine.py", "test_yours.py").stdout


def test_verify_says_one_line_for_each_check(project: Path) -> None:
    done = execute(project, "-c", VERIFY, "verify")
    assert done.returncode == 1
    assert done.stdout == ""
    lines = done.stderr.splitlines()
    assert "ok      one  docker: It runs" in lines
    assert "failed  one  docker: One is two" in lines
    assert "ok      two  host: Commands run" in lines
    assert any("(roles/docker/checks.py:11)" in line for line in lines)
    assert lines[-1] == "3 checks ok, 1 failed, 0 skipped"
    chosen = execute(project, "-c", VERIFY, "verify", "--limit", "two")
    assert chosen.returncode == 0
    assert execute(project, "-c", VERIFY, "verify", "-k", "runs").returncode == 0


def test_verify_as_json(project: Path) -> None:
    done = execute(project, "-c", VERIFY, "verify", "--json")
    told = json.loads(done.stdout)
    assert done.returncode == 1
    assert told["ok"] is False
    assert told["failures"] == ["one docker: One is two"]
    assert {(check["host"], check["role"], check["outcome"]) for check in told["checks"]} == {
        ("one", "docker", "ok"),
        ("one", "docker", "failed"),
        ("one", "host", "ok"),
        ("two", "host", "ok"),
    }


@pytest.mark.parametrize(
    ("arguments", "words"), [(["-k", "no_such_check"], "no check was chosen"), (["--limit", "nosuch"], "error[BW006]")]
)
def test_verify_refuses(project: Path, arguments: list[str], words: str) -> None:
    done = execute(project, "-c", VERIFY, "verify", *arguments)
    assert done.returncode == 2
    assert words in done.stderr


def test_checks_that_cannot_be_read_are_a_failure(project: Path) -> None:
    (project / "roles/host/checks.py").write_text("import no_such_module\n")
    done = execute(project, "-c", VERIFY, "verify")
    assert done.returncode == 1
    assert "broken" in done.stderr
    assert "no_such_module" in done.stderr
    assert "Traceback" not in done.stderr


def test_roles_by_path() -> None:
    assert role_of(Path("/x/roles/gateway/checks.py")) == "gateway"
    assert role_of(Path("/x/tests/caddy/checks.py")) is None
    assert role_of(Path("/x/roles/gateway/tasks.py")) is None


# The backend, over real SSH


class Inventoried:
    """As boxwright.inventory.InventoryHost, with no settings."""

    def __init__(self, name: str, variables: dict[str, Any]) -> None:
        self.name, self.variables, self.box = name, variables, None


@pytest.fixture
def backend(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.setenv("BOXWRIGHT_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.setenv("HOME", str(tmp_path))
    boxes: list[Box] = []

    def make(secret: str | None = None, **variables: Any) -> tuple[Box, hosts.BoxBackend]:
        box = Box(tmp_path / "box", **({} if secret is None else {"SUDO_SECRET": secret}))
        boxes.append(box)
        hosts.use([Inventoried("box", box.variables(**variables))])
        return box, hosts.BoxBackend("box")

    yield make
    hosts.close_connections()
    for box in boxes:
        box.process.kill()
        box.process.communicate()


def test_commands_share_one_connection(backend: Any) -> None:
    _, reached = backend()
    assert reached.run("echo %s; exit 4", "two words").stdout == "two words\n"
    assert reached.run("exit 4").rc == 4
    control = Path(hosts.BoxBackend._control.name)
    assert len(list(control.iterdir())) == 1
    hosts.close_connections()
    assert not control.exists()


def test_checks_run_as_root_where_the_inventory_says_so(backend: Any) -> None:
    _, reached = backend("", ansible_become=True)
    assert reached.run("echo $RAN_AS").stdout == "root\n"


def test_a_sudo_password_is_no_argument_and_no_input_of_the_check(backend: Any) -> None:
    box, reached = backend("sesame street", ansible_become=True, ansible_become_password="sesame street")
    assert reached.run("echo $RAN_AS; cat").stdout == "root\n"
    assert "sesame" not in box.commands


def test_a_sudo_password_that_is_wrong_or_missing_is_said(backend: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hosts, "has_terminal", lambda: False)
    _, reached = backend("sesame street", ansible_become=True, ansible_become_password="wrong word")
    with pytest.raises(Failed, match="did not accept the password"):
        reached.run("true")
    reached.tested.connection = reached.connection = from_variables(
        "box", {**reached_variables(reached), "ansible_become": True}
    )
    reached._sudo = None
    with pytest.raises(Failed, match="no terminal"):
        reached.run("true")


def reached_variables(reached: hosts.BoxBackend) -> dict[str, Any]:
    connection = reached.connection
    return {
        "ansible_host": connection.address,
        "ansible_port": connection.port,
        "ansible_user": connection.user,
        "ansible_ssh_private_key_file": connection.key_file,
        "ansible_ssh_common_args": f"-o UserKnownHostsFile={connection.known_hosts_files[0]}",
    }


def test_an_unknown_host_key_fails_the_check_and_asks_nobody(backend: Any) -> None:
    box, reached = backend()
    box.known_hosts.write_text("")
    with pytest.raises(RuntimeError, match="Host key verification failed"):
        reached.run("true")
    assert box.commands == ""


def test_a_login_password_works_without_a_prompt(backend: Any) -> None:
    box, reached = backend(ansible_password="login-word")
    (box.folder / "authorized.pub").unlink()
    assert reached.run("echo in").stdout == "in\n"


@pytest.mark.parametrize(
    ("message", "line"),
    [
        (
            "AssertionError: Unexpected exit code 1 for CommandResult(backend=<B object at 0x7f>, exit_status=1, "
            "command=b'stat -c %U /proc/0', _stdout=b'', _stderr=b\"stat: cannot statx '/proc/0': No such file\\n\")",
            "`stat -c %U /proc/0` on the box ended with 1: stat: cannot statx '/proc/0': No such file",
        ),
        (
            "AssertionError: Unexpected exit code 7 for CommandResult(backend=<B>, exit_status=7, "
            "command=b'curl --fail', _stdout=b'', _stderr=b'')",
            "`curl --fail` on the box ended with 7",
        ),
        ("AssertionError: assert set() == {'127.0.0.1'}\n  \n  Extra items:", "assert set() == {'127.0.0.1'}"),
        ("assert 404 == 200\n +  where 404 = <Response [404]>.status_code", "assert 404 == 200"),
    ],
)
def test_why_a_check_failed_is_one_line(message: str, line: str) -> None:
    from boxwright.testing.verify import _in_one_line

    assert _in_one_line(message) == line
