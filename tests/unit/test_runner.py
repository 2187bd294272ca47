"""Runs of small deploys, each in a process of its own: on pyinfra's fake hosts, and here in a temporary folder."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

PROGRAM = """
import json, os, sys
from boxwright import runner
from boxwright.masking import register
from boxwright.output import Output
from boxwright.results import report
from pathlib import Path
given = json.load(sys.stdin)
register(["canary-in-a-coal-mine"])
quick = {"fake_delay": 0, "fake_delay_jitter": 0}
targets = [
    runner.Target(host["name"], host.get("at", f"@fake/{host['name']}"), {**quick, **host.get("data", {})})
    for host in given["hosts"]
]
output = Output(verbosity=given.get("verbosity", 0))
try:
    options = {"dry": given.get("dry", False), "data": given.get("data"), "output": output}
    result = runner.execute(Path(given["deploy"]), targets, **options)
except runner.Refused as refused:
    print(json.dumps({"refused": [problem.message for problem in refused.problems]}))
    raise SystemExit(2)
report(result, output)
print(json.dumps(result.to_json()))
sys.stdout.flush()
os._exit(result.exit_code)
"""


class Run:
    """How a run ended: exit code, the JSON it printed, and the words on standard error."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.err = code, err
        self.result: dict[str, Any] = json.loads(out)
        self.lines = err.splitlines()
        assert "Traceback" not in err


@pytest.fixture
def start(tmp_path: Path) -> Callable[..., subprocess.Popen[str]]:
    def go(text: str, *hosts: dict[str, Any], **more: Any) -> subprocess.Popen[str]:
        deploy = tmp_path / "deploy.py"
        deploy.write_text(textwrap.dedent(text))
        process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=more.pop("stderr", subprocess.PIPE),
            text=True,
            cwd=tmp_path,
            env={**os.environ, "BOXWRIGHT_STATE_DIR": str(tmp_path / "state")},
        )
        assert process.stdin
        process.stdin.write(json.dumps({"deploy": more.pop("file", str(deploy)), "hosts": hosts, **more}))
        process.stdin.close()
        process.stdin = None
        return process

    return go


@pytest.fixture
def run(start: Callable[..., subprocess.Popen[str]]) -> Callable[..., Run]:
    def go(text: str, *hosts: dict[str, Any], **more: Any) -> Run:
        process = start(text, *(hosts or ({"name": "one"},)), **more)
        out, err = process.communicate(timeout=120)
        return Run(process.returncode, out, err)

    return go


LOCAL = {"name": "here", "at": "@boxwright-local/here"}

TWO_ROLES = """
from pyinfra import host
from pyinfra.facts.files import File
from pyinfra.operations import files, server
folder = host.data.folder
files.directory(name="docker: make the folder", path=f"{folder}/made")
files.file(name="docker: make the file", path=f"{folder}/made/file", mode="640")
files.link(name="gateway: link it", path=f"{folder}/link", target=f"{folder}/made/file")
"""


def test_changes_then_none(run: Callable[..., Run], tmp_path: Path) -> None:
    host = {**LOCAL, "data": {"folder": str(tmp_path / "place")}}
    (tmp_path / "place").mkdir()
    first = run(TWO_ROLES, host)
    assert first.code == 0
    assert (tmp_path / "place/link").resolve().stat().st_mode & 0o777 == 0o640
    assert first.result["changed"] == 3
    assert first.result["hosts"]["here"]["changed"] == [
        "docker: make the folder",
        "docker: make the file",
        "gateway: link it",
    ]
    assert [line.split(" (")[0] for line in first.lines] == [
        "changed: docker: make the folder",
        "changed: docker: make the file",
        "docker: 2 changes, 0 unchanged",
        "changed: gateway: link it",
        "gateway: 1 change, 0 unchanged",
        "here  3 changes, 0 unchanged",
    ]
    second = run(TWO_ROLES, host)
    assert second.code == 0
    assert second.result["changed"] == 0
    assert second.result["hosts"]["here"]["unchanged"] == 3
    assert second.result["hosts"]["here"]["remote_commands"] >= 3
    assert [line.split(" (")[0] for line in second.lines] == [
        "docker: no change",
        "gateway: no change",
        "here  no change, 3 unchanged",
    ]


def test_how_far_a_long_step_is_is_shown_and_not_kept(
    start: Callable[..., subprocess.Popen[str]], tmp_path: Path
) -> None:
    """On a terminal, in the line that passes; neither the log nor what is shown of a failed step has it."""
    text = """
    from pyinfra.operations import server
    far = "seven=7; echo progress: $seven of 9 MiB >&2; sleep 4; echo so it ended >&2; exit 1"
    server.shell(name="ollama: fetch it", commands=[far])
    """
    master, slave = pty.openpty()
    process = start(text, LOCAL, stderr=slave)
    os.close(slave)
    said = ""
    with contextlib.suppress(OSError):  # the terminal is gone with the process
        while piece := os.read(master, 65536):
            said += piece.decode()
    process.communicate(timeout=60)
    os.close(master)
    assert re.search(r"\.\.\. ollama: fetch it \(\d\.\d s, 7 of 9 MiB\)", said)
    assert "    | so it ended" in said
    assert "| progress" not in said
    (log,) = (tmp_path / "state/log").glob("*.log")
    assert "so it ended" in log.read_text()
    assert "7 of 9" not in log.read_text()


def test_what_did_not_change_is_said_when_asked(run: Callable[..., Run], tmp_path: Path) -> None:
    (tmp_path / "made").mkdir()
    deploy = """
        from pyinfra.operations import files
        from pyinfra import host
        files.directory(name="docker: make the folder", path=f"{host.data.folder}/made")
    """
    host = {**LOCAL, "data": {"folder": str(tmp_path)}}
    assert "no change: docker: make the folder" not in run(deploy, host).lines
    assert "no change: docker: make the folder" in run(deploy, host, verbosity=1).lines
    assert any(">>> " in line and f"{tmp_path}/made" in line for line in run(deploy, host, verbosity=2).lines)


def test_a_plan_touches_nothing_and_says_what_would_change(run: Callable[..., Run], tmp_path: Path) -> None:
    place = tmp_path / "place"
    (place / "made").mkdir(parents=True)
    before = [(path, path.stat().st_mtime_ns) for path in sorted(place.rglob("*"))]
    ran = run(TWO_ROLES, {**LOCAL, "data": {"folder": str(place)}}, dry=True)
    assert ran.code == 0
    assert [(path, path.stat().st_mtime_ns) for path in sorted(place.rglob("*"))] == before
    assert ran.result["hosts"]["here"]["changed"] == ["docker: make the file", "gateway: link it"]
    assert ran.lines[:4] == [
        "docker: 1 change",
        "  would change: make the file",
        "gateway: 1 change",
        "  would change: link it",
    ]
    assert "2 changes pending" in ran.lines[4]


def test_a_plan_tells_sure_changes_from_those_that_depend(run: Callable[..., Run]) -> None:
    ran = run(
        """
        from pyinfra.operations import server
        first = server.shell(name="gateway: first", commands=["true"])
        server.shell(name="gateway: then", commands=["true"], _if=first.did_change)
        """,
        dry=True,
    )
    assert ran.result["hosts"]["one"]["changed"] == ["gateway: first"]
    assert ran.result["hosts"]["one"]["depends"] == ["gateway: then"]
    assert "  may change: then" in ran.lines


BREAKS_ON_ONE = """
from pyinfra.operations import server
server.shell(name="docker: first", commands=["echo fine"])
server.shell(name="gateway: second", commands=["the-command"])
server.shell(name="gateway: third", commands=["echo later"])
"""


def test_one_of_two_hosts_fails_and_the_other_goes_on(run: Callable[..., Run]) -> None:
    says = {"stdout": [f"line {number}" for number in range(30)], "stderr": "it is broken", "success": False}
    ran = run(BREAKS_ON_ONE, {"name": "good"}, {"name": "bad", "data": {"fake_responses": {"the-command": says}}})
    assert ran.code == 1
    assert ran.result["ok"] is False
    good, bad = ran.result["hosts"]["good"], ran.result["hosts"]["bad"]
    assert good["status"] == "ok"
    assert len(good["changed"]) == 3
    assert bad["status"] == "failed"
    assert bad["changed"] == ["docker: first"]
    assert bad["not_run"] == 1
    assert (bad["failed"]["role"], bad["failed"]["step"]) == ("gateway", "second")
    # The fake connector hands output over without printing it, so only what pyinfra's log says is known.
    assert any(line.startswith("[bad] FAILED: gateway: second") for line in ran.lines)
    assert "[good] changed: gateway: third" in [line.split(" (")[0] for line in ran.lines]
    assert any("error[BW201]" in line for line in ran.lines)


def test_a_failed_step_shows_its_last_lines_and_the_log_has_them_all(run: Callable[..., Run]) -> None:
    ran = run(
        """
        from pyinfra.operations import server
        server.shell(name="gateway: count", commands=["seq 1 40; echo broken; echo canary-in-a-coal-mine; exit 7"])
        """,
        LOCAL,
    )
    assert ran.code == 1
    shown = [line.strip().removeprefix("| ") for line in ran.lines if line.strip().startswith("| ")]
    assert shown == [*(str(number) for number in range(23, 41)), "broken", "***"]
    log = Path(ran.result["log"])
    assert str(log) in ran.err
    text = log.read_text()
    assert " 1\n" in text
    assert "canary" not in text + ran.err + json.dumps(ran.result)
    assert log.stat().st_mode & 0o777 == 0o600


def test_an_exception_in_an_operation_fails_it_on_its_host_only(run: Callable[..., Run]) -> None:
    ran = run(
        """
        from pyinfra import host
        from pyinfra.api import OperationError, operation
        from pyinfra.operations import server
        @operation()
        def odd():
            if host.name.endswith("a"):
                raise OperationError("this cannot be")
            if host.name.endswith("b"):
                1 / 0
            yield "true"
        odd(name="gateway: odd")
        server.shell(name="gateway: after", commands=["true"])
        """,
        {"name": "a"},
        {"name": "b"},
        {"name": "c"},
    )
    assert ran.code == 1
    assert [ran.result["hosts"][name]["status"] for name in "abc"] == ["failed", "failed", "ok"]
    assert "this cannot be" in ran.result["hosts"]["a"]["failed"]["output"]
    assert "ZeroDivisionError: division by zero" in ran.result["hosts"]["b"]["failed"]["output"]
    assert "ZeroDivisionError" in Path(ran.result["log"]).read_text()


def test_a_refusal_on_one_host_changes_nothing_anywhere(run: Callable[..., Run], tmp_path: Path) -> None:
    ran = run(
        f"""
        from pyinfra import host
        from pyinfra.operations import server
        from boxwright.errors import Problem
        from boxwright.preflight import PreflightRefused
        if host.name != "good":
            raise PreflightRefused([Problem(code="BW110", message=f"{{host.name}} is a toaster", host=host.name)])
        server.shell(name="gateway: touch", commands=["touch {tmp_path}/touched"])
        """,
        {"name": "good", "at": "@boxwright-local/good"},
        {"name": "bad", "at": "@boxwright-local/bad"},
        {"name": "worse", "at": "@boxwright-local/worse"},
    )
    assert ran.code == 2
    assert not (tmp_path / "touched").exists()
    assert {problem["message"] for problem in ran.result["problems"]} == {"bad is a toaster", "worse is a toaster"}
    assert ran.result["hosts"]["bad"]["status"] == "refused"
    assert ran.result["hosts"]["good"]["status"] == "unfinished"
    assert "error[BW110]: bad is a toaster" in ran.lines


def test_a_mistake_in_a_deploy_is_one_line_with_its_place(run: Callable[..., Run]) -> None:
    ran = run("{}['canary-in-a-coal-mine']\n")
    assert ran.code == 1
    assert "error[BW202]: KeyError: '***'" in ran.lines
    text = Path(ran.result["log"]).read_text()
    assert "Traceback" in text
    assert "canary" not in text


def test_a_fact_that_cannot_be_read_fails_its_host(run: Callable[..., Run]) -> None:
    deploy = """
        from pyinfra import host
        from pyinfra.facts.server import Command
        from pyinfra.operations import server
        host.get_fact(Command, "what-is-it")
        server.shell(name="gateway: after", commands=["true"])
        """
    bad = {"name": "bad", "data": {"fake_responses": {"what-is-it": {"success": False, "stderr": "no idea"}}}}
    ran = run(deploy, {"name": "good"}, bad)
    assert ran.code == 1
    assert ran.result["hosts"]["bad"]["status"] == "failed"
    assert "no idea" in ran.result["hosts"]["bad"]["failed"]["output"]
    assert ran.result["hosts"]["good"]["changed"] == ["gateway: after"]
    assert run(deploy, bad).code == 1


def test_an_unreachable_host_is_a_failure_and_the_others_go_on(run: Callable[..., Run], tmp_path: Path) -> None:
    (tmp_path / "config").write_text("")
    away = {
        "name": "away",
        "at": "@boxwright/away",
        "data": {"ssh_hostname": "127.0.0.1", "ssh_port": 1, "ssh_config_file": str(tmp_path / "config")},
    }
    deploy = """
        from pyinfra.operations import server
        server.shell(name="gateway: after", commands=["true"])
        """
    ran = run(deploy, {"name": "good"}, away)
    assert ran.code == 1
    assert ran.result["hosts"]["away"]["status"] == "unreachable"
    assert ran.result["hosts"]["good"]["status"] == "ok"
    assert any("error[BW104]" in line for line in ran.lines)
    alone = run(deploy, away)
    assert alone.code == 1
    assert alone.result["hosts"]["away"]["status"] == "unreachable"


def test_order_follows_the_lines_of_the_deploy_on_all_hosts(run: Callable[..., Run]) -> None:
    ran = run(
        """
        from pyinfra import host
        from pyinfra.operations import server
        if host.name.endswith("a"):
            server.shell(name="one: only a", commands=["true"])
        if host.name.endswith("b"):
            server.shell(name="two: only b", commands=["true"])
        server.shell(name="three: both", commands=["true"])
        """,
        {"name": "b"},
        {"name": "a"},
    )
    changed = [line.partition("changed: ")[2].split(" (")[0] for line in ran.lines if "changed: " in line]
    assert changed[:2] == ["one: only a", "two: only b"]
    assert changed[2:] == ["three: both", "three: both"]


def test_data_of_the_command_overrides_that_of_the_host(run: Callable[..., Run]) -> None:
    deploy = """
        from pyinfra import host
        from pyinfra.operations import server
        server.shell(name=f"gateway: purge is {host.data.get('purge')}", commands=["true"])
        """
    assert run(deploy, {"name": "a", "data": {"purge": False}}, data={"purge": True}).result["hosts"]["a"][
        "changed"
    ] == ["gateway: purge is True"]


def test_a_deploy_that_is_not_there_is_refused(run: Callable[..., Run], tmp_path: Path) -> None:
    ran = run("", file=str(tmp_path / "nothing.py"))
    assert ran.code == 2
    assert "nothing.py" in ran.result["refused"][0]


SLOW = """
from pyinfra.operations import server
server.shell(name="docker: quick", commands=["true"])
server.shell(name="docker: slow", commands=["echo $$ > {folder}/started; exec sleep 300"])
server.shell(name="docker: never", commands=["touch {folder}/never"])
"""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_stops_the_run_at_once(
    start: Callable[..., subprocess.Popen[str]], tmp_path: Path, number: int, code: int
) -> None:
    os.mkfifo(tmp_path / "started")
    process = start(SLOW.format(folder=tmp_path), LOCAL)
    sleeper = number_from(tmp_path / "started")
    process.send_signal(number)
    out, err = process.communicate(timeout=30)  # the command itself sleeps for 300 s
    ran = Run(process.returncode, out, err)
    assert ran.code == code
    assert ran.result["interrupted"] is True
    assert ran.result["hosts"]["here"]["changed"] == ["docker: quick"]
    assert any(line.startswith("interrupted during: docker: slow (") for line in ran.lines)
    assert any("may go on on the box until it ends" in line for line in ran.lines)
    assert not (tmp_path / "never").exists()
    os.kill(sleeper, signal.SIGKILL)


def test_a_signal_while_facts_are_read_says_that_nothing_was_changed(
    start: Callable[..., subprocess.Popen[str]], tmp_path: Path
) -> None:
    os.mkfifo(tmp_path / "started")
    process = start(
        f"""
        from pyinfra import host
        from pyinfra.facts.server import Command
        host.get_fact(Command, "echo $$ > {tmp_path}/started; exec sleep 300")
        """,
        LOCAL,
    )
    sleeper = number_from(tmp_path / "started")
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    ran = Run(process.returncode, out, err)
    assert ran.code == 130
    assert "nothing was changed" in ran.lines
    os.kill(sleeper, signal.SIGKILL)


def number_from(pipe: Path) -> int:
    """The number that is written to the named pipe `pipe`; fails after 120 s."""
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        assert select.select([reader], [], [], 120)[0], "the command was not started"
        return int(os.read(reader, 20))
    finally:
        os.close(reader)
