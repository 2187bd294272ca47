"""Ansible connection variables -> Connection -> OpenSSH configuration. What ssh reads is asked of `ssh -G`."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest

from boxwright.connection import (
    Connection,
    Hop,
    from_variables,
    hops,
    pyinfra_target,
    ssh_config,
    write_ssh_config,
)
from boxwright.errors import Refused


@pytest.fixture(autouse=True)
def _own_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BOXWRIGHT_STATE_DIR", str(tmp_path / "state"))
    (tmp_path / "home").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))


def seen_by_ssh(connection: Connection, target: str | None = None) -> dict[str, str]:
    """What OpenSSH itself reads from the written configuration (first value of each option)."""
    config = write_ssh_config(connection.name, connection)
    text = subprocess.run(
        ["ssh", "-G", "-F", config, target or connection.address], capture_output=True, text=True, check=True
    ).stdout
    options: dict[str, str] = {}
    for line in text.splitlines():
        name, _, value = line.partition(" ")
        options.setdefault(name, value)
    return options


def test_defaults_are_ssh_to_the_name_with_strict_host_keys() -> None:
    connection = from_variables("box.example", {})
    options = seen_by_ssh(connection)
    assert connection.kind == "ssh"
    assert not connection.become
    assert options["hostname"] == "box.example"
    assert options["stricthostkeychecking"] in {"yes", "true"}
    assert options["userknownhostsfile"].split()[0] == str(Path.home() / ".ssh/known_hosts")


def test_every_usual_variable_reaches_ssh() -> None:
    connection = from_variables(
        "box",
        {
            "ansible_host": "192.0.2.7",
            "ansible_port": "2222",
            "ansible_user": "admin",
            "ansible_ssh_private_key_file": "/keys/one key",
            "ansible_become": "yes",
            "ansible_become_user": "root",
            "ansible_become_pass": "s3cret-sudo",
            "ansible_ssh_common_args": "-o UserKnownHostsFile=/known -J jump@192.0.2.1:2200 -o ServerAliveInterval=7",
            "ansible_ssh_timeout": 33,
        },
    )
    for target in ("box", "192.0.2.7"):
        options = seen_by_ssh(connection, target)
        assert options["hostname"] == "192.0.2.7"
        assert options["port"] == "2222"
        assert options["user"] == "admin"
        assert options["identityfile"] == "/keys/one key"
        assert options["userknownhostsfile"] == "/known"
        assert options["proxyjump"].replace("[", "").replace("]", "") == "jump@192.0.2.1:2200"
        assert options["serveraliveinterval"] == "7"
        assert options["connecttimeout"] == "33"
    assert connection.become
    assert connection.become_user is None  # root is sudo's own default
    assert connection.become_password == "s3cret-sudo"


def test_hops_are_checked_against_the_same_known_hosts_and_get_the_key_last(tmp_path: Path) -> None:
    (tmp_path / "home/.ssh").mkdir()
    (tmp_path / "home/.ssh/config").write_text("Host hop\n  IdentityFile /users/own\n  StrictHostKeyChecking no\n")
    connection = from_variables(
        "box",
        {
            "ansible_host": "192.0.2.7",
            "ansible_ssh_private_key_file": "/keys/box",
            "ansible_ssh_common_args": "-J u@hop,hop2:2222 -o UserKnownHostsFile=/known",
        },
    )
    config = write_ssh_config("box", connection)
    lines = subprocess.run(["ssh", "-G", "-F", config, "hop"], capture_output=True, text=True, check=True).stdout
    assert "stricthostkeychecking true" in lines
    assert "userknownhostsfile /known" in lines
    keys = [line.split()[1] for line in lines.splitlines() if line.startswith("identityfile ")]
    assert keys == ["/users/own", "/keys/box"]
    assert "proxyjump" not in lines  # the hop itself is reached directly


def test_an_alias_of_the_users_own_ssh_configuration_works(tmp_path: Path) -> None:
    (tmp_path / "home/.ssh").mkdir()
    (tmp_path / "home/.ssh/config").write_text("Host alias\n  HostName 192.0.2.99\n  User someone\n  Port 2022\n")
    options = seen_by_ssh(from_variables("box", {"ansible_host": "alias", "ansible_user": "me"}))
    assert (options["hostname"], options["user"], options["port"]) == ("192.0.2.99", "me", "2022")


def test_another_configuration_file_replaces_the_users_own(tmp_path: Path) -> None:
    (tmp_path / "home/.ssh").mkdir()
    (tmp_path / "home/.ssh/config").write_text("Host box\n  Port 1111\n")
    (tmp_path / "other").write_text("Host box\n  Port 3333\n")
    connection = from_variables("box", {"ansible_ssh_common_args": f"-F {tmp_path}/other"})
    assert seen_by_ssh(connection)["port"] == "3333"


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"ansible_host_key_checking": False}, "no"),
        ({"ansible_ssh_host_key_checking": "false"}, "no"),
        ({"ansible_ssh_extra_args": "-o StrictHostKeyChecking=no"}, "no"),
        ({"ansible_ssh_extra_args": "-oStrictHostKeyChecking=accept-new"}, "accept-new"),
        ({"ansible_ssh_extra_args": "-o 'StrictHostKeyChecking ask'"}, "yes"),
        ({"ansible_host_key_checking": True}, "yes"),
        ({}, "yes"),
    ],
)
def test_strictness_is_only_what_the_user_said(variables: dict[str, Any], expected: str) -> None:
    assert from_variables("box", variables).strict_host_keys == expected


@pytest.mark.parametrize(
    ("variables", "variable", "words"),
    [
        ({"ansible_connection": "winrm"}, "ansible_connection", "expected ssh or local"),
        ({"ansible_port": "ssh"}, "ansible_port", "whole number from 1 to 65535"),
        ({"ansible_port": 70000}, "ansible_port", "whole number from 1 to 65535"),
        ({"ansible_port": True}, "ansible_port", "whole number from 1 to 65535"),
        ({"ansible_become": "perhaps"}, "ansible_become", "true or false"),
        ({"ansible_become_method": "su"}, "ansible_become_method", "only sudo"),
        ({"ansible_become_flags": "-H -S -n"}, "ansible_become_flags", "leave it out"),
        ({"ansible_ssh_common_args": "-D 1080"}, "ansible_ssh_common_args", "supported: -o"),
        ({"ansible_ssh_common_args": "-o Ciphers=aes128-cbc"}, "ansible_ssh_common_args", "Ciphers"),
        ({"ansible_ssh_common_args": "-o"}, "ansible_ssh_common_args", "lacks its value"),
        ({"ansible_ssh_common_args": "-o 'Port"}, "ansible_ssh_common_args", "quotes"),
        ({"ansible_ssh_extra_args": "-o Port=many"}, "ansible_ssh_extra_args", "whole number"),
        ({"ansible_host": "-oProxyCommand=evil"}, "ansible_host", "leading dash"),
    ],
)
def test_what_cannot_be_honoured_is_refused(variables: dict[str, Any], variable: str, words: str) -> None:
    with pytest.raises(Refused) as caught:
        from_variables("box", variables)
    (problem,) = caught.value.problems
    assert problem.variable == variable
    assert words in f"{problem.message} {problem.help}"
    assert problem.host == "box"


def test_all_wrong_variables_are_reported_at_once() -> None:
    with pytest.raises(Refused) as caught:
        from_variables("box", {"ansible_port": 0, "ansible_become_method": "su", "ansible_connection": "docker"})
    assert {problem.variable for problem in caught.value.problems} == {
        "ansible_port",
        "ansible_become_method",
        "ansible_connection",
    }


def test_harmless_options_are_passed_to_ssh() -> None:
    connection = from_variables(
        "box",
        {"ansible_ssh_args": "-C -o ControlMaster=auto -o ControlPersist=60s -o PreferredAuthentications=publickey"},
    )
    assert seen_by_ssh(connection)["preferredauthentications"] == "publickey"
    assert "ControlMaster" not in ssh_config(connection)


def test_passwords_are_neither_in_the_configuration_nor_in_what_is_printed() -> None:
    connection = from_variables("box", {"ansible_password": "pa55-login", "ansible_become_password": "pa55-sudo"})
    assert connection.password == "pa55-login"
    for text in (ssh_config(connection), repr(connection), str(connection.to_json())):
        assert "pa55" not in text


def test_the_configuration_is_private_and_replaced_whole(tmp_path: Path) -> None:
    path = write_ssh_config("box/1", from_variables("box/1", {}))
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700
    write_ssh_config("box/1", from_variables("box/1", {"ansible_port": 99}))
    assert "Port 99" in path.read_text()
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


def test_hop_lists() -> None:
    assert hops("a") == [Hop("a")]
    assert hops("me@a:22,b") == [Hop("a", 22, "me"), Hop("b")]
    assert hops("ssh://me@a:2222") == [Hop("a", 2222, "me")]
    assert hops("2001:db8::1") == [Hop("2001:db8::1")]


def test_pyinfra_gets_a_name_a_connector_and_no_password() -> None:
    address, data = pyinfra_target(
        "box", {"ansible_become": True, "ansible_become_password": "pa55", "ansible_user": "me"}
    )
    assert address == "@boxwright/box"
    assert data["_sudo"] is True
    assert data["ssh_hostname"] == "box"
    assert Path(data["ssh_config_file"]).is_file()
    assert "_sudo_password" not in data
    assert "ssh_password" not in data
    local, _ = pyinfra_target("me", {"ansible_connection": "local"})
    assert local == "@boxwright-local/me"


def test_a_missing_key_is_refused_before_connecting() -> None:
    with pytest.raises(Refused) as caught:
        pyinfra_target("box", {"ansible_ssh_private_key_file": "/no/such/key"})
    assert caught.value.problems[0].variable == "ansible_ssh_private_key_file"
