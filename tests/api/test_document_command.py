"""`boxwright document` and the keys that may read them: the whole service and Qdrant's double, over real SSH."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from qdrant_server import QdrantServer
from stub_engine import StubEngine
from test_key_command import Service

from boxwright import masking
from tests.unit.key_box import Here, Ssh, ssh

__all__ = ["ssh"]

WISH = {"retrieval": {"collection": "manuals", "passages": 1}}


@pytest.fixture
def qdrant(tmp_path: Path) -> Iterator[QdrantServer]:
    folder = tmp_path / "qdrant"
    folder.mkdir()
    with QdrantServer(folder) as found:
        yield found


@pytest.fixture
def stub_of_both() -> Iterator[StubEngine]:
    with StubEngine() as found:
        # Enough that no two words of the tests are the same number.
        found.behave(size=512)
        yield found


@pytest.fixture
def service(tmp_path: Path, stub_of_both: StubEngine, qdrant: QdrantServer) -> Iterator[Service]:
    retrieval = {"url": qdrant.url, "model": "n", "prefix": "box-"}
    running = Service(tmp_path, stub_of_both, qdrant.key, retrieval=retrieval)
    yield running
    running.stop()


def test_from_a_file_to_an_answer(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    ssh: Ssh,
    service: Service,
    stub_of_both: StubEngine,
    qdrant: QdrantServer,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Added, asked for by the key that may and by one that may not, replaced, removed; the audit log knows it all."""
    monkeypatch.setenv("BOXWRIGHT_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.setenv("BOXWRIGHT_INVENTORY", str(tmp_path / "hosts.yml"))
    monkeypatch.setenv("LOGNAME", "anna")
    monkeypatch.setattr(sys, "stdout", sys.stdout)
    monkeypatch.setattr(sys, "stderr", sys.stderr)
    document, key = (Here(tmp_path, ssh, service.port, capfd, name) for name in ("document", "key"))
    manual, faq = tmp_path / "pump.txt", tmp_path / "häufig gefragt.md"
    manual.write_text("The pump has 40 dB.")
    faq.write_text("Blue and green are there.")
    try:
        done = document("add", "manuals", str(manual), str(faq))
        assert (done.code, done.out) == (0, ""), done.problems
        reader = key("add", "reader", "--collection", "manuals").out.strip()
        other = key("add", "other", "--collection", "recipes").out.strip()

        assert service.chat(reader, "How loud is the pump?", **WISH) == (200, None)
        assert "40 dB" in stub_of_both.last().body["messages"][-1]["content"]
        assert service.chat(other, "How loud is the pump?", **WISH) == (403, "collection_not_allowed")
        id = other.split("_")[1]
        assert key("set", id, "--collection", "manuals").code == 0
        assert service.chat(other, "How loud is the pump?", **WISH) == (200, None)
        assert key("set", id, "--no-collections").code == 0
        assert service.chat(other, "How loud is the pump?", **WISH) == (403, "collection_not_allowed")

        manual.write_text("The pump has 30 dB.")
        assert document("add", "manuals", str(manual)).code == 0
        assert service.chat(reader, "How loud is the pump?", **WISH) == (200, None)
        assert "30 dB" in stub_of_both.last().body["messages"][-1]["content"]
        names = [one["name"] for one in document("list", "manuals", "--json").json()]
        assert names == ["häufig gefragt.md", "pump.txt"]

        assert document("remove", "manuals", "pump.txt").code == 0
        assert document("remove", "manuals", "pump.txt").problems[0].code == "BW173"
        assert service.chat(reader, "How loud is the pump?", **WISH) == (200, None)
        assert "dB" not in stub_of_both.last().body["messages"][-1]["content"]
        qdrant.stop()
        assert document("list").problems[0].code == "BW174"
        assert service.chat(reader, "How loud?", **WISH) == (503, "retrieval_unavailable")
        qdrant.start()
        assert document("remove", "manuals", "--all").code == 0
        assert service.chat(reader, "How loud?", **WISH) == (403, "collection_not_allowed")

        acts = [(entry["action"], entry["target"]) for entry in key("audit", "--json").json()]
        assert [act for act in acts if not act[0].startswith("key.")] == [
            ("collection.remove", "manuals"),
            ("document.remove", "manuals/pump.txt"),
            ("document.put", "manuals/pump.txt"),
            ("document.put", "manuals/häufig gefragt.md"),
            ("document.put", "manuals/pump.txt"),
        ]
        log = service.log.read_text()
        assert not [secret for secret in (reader, other, qdrant.key, "40 dB", "How loud") if secret in log]
    finally:
        masking.forget()
