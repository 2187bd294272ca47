"""The client from outside, and the commands printed for people, against HTTPS on loopback (https_box.py)."""

from __future__ import annotations

import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from https_box import Door, certificate, settings

from boxwright.connection import from_variables
from boxwright.errors import Failed
from boxwright.outside import Outside, Route, ca_file, route
from boxwright.summary import curl, summary, tunnel_command, write_netrc

NAME = "llm.box.test"  # .test never resolves (RFC 6761)


@pytest.fixture(autouse=True)
def _own_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BOXWRIGHT_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "state/ca").mkdir(parents=True)


@pytest.fixture
def door(tmp_path: Path) -> Iterator[Door]:
    door = Door(tmp_path, NAME)
    (tmp_path / "state/ca/box.crt").write_bytes(door.root.read_bytes())
    yield door
    door.close()


def at_loopback(**more: Any) -> Any:
    return from_variables("box", {"ansible_host": "127.0.0.1", **more})


def test_a_name_that_dns_does_not_know_is_asked_at_the_inventory_address(door: Door) -> None:
    with Outside(settings("box", NAME, door.port), at_loopback()) as outside:
        assert outside.models() == ["local-llm"]
        assert outside.chat("hello?") == "hello"
    assert {seen["host"] for seen in door.seen} == {f"{NAME}:{door.port}"}
    assert door.seen[1]["body"] == {"model": "local-llm", "messages": [{"role": "user", "content": "hello?"}]}


def test_a_streamed_answer_is_read_as_it_comes(door: Door) -> None:
    with Outside(settings("box", NAME, door.port), at_loopback()) as outside:
        pieces = outside.stream_chat("hello?")
        assert next(pieces) == "one"  # the server sends the second piece only after this
        door.first_piece_read.set()
        assert list(pieces) == ["two"]


def test_wrong_or_no_credentials_are_not_hidden(door: Door) -> None:
    with Outside(settings("box", NAME, door.port), at_loopback()) as outside:
        assert outside.get("v1/models", auth=False).status_code == 401
        assert outside.get("v1/models", auth=("someone", "else")).status_code == 401
        assert outside.get("/v1/models").status_code == 200
        outside.auth = ("someone", "else")
        with pytest.raises(Failed, match="answered 401"):
            outside.models()


def test_a_certificate_of_another_authority_is_not_accepted(door: Door, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    root, _ = certificate(tmp_path / "other", NAME)
    (tmp_path / "state/ca/box.crt").write_bytes(root.read_bytes())
    with Outside(settings("box", NAME, door.port), at_loopback()) as outside, pytest.raises(Failed) as caught:
        outside.models()
    assert caught.value.problems[0].code == "BW203"
    assert "certificate" in caught.value.problems[0].message
    assert door.seen == []


def test_a_certificate_for_another_name_is_not_accepted(door: Door) -> None:
    with (
        Outside(settings("box", "other.box.test", door.port), at_loopback()) as outside,
        pytest.raises(Failed) as caught,
    ):
        outside.models()
    assert "certificate" in caught.value.problems[0].message


def test_the_environment_of_the_person_does_not_change_what_is_trusted(
    door: Door, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "other").mkdir()
    root, _ = certificate(tmp_path / "other", NAME)
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(root))
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")
    (tmp_path / ".netrc").write_text(f"machine {NAME} login wrong password wrong\n")
    with Outside(settings("box", NAME, door.port), at_loopback()) as outside:
        assert outside.models() == ["local-llm"]
        assert outside.get("v1/models", auth=False).status_code == 401


def test_nobody_there_and_no_root_certificate(door: Door, tmp_path: Path) -> None:
    with Outside(settings("box", NAME, 1), at_loopback()) as outside, pytest.raises(Failed, match="does not answer"):
        outside.models()
    (tmp_path / "state/ca/box.crt").unlink()
    with pytest.raises(Failed, match="root certificate"):
        Outside(settings("box", NAME, door.port), at_loopback())


def test_routes() -> None:
    remote, here = at_loopback(), from_variables("box", {"ansible_connection": "local"})
    public, private = ("0.0.0.0",), ("127.0.0.1",)
    assert route(settings("box", NAME, 443, public), remote) == Route("127.0.0.1", 443)
    assert route(settings("box", "localhost", 443, public), remote) == Route()
    assert route(settings("box", "192.0.2.1", 443, public), remote) == Route()
    assert route(settings("box", NAME, 443, private), remote) == Route("127.0.0.1", 443, tunnel=True)
    assert route(settings("box", NAME, 443, private), here) == Route("127.0.0.1", 443)
    assert route(settings("box", NAME, 443, public), here) == Route("127.0.0.1", 443)


def test_the_printed_curl_line_works_and_holds_no_secret(door: Door) -> None:
    box, connection = settings("box", NAME, door.port), at_loopback()
    lines = list(summary(box, connection, "make test"))
    (line,) = [line for line in lines if line.strip().startswith("curl ")]
    assert "pass word" not in "\n".join(lines)
    done = subprocess.run(line, shell=True, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert '"hello"' in done.stdout
    assert door.seen[-1]["path"] == "/v1/chat/completions"


def test_the_netrc_file_is_private_and_its_words_survive(door: Door) -> None:
    path = write_netrc(settings("box", NAME, door.port))
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700
    assert 'password "pass word"' in path.read_text()


def test_the_summary_names_what_a_person_needs(door: Door, tmp_path: Path) -> None:
    box = settings("box", NAME, door.port)
    text = "\n".join(summary(box, at_loopback(), "boxwright verify"))
    for needed in (box.gateway.url, "someone", "admin@box.test", "boxwright secret show gateway_password --limit box"):
        assert needed in text
    assert "boxwright verify" in text
    assert str(ca_file(box)) in text
    assert tunnel_command(box, at_loopback()) is None


def test_a_box_without_authentication_needs_no_netrc(door: Door) -> None:
    box = settings("box", NAME, door.port, auth="none")
    assert "--netrc-file" not in curl(box, at_loopback(), None)
    assert "API user" not in "\n".join(summary(box, at_loopback(), "make test"))
    with Outside(box, at_loopback()) as outside:
        assert outside.get("v1/models").status_code == 401  # this door wants some; none were sent


def test_a_door_on_loopback_is_reached_through_ssh(door: Door, tmp_path: Path) -> None:
    folder = tmp_path / "ssh"
    folder.mkdir()
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / "key"], check=True)
    (folder / "authorized.pub").write_text((folder / "key.pub").read_text())
    server = subprocess.Popen(
        [sys.executable, Path(__file__).with_name("ssh_server.py"), folder, "--password", "login-word"],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert server.stdout
        port = int(server.stdout.readline())
        key = " ".join((folder / "host_key.pub").read_text().split()[:2])
        (folder / "known_hosts").write_text(f"[127.0.0.1]:{port} {key}\n")
        connection = at_loopback(
            ansible_port=port,
            ansible_user="someone",
            ansible_ssh_private_key_file=str(folder / "key"),
            ansible_ssh_common_args=f"-o UserKnownHostsFile={folder / 'known_hosts'}",
        )
        box = settings("box", NAME, door.port, bind=("127.0.0.1",))
        with Outside(box, connection) as outside:
            assert outside.models() == ["local-llm"]
        # The same with a password instead of a key: ssh asks a program for it, not the terminal.
        (folder / "authorized.pub").unlink()
        with Outside(box, replace(connection, password="login-word")) as outside:
            assert outside.models() == ["local-llm"]
        with pytest.raises(Failed, match="no SSH tunnel"):
            Outside(box, replace(connection, password="wrong-word"))
        command = tunnel_command(box, connection)
        assert command is not None
        assert f"8443:127.0.0.1:{door.port}" in command
        assert "login-word" not in shlex.join(command)
    finally:
        server.kill()
        server.communicate()


def test_what_a_box_must_answer_depends_on_what_it_serves(door: Door) -> None:
    box = settings("box", NAME, door.port)
    with Outside(box, at_loopback()) as outside:
        outside.check()
        assert door.seen[-1]["path"] == "/v1/models"
        box.inference.main = None
        outside.check()
        assert door.seen[-1]["path"] == "/"


def test_a_box_for_which_nobody_has_a_token_yet_answers_by_refusing(door: Door) -> None:
    """As after the first run of most presets; a door that is open without one is none."""
    box = settings("box", NAME, door.port)
    box.gateway.asks_for_password, box.gateway.auth, box.gateway.tokens = False, "bearer", {}
    with Outside(box, at_loopback()) as outside:
        outside.check()
        assert door.seen[-1]["path"] == "/v1/models"
        assert f"none yet; boxwright token add NAME --limit {box.name} makes one" in "\n".join(
            summary(box, at_loopback(), "make test")
        )
        door.user, door.password = "", ""
        outside.session.headers["Authorization"] = "Basic Og=="
        with pytest.raises(Failed, match="without a token answered 200 OK, not 401"):
            outside.check()


def test_a_box_that_asks_for_keys_answers_by_refusing(door: Door) -> None:
    """Keys are in the API service's database: this machine has none, not even after the first run."""
    box = settings("box", NAME, door.port)
    box.gateway.asks_for_password, box.gateway.auth = False, "keys"
    with Outside(box, at_loopback()) as outside:
        outside.check()
        door.user, door.password = "", ""
        outside.session.headers["Authorization"] = "Basic Og=="
        with pytest.raises(Failed, match="answered 200 OK, not 401"):
            outside.check()


def test_the_summary_names_only_what_the_box_serves(door: Door) -> None:
    box = settings("box", NAME, door.port)
    box.inference.main, box.openwebui.enabled = None, False
    said = "\n".join(summary(box, at_loopback(), "make test"))
    assert "v1/chat/completions" not in said
    assert "in a browser" not in said
    assert "password" not in said
