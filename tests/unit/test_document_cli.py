"""`boxwright document ...` as a person or a script meets it, over real SSH against a double of the admin API."""

from __future__ import annotations

import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from boxwright import document_cli, masking
from tests.unit.admin_api import AdminApi, Handler, error, shown
from tests.unit.key_box import Here, Ssh, ssh

__all__ = ["ssh"]


@pytest.fixture
def service() -> Iterator[AdminApi]:
    double = AdminApi()
    yield double
    double.stop()


@pytest.fixture
def document(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ssh: Ssh, service: AdminApi, capfd: pytest.CaptureFixture[str]
) -> Iterator[Here]:
    monkeypatch.setenv("BOXWRIGHT_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.setenv("BOXWRIGHT_INVENTORY", str(tmp_path / "hosts.yml"))
    monkeypatch.setattr(sys, "stdout", sys.stdout)
    monkeypatch.setattr(sys, "stderr", sys.stderr)
    monkeypatch.chdir(tmp_path)
    yield Here(tmp_path, ssh, service.port, capfd, "document")
    masking.forget()
    assert shown(f"-W\x00127.0.0.1:{service.port}") == []


def test_documents_are_added_listed_and_removed(document: Here, service: AdminApi, tmp_path: Path) -> None:
    (tmp_path / "manual.txt").write_text("Größe: 10 m²\r\n", encoding="utf-8", newline="")
    (tmp_path / "b c.md").write_text("two")
    done = document("add", "manuals", "manual.txt", "b c.md")
    assert (done.code, done.out) == (0, "")
    assert "box has manual.txt in manuals: 1 passages" in done.err
    # Byte for byte.
    assert service.documents == {"manuals": {"manual.txt": "Größe: 10 m²\r\n", "b c.md": "two"}}
    assert service.seen[-1]["path"] == "/admin/collections/manuals/documents/b%20c.md"
    assert "@" in service.seen[-1]["actor"]
    assert service.shown_to_others == []

    assert [line.split() for line in document("list").out.splitlines()] == [
        ["collection", "documents", "passages"],
        ["manuals", "2", "2"],
    ]
    assert "manual.txt  2026-11-30 12:00 UTC          14         1" in document("list", "manuals").out
    assert [one["name"] for one in document("list", "manuals", "--json").json()] == ["manual.txt", "b c.md"]

    assert document("remove", "manuals", "manual.txt").code == 0
    assert service.documents == {"manuals": {"b c.md": "two"}}
    assert document("remove", "manuals", "--all").code == 0
    assert service.documents == {}
    done = document("list")
    assert (done.out, "there are no documents" in done.err) == ("", True)


def test_another_name(document: Here, service: AdminApi, tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_text("x")
    assert document("add", "manuals", "x.txt", "--name", "a/b?c#d %2e\u00e9").code == 0
    assert service.documents == {"manuals": {"a/b?c#d %2e\u00e9": "x"}}
    assert document("remove", "manuals", "a/b?c#d %2e\u00e9").code == 0
    assert service.documents == {"manuals": {}}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("add", "manuals"), "Missing argument"),
        (("add", "manuals", "absent.txt"), "absent.txt"),
        (("add", "manuals", "."), "directory"),
        (("add", "manuals", "picture.png"), "picture.png is not plain text in UTF-8"),
        (("add", "manuals", "large.txt"), "large.txt is larger than 1048576 bytes"),
        (("add", "manuals", "good.txt", "sub/good.txt"), "two files called good.txt"),
        (("add", "manuals", "good.txt", "other.txt", "--name", "x"), "--name is for one file"),
        (("remove", "manuals"), "name documents, or --all"),
        (("remove", "manuals", "x", "--all"), "name documents, or --all"),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_sent(
    document: Here, service: AdminApi, tmp_path: Path, arguments: tuple[str, ...], words: str
) -> None:
    (tmp_path / "sub").mkdir()
    for name in ("good.txt", "other.txt", "sub/good.txt"):
        (tmp_path / name).write_text("good")
    (tmp_path / "picture.png").write_bytes(b"\x89PNG\xff")
    (tmp_path / "large.txt").write_bytes(b"x" * (document_cli.LARGEST + 1))
    done = document(*arguments)
    assert done.code in (1, 2)
    assert words in done.err
    assert service.seen == []


def test_the_largest_goes_through(document: Here, service: AdminApi, tmp_path: Path) -> None:
    (tmp_path / "large.txt").write_bytes(b"x" * document_cli.LARGEST)
    assert document("add", "manuals", "large.txt").code == 0
    assert len(service.documents["manuals"]["large.txt"]) == document_cli.LARGEST


def test_the_service_takes_as_much_as_is_sent() -> None:
    """Two programs, one limit."""
    from boxwright_api.documents import LARGEST_DOCUMENT

    assert document_cli.LARGEST == LARGEST_DOCUMENT


def cut(handler: Handler) -> None:
    handler.connection.shutdown(socket.SHUT_RDWR)
    handler.close_connection = True


@pytest.mark.parametrize(
    ("fault", "exit_code", "code", "words"),
    [
        ((503, error("retrieval_unavailable", "It cannot be done now: Qdrant is away.")), 2, "BW174", "Qdrant is away"),
        ((409, error("other_embedding_model", "Remove the collection.")), 2, "BW173", "Remove the collection"),
        ((400, error("retrieval_not_available", "No documents.")), 2, "BW173", "No documents"),
        ((200, {}), 1, "BW205", "no name"),
        (cut, 1, "BW205", "not known"),
    ],
)
def test_what_the_service_says_is_told(
    document: Here, service: AdminApi, tmp_path: Path, fault: Any, exit_code: int, code: str, words: str
) -> None:
    (tmp_path / "x.txt").write_text("x")
    service.faults["PUT", "/x.txt"] = fault
    done = document("add", "manuals", "x.txt")
    assert (done.code, done.out, done.problems[0].code) == (exit_code, "", code)
    assert words in done.problems[0].message
    if fault is cut:
        assert done.problems[0].help == "boxwright document list COLLECTION"


def test_what_is_not_there(document: Here, service: AdminApi) -> None:
    service.documents["manuals"] = {}
    done = document("remove", "manuals", "absent")
    assert (done.code, done.problems[0].code) == (2, "BW173")
    assert "no document 'absent' in manuals" in done.problems[0].message
    assert document("list", "no-such").problems[0].code == "BW173"


def test_a_box_without_the_service(document: Here) -> None:
    document.write(enabled="false")
    assert document("list").problems[0].code == "BW042"


def test_a_name_that_would_steer_the_terminal(document: Here, service: AdminApi) -> None:
    service.documents["manuals"] = {"evil\x1b[2J": "x"}
    assert "\x1b" not in document("list", "manuals").out
    done = document("remove", "manuals", "evil\x1b[2J")
    assert "no evil?[2J in manuals" in done.err
