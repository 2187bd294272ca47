"""Streams through the gateway: piece by piece, however long they are silent, and ended when the client leaves."""

from __future__ import annotations

import base64
import json
import os
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import pytest
from engine_double import EngineDouble
from gateway_box import CHAT, TOKEN, Gateway, Http2, connect, gateway_box, question, this_machine
from kit import Box, Lab, eventually
from streams import expect_many_held, expect_survived, listen, silent_streams, texts

pytestmark = pytest.mark.lab

HTTP = pytest.mark.parametrize("http2", [False, True], ids=["http1", "http2"])


@pytest.fixture(scope="module")
def engine(lab: Lab) -> Iterator[EngineDouble]:
    with EngineDouble(this_machine(gateway_box(lab))) as engine:
        yield engine


@pytest.fixture(scope="module")
def gateway(lab: Lab, engine: EngineDouble) -> Gateway:
    # Timeouts much shorter than the silence: they count between requests, and never in a stream.
    return Gateway(
        gateway_box(lab),
        "streams",
        gateway_engines=[engine.upstream],
        gateway_routes=[{"path": "/many", "upstreams": [engine.upstream], "in_flight": 2000}],
        gateway_header_timeout=2,
        gateway_idle_timeout=3,
    )


@pytest.fixture(scope="module", autouse=True)
def silent(gateway: Gateway, engine: EngineDouble) -> Iterator[dict[tuple[str, bool], Future[list[str]]]]:
    """Streams that are silent while the other tests run."""
    with silent_streams(gateway, engine) as streams:
        yield streams


@HTTP
@pytest.mark.parametrize("accept", ["identity", "gzip, deflate"])
def test_each_event_arrives_before_the_next_is_said(
    gateway: Gateway, engine: EngineDouble, http2: bool, accept: str
) -> None:
    """Also to a client that would take a compressed answer: nothing waits for a buffer to fill."""
    model = f"events {http2} {accept}"
    answer = engine.answer(model)
    with (
        gateway.client(http2=http2, timeout=20) as client,
        client.stream("POST", CHAT, json=question(model, stream=True), headers={"Accept-Encoding": accept}) as reply,
    ):
        assert reply.status_code == 200
        assert reply.http_version == ("HTTP/2" if http2 else "HTTP/1.1")
        assert reply.headers["Content-Type"].startswith("text/event-stream")
        pieces = texts(reply.iter_lines())
        for number in range(20):
            answer.say(str(number))
            assert next(pieces) == str(number)
        answer.finish()
        assert list(pieces) == [""]


class Http1:
    """A connection with one request on it, which may be cut short."""

    def __init__(self, gateway: Gateway, body: bytes, missing: int = 0) -> None:
        self._socket = connect(gateway.box)
        head = f"POST {CHAT} HTTP/1.1\r\nHost: {gateway.box.address}\r\nAuthorization: Bearer {TOKEN}\r\n"
        head += f"Content-Type: application/json\r\nContent-Length: {len(body) + missing}\r\n\r\n"
        self._socket.sendall(head.encode() + body)

    def leave(self) -> None:
        self._socket.close()


def over_http1(
    gateway: Gateway, body: dict[str, object], missing: int
) -> tuple[Callable[[], None], Callable[[], None]]:
    connection = Http1(gateway, json.dumps(body).encode(), missing)
    return connection.leave, lambda: None


def over_http2(
    gateway: Gateway, body: dict[str, object], missing: int
) -> tuple[Callable[[], None], Callable[[], None]]:
    """The client cancels its request; the connection is used on."""
    connection = Http2(gateway)
    number = connection.begin(body, missing=missing)
    connection.send()

    def leave() -> None:
        connection.cancel(number)
        connection.send()

    def still_there() -> None:
        with connection:
            another = connection.begin(question("anything"))
            connection.send()
            while another not in connection.ended:
                connection.read()
            assert connection.headers[another][":status"] == "200"

    return leave, still_there


@pytest.mark.parametrize("protocol", [over_http1, over_http2])
@pytest.mark.parametrize("phase", ["sending", "waiting", "streaming"])
def test_when_the_client_leaves_the_engine_is_told(
    gateway: Gateway,
    engine: EngineDouble,
    phase: str,
    protocol: Callable[[Gateway, dict[str, object], int], tuple[Callable[[], None], Callable[[], None]]],
) -> None:
    """Within a second: while the body is sent, before anything was answered, and in the middle of a stream."""
    model = f"left {phase} {protocol.__name__}"
    engine.answer(model, held=phase == "waiting", endless=0.02)
    before = len(engine.asked)
    # A smaller body the gateway has whole before the engine sees anything of it.
    leave, still_there = protocol(gateway, question(model, stream=True), 200_000 if phase == "sending" else 0)

    def arrived() -> bool:
        return any(model.encode() in asked.body for asked in engine.asked[before:])

    eventually("the request at the engine", arrived)
    (asked,) = [asked for asked in engine.asked[before:] if model.encode() in asked.body]
    assert (asked.body_ended is None) == (phase == "sending")
    assert not asked.over
    began = time.monotonic()
    leave()
    eventually("the engine knows", lambda: asked.over)
    assert asked.left is not None
    assert asked.left - began < 1
    still_there()


def test_streams_survive_new_tokens_and_settings(gateway: Gateway, engine: EngineDouble) -> None:
    """Reloads in the middle of a stream lose nothing, even when its own token is revoked."""
    # Other tests make tokens on this box too.
    name, another = (f"{what}-{secrets.token_hex(4)}" for what in ("streamer", "another"))
    answer = engine.answer("reloads")
    token = gateway.token("add", name)
    server = gateway.pid
    said = 0

    def say() -> None:
        nonlocal said
        while not stop.wait(0.02):
            answer.say(str(said))
            said += 1

    stop = threading.Event()
    with ThreadPoolExecutor(3) as pool:
        streams = [pool.submit(listen, gateway, "reloads", http2, token) for http2 in (False, True)]
        eventually("two streams at the engine", lambda: len(engine.of("reloads")) == 2)
        speaker = pool.submit(say)
        try:
            gateway.token("add", another)
            gateway.token("revoke", name)
            with gateway.client(token=token) as client:
                assert client.get("/v1/models").status_code == 401
            assert gateway.apply(gateway_wait=300) == ["gateway: write the Caddyfile", "gateway: running"]
            after = said
            eventually("more was said after the last reload", lambda: said > after + 10)
        finally:
            stop.set()
            speaker.result()
            answer.finish()
            gateway.token("revoke", another)
        everything = [*(str(number) for number in range(said)), ""]
        assert [stream.result(60) for stream in streams] == [everything, everything]
    assert gateway.pid == server


class WebSocket:
    """A WebSocket of Open WebUI, by hand (RFC 6455): small text messages of Engine.IO, unfragmented."""

    def __init__(self, box: Box) -> None:
        self._socket = connect(box)
        key = base64.b64encode(os.urandom(16)).decode()
        self._socket.sendall(
            "GET /ws/socket.io/?EIO=4&transport=websocket HTTP/1.1\r\n"
            f"Host: {box.address}\r\nOrigin: https://{box.address}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
            f"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\n\r\n".encode()
        )
        self._stream = self._socket.makefile("rb")
        assert b" 101 " in self._stream.readline()
        while self._stream.readline() != b"\r\n":
            pass

    def receive(self) -> str:
        """The next message; pings of Engine.IO are answered on the way."""
        while True:
            first, length = self._stream.read(2)
            if length == 126:
                length = int.from_bytes(self._stream.read(2))
            message = self._stream.read(length).decode()
            assert first == 0x81, f"not a text message: {first:#x} {message}"
            if message != "2":
                return message
            self.send("3")

    def send(self, message: str) -> None:
        data = message.encode()
        # Masked with zeros, which changes nothing.
        self._socket.sendall(bytes([0x81, 0x80 | len(data), 0, 0, 0, 0]) + data)

    def close(self) -> None:
        self._socket.close()


def test_a_websocket_to_open_webui_survives_a_reload(full: Box) -> None:
    loaded = "systemctl show --value --property ActiveEnterTimestampMonotonic caddy"
    socket = WebSocket(full)
    try:
        assert json.loads(socket.receive().removeprefix("0"))["sid"]
        since = full.sh(loaded)
        full.run("boxwright", "token", "add", "websocket").expect()
        full.run("boxwright", "token", "revoke", "websocket").expect()
        assert full.sh(loaded) == since
        # A first message, which is answered: accepted, or refused for want of a login.
        socket.send("40")
        assert socket.receive().startswith("4")
    finally:
        socket.close()


def test_a_thousand_idle_streams_are_held(gateway: Gateway, engine: EngineDouble) -> None:
    expect_many_held(gateway, engine, "caddy", f"/many{CHAT}")


@HTTP
def test_a_stream_that_is_silent_for_90_seconds_survives(
    silent: dict[tuple[str, bool], Future[list[str]]], engine: EngineDouble, http2: bool
) -> None:
    """Between two events, and before the first; over the reloads of the tests above as well."""
    expect_survived(silent, engine, http2)
