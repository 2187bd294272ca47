"""`boxwright key ...` as a person or a script meets it, over a real SSH server against a double of the admin API."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import click
import pytest

from boxwright import cli, key_cli, masking, openssh
from tests.unit.admin_api import SECRET, AdminApi, Handler, error, shown
from tests.unit.key_box import LOGIN, Here, Ssh, ssh

__all__ = ["ssh"]


@pytest.fixture
def service() -> Iterator[AdminApi]:
    double = AdminApi()
    yield double
    double.stop()


@pytest.fixture
def key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ssh: Ssh, service: AdminApi, capfd: pytest.CaptureFixture[str]
) -> Iterator[Here]:
    monkeypatch.setenv("BOXWRIGHT_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.setenv("BOXWRIGHT_INVENTORY", str(tmp_path / "hosts.yml"))
    monkeypatch.setattr(sys, "stdout", sys.stdout)
    monkeypatch.setattr(sys, "stderr", sys.stderr)
    yield Here(tmp_path, ssh, service.port, capfd)
    masking.forget()
    # No connection and no program is left behind by any of them.
    assert shown(f"-W\x00127.0.0.1:{service.port}") == []


# add


def test_a_key_is_printed_once_and_alone(key: Here, service: AdminApi) -> None:
    done = key("add", "laptop")
    assert (done.code, done.out) == (0, f"bw_New00000_{1:043d}\n")
    assert done.out.strip() not in done.err
    assert "box accepts this key of laptop" in done.err
    assert [(each["method"], each["path"]) for each in service.seen] == [
        ("GET", "/admin/keys"),
        ("POST", "/admin/keys"),
    ]
    assert service.seen[-1]["body"] == {"owner": "laptop"}
    # From then on it is a secret like the others.
    assert masking.mask(f"{done.out}{1:043d}") == "***\n***"


def test_collections_are_named_and_taken_away(key: Here, service: AdminApi) -> None:
    done = key("add", "laptop", "--collection", "manuals", "--collection", "faq", "--collection", "manuals")
    assert done.code == 0
    assert service.seen[-1]["body"] == {"owner": "laptop", "collections": ["manuals", "faq"]}
    assert "passages of: manuals, faq;" in done.err
    assert "passages of: manuals, faq" in key("show", "New00000").out
    assert key("set", "New00000", "--collection", "faq").code == 0
    assert service.seen[-1]["body"] == {"collections": ["faq"]}
    done = key("set", "New00000", "--no-collections")
    assert service.seen[-1]["body"] == {"collections": []}
    assert "passages of" not in done.err
    assert "passages of: none" in key("show", "New00000").out
    done = key("set", "New00000", "--no-collections", "--collection", "faq")
    assert (done.code, "exclude each other" in done.err) == (2, True)


def test_what_a_key_may_do_is_sent_as_it_was_asked_for(key: Here, service: AdminApi) -> None:
    before = datetime.now(UTC)
    done = key(
        *("add", "Anna Müller", "--expires", "90d", "--model", "m", "--model", "n", "--model", "m"),
        *("--requests-per-minute", "60", "--tokens-per-minute", "20_000", "--parallel", "2"),
        *("--tokens-per-day", "1000000", "--tokens-per-month", "none"),
    )
    assert done.code == 0
    body = service.seen[-1]["body"]
    expires = datetime.fromisoformat(body.pop("expires_at"))
    assert abs(expires - before - timedelta(days=90)) < timedelta(minutes=5)
    assert body == {
        "owner": "Anna Müller",
        "models": ["m", "n"],
        "limits": {
            "requests_per_minute": 60,
            "tokens_per_minute": 20000,
            "parallel": 2,
            "tokens_per_day": 1000000,
        },
    }
    assert "models: m, n" in done.err
    assert "60 requests/min, 20000 tokens/min, 2 at a time, 1000000 tokens/day" in done.err


def test_other_keys_of_the_owner_are_named(key: Here, service: AdminApi) -> None:
    service.put("Aaaa0001", "laptop")
    service.put("Aaaa0002", "laptop", revoked_at="2026-11-02T00:00:00Z")
    service.put("Aaaa0003", "phone")
    done = key("add", "laptop")
    assert "laptop has another: Aaaa0001    (boxwright key revoke" in done.err


@pytest.mark.parametrize(
    "arguments",
    [
        ["add"],
        ["add", ""],
        ["add", " "],
        ["add", "a\nb"],
        ["add", "a\x1b[31m"],
        ["add", "a" * 129],
        ["add", "a", "--expires", "yesterday"],
        ["add", "a", "--expires", "2020-01-01"],
        ["add", "a", "--expires", "0d"],
        ["add", "a", "--parallel", "0"],
        ["add", "a", "--parallel", "-1"],
        ["add", "a", "--parallel", "1.5"],
        ["add", "a", "--tokens-per-day", str(2**53 + 1)],
        ["rotate", "Aaaa0001", "--overlap", "soon"],
        ["rotate", "Aaaa0001", "--overlap", "2027-01-31"],
        ["set", "Aaaa0001"],
        ["set", "Aaaa0001", "--model", "m", "--all-models"],
        ["usage", "--since", "2999-01-01"],
        ["usage", "--since", "1d", "--until", "2d"],
        ["usage", "--plot", "x.png"],
        ["usage", "--plot", "-", "--json"],
        ["usage", "--plot", "-", "--span", "hour", "--since", "90d"],
        ["usage", "--span", "week"],
        ["audit", "--entries", "0"],
    ],
)
def test_what_cannot_be_is_refused(key: Here, service: AdminApi, arguments: list[str]) -> None:
    done = key(*arguments)
    assert (done.code, done.out) == (2, "")
    assert "Error: " in done.err
    assert not [each for each in service.seen if each["method"] != "GET"]


def test_a_key_that_cannot_be_printed_can_be_had_again(key: Here, service: AdminApi) -> None:
    full = os.open("/dev/full", os.O_WRONLY)
    saved = os.dup(1)
    os.dup2(full, 1)
    try:
        done = key("add", "laptop")
    finally:
        os.dup2(saved, 1)
        os.close(full)
        os.close(saved)
    assert done.code == 1
    assert "New00000 was made but could not be printed" in done.problems[0].message
    assert done.problems[0].help.startswith("boxwright key rotate New00000 --overlap 0h")
    # What is said can be done.
    assert key("rotate", "New00000", "--overlap", "0h").code == 0


# rotate, revoke, set


def test_a_rotation_prints_another_secret(key: Here, service: AdminApi) -> None:
    service.put("Aaaa0001", "laptop")
    done = key("rotate", "Aaaa0001")
    assert (done.code, done.out) == (0, f"bw_Aaaa0001_{1:043d}\n")
    assert service.seen[-1]["path"] == "/admin/keys/Aaaa0001/rotate"
    assert service.seen[-1]["body"] == {"overlap_seconds": 86400}
    until = datetime.fromisoformat(service.keys["Aaaa0001"]["old_until"])
    assert f"the old one is refused after {until:%Y-%m-%d %H:%M} UTC" in done.err


def test_a_rotation_without_overlap(key: Here, service: AdminApi) -> None:
    service.put("Aaaa0001", "laptop")
    done = key("rotate", "Aaaa0001", "--overlap", "0h")
    assert service.seen[-1]["body"] == {"overlap_seconds": 0}
    assert "the old one is refused now" in done.err


def test_a_key_is_revoked(key: Here, service: AdminApi) -> None:
    service.put("Aaaa0001", "laptop")
    service.put("Bbbb0002", "evil\x1b[2J")
    assert "of evil?[2J now" in key("revoke", "Bbbb0002").err
    done = key("revoke", "Aaaa0001")
    assert (done.code, done.out) == (0, "")
    assert "box refuses the key Aaaa0001 of laptop now" in done.err
    assert service.seen[-1]["path"] == "/admin/keys/Aaaa0001/revoke"
    asked = len(service.seen)
    again = key("revoke", "Aaaa0001")
    assert (again.code, again.out) == (0, "")
    assert "revoked already" in again.err
    assert [each["method"] for each in service.seen[asked:]] == ["GET"]
    for command in (["rotate", "Aaaa0001"], ["set", "Aaaa0001", "--owner", "x"]):
        done = key(*command)
        assert (done.code, done.out, done.problems[0].code) == (2, "", "BW173")
        assert "for good" in done.problems[0].message


def test_a_key_that_was_found_somewhere_is_revoked_by_itself(key: Here, service: AdminApi) -> None:
    service.put("Aaaa0001", "laptop")
    found = f"bw_Aaaa0001_{'s3cret-_' * 5}abc"
    done = key("revoke", found)
    assert done.code == 0
    assert service.seen[-1]["path"] == "/admin/keys/Aaaa0001/revoke"
    assert found not in str(service.seen)
    assert masking.mask(found) == "***"


@pytest.mark.parametrize(
    ("arguments", "body"),
    [
        (["--owner", "phone"], {"owner": "phone"}),
        (["--expires", "never"], {"expires_at": None}),
        (["--expires", "2999-12-30"], {"expires_at": "2999-12-31T00:00:00Z"}),
        (["--model", "m", "--model", "n"], {"models": ["m", "n"]}),
        (["--all-models"], {"models": None}),
        (["--parallel", "3"], {"limits": {"parallel": 3}}),
        (["--parallel", "3", "--tokens-per-day", "none"], {"limits": {"tokens_per_day": None, "parallel": 3}}),
    ],
)
def test_only_what_is_named_is_changed(
    key: Here, service: AdminApi, arguments: list[str], body: dict[str, Any]
) -> None:
    service.put("Aaaa0001", "laptop", models=["m"], expires_at="2999-01-01T00:00:00Z", limits={"tokens_per_day": 5})
    done = key("set", "Aaaa0001", *arguments)
    assert (done.code, done.out) == (0, "")
    assert (service.seen[-1]["method"], service.seen[-1]["path"]) == ("PATCH", "/admin/keys/Aaaa0001")
    assert service.seen[-1]["body"] == body
    assert "the key Aaaa0001 of " in done.err


@pytest.mark.parametrize(
    ("command", "id", "help"),
    [
        (["rotate"], "Aaaa0002", "did you mean `Aaaa0001`?"),
        (["revoke"], "laptop", "laptop is an owner: Aaaa0001"),
        (["show"], "zzzzzzzz", "it has: Bbbb0002, Aaaa0001"),
        (["set", "--owner", "x"], "../keys", "it has: Bbbb0002, Aaaa0001"),
    ],
)
def test_a_key_that_is_not_there(key: Here, service: AdminApi, command: list[str], id: str, help: str) -> None:
    service.put("Aaaa0001", "laptop")
    service.put("Bbbb0002", "phone")
    done = key(command[0], id, *command[1:])
    assert (done.code, done.out) == (2, "")
    assert (done.problems[0].code, done.problems[0].help) == ("BW172", help)
    assert [each["method"] for each in service.seen] == ["GET"]


# list, show


def filled(service: AdminApi) -> None:
    service.put("Cccc0003", "old", expires_at="2026-01-01T00:00:00Z")
    service.put("Dddd0004", "gone", revoked_at="2026-11-02T00:00:00Z")
    service.put("Aaaa0001", "laptop", expires_at="2999-01-01T00:00:00+00:00", models=["m", "n"])
    service.put("Bbbb0002", "ci\x1b[31m", limits={"parallel": 2, "tokens_per_day": 1000, "tokens_per_minute": None})


def test_a_list_has_what_each_key_may_do(key: Here, service: AdminApi) -> None:
    filled(service)
    done = key("list")
    assert done.code == 0
    assert done.out.splitlines() == [
        "id        owner    state    expires           models  limits",
        "Bbbb0002  ci?[31m  active   never             all     2 at a time, 1000 tokens/day",
        "Aaaa0001  laptop   active   2999-01-01 00:00  m, n    default",
        "Cccc0003  old      expired  2026-01-01 00:00  all     default",
        "Dddd0004  gone     revoked  never             all     default",
    ]


def test_a_list_for_programs(key: Here, service: AdminApi) -> None:
    filled(service)
    found = key("list", "--json").json()
    assert [(each["id"], each["state"]) for each in found] == [
        ("Bbbb0002", "active"),
        ("Aaaa0001", "active"),
        ("Cccc0003", "expired"),
        ("Dddd0004", "revoked"),
    ]
    assert found[1] == {**service.keys["Aaaa0001"], "state": "active"}


def test_an_empty_list_says_how_to_begin(key: Here) -> None:
    assert key("list").out == ""
    assert "boxwright key add OWNER" in key("list").err
    assert key("list", "--json").json() == []


def test_one_key(key: Here, service: AdminApi) -> None:
    filled(service)
    service.keys["Bbbb0002"]["old_until"] = "2026-12-01T10:30:00+01:00"
    text = key("show", "Bbbb0002").out
    assert "owner: ci?[31m\n" in text
    assert "expires: -\n" in text
    assert "old secret accepted until: 2026-12-01 09:30 UTC\n" in text
    assert "limit: at a time: 2\n" in text
    assert "limit: tokens/month: default\n" in text
    assert key("show", "Bbbb0002", "--json").json() == {**service.keys["Bbbb0002"], "state": "active"}


# usage


def used(service: AdminApi) -> None:
    def row(start: str, key_id: str | None, owner: str | None, model: str | None, *counts: int) -> dict[str, Any]:
        names = ("requests", "refused", "aborted", "tokens_in", "tokens_out")
        return {
            **{"start": start, "key_id": key_id, "owner": owner, "model": model},
            **dict(zip(names, counts, strict=True)),
        }

    service.put("Aaaa0001", "laptop")
    service.put("Bbbb0002", "ci")
    service.usage = [
        row("2026-11-01T00:00:00Z", "Aaaa0001", "laptop", "m", 10, 1, 0, 100, 1000),
        row("2026-11-01T00:00:00Z", "Bbbb0002", "ci", "m", 4, 0, 2, 40, 4000),
        row("2026-11-03T00:00:00Z", "Aaaa0001", "laptop", "m", 5, 0, 0, 50, 500),
        row("2026-11-03T00:00:00Z", "Aaaa0001", "laptop", "n", 1, 0, 0, 7, 0),
        row("2026-11-03T00:00:00Z", None, None, None, 3, 3, 0, 0, 0),
    ]


NOVEMBER = ("--since", "2026-11-01", "--until", "2026-11-05")


def test_usage_is_summed_by_key_and_model(key: Here, service: AdminApi) -> None:
    used(service)
    done = key("usage", *NOVEMBER)
    assert done.code == 0
    assert done.out.splitlines() == [
        "owner   key       model  requests  refused  aborted  tokens in  tokens out",
        "-       -         -             3        3        0          0           0",
        "ci      Bbbb0002  m             4        0        2         40        4000",
        "laptop  Aaaa0001  m            15        1        0        150        1500",
        "laptop  Aaaa0001  n             1        0        0          7           0",
        "all     -         -            23        4        2        197        5500",
    ]
    assert service.seen[-1]["query"] == {
        "since": "2026-11-01T00:00:00Z",
        "until": "2026-11-05T00:00:00Z",
        "span": "day",
    }
    assert "2026-11-01 00:00 UTC to 2026-11-05 00:00 UTC" in done.err


def test_usage_by_span_and_of_one_key(key: Here, service: AdminApi) -> None:
    used(service)
    done = key("usage", *NOVEMBER, "--span", "month", "--key", "Aaaa0001")
    assert done.out.splitlines()[1:] == [
        "2026-11  laptop  Aaaa0001  m            15        1        0        150        1500",
        "2026-11  laptop  Aaaa0001  n             1        0        0          7           0",
        "all      -       -         -            16        1        0        157        1500",
    ]
    assert (service.seen[-1]["query"]["span"], service.seen[-1]["query"]["key_id"]) == ("month", "Aaaa0001")
    assert key("usage", "--key", "Aaaa0003").problems[0].help == "did you mean `Aaaa0001`?"


def test_usage_for_programs_is_what_the_service_says(key: Here, service: AdminApi) -> None:
    used(service)
    assert key("usage", *NOVEMBER, "--json").json() == service.usage


def test_no_usage(key: Here, service: AdminApi) -> None:
    done = key("usage")
    assert (done.code, done.out) == (0, "")
    assert "no request" in done.err
    # Until now is left to the clock of the box.
    assert set(service.seen[-1]["query"]) == {"since", "span"}


def test_a_picture_in_the_terminal(key: Here, service: AdminApi, monkeypatch: pytest.MonkeyPatch) -> None:
    used(service)
    monkeypatch.setenv("COLUMNS", "60")
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    expected = [
        "Tokens per day and key",
        "box, 2026-11-01 00:00 to 2026-11-05 00:00 UTC",
        "",
        "██ ci (Bbbb0002): 4k",
        "▓▓ laptop (Aaaa0001): 1.7k",
        "",
        "2026-11-01  5.1k  █████████████████████████████████▓▓▓▓▓▓▓▓▓",
        "2026-11-02     0",
        "2026-11-03   557  ▓▓▓▓▓",
        "2026-11-04     0",
    ]
    assert key("usage", "--plot", *NOVEMBER).out.splitlines() == expected
    monkeypatch.setenv("NO_COLOR", "1")
    plain = [line.replace("█", "#").replace("▓", "=") for line in expected]
    assert key("usage", *NOVEMBER, "--plot", "-").out.splitlines() == plain
    monkeypatch.delenv("NO_COLOR")
    monkeypatch.setenv("TERM", "dumb")
    assert key("usage", *NOVEMBER, "--plot").out.splitlines() == plain


def test_a_picture_in_a_file(key: Here, service: AdminApi, tmp_path: Path) -> None:
    used(service)
    done = key("usage", *NOVEMBER, "--plot", str(tmp_path / "usage.svg"))
    assert (done.code, done.out) == (0, "")
    assert "written: " in done.err
    text = (tmp_path / "usage.svg").read_text()
    assert "2026-11-01, ci (Bbbb0002): 4,040" in text
    failed = key("usage", *NOVEMBER, "--plot", str(tmp_path / "none" / "usage.svg"))
    assert failed.code == 1
    assert "No such file or directory" in failed.err


# audit


def test_the_audit_log(key: Here, service: AdminApi) -> None:
    service.audit = [
        {
            "at": "2026-11-02T10:00:00Z",
            "actor": "anna@desk",
            "action": "key.change",
            "target": "Aaaa0001",
            "details": {"models": ["m"], "owner": "x\ny"},
        },
        {"at": "2026-11-01T10:00:00Z", "actor": "ben@desk", "action": "key.add", "target": "Aaaa0001", "details": {}},
    ]
    assert key("audit").out.splitlines() == [
        "at                    who        what        whom      details",
        '2026-11-02 10:00 UTC  anna@desk  key.change  Aaaa0001  models=["m"] owner="x\\ny"',
        "2026-11-01 10:00 UTC  ben@desk   key.add     Aaaa0001  -",
    ]
    assert service.seen[-1]["query"] == {"limit": "50"}
    assert key("audit", "--entries", "1", "--before", "2026-11-03", "--json").json() == service.audit[:1]
    assert service.seen[-1]["query"] == {"limit": "1", "before": "2026-11-03T00:00:00Z"}


def test_who_acts_is_named_for_the_log(key: Here, service: AdminApi, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOGNAME", "änna\r\nX-Evil: 1" + "a" * 80)
    key("list")
    assert re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._@-]{1,63}", service.seen[-1]["actor"])
    monkeypatch.setenv("LOGNAME", "anna")
    key("list")
    assert service.seen[-1]["actor"].startswith("anna@")


# The connection


def test_the_secret_is_in_no_argument_environment_or_output(key: Here, service: AdminApi, tmp_path: Path) -> None:
    done = key("add", "laptop")
    assert done.code == 0
    assert service.shown_to_others == []
    assert not (key.ssh.folder / "commands").exists()  # nothing was run on the box
    kept = [path for path in (tmp_path / "state").rglob("*") if path.is_file()]
    assert kept
    assert not [path for path in kept if done.out.strip() in path.read_text()]
    # The service sees it come from its own loopback.
    assert {each["host"] for each in service.seen} == {f"127.0.0.1:{service.port}"}
    assert len(service.connections) == 1


def test_a_login_by_password(key: Here, service: AdminApi) -> None:
    text = key.inventory.read_text()
    with_key = f"ansible_ssh_private_key_file: {key.ssh.folder}/key"
    key.inventory.write_text(text.replace(with_key, f"ansible_password: {LOGIN}"))
    done = key("add", "laptop")
    assert done.code == 0, done.problems
    assert service.shown_to_others == []
    key.inventory.write_text(text.replace(with_key, "ansible_password: another-word-than-the-boxes"))
    done = key("list")
    assert (done.code, done.problems[0].code) == (1, "BW104")
    assert "another-word" not in f"{done.problems}{done.err}"


def test_no_port_is_opened_on_this_machine(key: Here, service: AdminApi, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[list[str]] = []
    command = openssh.command

    def noted(*arguments: Any) -> list[str]:
        started.append(command(*arguments))
        return started[-1]

    monkeypatch.setattr(openssh, "command", noted)
    assert key("list").code == 0
    (words,) = started
    assert not {"-L", "-D", "-R"} & set(words)


def test_a_box_that_is_this_machine_needs_no_ssh(key: Here, service: AdminApi, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    key.inventory.write_text(key.inventory.read_text() + "      ansible_connection: local\n")
    assert key("add", "laptop").code == 0
    service.stop()
    done = key("list")
    assert (done.code, done.problems[0].code) == (2, "BW170")


def test_a_service_that_is_not_switched_on(key: Here, service: AdminApi) -> None:
    key.write(enabled="false")
    done = key("list")
    assert (done.code, done.problems[0].code, done.problems[0].variable) == (2, "BW042", "api_enabled")
    assert done.problems[0].location.path.endswith("hosts.yml")
    assert "api_enabled: true" in done.problems[0].help
    key.write()
    done = key("list", "--development")
    assert (done.code, done.problems[0].code, done.problems[0].variable) == (2, "BW042", "api_development")
    assert service.seen == []


def test_the_development_instance_is_another_one(key: Here, service: AdminApi) -> None:
    other = AdminApi()
    other.put("Dddd0001", "developer")
    more = (
        f"      api_development: true\n      api_development_port: {other.port}\n"
        f"      api_development_admin_secret: {SECRET}\n"
    )
    key.write(more=more)
    try:
        assert "Dddd0001" in key("list", "--development").out
        assert key("list").out == ""
    finally:
        other.stop()


def test_several_hosts_are_asked_one_at_a_time(key: Here, service: AdminApi) -> None:
    key.inventory.write_text(f"linux:\n  hosts:\n    box:{key.host()}    two:{key.host()}")
    done = key("list")
    assert (done.code, done.problems[0].code, done.problems[0].help) == (2, "BW006", "choose one with --limit")
    assert key("list", "--limit", "two").code == 0


def test_a_service_that_is_not_there(key: Here, service: AdminApi) -> None:
    service.stop()
    for command in (["list"], ["add", "x"], ["usage"], ["revoke", "x"]):
        done = key(*command)
        assert (done.code, done.out, done.problems[0].code) == (2, "", "BW170")
        assert "boxwright apply --limit box" in done.problems[0].help


@pytest.mark.parametrize(
    ("said", "code", "words"),
    [
        (
            "channel 0: open failed: connect failed: Connection refused\\r\\nstdio forwarding failed\\r\\n",
            "BW170",
            "no API service answers on box",
        ),
        (
            "channel 0: open failed: administratively prohibited: open failed\\r\\nstdio forwarding failed\\r\\n",
            "BW170",
            "forwards no connection",
        ),
        (
            "Warning: a banner\\r\\nssh: connect to host 127.0.0.1 port 22: No route to host\\r\\n",
            "BW104",
            "no SSH connection to box: ssh: connect to host 127.0.0.1 port 22: No route to host",
        ),
    ],
)
def test_what_openssh_says_is_understood(
    key: Here, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: str, code: str, words: str
) -> None:
    """The server of these tests accepts every channel; OpenSSH's own does not, and its client then says this."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "ssh").write_text(f"#!/bin/sh\nprintf '{said}' >&2\nexit 255\n")
    (tmp_path / "bin" / "ssh").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")
    done = key("list")
    assert (done.problems[0].code, done.out) == (code, "")
    assert words in done.problems[0].message


def test_a_box_that_cannot_be_reached(key: Here, ssh: Ssh) -> None:
    key.inventory.write_text(key.inventory.read_text().replace(f"ansible_port: {ssh.port}", "ansible_port: 1"))
    done = key("add", "x")
    assert (done.code, done.out, done.problems[0].code) == (1, "", "BW104")
    assert "Connection refused" in done.problems[0].message


def test_another_secret_than_the_services(key: Here, service: AdminApi) -> None:
    key.write(secret="another-secret-that-is-long-enough")
    done = key("add", "x")
    assert (done.code, done.out) == (2, "")
    assert (done.problems[0].code, done.problems[0].variable) == ("BW171", "api_admin_secret")
    assert "boxwright apply --limit box" in done.problems[0].help
    assert "another-secret" not in f"{done.problems}{done.err}"
    assert service.keys == {}


def cut(handler: Handler) -> None:
    """The service dies in the middle of a request."""
    handler.connection.close()
    handler.close_connection = True


@pytest.mark.parametrize(
    ("fault", "exit_code", "code", "words"),
    [
        ((503, error("store_unavailable", "Keys cannot be changed now.")), 2, "BW174", "store_unavailable"),
        ((422, error("invalid_value", "`models` names no model.")), 2, "BW173", "names no model"),
        ((500, error("internal_error", "Sorry.")), 1, "BW205", "status 500"),
        ((200, b"<html>"), 1, "BW205", "no JSON"),
        ((200, []), 1, "BW205", "no id"),
        ((404, b"404 page not found"), 1, "BW205", "status 404"),
        (cut, 1, "BW205", "whether it did what it was asked for is not known"),
    ],
)
def test_what_the_service_says_is_told(
    key: Here, service: AdminApi, fault: Any, exit_code: int, code: str, words: str
) -> None:
    service.faults["POST", "/admin/keys"] = fault
    done = key("add", "x")
    assert (done.code, done.out, done.problems[0].code) == (exit_code, "", code)
    assert words in done.problems[0].message


def test_a_service_that_says_nothing(key: Here, service: AdminApi, monkeypatch: pytest.MonkeyPatch) -> None:
    ended = threading.Event()
    service.faults["GET", "/admin/keys"] = lambda _: ended.wait(60)
    monkeypatch.setattr("boxwright.api_admin.TIMEOUT", 1.0)
    done = key("list")
    ended.set()
    assert (done.code, done.problems[0].code) == (2, "BW170")
    assert "gave no answer: timed out" in done.problems[0].message


def test_a_secret_beyond_latin_letters(key: Here, service: AdminApi) -> None:
    key.write(secret="пароль-администратора-0123456789")
    assert key("list").problems[0].code == "BW171"


def test_a_question_that_was_cut_changed_nothing(key: Here, service: AdminApi) -> None:
    service.faults["GET", "/admin/keys"] = cut
    done = key("list")
    assert (done.code, done.problems[0].code) == (2, "BW170")
    service.faults["GET", "/admin/keys"] = (200, {"other": "program"})
    done = key("list")
    assert (done.code, done.problems[0].code) == (1, "BW205")


# As processes

COMMAND = "from boxwright import cli; cli.main()"


def process(*arguments: str) -> subprocess.Popen[str]:
    words = [sys.executable, "-c", COMMAND, "key", *arguments]
    return subprocess.Popen(
        words,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def test_a_new_key_is_on_standard_output_and_nowhere_else(key: Here, service: AdminApi, tmp_path: Path) -> None:
    command = process("add", "laptop")
    out, err = command.communicate(timeout=120)
    assert (command.returncode, out) == (0, f"bw_New00000_{1:043d}\n")
    everything = "".join(path.read_text() for path in tmp_path.rglob("*") if path.is_file())
    assert f"{1:043d}" not in everything + err


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_an_interruption_ends_it(key: Here, service: AdminApi, method: str) -> None:
    asked, ended = threading.Event(), threading.Event()

    def silent(_: Handler) -> None:
        asked.set()
        ended.wait(60)

    service.faults[method, "/admin/keys"] = silent
    command = process("add", "laptop")
    assert asked.wait(60)
    command.send_signal(signal.SIGINT)
    out, err = command.communicate(timeout=60)
    ended.set()
    assert (command.returncode, out) == (130, "")
    assert ("whether that was done is not known" in err) == (method == "POST")
    assert err.endswith("interrupted\n")
    assert "Traceback" not in err


def test_a_reader_that_went_away_is_no_traceback(key: Here, service: AdminApi) -> None:
    filled(service)
    command = process("list")
    assert command.stdout is not None
    assert command.stderr is not None
    command.stdout.close()
    assert "Traceback" not in command.stderr.read()
    assert command.wait(60) == 1


# Help


@pytest.mark.parametrize("arguments", [["key", "--help"], ["key", "add", "--help"], ["key", "usage", "-h"]])
def test_help_brings_nothing_heavy_with_it(arguments: list[str]) -> None:
    heavy = ["pyinfra", "ansible", "rich", "pydantic", "requests", "jinja2", "paramiko", "http.client", "ssl"]
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
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "LOADED [] 0"


def test_the_command_is_listed_in_order() -> None:
    names = cli.cli.list_commands(click.Context(cli.cli))
    assert [name for name in names if name in ("caddy", "document", "key", "lab", "mirror", "token")] == names[-6:]
    assert sorted(key_cli.key.commands) == ["add", "audit", "list", "revoke", "rotate", "set", "show", "usage"]
