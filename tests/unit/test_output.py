"""Lines for people: labels, colour, the passing line, durations; and the words of results."""

from __future__ import annotations

import io

import pytest

from boxwright.errors import Problem
from boxwright.output import Output, count, duration
from boxwright.results import FailedStep, HostResult, RunResult, planned, report, split_name


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_durations_and_counts() -> None:
    assert [duration(seconds) for seconds in (0.04, 9.94, 12.3, 99.4, 100, 3725)] == [
        "0.0 s",
        "9.9 s",
        "12 s",
        "99 s",
        "1 min 40 s",
        "62 min 05 s",
    ]
    assert [count(number, "change") for number in (0, 1, 2)] == ["0 changes", "1 change", "2 changes"]


def test_a_pipe_gets_plain_lines_only() -> None:
    stream = io.StringIO()
    output = Output(stream)
    output.passing("at work")
    output.line(" it", "changed", label="changed:")
    output.line("done", "good")
    assert stream.getvalue() == "changed: it\ndone\n"


def test_the_passing_line_goes_away_before_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.delenv("NO_COLOR", raising=False)
    stream = Terminal()
    output = Output(stream)
    output.passing("x" * 100)
    output.line("done")
    assert stream.getvalue() == "\r\033[K" + "x" * 39 + "\r\033[K" + "done\n"


@pytest.mark.parametrize(("variable", "value"), [("NO_COLOR", "1"), ("TERM", "dumb")])
def test_no_colour_where_it_is_not_wanted(monkeypatch: pytest.MonkeyPatch, variable: str, value: str) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv(variable, value)
    stream = Terminal()
    Output(stream).line(" it", "bad", label="FAILED:")
    assert stream.getvalue() == "FAILED: it\n"


def test_plain_is_plain_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    stream = Terminal()
    output = Output(stream, plain=True)
    output.passing("at work")
    output.line("done", "good")
    assert stream.getvalue() == "done\n"


def test_names_of_operations() -> None:
    assert split_name("gateway: write the Caddyfile") == ("gateway", "write the Caddyfile")
    assert split_name("Install: it") == ("", "Install: it")
    assert split_name("server.shell") == ("", "server.shell")


def result(*hosts: HostResult, **more: object) -> RunResult:
    return RunResult("deploys/stack.py", bool(more.pop("dry", False)), {host.name: host for host in hosts}, **more)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("made", "code"),
    [
        (result(HostResult("a", "ok"), HostResult("b", "ok")), 0),
        (result(HostResult("a", "ok"), HostResult("b", "failed")), 1),
        (result(HostResult("a", "ok"), HostResult("b", "unreachable")), 1),
        (result(HostResult("a", "unfinished"), HostResult("b", "refused")), 2),
        (result(HostResult("a", "failed"), HostResult("b", "refused")), 2),
        (result(HostResult("a", "unfinished"), interrupted=130), 130),
        (result(HostResult("a", "unfinished")), 1),
        (result(HostResult("a", "ok"), problems=[Problem("BW203", "does not answer")]), 1),
    ],
)
def test_exit_codes_of_results(made: RunResult, code: int) -> None:
    assert made.exit_code == code
    assert made.to_json()["exit_code"] == code
    assert made.to_json()["ok"] is (code == 0)


def test_a_plan_names_roles_with_changes_only() -> None:
    host = HostResult(
        "a", "ok", changed=["gateway: write it", "gateway: start it", "odd"], depends=["docker: restart it"]
    )
    assert list(planned(result(host, dry=True))) == [
        "gateway: 2 changes",
        "  would change: write it",
        "  would change: start it",
        "deploy: 1 change",
        "  would change: odd",
        "docker: 1 change",
        "  may change: restart it",
    ]
    assert list(planned(result(HostResult("a", "ok"), dry=True))) == []


def test_a_problem_of_many_hosts_is_said_once() -> None:
    stream = io.StringIO()
    problem = Problem("BW110", "the box is a toaster", help="bake a cake")
    hosts = [HostResult(name, "refused", problems=[problem]) for name in ("a", "bb")]
    report(result(*hosts), Output(stream))
    lines = stream.getvalue().splitlines()
    assert lines.count("error[BW110]: the box is a toaster") == 1
    assert lines[-2:] == ["a   refused, nothing was changed", "bb  refused, nothing was changed"]


def test_a_failed_host_says_where_it_stopped() -> None:
    stream = io.StringIO()
    host = HostResult("a", "failed", changed=["docker: one"], failed=FailedStep("gateway", "start it", ("broken",)))
    report(result(host, begun=True), Output(stream))
    assert stream.getvalue().splitlines()[-1].startswith("a  failed at `gateway: start it`, 1 change before it (")
