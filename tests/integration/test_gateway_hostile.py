"""Requests that no honest client sends: whatever is written to the door, nobody gets past it and it stays open.

The judge is the engine behind it, a double that notes byte for byte what it was asked: without credentials it sees
nothing, and with them nothing but what is offered. After every case the door must still serve, and at the end it must
be the same process.
"""

from __future__ import annotations

import contextlib
import os
import posixpath
import re
import socket
import ssl
import time
from collections.abc import Iterator
from urllib.parse import unquote

import h2.config
import h2.connection
import h2.events
import h2.exceptions
import pytest
from doors import Door, door
from gateway_box import connect, trust
from kit import Lab

pytestmark = pytest.mark.lab

HEADER_TIMEOUT = 3
# What an engine is for; all else that it answers stays inside.
OFFERED = re.compile(
    r"/v1/(models(/.*)?|(chat/)?completions|embeddings|responses(/.*)?|messages(/count_tokens)?|rerank|(audio|images)/.*)"
)
LARGEST = 100_000


@pytest.fixture(scope="module")
def _door(lab: Lab) -> Iterator[Door]:
    settings = {
        "gateway_header_timeout": HEADER_TIMEOUT,
        "gateway_max_body": LARGEST,
        "gateway_routes": [{"path": "/vllm", "upstreams": ["{engine}"]}],
    }
    with door(lab, "hostile", **settings) as opened:
        before, since = opened.pid, opened.box.sh("date +%s").strip()
        yield opened
        assert opened.pid == before
        journal = opened.box.sh(f"journalctl --unit=caddy --no-pager --output=cat --since=@{since}")
        assert "panic" not in journal
        # What clients send is no error of the gateway.
        errors = [line for line in journal.splitlines() if '"level":"error"' in line]
        assert len(errors) <= 5, "\n".join(errors)[:5000]


@pytest.fixture(scope="module")
def token(_door: Door) -> str:
    """What opens the door."""
    return _door.new_token("hostile")


@pytest.fixture
def gate(_door: Door, token: str) -> Iterator[Door]:
    """The door, which afterwards must serve as before. Whether the same process did it all is asked at the end."""
    _door.engine.forget()
    yield _door
    assert _door.with_token(token) == 200


def raw(gate: Door, data: bytes) -> bytes:
    """Everything that comes back for these bytes, until the other side closes the connection or nothing more comes."""
    received = b""
    with connect(gate.box) as connection:
        # A refused request may be answered, and the connection closed, before all of it was sent.
        with contextlib.suppress(OSError):
            connection.sendall(data)
        deadline = time.monotonic() + HEADER_TIMEOUT + 12
        with contextlib.suppress(OSError):
            while time.monotonic() < deadline and (piece := connection.recv(65536)):
                received += piece
                # An answer is here; a second one follows at once or never.
                connection.settimeout(0.7)
    return received


def statuses(answer: bytes) -> list[int]:
    """The status of each answer in what was received, without those that only announce one."""
    # The body before it need not end with a line.
    return [int(status) for status in re.findall(rb"HTTP/1\.[01] ([2-9]\d{2}) ", answer)]


def request(line: str, *headers: str, host: str = "{host}", body: str = "") -> str:
    """A request as text; {host} stands for the box's address and {token} for a token."""
    lines = [line, *([f"Host: {host}"] if host else []), *headers, "", body]
    return "\r\n".join(lines)


def filled(gate: Door, text: str, token: str = "") -> bytes:
    return text.replace("{host}", gate.box.address).replace("{token}", token).encode("latin-1")


CLOSE = "Connection: close"

# Ways to write a path that leads, or might lead, to the engine.
PATHS = [
    "/v1/models",
    "//v1/models",
    "/v1//models",
    "///v1///models",
    "/./v1/models",
    "/v1/./models",
    "/x/../v1/models",
    "/v1/../v1/models",
    "/v1/..%2fmetrics",
    "/v1/%2e%2e/metrics",
    "/v1%2fmodels",
    "/v1%2Fmodels",
    "/%76%31/models",
    "/V1/models",
    "/v1/MODELS",
    "/v1/models;x",
    "/v1;x/models",
    "/v1/models/",
    "/v1/models%00",
    "/v1/models%0d%0aX-A:b",
    "/v1/models%20",
    "/v1/models?",
    "/v1\\models",
    "/v1/..\\models",
    "/vllm/v1/models",
    "/vllm/../v1/models",
    "/vllm//v1/models",
    "/vllm/..%2fv1/models",
    "/%2e%2e/v1/models",
    "/v1/models#fragment",
    "/v1/\xe9",
    "/v1/%",
    "/v1/%zz",
    "/metrics",
    "/config/",
]
TARGETS = [
    *PATHS,
    "https://{host}/v1/models",
    "http://{host}/v1/models",
    "https://user:password@{host}/v1/models",
    "http://127.0.0.1:9180/metrics",
    "http://evil.example/v1/models",
    "*",
    "",
    "v1/models",
    "?/v1/models",
    "/v1/models HTTP/1.1\r\nX: y",
    "{host}:443",
]


@pytest.mark.parametrize("target", TARGETS)
def test_no_spelling_of_a_path_gets_past_authentication(gate: Door, target: str) -> None:
    answer = raw(gate, filled(gate, request(f"GET {target} HTTP/1.1", CLOSE)))
    assert gate.engine.asked == []
    assert b"X-Engine" not in answer
    assert not any(status < 400 for status in statuses(answer)), answer


@pytest.mark.parametrize("target", TARGETS)
def test_with_credentials_no_spelling_leads_to_what_is_not_offered(gate: Door, token: str, target: str) -> None:
    raw(gate, filled(gate, request(f"GET {target} HTTP/1.1", CLOSE, "Authorization: Bearer {token}"), token))
    for asked in gate.engine.asked:
        assert offered(asked.target), asked.target


# Out of what is offered, by the directory above.
CLIMBING = [
    "/v1/models/../../slots",
    "/v1/models/../load",
    "/v1/models/..%2f..%2fslots",
    "/v1/models/%2e%2e/%2e%2e/slots",
    "/v1/models/..%2F..%2Fslots",
    "/v1/models/.%2e/.%2e/slots",
    "/v1/responses/x/../../../slots",
    "/v1/audio//../../../slots",
    "/v1/images/..//..//slots",
    "/vllm/v1/models/../../slots",
    "/vllm/v1/models/..%2f..%2fslots",
    "/vllm/../v1/models/../../slots",
    "/vllm/vllm/slots",
]


@pytest.mark.parametrize("path", CLIMBING)
def test_nothing_climbs_out_of_what_is_offered(gate: Door, token: str, path: str) -> None:
    sent = request(f"POST {path} HTTP/1.1", CLOSE, "Content-Length: 0", "Authorization: Bearer {token}")
    answer = raw(gate, filled(gate, sent, token))
    assert gate.engine.asked == []
    assert statuses(answer) == [404], answer


def offered(target: str) -> bool:
    """Whether an engine that tidies paths would take it for something that is offered."""
    path = posixpath.normpath(unquote(target.partition("?")[0])).lower()
    return bool(OFFERED.fullmatch(f"/{path.lstrip('/')}"))


METHODS = [
    "CONNECT",
    "TRACE",
    "OPTIONS",
    "HEAD",
    "PUT",
    "DELETE",
    "PATCH",
    "PROPFIND",
    "get",
    "G\x01T",
    "A" * 5000,
    "PRI",
]


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method[:8])
@pytest.mark.parametrize("target", ["/v1/models", "*", "{host}:443", "127.0.0.1:9180"])
def test_no_method_gets_past_authentication(gate: Door, method: str, target: str) -> None:
    answer = raw(gate, filled(gate, request(f"{method} {target} HTTP/1.1", CLOSE)))
    assert gate.engine.asked == []
    assert b"X-Engine" not in answer
    # OPTIONS * asks for nothing: the server says that it is there.
    if (method, target) != ("OPTIONS", "*"):
        assert not any(status < 400 for status in statuses(answer)), answer


HEADS = {
    "no host": request("GET /v1/models HTTP/1.1", CLOSE, host=""),
    "host twice": request("GET /v1/models HTTP/1.1", "Host: {host}", CLOSE),
    "two hosts": request("GET /v1/models HTTP/1.1", "Host: evil.example", CLOSE),
    "another port": request("GET /v1/models HTTP/1.1", CLOSE, host="{host}:9180"),
    "an empty host": request("GET /v1/models HTTP/1.1", CLOSE, host=" "),
    "a host with a path": request("GET /v1/models HTTP/1.1", CLOSE, host="{host}/v1"),
    "a host with user": request("GET /v1/models HTTP/1.1", CLOSE, host="boxwright@{host}"),
    "loopback": request("GET /metrics HTTP/1.1", CLOSE, host="127.0.0.1:9180"),
    "two wrong credentials": request(
        "GET /v1/models HTTP/1.1", CLOSE, "Authorization: Bearer x", "Authorization: Basic Ym94d3JpZ2h0Og=="
    ),
    "huge credentials": request("GET /v1/models HTTP/1.1", CLOSE, f"Authorization: Bearer {'a' * 60000}"),
    "a NUL in them": request("GET /v1/models HTTP/1.1", CLOSE, "Authorization: Bearer a\0b"),
    "a new line in them": request("GET /v1/models HTTP/1.1", CLOSE, "Authorization: Bearer\r\n abc"),
    "a bare return in them": request("GET /v1/models HTTP/1.1", CLOSE, "Authorization: Bearer abc\rX: y"),
    "a star": request("GET /v1/models HTTP/1.1", CLOSE, "Authorization: Bearer *"),
    "a star at the end": request("GET /v1/models HTTP/1.1", CLOSE, "Authorization: Bearer bw-*"),
    "only a star": request("GET /v1/models HTTP/1.1", CLOSE, "Authorization: *"),
    "a pattern": request("GET /v1/models HTTP/1.1", CLOSE, "Authorization: Bearer ~.*"),
    "a placeholder": request("GET /v1/models HTTP/1.1", CLOSE, "Authorization: Bearer {client}"),
    "quotes": request("GET /v1/models HTTP/1.1", CLOSE, "Authorization: Bearer \"x\" 'y' `z`"),
    "no ASCII": request("GET /v1/models HTTP/1.1", CLOSE, "Authorization: Bearer \xe9\xff\xfe"),
    "nothing": request("GET /v1/models HTTP/1.1", CLOSE, "Authorization:"),
    "only a scheme": request("GET /v1/models HTTP/1.1", CLOSE, "Authorization: Bearer "),
    "the sign of the maps": request("GET /v1/models HTTP/1.1", CLOSE, "Authorization: Bearer ="),
    "bad base64": request("GET /v1/models HTTP/1.1", CLOSE, "Authorization: Basic ===="),
    "a password of 100 KB": request("GET /v1/models HTTP/1.1", CLOSE, f"Authorization: Basic {'YQ' * 25000}"),
    "a head over the limit": request("GET /v1/models HTTP/1.1", CLOSE, *(f"X-{n}: {'a' * 1000}" for n in range(100))),
    "one header over the limit": request("GET /v1/models HTTP/1.1", CLOSE, f"X: {'a' * 200000}"),
    "thousands of headers": request("GET /v1/models HTTP/1.1", CLOSE, *(f"X-{n}: a" for n in range(5000))),
    "a path over the limit": request(f"GET /v1/models?{'a' * 200000} HTTP/1.1", CLOSE),
    "a header without a name": request("GET /v1/models HTTP/1.1", CLOSE, ": x"),
    "a space before the colon": request("GET /v1/models HTTP/1.1", CLOSE, "Authorization : Bearer x"),
    "a header without a colon": request("GET /v1/models HTTP/1.1", CLOSE, "Authorization"),
    "another's address": request("GET /v1/models HTTP/1.1", CLOSE, "X-Forwarded-For: 127.0.0.1", "Forwarded: for=_x"),
    "another path by header": request(
        "GET / HTTP/1.1", CLOSE, "X-Original-URL: /v1/models", "X-Rewrite-URL: /v1/models"
    ),
    "another method by header": request("GET /v1/models HTTP/1.1", CLOSE, "X-HTTP-Method-Override: OPTIONS"),
    "hop by hop": request("GET /v1/models HTTP/1.1", "Connection: close, Authorization, X-Forwarded-For"),
    "an upgrade": request("GET /v1/models HTTP/1.1", "Connection: Upgrade", "Upgrade: h2c", "HTTP2-Settings: AAMAAABk"),
    "a WebSocket": request("GET /v1/models HTTP/1.1", "Connection: Upgrade", "Upgrade: websocket"),
    "HTTP/1.0": request("GET /v1/models HTTP/1.0"),
    "HTTP/1.0 without a host": request("GET /v1/models HTTP/1.0", host=""),
    "HTTP/0.9": "GET /v1/models\r\n",
    "HTTP/2 in words": "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "HTTP/9.9": request("GET /v1/models HTTP/9.9"),
    "no protocol": request("GET /v1/models XTTP/1.1"),
    "bare line feeds": "GET /v1/models HTTP/1.1\nHost: {host}\nConnection: close\n\n",
    "garbage": "\x00\x01\x02\xff" * 200 + "\r\n\r\n",
    "empty lines first": "\r\n\r\n" + request("GET /v1/models HTTP/1.1", CLOSE),
    "half a head": "GET /v1/models HTTP/1.1\r\nHost: {host}\r\nX: ",
}


@pytest.mark.parametrize("name", HEADS)
def test_no_head_gets_past_authentication(gate: Door, name: str) -> None:
    began = time.monotonic()
    answer = raw(gate, filled(gate, HEADS[name]))
    assert gate.engine.asked == []
    assert b"X-Engine" not in answer
    assert not any(status < 400 or status >= 500 for status in statuses(answer) if status != 505), answer[:500]
    # Who says nothing more is not waited for.
    assert time.monotonic() - began < HEADER_TIMEOUT + 8


SMUGGLED = "GET /v1/smuggled HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {token}\r\n\r\n"
CHAT = "POST /v1/chat/completions HTTP/1.1"
BODIES = {
    "length twice, the same": (["Content-Length: 2", "Content-Length: 2"], "{}"),
    "length twice": (["Content-Length: 2", "Content-Length: 200"], "{}"),
    "two lengths in one": (["Content-Length: 2, 200"], "{}"),
    "a length with a sign": (["Content-Length: +2"], "{}"),
    "a length below nothing": (["Content-Length: -1"], "{}"),
    "a length in hexadecimal": (["Content-Length: 0x2"], "{}"),
    "a length beyond 64 bits": (["Content-Length: 18446744073709551618"], "{}"),
    "both, the length is short": (["Content-Length: 4", "Transfer-Encoding: chunked"], "2\r\n{}\r\n0\r\n\r\n"),
    "both, the chunks are short": (["Content-Length: 200", "Transfer-Encoding: chunked"], "0\r\n\r\n"),
    "both, the other way round": (["Transfer-Encoding: chunked", "Content-Length: 3"], "0\r\n\r\n"),
    "an encoding nobody knows": (["Transfer-Encoding: xchunked"], "0\r\n\r\n"),
    "chunked, but not last": (["Transfer-Encoding: chunked, identity"], "0\r\n\r\n"),
    "encodings twice": (["Transfer-Encoding: chunked", "Transfer-Encoding: identity"], "0\r\n\r\n"),
    "chunked twice": (["Transfer-Encoding: chunked", "Transfer-Encoding: chunked"], "0\r\n\r\n"),
    "an encoding after a tab": (["Transfer-Encoding:\tchunked"], "0\r\n\r\n"),
    "an encoding with a vertical tab": (["Transfer-Encoding: \x0bchunked"], "0\r\n\r\n"),
    "a space before the colon": (["Transfer-Encoding : chunked", "Content-Length: 5"], "0\r\n\r\n"),
    "an encoding on the next line": (["Transfer-Encoding:", " chunked"], "0\r\n\r\n"),
    "an underscore": (["Transfer_Encoding: chunked", "Content-Length: 5"], "0\r\n\r\n"),
    "chunks in HTTP/1.0": (["Transfer-Encoding: chunked", "Content-Length: 5", "X-Version: 1.0"], "0\r\n\r\n"),
    "a chunk beyond 64 bits": (["Transfer-Encoding: chunked"], "10000000000000002\r\n{}\r\n0\r\n\r\n"),
    "a chunk below nothing": (["Transfer-Encoding: chunked"], "-2\r\n{}\r\n0\r\n\r\n"),
    "a chunk with 0x": (["Transfer-Encoding: chunked"], "0x2\r\n{}\r\n0\r\n\r\n"),
    "a chunk that is longer": (["Transfer-Encoding: chunked"], "2\r\n{}" + "x" * 100 + "\r\n0\r\n\r\n"),
    "chunks with bare line feeds": (["Transfer-Encoding: chunked"], "2\n{}\n0\n\n"),
    "a line feed in an extension": (["Transfer-Encoding: chunked"], "2;a\nb\r\n{}\r\n0\r\n\r\n"),
    "a trailer with credentials": (["Transfer-Encoding: chunked"], "0\r\nAuthorization: Bearer {token}\r\n\r\n"),
    "an extension without end": (["Transfer-Encoding: chunked"], f"2;{'a' * 70000}\r\n{{}}\r\n0\r\n\r\n"),
    "more than the length": (["Content-Length: 0"], ""),
    "too much": ([f"Content-Length: {LARGEST * 2}"], "x" * LARGEST * 2),
    "too much in chunks": (["Transfer-Encoding: chunked"], f"{LARGEST * 2:x}\r\n{'x' * LARGEST * 2}\r\n0\r\n\r\n"),
    "it waits for leave": (["Expect: 100-continue", "Content-Length: 2"], "{}"),
    "it expects what nobody gives": (["Expect: 200-ok", "Content-Length: 2"], "{}"),
}


def message(name: str, *headers: str) -> str:
    fields, body = BODIES[name]
    line = CHAT.replace("1.1", "1.0") if "HTTP/1.0" in name else CHAT
    return request(line, *headers, *fields, body=body)


@pytest.mark.parametrize("name", BODIES)
def test_no_body_gets_past_authentication(gate: Door, name: str) -> None:
    """Nor the request that comes behind it, when it has no credentials of its own."""
    behind = request("GET /v1/models HTTP/1.1", CLOSE)
    answer = raw(gate, filled(gate, message(name) + behind))
    assert gate.engine.asked == []
    assert b"X-Engine" not in answer
    assert not any(200 <= status < 400 for status in statuses(answer)), answer[:500]


@pytest.mark.parametrize("name", BODIES)
def test_the_engine_and_the_gateway_agree_where_a_request_ends(gate: Door, token: str, name: str) -> None:
    """A request that one of them takes for a part of a body, and the other one for a request, would go past the list
    of what is offered. It has credentials, so that only the list can stop it."""
    sent = message(name, "Authorization: Bearer {token}") + SMUGGLED
    answer = raw(gate, filled(gate, sent, token))
    assert len(gate.engine.asked) <= 1
    for asked in gate.engine.asked:
        assert asked.target == "/v1/chat/completions"
        assert b"smuggled" not in asked.head
        assert b"smuggled" not in asked.body
        framing = [key for key, _ in asked.headers if key in ("content-length", "transfer-encoding")]
        assert len(framing) <= 1, asked.headers
    # What came behind was read as a request and not offered, or was not read at all.
    assert set(statuses(answer)[1:]) <= {400, 404}, answer


@pytest.mark.parametrize("before", [0, LARGEST * 3], ids=["all of it", "behind much else"])
@pytest.mark.parametrize("line", [CHAT, "POST /v1/nothing HTTP/1.1", "POST /nothing HTTP/1.1"])
def test_the_body_of_a_refused_request_is_no_request(gate: Door, token: str, line: str, before: int) -> None:
    """Although it is one, with credentials, word for word."""
    body = b"x" * before + filled(gate, SMUGGLED.replace("/v1/smuggled", "/v1/models"), token)
    answer = raw(gate, filled(gate, request(line, f"Content-Length: {len(body)}")) + body)
    assert gate.engine.asked == []
    # Of a long body the rest may not be read: the connection is closed instead, perhaps before the answer was.
    assert statuses(answer) in ([[401], [404]] if not before else [[401], [404], []])


@pytest.mark.parametrize("framing", ["Content-Length: 1000", "Content-Length: 90000", "Transfer-Encoding: chunked"])
@pytest.mark.parametrize(
    ("line", "status"), [(CHAT, 401), ("POST /v1/nothing HTTP/1.1", 401), ("POST / HTTP/1.1", 404)]
)
def test_who_is_refused_is_told_so_before_the_body_comes(gate: Door, line: str, status: int, framing: str) -> None:
    """And what comes of it later is no request."""
    began = time.monotonic()
    with connect(gate.box) as connection:
        connection.sendall(filled(gate, request(line, framing, body="3\r\nabc\r\n")))
        answer = connection.recv(65536)
        assert statuses(answer) == [status]
        assert time.monotonic() - began < 5
    assert gate.engine.asked == []


@pytest.mark.parametrize("head", [("GET /v1/models HTTP/1.1",), (CHAT, "Content-Length: 0")])
def test_who_is_refused_and_sends_no_body_may_ask_again(gate: Door, head: tuple[str, ...]) -> None:
    """On the same connection: to guess once more costs the gateway no other one."""
    answer = raw(gate, filled(gate, request(*head) + request(*head, CLOSE)))
    assert statuses(answer) == [401, 401]


def test_a_client_that_sends_its_head_slowly_is_not_waited_for(gate: Door) -> None:
    began = time.monotonic()
    with connect(gate.box) as connection:
        connection.sendall(b"GET /v1/models HTTP/1.1\r\n")
        with contextlib.suppress(OSError):
            while time.monotonic() - began < HEADER_TIMEOUT + 10:
                connection.sendall(b"X: y\r\n")
                time.sleep(0.2)
    assert time.monotonic() - began < HEADER_TIMEOUT + 8


# HTTP/2

HONEST = [(":method", "GET"), (":scheme", "https"), (":authority", "{host}"), (":path", "/v1/models")]


def without(name: str, *more: tuple[str, str]) -> list[tuple[str, str]]:
    return [pair for pair in HONEST if pair[0] != name] + list(more)


FRAMES = {
    "honest": HONEST,
    "no path": without(":path"),
    "an empty path": without(":path", (":path", "")),
    "a path without a slash": without(":path", (":path", "v1/models")),
    "a star for a path": without(":path", (":path", "*")),
    "a whole address for a path": without(":path", (":path", "https://{host}/v1/models")),
    "two paths": [*HONEST, (":path", "/health")],
    "a space in the path": without(":path", (":path", "/v1/models HTTP/1.1")),
    "a new line in the path": without(":path", (":path", "/v1/models\r\nX: y")),
    "an encoded slash": without(":path", (":path", "/v1%2fmodels")),
    "up": without(":path", (":path", "/x/../v1/models")),
    "no method": without(":method"),
    "a method with a space": without(":method", (":method", "GET /v1/models HTTP/1.1\r\nX:")),
    "CONNECT": without(":method", (":method", "CONNECT")),
    "CONNECT as it should be": [(":method", "CONNECT"), (":authority", "127.0.0.1:9180")],
    "an extended CONNECT": [*without(":method", (":method", "CONNECT")), (":protocol", "websocket")],
    "no scheme": without(":scheme"),
    "another scheme": without(":scheme", (":scheme", "file")),
    "no authority": without(":authority"),
    "another authority": without(":authority", (":authority", "evil.example")),
    "two authorities": [*HONEST, (":authority", "evil.example")],
    "another host": [*HONEST, ("host", "evil.example")],
    "an unknown pseudo header": [*HONEST, (":client", "laptop")],
    "a pseudo header of answers": [*HONEST, (":status", "200")],
    "pseudo headers last": [("x", "y"), *HONEST],
    "capital letters": [*HONEST, ("Authorization", "Bearer x")],
    "a connection header": [*HONEST, ("connection", "keep-alive")],
    "an encoding": [*HONEST, ("transfer-encoding", "chunked")],
    "a new line in a value": [*HONEST, ("x", "y\r\nauthorization: Bearer x")],
    "a NUL in a name": [*HONEST, ("x\0y", "z")],
    "an empty name": [*HONEST, ("", "z")],
    "wrong credentials twice": [*HONEST, ("authorization", "Bearer x"), ("authorization", "Bearer y")],
    "a head over the limit": [*HONEST, *((f"x-{number}", "a" * 1000) for number in range(100))],
    "a length that is not so": [*without(":method", (":method", "POST")), ("content-length", "100")],
}


ENDS = (h2.events.StreamEnded, h2.events.StreamReset, h2.events.ConnectionTerminated)


class Frames:
    """One HTTP/2 connection that lets everything pass which is wrong."""

    def __init__(self, gate: Door) -> None:
        self._socket = connect(gate.box, "h2")
        self._socket.settimeout(3)
        configuration = h2.config.H2Configuration(
            validate_outbound_headers=False,
            normalize_outbound_headers=False,
            validate_inbound_headers=False,
            header_encoding="latin-1",
        )
        self.state = h2.connection.H2Connection(configuration)
        self.state.initiate_connection()

    def send(self) -> None:
        self._socket.sendall(self.state.data_to_send())

    def events(self) -> Iterator[h2.events.Event]:
        """What comes back, until the connection or its only stream ends or nothing more comes."""
        with contextlib.suppress(OSError, h2.exceptions.ProtocolError):
            while data := self._socket.recv(65536):
                for event in self.state.receive_data(data):
                    yield event
                    if isinstance(
                        event, h2.events.StreamEnded | h2.events.StreamReset | h2.events.ConnectionTerminated
                    ):
                        return
                self.send()

    def close(self) -> None:
        self._socket.close()


@pytest.mark.parametrize("name", FRAMES)
def test_no_frames_get_past_authentication(gate: Door, name: str) -> None:
    headers = [(key, value.replace("{host}", gate.box.address)) for key, value in FRAMES[name]]
    frames = Frames(gate)
    try:
        ends = name != "a length that is not so"
        frames.state.send_headers(1, headers, end_stream=ends)
        if not ends:
            frames.state.send_data(1, b"{}", end_stream=True)
        frames.send()
        found = [dict(event.headers) for event in frames.events() if isinstance(event, h2.events.ResponseReceived)]
    finally:
        frames.close()
    assert gate.engine.asked == []
    assert all(int(each[":status"]) >= 400 and "x-engine" not in each for each in found), found
    if name == "honest":
        assert [each[":status"] for each in found] == ["401"]


def test_streams_that_are_given_up_at_once(gate: Door) -> None:
    """As in CVE-2023-44487: a client that opens and resets streams costs the others nothing for long."""
    frames = Frames(gate)
    headers = [(key, value.replace("{host}", gate.box.address)) for key, value in HONEST]
    try:
        with contextlib.suppress(OSError, h2.exceptions.ProtocolError):
            for number in range(1, 2000, 2):
                frames.state.send_headers(number, headers, end_stream=True)
                frames.state.reset_stream(number)
                frames.send()
        began = time.monotonic()
        assert gate.status() == 401
        assert time.monotonic() - began < 5
    finally:
        frames.close()
    assert gate.engine.asked == []


# Below HTTP

GARBAGE = {
    "nothing": b"",
    "plain HTTP": b"GET /v1/models HTTP/1.1\r\nHost: x\r\n\r\n",
    "random bytes": os.urandom(4096),
    "a record beyond its size": b"\x16\x03\x01\xff\xff" + b"\x01" * 70000,
    "half a greeting": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\0" * 32,
    "an old protocol": b"\x80\x2e\x01\x00\x02" + b"\0" * 44,
    "only an alert": b"\x15\x03\x01\x00\x02\x02\x28",
    "SSH": b"SSH-2.0-OpenSSH_9.2\r\n",
}


@pytest.mark.parametrize("name", GARBAGE)
def test_what_is_no_tls_gets_nothing(gate: Door, name: str) -> None:
    received = b""
    with socket.create_connection((gate.box.address, 443), timeout=2) as plain, contextlib.suppress(OSError):
        plain.sendall(GARBAGE[name])
        plain.shutdown(socket.SHUT_WR)
        while piece := plain.recv(65536):
            received += piece
    assert gate.engine.asked == []
    assert set(statuses(received)) <= {400}
    assert len(received) < 1000


@pytest.mark.parametrize("name", ["evil.example", "", "127.0.0.1", "localhost", "a" * 63 + ".example"])
def test_another_name_in_the_greeting_opens_nothing(gate: Door, name: str) -> None:
    """The name in TLS and the one in the request need not be the same: only declared ones are served."""
    context = trust(gate.box)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    for host in (gate.box.address, name or "x"):
        with (
            contextlib.suppress(OSError),
            socket.create_connection((gate.box.address, 443), timeout=20) as plain,
            context.wrap_socket(plain, server_hostname=name or None) as connection,
        ):
            connection.sendall(f"GET /v1/models HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
            assert not any(status < 400 for status in statuses(connection.recv(65536)))
    assert gate.engine.asked == []
