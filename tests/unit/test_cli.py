"""The command line as a person or a script meets it: each case is a process. No case runs a real deploy."""

from __future__ import annotations

import base64
import json
import os
import pty
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

# The command with other deploys than the real ones, and with a mistake to make on demand.
COMMAND = """
import os, sys
from boxwright import cli
cli.STACK = cli.REMOVE = os.environ["TEST_DEPLOY"]
if os.environ.get("TEST_MISTAKE"):
    def mistake(*_, **__):
        import boxwright.inventory
        host, = boxwright.inventory.load()
        raise RuntimeError("unforeseen " + host.box.gateway.password.get_secret_value())
    cli.cli.commands["validate"].callback = mistake
cli.main()
"""

INVENTORY = """
linux:
  hosts:
    one:
      ansible_connection: local
      gateway_names: [one.test]
      inference_models:
        - name: local-llm
          url: https://models.test/one.gguf
          sha256: {sha}
          size: 98362432
"""

CHANGES = """
from pyinfra import host
from pyinfra.operations import files
files.directory(name="docker: make the folder", path="{folder}/made")
"""


class Done:
    """An ended command."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err
        assert "Traceback" not in out + err

    def json(self) -> Any:
        """Standard output, which must be one JSON document and nothing else."""
        return json.loads(self.out)


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    (tmp_path / "hosts.yml").write_text(INVENTORY.format(sha="ab" * 32))
    (tmp_path / "deploy.py").write_text(CHANGES.format(folder=tmp_path))
    (tmp_path / "home").mkdir()
    return {
        **{key: value for key, value in os.environ.items() if key not in {"NO_COLOR", "FORCE_COLOR"}},
        "HOME": str(tmp_path / "home"),
        "BOXWRIGHT_STATE_DIR": str(tmp_path / "state"),
        "BOXWRIGHT_INVENTORY": str(tmp_path / "hosts.yml"),
        "TEST_DEPLOY": str(tmp_path / "deploy.py"),
    }


@pytest.fixture
def boxwright(environment: dict[str, str]) -> Callable[..., Done]:
    def call(*arguments: str, **more: str) -> Done:
        done = subprocess.run(
            [sys.executable, "-c", COMMAND, *arguments],
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            env={**environment, **more},
            timeout=120,
            check=False,
        )
        return Done(done.returncode, done.stdout, done.stderr)

    return call


@pytest.mark.parametrize("arguments", [["--help"], ["plan", "--help"], ["lab", "--help"], ["lab", "up", "--help"]])
def test_help_brings_nothing_heavy_with_it(arguments: list[str]) -> None:
    heavy = [
        "pyinfra",
        "ansible",
        "rich",
        "pydantic",
        "requests",
        "jinja2",
        "docker",
        "gevent",
        "paramiko",
        "testinfra",
    ]
    program = textwrap.dedent(
        f"""
        import sys
        from boxwright.cli import main
        try:
            main({arguments})
        except SystemExit as ended:
            print("LOADED", sorted(set({heavy}) & set(sys.modules)), ended.code)
        """
    )
    out = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert out.splitlines()[-1] == "LOADED [] 0"
    assert "Usage: " in out


def test_every_command_is_in_the_help(boxwright: Callable[..., Done]) -> None:
    listed = boxwright("--help").out
    for command in ("plan", "apply", "remove", "verify", "validate", "explain", "lab", "docs", "secret"):
        assert f"\n  {command} " in listed


def test_an_explanation_is_data(boxwright: Callable[..., Done]) -> None:
    done = boxwright("explain", "gateway_port")
    assert (done.code, done.err) == (0, "")
    assert done.out.startswith("gateway_port\n")


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["plan"], 0),
        (["plan", "--exit-code"], 3),
        (["apply", "--no-check"], 0),
        (["remove"], 0),
        (["validate"], 0),
        (["plan", "--limit", "linux"], 0),
        (["plan", "--limit", "nosuch"], 2),
        (["apply", "--limit", "nosuch"], 2),
        (["validate", "--inventory", "/no/such/inventory"], 2),
        (["apply", "--no-such-option"], 2),
        (["no-such-command"], 2),
        (["plan", "--format", "poetry"], 2),
        (["secret", "show", "docker_enabled"], 2),
        (["explain", "no-such-word"], 2),
        (["explain"], 2),
    ],
)
def test_exit_codes(boxwright: Callable[..., Done], arguments: list[str], code: int) -> None:
    done = boxwright(*arguments)
    assert done.code == code, done.err
    assert done.out == ""  # words go to standard error
    assert done.err.strip()


def test_exit_codes_of_failures(boxwright: Callable[..., Done], tmp_path: Path) -> None:
    (tmp_path / "deploy.py").write_text(
        'from pyinfra.operations import server\nserver.shell(name="gateway: break", commands=["false"])\n'
    )
    failed = boxwright("apply")
    assert failed.code == 1
    assert "FAILED: gateway: break" in failed.err
    (tmp_path / "hosts.yml").write_text(
        INVENTORY.format(sha="ab" * 32).replace(
            "ansible_connection: local", "ansible_host: 127.0.0.1\n      ansible_port: 1"
        )
    )
    unreachable = boxwright("plan")
    assert unreachable.code == 1
    assert "no usable connection, nothing was changed" in unreachable.err


def test_a_plan_then_an_apply_then_nothing_pending(boxwright: Callable[..., Done], tmp_path: Path) -> None:
    plan = boxwright("plan", "--json", "--exit-code")
    assert plan.code == 3
    assert plan.json()["changed"] == 1
    assert plan.json()["dry"] is True
    assert not (tmp_path / "made").exists()
    applied = boxwright("apply", "--no-check", "--json")
    assert applied.code == 0
    assert applied.json()["hosts"]["one"]["changed"] == ["docker: make the folder"]
    assert (tmp_path / "made").is_dir()
    again = boxwright("apply", "--no-check", "--json")
    assert again.json()["changed"] == 0
    assert boxwright("plan", "--exit-code").code == 0


def test_the_plain_command_is_named(boxwright: Callable[..., Done], environment: dict[str, str]) -> None:
    assert f"pyinfra inventory.py {environment['TEST_DEPLOY']} --dry" in boxwright("plan").err
    assert (
        f"pyinfra inventory.py {environment['TEST_DEPLOY']} -y --data purge=true" in boxwright("remove", "--purge").err
    )


def test_the_plain_command_has_the_same_target(boxwright: Callable[..., Done], environment: dict[str, str]) -> None:
    said = boxwright("plan", "--inventory", environment["BOXWRIGHT_INVENTORY"], "--limit", "one,linux", "--diff").err
    wanted = f"BOXWRIGHT_INVENTORY={environment['BOXWRIGHT_INVENTORY']} pyinfra inventory.py "
    assert wanted in said
    assert said.splitlines()[0].endswith(" --dry --diff --limit one --limit linux")


def test_purge_reaches_the_deploy(boxwright: Callable[..., Done], tmp_path: Path) -> None:
    (tmp_path / "deploy.py").write_text(
        "from pyinfra import host\nfrom pyinfra.operations import server\n"
        'server.shell(name=f"gateway: purge {host.data.get(\'purge\', False)}", commands=["true"])\n'
    )
    assert "gateway: purge False" in boxwright("remove").err
    assert "gateway: purge True" in boxwright("remove", "--purge").err


def test_refusals_as_text_on_one_line_and_as_json(boxwright: Callable[..., Done], tmp_path: Path) -> None:
    (tmp_path / "hosts.yml").write_text(
        INVENTORY.format(sha="ab" * 32) + "      gateway_prot: 443\n      ansible_port: many\n"
    )
    full = boxwright("plan")
    assert full.code == 2
    assert "error[BW012]" in full.err
    assert "did you mean `gateway_port`?" in full.err
    concise = boxwright("plan", "--format", "concise")
    assert any("hosts.yml:12:7: BW012" in line for line in concise.err.splitlines())
    for arguments in (["plan", "--json"], ["apply", "--format", "json"], ["validate", "--format=json"]):
        done = boxwright(*arguments)
        assert done.code == 2
        found = {(each["code"], each["variable"], each["line"]) for each in done.json()["problems"]}
        assert found == {("BW012", "gateway_prot", 12), ("BW100", "ansible_port", 13)}


def test_a_wrong_connection_variable_is_refused_with_its_place(boxwright: Callable[..., Done], tmp_path: Path) -> None:
    (tmp_path / "hosts.yml").write_text(INVENTORY.format(sha="ab" * 32) + "      ansible_port: many\n")
    for command in ("plan", "validate"):
        problem = boxwright(command, "--json").json()["problems"][0]
        assert (problem["code"], problem["variable"], problem["line"]) == ("BW100", "ansible_port", 12)


def test_a_secret_is_shown_when_asked_for_and_only_then(boxwright: Callable[..., Done], tmp_path: Path) -> None:
    (tmp_path / "deploy.py").write_text(
        "import base64\nfrom pyinfra import host\nfrom pyinfra.operations import server\n"
        "secret = host.data.box.gateway.password.get_secret_value()\n"
        "coded = base64.b64encode(secret.encode()).decode()\n"
        'server.shell(name="gateway: tell " + secret, commands=[f"echo {secret} {coded}; exit 1"])\n'
    )
    shown = boxwright("secret", "show", "gateway_password")
    secret = shown.out.strip()
    assert shown.code == 0
    assert len(secret) >= 20
    for arguments in (["apply", "-vvv"], ["apply", "--json"], ["plan"], ["plan", "--json"]):
        done = boxwright(*arguments)
        everything = done.out + done.err + "".join(log.read_text() for log in (tmp_path / "state/log").iterdir())
        assert secret not in everything
        assert base64.b64encode(secret.encode()).decode() not in everything
    assert "gateway: tell ***" in done.out  # the masked text did come by


def test_several_hosts_need_a_limit_for_a_secret(boxwright: Callable[..., Done], tmp_path: Path) -> None:
    text = INVENTORY.format(sha="ab" * 32)
    (tmp_path / "hosts.yml").write_text(text + text.partition("hosts:\n")[2].replace("one:", "two:"))
    assert boxwright("secret", "show", "gateway_password").code == 2
    assert boxwright("secret", "show", "gateway_password", "--limit", "two").code == 0


def test_an_unforeseen_mistake_is_one_line_without_secrets(boxwright: Callable[..., Done], tmp_path: Path) -> None:
    secret = boxwright("secret", "show", "gateway_password").out.strip()
    done = boxwright("validate", TEST_MISTAKE="yes")
    assert done.code == 1
    assert len(done.err.splitlines()) == 1
    assert "RuntimeError: unforeseen ***" in done.err
    (log,) = (tmp_path / "state/log").glob("*-error-*.log")
    assert str(log) in done.err
    assert log.stat().st_mode & 0o777 == 0o600
    text = log.read_text()
    assert "Traceback" in text
    assert secret not in text


def test_no_summary_unless_the_box_answered_from_outside(boxwright: Callable[..., Done]) -> None:
    done = boxwright("apply")
    assert done.code == 1
    assert "error[BW203]" in done.err
    assert "Next:" not in done.err


def test_an_interrupt_ends_with_130(environment: dict[str, str], tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "started")
    (tmp_path / "deploy.py").write_text(
        "from pyinfra.operations import server\n"
        f'server.shell(name="gateway: slow", commands=["echo $$ > {tmp_path}/started; exec sleep 300"])\n'
    )
    process = subprocess.Popen(
        [sys.executable, "-c", COMMAND, "apply", "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )
    sleeper = int((tmp_path / "started").read_text())
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    os.kill(sleeper, signal.SIGKILL)
    done = Done(process.returncode, out, err)
    assert done.code == 130
    assert done.json()["interrupted"] is True
    assert "interrupted during: gateway: slow" in done.err


def test_a_reader_that_goes_away_is_no_traceback(environment: dict[str, str]) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "-c", COMMAND, "plan", "--json"],
        stdout=writer,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )
    os.close(writer)
    assert "Traceback" not in done.stderr
    assert "BrokenPipe" not in done.stderr
    assert done.returncode == 1


def on_a_terminal(environment: dict[str, str], *arguments: str) -> str:
    """What the command writes where its output is a terminal."""
    master, slave = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", COMMAND, *arguments], stdin=slave, stdout=slave, stderr=slave, env=environment
    )
    os.close(slave)
    said = b""
    try:
        while piece := os.read(master, 65536):
            said += piece
    except OSError:  # Linux: the last writer has gone
        pass
    os.close(master)
    process.wait(timeout=120)
    return said.decode()


def test_colour_only_on_a_terminal_that_wants_it(environment: dict[str, str], boxwright: Callable[..., Done]) -> None:
    environment["TERM"] = "xterm"
    assert "\033[33mchanged:\033[0m" in on_a_terminal(environment, "apply", "--no-check")
    for without in ({"NO_COLOR": "1"}, {"TERM": "dumb"}):
        said = on_a_terminal({**environment, **without}, "plan")
        assert "docker: " in said or "no changes pending" in said
        assert "\033[3" not in said
        assert "\033[1" not in said
    assert "\033" not in on_a_terminal(environment, "plan", "--plain")
    assert "\033" not in boxwright("plan").err


def test_our_own_words_are_ascii(boxwright: Callable[..., Done], tmp_path: Path) -> None:
    assert boxwright("plan", LC_ALL="C").err.isascii()
    (tmp_path / "deploy.py").write_text(
        'from pyinfra.operations import server\nserver.shell(name="gateway: break", commands=["exit 1"])\n'
    )
    done = boxwright("apply", LC_ALL="C")
    assert done.code == 1
    assert done.err.isascii()
