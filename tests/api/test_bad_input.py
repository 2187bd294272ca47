"""Nothing that a client sends is a 500, reaches an engine by stealth, or shows a secret."""

from __future__ import annotations

import contextlib
import json
import logging
import socket
import time
from typing import Any

import httpx2 as httpx
import orjson
import pytest
from boxwright_api.client import visitor
from doubles import SECRET
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from served import KEY, Served, served
from served import settings as make_settings
from stub_engine import StubEngine
from test_relay import ASK, CHAT, error
from waiting import until


def nested(depth: int) -> bytes:
    return b'{"model":"plain","messages":[{"role":"user","content":"a"}],"x":' + b"[" * depth + b"]" * depth + b"}"


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"", "invalid_json"),
        (b"{", "invalid_json"),
        (b"[]", "invalid_body"),
        (b"null", "invalid_body"),
        (b'"text"', "invalid_body"),
        (b'{"model":"plain","messages":[],"temperature":NaN}', "invalid_json"),
        (b'{"model":"plain","messages":[{"role":"user","content":"\xff"}]}', "invalid_json"),
        (b'{"model":"plain","messages":[{"role":"user","content":"\\ud800"}]}', "invalid_json"),
        (b"\xef\xbb\xbf{}", "invalid_json"),
        (nested(300), "invalid_json"),
        (nested(3000), "invalid_json"),
        (nested(1_000_000), "invalid_json"),
        (b"{}", "missing_required_parameter"),
        (b'{"model":"plain"}', "missing_required_parameter"),
        (b'{"model":1,"messages":[{"role":"user"}]}', "invalid_value"),
        (b'{"model":"","messages":[{"role":"user"}]}', "invalid_value"),
        (b'{"model":"plain","messages":[]}', "invalid_value"),
        (b'{"model":"plain","messages":["a"]}', "invalid_value"),
        (b'{"model":"plain","messages":[{"content":"a"}]}', "missing_required_parameter"),
        (b'{"model":"plain","messages":[{"role":"user","content":5}]}', "invalid_value"),
    ],
)
def test_bodies(service: Served, engine: StubEngine, body: bytes, code: str) -> None:
    """400, with a code."""
    assert error(service.post(CHAT, body)) == (400, code)
    assert (service.row().status, service.row().code) == (400, code)
    assert not engine.records


@pytest.mark.parametrize(
    "member",
    [
        {"max_tokens": -1},
        {"max_tokens": 0},
        {"max_tokens": True},
        {"max_tokens": "5"},
        {"max_tokens": 1.5},
        {"max_tokens": 10**30},
        {"max_completion_tokens": -1},
        {"n": 0},
        {"n": 1000},
        {"n": "2"},
        {"stream": "yes"},
        {"stream": 1},
        {"stream_options": []},
        {"stream_options": {"include_usage": "yes"}},
        {"temperature": "hot"},
        {"temperature": -1},
        {"tools": {}},
        {"options": []},
        {"n_predict": [1]},
        {"stop": {}},
    ],
)
def test_members(service: Served, engine: StubEngine, member: dict[str, Any]) -> None:
    """The wrong member is named."""
    response = service.post(CHAT, json.dumps({**ASK, **member}).encode())
    assert error(response) == (400, "invalid_value")
    assert response.json()["error"]["param"].split(".")[0] == next(iter(member))
    assert not engine.records


@pytest.mark.parametrize("member", [{"options": 1}, {"options": "num_ctx"}, {"keep_alive": []}, {"think": {}}])
def test_members_for_ollama_in_every_request(service: Served, engine: StubEngine, member: dict[str, Any]) -> None:
    """Embeddings have them too."""
    response = service.post("/v1/embeddings", json.dumps({"model": "ollama", "input": "a", **member}).encode())
    assert error(response) == (400, "invalid_value")
    assert response.json()["error"]["param"].split(".")[0] == next(iter(member))
    assert not engine.records


def test_a_name_twice(service: Served, engine: StubEngine) -> None:
    """The engine sees the one that was checked, whatever it would have taken itself."""
    body = (
        b'{"model":"absent","model":"plain","messages":[{"role":"user","content":"a"}],"max_tokens":-5,"max_tokens":2}'
    )
    assert service.post(CHAT, body).status_code == 200
    assert (engine.last().body["model"], engine.last().body["max_tokens"]) == ("gguf", 2)


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)
NAMES = ("messages", "prompt", "input", "stream", "options", "tools", "format", "response_format", "think", "stop", "n")
PATHS = ("/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/responses", "/v1/images/generations")
FIXED = {"messages": [{"role": "user", "content": "a"}], "prompt": "a", "input": "a"}


@pytest.fixture(scope="module")
def lasting(stub: StubEngine) -> Any:
    """One service for many examples."""
    stub.behave()
    with served(stub) as found:
        yield found


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    path=st.sampled_from(PATHS),
    model=st.sampled_from(["plain", "ollama", "tied"]),
    members=st.dictionaries(st.sampled_from(NAMES) | st.text(max_size=8), JSON, max_size=5),
)
def test_anything(lasting: Served, path: str, model: str, members: dict[str, Any]) -> None:
    """Whatever the members are, the answer is the engine's or a refusal in OpenAI's shape, and no place stays taken."""
    body = {**FIXED, **members, "model": model}
    response = lasting.post(path, json.dumps(body).encode("utf-8", "replace"))
    # The stub engine, which checks nothing, may fail at it itself, and says so in its own words.
    if response.status_code not in (200, 400):
        assert response.status_code in (500, 502), response.text
        assert error(response)[1].startswith("engine_"), response.text
    until(lambda: not lasting.parts.limiter.taken)


@settings(max_examples=60, deadline=None)
@given(
    messages=st.lists(
        st.fixed_dictionaries(
            {"role": st.sampled_from(["system", "user", "assistant", "tool", "developer"])},
            optional={
                "content": st.none()
                | st.text()
                | st.lists(st.dictionaries(st.sampled_from(["type", "text", "image_url"]), JSON)),
                "tool_calls": st.lists(st.dictionaries(st.sampled_from(["id", "function", "type"]), JSON, max_size=3)),
                "tool_call_id": st.text(),
                "reasoning": JSON,
                "name": st.text(),
            },
        ),
        min_size=1,
        max_size=4,
    )
)
def test_any_messages_for_ollama(lasting: Served, messages: list[dict[str, Any]]) -> None:
    """The translation refuses or works."""
    response = lasting.post(CHAT, json.dumps({"model": "ollama", "messages": messages}).encode())
    assert response.status_code in (200, 400, 500)
    if response.status_code == 500:
        assert error(response)[1] == "engine_error"


# Size.


def test_declared_size(engine: StubEngine) -> None:
    """Refused by its Content-Length, before a byte of it is read."""
    with served(engine, max_body=2000) as service, socket.create_connection(("127.0.0.1", service.port)) as sock:
        head = f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {SECRET}\r\nContent-Length: 999999999\r\n"
        sock.sendall(head.encode() + b"Expect: 100-continue\r\n\r\n")
        answer = b""
        while b"request_too_large" not in answer:
            part = sock.recv(65536)
            assert part, answer
            answer += part
        assert answer.startswith(b"HTTP/1.1 413 "), answer
        assert b"connection: close" in answer
        assert service.row().code == "request_too_large"


def test_chunked_size(engine: StubEngine) -> None:
    """Without Content-Length: refused at the limit, and the client that goes on sending gets to read why."""
    with served(engine, max_body=100_000) as service:
        sent = 0
        with socket.create_connection(("127.0.0.1", service.port), timeout=10) as sock:
            head = f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {SECRET}\r\n"
            sock.sendall(head.encode() + b"Transfer-Encoding: chunked\r\n\r\n")
            sock.setblocking(False)
            answer = b""
            deadline = time.monotonic() + 10
            while b"request_too_large" not in answer:
                assert time.monotonic() < deadline
                with contextlib.suppress(BlockingIOError):
                    sent += sock.send(b"2710\r\n" + b" " * 10000 + b"\r\n") if sent < 700_000 else 0
                try:
                    answer += sock.recv(65536)
                except BlockingIOError:
                    time.sleep(0.001)
            assert answer.startswith(b"HTTP/1.1 413 ")
        assert service.row().code == "request_too_large"
        assert not engine.records
        fits = {**ASK, "x": "y" * 90_000}
        assert service.post(CHAT, fits).status_code == 200


# Headers.


def post(service: Served, *lines: str, body: bytes = orjson.dumps(ASK)) -> bytes:
    head = [f"POST {CHAT} HTTP/1.1", "Host: x", f"Content-Length: {len(body)}", "Connection: close", *lines]
    with socket.create_connection(("127.0.0.1", service.port), timeout=10) as sock:
        sock.sendall("\r\n".join(head).encode("latin-1") + b"\r\n\r\n" + body)
        answer = b""
        while part := sock.recv(65536):
            answer += part
        return answer


def test_two_authorizations(service: Served, engine: StubEngine) -> None:
    """One of them is not meant for us."""
    answer = post(service, f"Authorization: Bearer {SECRET}", "Authorization: Bearer other")
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert b"duplicate_header" in answer
    assert not engine.records


@pytest.mark.parametrize(
    "value", ["", "Bearer", "Basic eDp5", "Bearer \xff\xfe", f"bearer{SECRET}", "Bearer " + "x" * 9000]
)
def test_authorizations(service: Served, value: str) -> None:
    """All of them 401, alike."""
    answer = post(service, f"Authorization: {value}")
    assert answer.startswith(b"HTTP/1.1 401 "), answer
    assert b"www-authenticate: Bearer" in answer


def test_what_reaches_the_engine(service: Served, engine: StubEngine) -> None:
    """Nothing of the client's headers, and the engine's own key where it wants one; nor the engine's to the client."""
    own = (("Set-Cookie", "a=b"), ("X-Engine", "secret"), ("X-Request-Id", "theirs"), ("Proxy-Authenticate", "Basic"))
    engine.behave(headers=own)
    for model in ("plain", "tied"):
        answer = post(
            service,
            f"Authorization: Bearer {SECRET}",
            "Cookie: session=1",
            "X-Forwarded-For: 1.2.3.4",
            "X-Request-Id: mine",
            "TE: trailers",
            "Upgrade: h2c",
            "Proxy-Authorization: Basic eDp5",
            "Accept-Encoding: gzip",
            "X-Api-Key: k",
            body=orjson.dumps({**ASK, "model": model}),
        )
        assert answer.startswith(b"HTTP/1.1 200 ")
        head = answer.split(b"\r\n\r\n")[0].lower()
        for name in (b"set-cookie", b"x-engine", b"proxy-authenticate", b"theirs", b"mine", b"server:"):
            assert name not in head
        got = dict(engine.last().headers)
        assert got.pop("authorization", None) == ("Bearer engine-secret" if model == "tied" else None)
        assert got.pop("x-request-id").startswith("req_")
        assert got.pop("host").startswith("127.0.0.1:")
        assert int(got.pop("content-length")) > 0
        assert got == {
            "user-agent": "boxwright-api",
            "accept": "application/json",
            "accept-encoding": "identity",
            "content-type": "application/json",
        }
    assert SECRET not in str(engine.records)


def scope(peer: str | None, *headers: tuple[str, str]) -> dict[str, Any]:
    pairs = [(name.lower().encode(), value.encode("latin-1")) for name, value in headers]
    return {"client": (peer, 5) if peer else None, "headers": pairs}


@pytest.mark.parametrize(
    ("peer", "headers", "expected"),
    [
        ("203.0.113.5", [("X-Forwarded-For", "198.51.100.1")], "203.0.113.5"),
        ("203.0.113.5", [("X-Visitor", "me")], "203.0.113.5"),
        ("127.0.0.1", [("X-Visitor", "me")], "me"),
        ("127.0.0.1", [("X-Visitor", "a b")], "c8687a08aa5d6ed2044328fa6a697ab8e96dc34291e8c2034ae8c38e6fcc6d65"),
        ("127.0.0.1", [("X-Forwarded-For", "198.51.100.1")], "198.51.100.1"),
        ("127.0.0.1", [("X-Forwarded-For", "1.1.1.1, 198.51.100.1, 10.0.0.7")], "198.51.100.1"),
        ("127.0.0.1", [("X-Forwarded-For", "1.1.1.1"), ("X-Forwarded-For", "198.51.100.1")], "198.51.100.1"),
        ("127.0.0.1", [("X-Forwarded-For", "198.51.100.1, nonsense")], "127.0.0.1"),
        ("127.0.0.1", [("X-Forwarded-For", "")], "127.0.0.1"),
        ("127.0.0.1", [], "127.0.0.1"),
        ("::ffff:127.0.0.1", [("X-Forwarded-For", "2001:db8::1")], "2001:db8::1"),
        (None, [("X-Forwarded-For", "198.51.100.1")], None),
    ],
)
def test_visitor(peer: str | None, headers: list[tuple[str, str]], expected: str | None) -> None:
    """Only a proxy that is trusted may say who is behind it."""
    made = make_settings(
        StubEngine(), visitor_header="X-Visitor", trusted_proxies=["127.0.0.0/8", "10.0.0.0/8"], models=[MODEL]
    )
    assert visitor(scope(peer, *headers), made) == expected


MODEL = {"name": "m", "upstream": "http://127.0.0.1:1"}


def test_visitor_is_asked_for(engine: StubEngine) -> None:
    """The limiter is told."""
    with served(engine, trusted_proxies=["127.0.0.1/32"]) as service:
        service.post(CHAT, ASK, headers={**KEY, "X-Forwarded-For": "198.51.100.1"})
        assert service.parts.limiter.asked[-1].visitor == "198.51.100.1"
    with served(engine) as service:
        service.post(CHAT, ASK, headers={**KEY, "X-Forwarded-For": "198.51.100.1"})
        assert service.parts.limiter.asked[-1].visitor == "127.0.0.1"


# Addresses.


@pytest.mark.parametrize(
    "query",
    ["api_key=x", "key=x", "a=b&access_token=x", "API_KEY=", f"q={SECRET}", f"{SECRET}", "api%5Fkey=x", "token=1"],
)
@pytest.mark.parametrize("path", ["/v1/models", "/api/v1/health"])
def test_key_in_query(service: Served, path: str, query: str, caplog: pytest.LogCaptureFixture) -> None:
    """Refused although the header has one too, and written nowhere."""
    with caplog.at_level(logging.DEBUG):
        response = httpx.get(f"{service.url}{path}?{query}", headers=KEY)
    assert error(response) == (400, "key_in_query")
    ours = [record for record in caplog.records if not record.name.startswith("http")]
    assert not any(SECRET in record.getMessage() for record in ours)
    assert SECRET not in response.text
    if path.startswith("/v1/"):
        row = service.row()
        assert (row.code, row.route, row.key_id) == ("key_in_query", "models", None)
        assert SECRET not in str(row)


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", CHAT, 405),
        ("DELETE", "/v1/models", 405),
        ("POST", "/v1/chat", 404),
        ("POST", "/v1/chat/completions/", 404),
        ("GET", "/v1/models/", 404),
        ("GET", "/", 404),
        ("GET", "/v1/models/%00", 404),
        ("GET", "/v1/models/..%2f..%2fadmin", 404),
        ("OPTIONS", CHAT, 405),
        ("GET", "//admin/keys", 404),
    ],
)
def test_addresses(service: Served, method: str, path: str, status: int) -> None:
    """OpenAI's shape for these too, and an id on every answer."""
    response = httpx.request(method, service.url + path, headers=KEY)
    assert response.status_code == status
    assert error(response)[0] == status
    assert response.headers["x-request-id"].startswith("req_")


def test_figures_have_no_words_of_clients(service: Served) -> None:
    """Neither a row nor a label is made of an address that somebody made up."""
    assert error(httpx.get(f"{service.url}/v1/made-up?key=x")) == (400, "key_in_query")
    assert error(service.post(CHAT, {**ASK, "model": "made-up"})) == (404, "model_not_found")
    assert [(row.route, row.model) for row in service.rows(2)] == [("other", None), ("chat", None)]
    assert "made-up" not in httpx.get(service.url + "/metrics").text


def test_ids_are_ours(service: Served) -> None:
    """A client cannot choose the id of its row."""
    ids = {service.post(CHAT, ASK, headers={**KEY, "X-Request-Id": "same"}).headers["x-request-id"] for _ in range(3)}
    assert len(ids) == 3


def test_a_fault_of_ours(service: Served, caplog: pytest.LogCaptureFixture) -> None:
    """500 in the same shape, the place given back, and the log has the id but no text of the client's."""

    words = "the client's own"

    async def fail(_: Any) -> Any:
        raise ValueError(words)

    service.parts.limiter.admit = fail  # type: ignore[method-assign]
    response = service.post(CHAT, ASK)
    assert error(response) == (500, "internal_error")
    assert response.headers["x-request-id"] in caplog.text
    assert words not in caplog.text
    assert (service.row().status, service.row().code) == (500, "internal_error")
