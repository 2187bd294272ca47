"""Passages of documents in answers, and the documents themselves: the service in front of a stub engine and Qdrant's
double."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx2 as httpx
import pytest
import schemathesis
from boxwright_api import admin, documents
from boxwright_api.documents import LARGEST_DOCUMENT
from boxwright_api.errors import ApiError
from boxwright_api.library import Library, Lookup
from boxwright_api.qdrant import Qdrant, QdrantUnavailable, is_
from boxwright_api.upstream import Upstream
from doubles import key
from qdrant_server import QdrantServer
from schemathesis import GenerationMode
from served import Served, served, settings
from stub_engine import StubEngine
from test_health import samples
from test_relay import CHAT, error
from test_service_description import holds
from waiting import until

from boxwright.paths import repository_root

ADMIN = {"Authorization": "Bearer admin", "X-Boxwright-Actor": "anna"}
READER = {"Authorization": "Bearer reader"}
OTHER = {"Authorization": "Bearer other"}
QUESTION = "How loud is the pump?"
LOUD = "The pump is loud: it has 40 dB at full speed."
COLOUR = "The housing comes in blue and in green."
MANUAL = "\n\n".join([LOUD, "x " * 450, COLOUR, "y " * 450])


@pytest.fixture(scope="module")
def vectors() -> Iterator[StubEngine]:
    """The engine of the model that makes vectors."""
    with StubEngine() as found:
        yield found


@pytest.fixture(scope="module")
def lasting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[QdrantServer]:
    with QdrantServer(tmp_path_factory.mktemp("qdrant")) as found:
        yield found


@pytest.fixture
def qdrant(lasting: QdrantServer) -> QdrantServer:
    lasting.clear()
    return lasting


def changes(engine: StubEngine, vectors: StubEngine, qdrant: QdrantServer, **more: Any) -> dict[str, Any]:
    """Settings of a service that looks up passages."""
    models = [
        {"name": "plain", "upstream": engine.url, "model": "gguf"},
        {"name": "ollama", "upstream": engine.url, "engine": "ollama", "model": "qwen3:8b", "warm": False},
        {"name": "embed", "upstream": vectors.url, "offers": ["embeddings"], "model": "bge"},
    ]
    retrieval = {"url": qdrant.url, "model": "embed", "prefix": "test-", **more.pop("retrieval", {})}
    return {"models": models, "retrieval": retrieval, "retrieval_key": qdrant.key, **more}


@pytest.fixture
def start(engine: StubEngine, vectors: StubEngine, qdrant: QdrantServer) -> Iterator[Callable[..., Served]]:
    """Starts a service; arguments are members of its settings."""
    vectors.behave(size=64)
    with contextlib.ExitStack() as stack:

        def begin(**more: Any) -> Served:
            made = changes(engine, vectors, qdrant, **more)
            found = stack.enter_context(served(engine, admin.router(), documents.router(), **made))
            found.parts.keys.known |= {
                "Bearer reader": key("reader01", collections=("manuals", "absent")),
                "Bearer other": key("other001", collections=("secrets",)),
            }
            vectors.clear()
            return found

        yield begin


@pytest.fixture
def service(start: Callable[..., Served]) -> Served:
    return start()


def put(service: Served, name: str, text: str | bytes, collection: str = "manuals") -> httpx.Response:
    path = f"/admin/collections/{collection}/documents/{quote(name, safe='')}"
    content = text if isinstance(text, bytes) else text.encode()
    return httpx.put(service.url + path, content=content, headers=ADMIN, timeout=30)


def remove(service: Served, path: str) -> httpx.Response:
    return httpx.delete(f"{service.url}/admin/collections/{path}", headers=ADMIN, timeout=30)


def listed(service: Served, path: str = "") -> Any:
    return httpx.get(f"{service.url}/admin/collections{path}", headers=ADMIN, timeout=30).json()


def ask(collection: str = "manuals", content: Any = QUESTION, **more: Any) -> dict[str, Any]:
    retrieval = {"collection": collection, **more.pop("retrieval", {})}
    messages = [{"role": "system", "content": "Be short."}, {"role": "user", "content": content}]
    return {"model": "plain", "messages": messages, "retrieval": retrieval, **more}


def post(service: Served, body: Any, headers: dict[str, str] = READER, path: str = CHAT) -> httpx.Response:
    return service.post(path, body, headers=headers)


# What a client gets.


@pytest.mark.parametrize("model", ["plain", "ollama"])
def test_a_chat_with_passages(service: Served, engine: StubEngine, vectors: StubEngine, model: str) -> None:
    """The nearest ones, in the last message; the member is not handed on; the row has the tokens of both models."""
    assert put(service, "manual.txt", MANUAL).json()["passages"] >= 2
    before = vectors.records[-1].number
    answer = post(service, ask(model=model, retrieval={"passages": 1}, user="somebody"))
    assert answer.status_code == 200
    assert answer.headers["x-boxwright-passages"] == "1"
    asked = engine.last().body
    assert "retrieval" not in asked
    system, user = asked["messages"]
    assert system == {"role": "system", "content": "Be short."}
    assert user["content"].endswith(f"\n\n{QUESTION}")
    assert LOUD in user["content"]
    assert 'document="manual.txt"' in user["content"]
    assert user["content"].count("<passage") == 1
    looked_up = vectors.last()
    assert looked_up.number == before + 1
    assert (looked_up.body["input"], looked_up.body["model"]) == ([QUESTION], "bge")
    row = service.row()
    assert (row.key_id, row.outcome, row.estimated) == ("reader01", "ok", False)
    assert row.tokens_in == engine.last().tokens_in + looked_up.tokens_in
    assert looked_up.tokens_in > 0
    assert service.parts.limiter.tokens == row.tokens_in + row.tokens_out
    service.free()


def test_the_example_of_the_documentation(start: Callable[..., Served], engine: StubEngine) -> None:
    """docs/api.md: what it tells clients to send is answered with passages."""
    page = (repository_root() / "docs" / "api.md").read_text()
    (body,) = re.findall(r"-d '(\{[^']*\"retrieval\"[^']*\})'", page)
    embed = {"name": "embed", "upstream": engine.url, "offers": ["embeddings"]}
    service = start(models=[{"name": "local-llm", "upstream": engine.url}, embed])
    put(service, "manual.txt", MANUAL)
    answer = post(service, body.encode())
    assert (answer.status_code, answer.headers["x-boxwright-passages"]) == (200, "2")
    assert LOUD in engine.last().body["messages"][-1]["content"]


def test_a_stream_with_passages(service: Served, engine: StubEngine) -> None:
    """Nothing else changes in it."""
    put(service, "manual.txt", MANUAL)
    plain = post(service, {**ask(stream=True), "retrieval": None})
    assert "x-boxwright-passages" not in plain.headers
    assert engine.last().body["messages"][-1]["content"] == QUESTION
    assert "retrieval" not in engine.last().body
    answer = post(service, ask(stream=True))
    assert answer.headers["x-boxwright-passages"] == "2"
    assert answer.headers["content-type"] == plain.headers["content-type"]
    assert [line[:20] for line in answer.text.splitlines()] == [line[:20] for line in plain.text.splitlines()]
    assert answer.text.endswith("data: [DONE]\n\n")
    text = engine.last().body["messages"][-1]["content"]
    assert text.index(LOUD) < text.index(QUESTION)


def test_how_many_passages(start: Callable[..., Served], engine: StubEngine) -> None:
    """As the request says, else as the settings do."""
    service = start(retrieval={"passages": 2})
    for number in range(6):
        put(service, f"{number}.txt", f"The pump number {number} is loud.")
    assert post(service, ask()).headers["x-boxwright-passages"] == "2"
    assert post(service, ask(retrieval={"passages": 5})).headers["x-boxwright-passages"] == "5"
    assert post(service, ask(retrieval={"passages": 50})).headers["x-boxwright-passages"] == "6"
    for passages in (0, 51, "4", 1.5, True):
        assert error(post(service, ask(retrieval={"passages": passages}))) == (400, "invalid_value")


def test_no_passage_found(service: Served, engine: StubEngine) -> None:
    """The request goes on without."""
    put(service, "manual.txt", MANUAL)
    assert remove(service, "manuals/documents/manual.txt").status_code == 200
    answer = post(service, ask())
    assert (answer.status_code, answer.headers["x-boxwright-passages"]) == (200, "0")
    assert engine.last().body["messages"][-1]["content"] == QUESTION


def test_an_error_of_the_engine_says_so_too(service: Served, engine: StubEngine) -> None:
    put(service, "manual.txt", MANUAL)
    engine.behave(status=500)
    answer = post(service, ask())
    assert (answer.status_code, answer.headers["x-boxwright-passages"]) == (500, "2")
    service.free()


def test_a_document_does_not_leak(service: Served, engine: StubEngine) -> None:
    """To a key that may not read it there is no such collection; and nobody looks it up, or takes a place."""
    put(service, "manual.txt", MANUAL)
    engine.clear()
    asked = len(service.parts.limiter.asked)
    bodies = []
    for headers, collection in ((OTHER, "manuals"), (READER, "absent"), (READER, "secrets"), (None, "manuals")):
        answer = service.post(CHAT, ask(collection), **({"headers": headers} if headers else {}))
        assert error(answer) == (403, "collection_not_allowed")
        assert answer.json()["error"]["param"] == "retrieval.collection"
        bodies.append(answer.text.replace(collection, "*"))
    # One that does not exist cannot be told from one that does.
    assert len(set(bodies)) == 1
    assert not engine.records
    # Only the key that may read `absent` got so far as to ask.
    assert len(service.parts.limiter.asked) == asked + 1
    service.free()


@pytest.mark.parametrize(
    ("retrieval", "param"),
    [
        ("manuals", "retrieval"),
        ({}, "retrieval.collection"),
        ({"collection": 7}, "retrieval.collection"),
        ({"collection": ""}, "retrieval.collection"),
        ({"collection": "manuals", "more": 1}, "retrieval.more"),
        ([], "retrieval"),
    ],
)
def test_what_is_no_wish(service: Served, engine: StubEngine, retrieval: Any, param: str) -> None:
    answer = post(service, {**ask(), "retrieval": retrieval})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == param
    assert not engine.records


@pytest.mark.parametrize(
    "name", ["'; DROP TABLE x; --", "../test-manuals", "manuals/points", "manuals?x", "MANUALS", "ö\u202e", "m" * 256]
)
def test_a_hostile_collection(service: Served, qdrant: QdrantServer, name: str) -> None:
    assert error(post(service, ask(name))) == (403, "collection_not_allowed")
    assert put(service, "x", "x", quote(name, safe="")).status_code in (400, 404)
    assert qdrant.ask("GET", "/collections")["collections"] == []


def test_there_must_be_a_question(service: Served, engine: StubEngine) -> None:
    for content in (None, "  ", [{"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}]):
        assert error(post(service, ask(content=content))) == (400, "invalid_value")
    assert not engine.records


def test_other_requests_have_no_passages(service: Served, engine: StubEngine) -> None:
    """They are refused, and not answered without."""
    for path, body in (
        ("/v1/completions", {"prompt": "x"}),
        ("/v1/responses", {"input": "x"}),
        ("/v1/embeddings", {"input": "x"}),
    ):
        answer = post(service, {"model": "plain", "retrieval": {"collection": "manuals"}, **body}, path=path)
        assert error(answer) == (400, "retrieval_not_available")
    assert not engine.records


def test_off_by_default(engine: StubEngine) -> None:
    with served(engine, admin.router(), documents.router()) as service:
        answer = service.post(CHAT, ask())
        assert error(answer) == (400, "retrieval_not_available")
        assert answer.json()["error"]["param"] == "retrieval"
        assert not engine.records
        assert error(put(service, "x", "x")) == (400, "retrieval_not_available")
        assert httpx.get(service.url + "/api/v1/health").json()["retrieval"] == "off"
        assert httpx.get(service.url + "/api/v1/ready").json()["retrieval"] is None


# What is away.


def unavailable(service: Served, engine: StubEngine, body: Any = None) -> None:
    """The chat is refused, nothing was asked of its model, and the place is free again."""
    asked, rows = len(engine.records), len(service.parts.usage.rows)
    answer = post(service, body or ask())
    assert error(answer) == (503, "retrieval_unavailable")
    assert int(answer.headers["retry-after"]) >= 1
    assert len(engine.records) == asked
    row = service.row(rows + 1)
    assert (row.outcome, row.code, row.status) == ("upstream_error", "retrieval_unavailable", 503)
    service.free()


def test_qdrant_is_away_and_back(
    service: Served, engine: StubEngine, vectors: StubEngine, qdrant: QdrantServer
) -> None:
    put(service, "manual.txt", MANUAL)
    before = samples(service).get("boxwright_api_retrievals_total{outcome=failed}", 0.0)
    assert httpx.get(service.url + "/api/v1/ready").json()["retrieval"] is True
    qdrant.stop()
    try:
        for stream in (False, True):
            unavailable(service, engine, ask(stream=stream))
            # What the engine of the vectors has worked on is counted.
            assert service.parts.usage.rows[-1].tokens_in == vectors.last().tokens_in > 0
        assert samples(service)["boxwright_api_retrievals_total{outcome=failed}"] == before + 2
        ready = httpx.get(service.url + "/api/v1/ready")
        assert (ready.status_code, ready.json()["retrieval"]) == (200, False)
        assert httpx.get(service.url + "/api/v1/health").json()["retrieval"] == "on"
        assert error(put(service, "manual.txt", "x")) == (503, "retrieval_unavailable")
        assert error(remove(service, "manuals")) == (503, "retrieval_unavailable")
        assert listed(service)["error"]["code"] == "retrieval_unavailable"
        # Who asks for no passages notices nothing.
        assert post(service, {**ask(), "retrieval": None}).status_code == 200
    finally:
        qdrant.start()
    assert post(service, ask()).headers["x-boxwright-passages"] == "2"


def test_qdrant_hangs(start: Callable[..., Served], engine: StubEngine, qdrant: QdrantServer) -> None:
    service = start(retrieval={"seconds": 0.5})
    put(service, "manual.txt", MANUAL)
    assert qdrant.process is not None
    os.kill(qdrant.process.pid, signal.SIGSTOP)
    try:
        unavailable(service, engine)
    finally:
        os.kill(qdrant.process.pid, signal.SIGCONT)


class Nonsense(BaseHTTPRequestHandler):
    """Answers everything with `said`."""

    said: tuple[int, bytes] = (200, b"")

    def do_GET(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        status, data = self.said
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    do_POST = do_PUT = do_GET

    def log_message(self, *_: Any) -> None: ...


@pytest.mark.parametrize(
    "said",
    [
        (200, b"<html>"),
        (404, b"404 page not found"),
        (401, b"Invalid API key or JWT"),
        (200, b'{"result": {}, "status": "ok"}'),
        (200, b'{"result": {"points": [7]}, "status": "ok"}'),
        (400, b'{"status": {"error": "Wrong input: Vector dimension error"}, "time": 0}'),
        (500, b'{"status": {"error": "x"}}'),
        (302, b""),
    ],
)
def test_qdrant_answers_nonsense(start: Callable[..., Served], engine: StubEngine, said: tuple[int, bytes]) -> None:
    server = HTTPServer(("127.0.0.1", 0), type("This", (Nonsense,), {"said": said}))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        service = start(retrieval={"url": f"http://127.0.0.1:{server.server_address[1]}"})
        unavailable(service, engine)
        assert error(put(service, "x", "x")) == (503, "retrieval_unavailable")
    finally:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize(
    "how",
    [
        {"status": 500},
        {"status": 400, "error": {"message": "input is too large to process"}},
        {"break_after": 0},
        {"instead": []},
        {"instead": {"data": []}},
        {"instead": {"data": [{"index": 0, "embedding": "AAAA"}]}},
        {"instead": {"data": [{"index": 0, "embedding": [1.0, "x"]}]}},
        {"instead": {"data": [{"index": 0, "embedding": [0.0, 0.0]}]}},
        {"instead": {"data": [{"index": 3, "embedding": [1.0]}]}},
        # Another number of them than the collection has.
        {"size": 3},
    ],
    ids=str,
)
def test_the_engine_of_the_vectors_fails(
    service: Served, engine: StubEngine, vectors: StubEngine, how: dict[str, Any]
) -> None:
    put(service, "manual.txt", MANUAL)
    vectors.behave(**{"size": 64, **how})
    unavailable(service, engine)
    vectors.behave(size=64)
    assert post(service, ask()).status_code == 200


def test_the_engine_of_the_vectors_is_slow(
    start: Callable[..., Served], engine: StubEngine, vectors: StubEngine
) -> None:
    service = start(retrieval={"seconds": 0.3})
    put(service, "manual.txt", MANUAL)
    vectors.behave(size=64, wait=60)
    unavailable(service, engine)
    assert service.parts.usage.rows[-1].estimated
    until(lambda: vectors.running == 0)


def test_the_engine_of_the_vectors_is_away(
    start: Callable[..., Served], engine: StubEngine, vectors: StubEngine, qdrant: QdrantServer
) -> None:
    models = changes(engine, vectors, qdrant)["models"]
    models[2] |= {"upstream": "http://127.0.0.1:1", "warm": False}
    service = start(models=models)
    unavailable(service, engine)
    # Nobody has worked on it.
    assert service.parts.usage.rows[-1].tokens_in == 0


def test_tokens_that_nobody_counts_are_estimated(service: Served, vectors: StubEngine, engine: StubEngine) -> None:
    put(service, "manual.txt", MANUAL)
    vectors.behave(size=64, usage=False)
    post(service, ask())
    row = service.row()
    assert row.estimated
    assert row.tokens_in == engine.last().tokens_in + len(QUESTION) // 4


@pytest.mark.parametrize("phase", ["vectors", "qdrant"])
def test_the_client_leaves(
    service: Served, engine: StubEngine, vectors: StubEngine, qdrant: QdrantServer, phase: str
) -> None:
    """Everything stops, and the place is free."""
    put(service, "manual.txt", MANUAL)
    asked = len(vectors.records)
    assert qdrant.process is not None
    if phase == "vectors":
        vectors.behave(size=64, wait=60)
    else:
        os.kill(qdrant.process.pid, signal.SIGSTOP)
    try:
        with socket.create_connection(("127.0.0.1", service.port)) as connection:
            data = httpx.Request("POST", service.url, json=ask()).read()
            head = f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer reader\r\n"
            head += f"Content-Length: {len(data)}\r\n\r\n"
            connection.sendall(head.encode() + data)
            until(lambda: len(vectors.records) > asked)
            if phase == "qdrant":
                until(lambda: vectors.running == 0)
        row = service.row()
        assert (row.outcome, row.status) == ("client_closed_early", 499)
        assert row.tokens_in > 0
        service.free()
        until(lambda: vectors.running == 0)
    finally:
        os.kill(qdrant.process.pid, signal.SIGCONT)
    assert not engine.records


def test_budgets_count_the_lookup(service: Served, vectors: StubEngine, engine: StubEngine) -> None:
    """What is charged is the sum of both engines' own counts, over many requests."""
    put(service, "manual.txt", MANUAL)
    vectors.clear()
    for number in range(8):
        post(service, ask(stream=number % 2 == 0))
    rows = service.rows(8)
    truth = engine.truth(), vectors.truth()
    assert sum(row.tokens_in for row in rows) == truth[0]["tokens_in"] + truth[1]["tokens_in"]
    assert service.parts.limiter.tokens == sum(row.tokens_in + row.tokens_out for row in rows)
    figures = samples(service)
    assert figures["boxwright_api_retrievals_total{outcome=found}"] >= 8


# Documents.


def test_the_life_of_a_document(service: Served, qdrant: QdrantServer, engine: StubEngine) -> None:
    made = put(service, "guides/manual.txt", MANUAL)
    assert made.status_code == 200
    body = made.json()
    assert (body["name"], body["characters"], body["model"]) == ("guides/manual.txt", len(MANUAL), "bge")
    assert body["passages"] == 2
    assert body["tokens"] > 100
    assert listed(service) == [{"name": "manuals", "documents": 1, "passages": 2, "models": ["bge"]}]
    (one,) = listed(service, "/manuals/documents")
    assert one["name"] == "guides/manual.txt"

    again = put(service, "guides/manual.txt", "The pump is silent now.").json()
    assert again["passages"] == 1
    assert again["added_at"] > body["added_at"]
    post(service, ask())
    text = engine.last().body["messages"][-1]["content"]
    assert "silent now" in text
    assert "40 dB" not in text
    assert "40 dB" not in str(qdrant.payloads("test-manuals"))

    put(service, "faq.txt", COLOUR)
    assert [one["name"] for one in listed(service, "/manuals/documents")] == ["faq.txt", "guides/manual.txt"]
    assert remove(service, "manuals/documents/guides%2Fmanual.txt").json() == {"name": "guides/manual.txt"}
    assert error(remove(service, "manuals/documents/guides%2Fmanual.txt")) == (404, "document_not_found")
    # Neither its text nor its name is left.
    assert not {"silent", "guides"} & set(str(qdrant.payloads("test-manuals")).replace("/", " ").split())
    assert remove(service, "manuals").status_code == 200
    assert error(remove(service, "manuals")) == (404, "collection_not_found")
    assert listed(service) == []
    assert qdrant.ask("GET", "/collections")["collections"] == []

    entries = [(entry.actor, entry.action, entry.target) for entry in service.parts.store.entries]
    assert entries == [
        ("anna", "document.put", "manuals/guides/manual.txt"),
        ("anna", "document.put", "manuals/guides/manual.txt"),
        ("anna", "document.put", "manuals/faq.txt"),
        ("anna", "document.remove", "manuals/guides/manual.txt"),
        ("anna", "collection.remove", "manuals"),
    ]
    assert service.parts.store.entries[0].details == {
        "passages": 2,
        "tokens": body["tokens"],
        "characters": len(MANUAL),
    }


def test_many_passages_go_in_batches(service: Served, vectors: StubEngine) -> None:
    text = "\n\n".join(f"Chapter {number}. " + f"word{number} " * 120 for number in range(40))
    vectors.clear()
    passages = put(service, "book.txt", text).json()["passages"]
    sizes = [len(record.body["input"]) for record in vectors.records]
    assert sum(sizes) == passages >= 40
    assert max(sizes) <= 16
    assert vectors.most == 1


@pytest.mark.parametrize(
    "name",
    ["'; DROP TABLE api_key; --", "Größe 10 m².txt", "日本語/λ β?.md", "%2e%2e%2f", "a&b=c#d", "\u202eevil", "a" * 128],
)
def test_names_of_documents(service: Served, name: str) -> None:
    answer = put(service, name, LOUD)
    if not name.isprintable():
        assert error(answer) == (400, "invalid_request")
        return
    assert answer.status_code == 200
    assert [one["name"] for one in listed(service, "/manuals/documents")] == [name]
    assert post(service, ask()).headers["x-boxwright-passages"] == "1"
    assert remove(service, f"manuals/documents/{quote(name, safe='')}").json() == {"name": name}
    assert listed(service, "/manuals/documents") == []


@pytest.mark.parametrize("name", ["", " ", "a" * 129, "a\x00b", "a\nb", "../x", "a//b", "/a"])
def test_names_that_no_document_has(service: Served, qdrant: QdrantServer, name: str) -> None:
    assert put(service, name, LOUD).status_code in (400, 404)
    assert qdrant.ask("GET", "/collections")["collections"] == []


def test_what_is_no_document(service: Served, qdrant: QdrantServer) -> None:
    assert error(put(service, "x", b"%PDF-1.7\xff\xfe")) == (400, "not_text")
    assert error(put(service, "x", b"a\x00b")) == (400, "not_text")
    assert error(put(service, "x", b" \n ")) == (400, "empty_document")
    assert error(put(service, "x", b"")) == (400, "empty_document")
    assert error(put(service, "x", b"x" * (LARGEST_DOCUMENT + 1))) == (413, "request_too_large")
    large = httpx.post(service.url + "/admin/keys", content=b" " * 70_000, headers=ADMIN)
    assert error(large) == (413, "request_too_large")
    assert qdrant.ask("GET", "/collections")["collections"] == []
    # JSON is text like any other.
    assert put(service, "x", b"{").status_code == 200


def test_a_document_larger_than_other_requests(service: Served) -> None:
    assert put(service, "x", b"word " * 40_000).status_code == 200


def test_only_the_administrator(service: Served) -> None:
    path = service.url + "/admin/collections"
    for headers in ({}, READER, {"Authorization": "Bearer Admin"}):
        assert httpx.get(path, headers=headers).status_code == 401
        assert httpx.put(f"{path}/manuals/documents/x", content=b"x", headers=headers).status_code == 401
        assert httpx.delete(f"{path}/manuals", headers=headers).status_code == 401
    assert httpx.get(path, headers={**ADMIN, "X-Forwarded-For": "192.0.2.1"}).status_code == 404


def test_no_audit_log_no_change(service: Served, qdrant: QdrantServer, engine: StubEngine) -> None:
    """Nothing is done that it does not have."""
    put(service, "manual.txt", MANUAL)
    before = sorted(map(str, qdrant.payloads("test-manuals")))
    service.parts.store.up = False
    assert error(put(service, "manual.txt", "other")) == (503, "store_unavailable")
    assert error(remove(service, "manuals/documents/manual.txt")) == (503, "store_unavailable")
    assert error(remove(service, "manuals")) == (503, "store_unavailable")
    service.parts.store.up = True
    assert sorted(map(str, qdrant.payloads("test-manuals"))) == before


def test_another_model(
    start: Callable[..., Served], engine: StubEngine, vectors: StubEngine, qdrant: QdrantServer
) -> None:
    """Its vectors cannot be compared, whether they have as many numbers or not: that is said, and nothing is found."""
    first = start()
    put(first, "manual.txt", MANUAL)
    models = changes(engine, vectors, qdrant)["models"]
    models[2] |= {"model": "other"}
    second = start(models=models)
    unavailable(second, engine)
    refused = put(second, "more.txt", "More.")
    assert error(refused) == (409, "other_embedding_model")
    assert "Remove the collection and add its documents again" in refused.json()["error"]["message"]
    # The same name, with another size.
    vectors.behave(size=32)
    assert error(put(first, "more.txt", "More.")) == (409, "other_embedding_model")
    vectors.behave(size=64)
    assert remove(second, "manuals").status_code == 200
    assert put(second, "manual.txt", MANUAL).status_code == 200
    assert post(second, ask()).headers["x-boxwright-passages"] == "2"


def test_the_key_of_qdrant(start: Callable[..., Served], engine: StubEngine, qdrant: QdrantServer) -> None:
    """A wrong one is no passage, and is told in no log."""
    service = start(retrieval_key="wrong-key-of-qdrant")
    unavailable(service, engine)
    assert error(put(service, "x", "x")) == (503, "retrieval_unavailable")
    assert httpx.get(service.url + "/api/v1/ready").json()["retrieval"] is False
    assert "wrong-key" not in (qdrant.folder / "log").read_text()


def test_other_collections_in_qdrant(service: Served, qdrant: QdrantServer) -> None:
    """Those of others are not seen and not touched."""
    qdrant.ask("PUT", "/collections/theirs", {"vectors": {"size": 4, "distance": "Cosine"}})
    put(service, "x", "x")
    assert [one["name"] for one in listed(service)] == ["manuals"]
    assert error(remove(service, "theirs")) == (404, "collection_not_found")
    assert len(qdrant.ask("GET", "/collections")["collections"]) == 2


def test_nothing_of_a_document_is_logged(
    service: Served, engine: StubEngine, vectors: StubEngine, caplog: pytest.LogCaptureFixture
) -> None:
    put(service, "manual.txt", MANUAL)
    vectors.behave(size=64, status=400, error={"message": f"too long: {LOUD} {QUESTION}"})
    unavailable(service, engine)
    told = put(service, "other.txt", LOUD).json()["error"]["message"]
    assert "too long" in told
    assert "no passages" in caplog.text
    assert LOUD not in caplog.text
    assert QUESTION not in caplog.text


# Faults in the middle.


class Faulty(Qdrant):
    """Fails at the call with this number, before or after Qdrant has done it; and again at all calls after it."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.left, self.after = -1, False

    async def _ask(self, *arguments: Any, **more: Any) -> Any:
        if self.left == 0:
            raise QdrantUnavailable("as told")
        self.left -= 1
        found = await super()._ask(*arguments, **more)
        if self.left == 0 and self.after:
            raise QdrantUnavailable("as told")
        return found


@contextlib.asynccontextmanager
async def library(engine: StubEngine, vectors: StubEngine, qdrant: QdrantServer) -> Any:
    """One without a service around it."""
    vectors.behave(size=64)
    made = settings(engine, **changes(engine, vectors, qdrant))
    upstream = Upstream(made)
    found = Library(made, upstream)
    await found.qdrant.close()
    found.qdrant = Faulty(made)
    try:
        yield found
    finally:
        await found.close()
        await upstream.close()


async def ready(*_: int) -> None: ...


async def texts(found: Library, count: int = 50) -> list[str]:
    """What a client is given."""
    lookup = Lookup()
    await found.find(lookup, "manuals", QUESTION, count, "x")
    return sorted(passage.text for passage in lookup.passages)


async def words(found: Library, count: int = 50) -> set[str]:
    """Of which books (`book`) that is; each passage has the head of one chapter."""
    return {match[1] for text in await texts(found, count) if (match := re.search(r"(\w+) \d+:", text))}


def book(word: str, chapters: int = 20) -> str:
    """More than one batch."""
    return "\n\n".join(f"{word} {number}: " + "pump " * 150 for number in range(chapters))


@pytest.mark.anyio
@pytest.mark.parametrize("after", [False, True])
async def test_a_fault_in_the_middle_of_a_replacement(
    engine: StubEngine, vectors: StubEngine, qdrant: QdrantServer, after: bool
) -> None:
    """At whatever call: clients are given the whole old document or the whole new one, and the next put clears up."""
    async with library(engine, vectors, qdrant) as found:
        await found.put("manuals", "book", book("old"), "x", ready)
        old = await texts(found)
        assert len(old) == 20
        seen, call = set(), 0
        while True:
            found.qdrant.left, found.qdrant.after = call, after
            done = False
            with contextlib.suppress(ApiError):
                await found.put("manuals", "book", book("new"), "x", ready)
                done = True
            finished = found.qdrant.left > 0
            found.qdrant.left = -1
            given = await texts(found)
            assert len(given) == 20
            (word,) = await words(found)
            seen.add((word, done))
            if finished:
                break
            await found.put("manuals", "book", book("old"), "x", ready)
            assert await texts(found) == old
            assert await found.qdrant.count("manuals", {"must": [is_("kind", "passage")]}) == 20
            call += 1
        assert call > 5
        assert {("old", False), ("new", True)} <= seen
        assert ("old", True) not in seen


@pytest.mark.anyio
async def test_a_fault_in_the_middle_of_a_removal(
    engine: StubEngine, vectors: StubEngine, qdrant: QdrantServer
) -> None:
    """Clients are given all of it or nothing; when it is said to be gone, nothing of it is left."""
    async with library(engine, vectors, qdrant) as found:
        call = 0
        while True:
            await found.put("manuals", "book", book("old"), "x", ready)
            found.qdrant.left = call
            with contextlib.suppress(ApiError):
                await found.remove("manuals", "book", ready)
            finished = found.qdrant.left > 0
            found.qdrant.left = -1
            assert len(await texts(found)) in (0, 20)
            with contextlib.suppress(ApiError):
                await found.remove("manuals", "book", ready)
            assert await found.qdrant.count("manuals", {"must": [is_("kind", "passage")]}) == 0
            if finished:
                break
            call += 1
        assert call > 4


@pytest.mark.anyio
async def test_what_a_dead_process_has_left(engine: StubEngine, vectors: StubEngine, qdrant: QdrantServer) -> None:
    """Passages of an upload that was never completed are not found, however near, and cost no other a place."""
    async with library(engine, vectors, qdrant) as found:
        await found.put("manuals", "book", book("old"), "x", ready)

        async def die(*_: int) -> None:
            found.qdrant.left = 0
            raise RuntimeError("killed")

        for _ in range(3):
            with pytest.raises(RuntimeError):
                await found.put("manuals", "other", QUESTION, "x", die)
            found.qdrant.left = -1
        assert await found.qdrant.count("manuals", {"must": [is_("document", "other")]}) == 3
        assert await words(found, 4) == {"old"}
        assert len(await texts(found, 4)) == 4


@pytest.mark.anyio
async def test_two_writers_of_two_workers(engine: StubEngine, vectors: StubEngine, qdrant: QdrantServer) -> None:
    """Each is whole or refused, whoever is first; the document is whole in any case."""
    async with library(engine, vectors, qdrant) as one, library(engine, vectors, qdrant) as other:
        for round in range(4):
            outcomes = await asyncio.gather(
                one.put("manuals", "book", book(f"one{round}"), "x", ready),
                other.put("manuals", "book", book(f"two{round}"), "x", ready),
                return_exceptions=True,
            )
            errors = [outcome for outcome in outcomes if isinstance(outcome, BaseException)]
            assert all(isinstance(error, ApiError) and error.code == "document_changed" for error in errors)
            assert len(errors) < 2
            given = await texts(one)
            assert len(given) == 20
            assert len(await words(one)) == 1


@pytest.mark.anyio
async def test_a_writer_that_was_overtaken(engine: StubEngine, vectors: StubEngine, qdrant: QdrantServer) -> None:
    """By another document of the name, by a removal, and by a clock that was put back."""
    async with library(engine, vectors, qdrant) as one, library(engine, vectors, qdrant) as other:

        async def replaced(*_: int) -> None:
            await other.put("manuals", "book", book("theirs"), "x", ready)

        async def removed(*_: int) -> None:
            await other.put("manuals", "book", book("theirs"), "x", ready)
            await other.remove("manuals", "book", ready)

        with pytest.raises(ApiError, match="meanwhile"):
            await one.put("manuals", "book", book("mine"), "x", replaced)
        assert await words(one) == {"theirs"}
        with pytest.raises(ApiError, match="meanwhile"):
            await one.put("manuals", "book", book("mine"), "x", removed)
        assert await texts(one) == []
        assert await one.qdrant.count("manuals", {"must": [is_("kind", "passage")]}) == 0


@pytest.mark.anyio
async def test_a_clock_that_was_put_back(
    engine: StubEngine, vectors: StubEngine, qdrant: QdrantServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with library(engine, vectors, qdrant) as found:
        await found.put("manuals", "book", book("old"), "x", ready)
        monkeypatch.setattr("boxwright_api.library._now", lambda: 1_000_000)
        await found.put("manuals", "book", book("new"), "x", ready)
        assert await words(found) == {"new"}


def test_the_program_runs_where_the_tests_do(qdrant: QdrantServer) -> None:
    """The double wants its key, or everything above proves less than it says."""
    assert httpx.get(f"{qdrant.url}/collections").status_code == 401
    assert Path(qdrant.folder / "storage").is_dir()


@pytest.mark.parametrize("mode", list(GenerationMode))
def test_answers_are_as_described(service: Served, mode: GenerationMode) -> None:
    """Requests of schemathesis, with Qdrant behind: no 5xx, and every answer in a shape that the description names."""
    schema = schemathesis.openapi.from_dict(httpx.get(service.url + "/openapi.json").json())
    schema.config.update(base_url=service.url)
    operations = [found.ok() for found in schema.get_all_operations()]
    mine = [one for one in operations if one.path.startswith("/admin/collections") or one.path == CHAT]
    assert len(mine) == 6
    assert "x-boxwright-passages" in schema.raw_schema["paths"][CHAT]["post"]["responses"]["200"]["headers"]
    for operation in mine:
        holds(operation, mode, "admin" if operation.path.startswith("/admin") else "reader")
