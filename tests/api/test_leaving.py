"""A client leaves: in every phase the engine is stopped at once, the place is free, and a row is written."""

from __future__ import annotations

import asyncio
import socket
import time
from typing import Any

import aiohttp
import orjson
import pytest
from doubles import SECRET
from served import Served, served
from stub_engine import StubEngine
from waiting import until

ASK: dict[str, Any] = {"model": "plain", "messages": [{"role": "user", "content": "one two three"}]}
STREAM = {**ASK, "stream": True}
# The best of several tries shows what the service does; a busy machine may delay the others.
SOON, SOMETIME = 0.05, 2.0


def send(service: Served, body: dict[str, Any], path: str = "/v1/chat/completions") -> socket.socket:
    """A request by hand; the answer is not read."""
    data = orjson.dumps(body)
    head = f"POST {path} HTTP/1.1\r\nHost: box\r\nAuthorization: Bearer {SECRET}\r\nContent-Length: {len(data)}\r\n\r\n"
    sock = socket.create_connection(("127.0.0.1", service.port))
    sock.sendall(head.encode() + data)
    return sock


def leave(sock: socket.socket) -> float:
    """The connection is closed; returns when."""
    sock.close()
    return time.monotonic()


@pytest.mark.parametrize("model", ["plain", "ollama"])
@pytest.mark.parametrize("stream", [True, False])
def test_before_the_first_byte(service: Served, engine: StubEngine, model: str, stream: bool) -> None:
    """The engine still reads the prompt."""
    engine.behave(wait=60)
    took = []
    for number in range(1, 6):
        sock = send(service, {**ASK, "model": model, "stream": stream})
        until(lambda: engine.running == 1)
        left = leave(sock)
        record = engine.until("closed", number)[-1]
        took.append((record.ended_at or 0) - left)
        service.free()
        row = service.row(number)
        assert (row.outcome, row.status, row.tokens_out, row.estimated) == ("client_closed_early", 499, 0, True)
        assert row.first_ms is None
    assert min(took) < SOON
    assert max(took) < SOMETIME


@pytest.mark.parametrize("model", ["plain", "ollama"])
def test_between_headers_and_first_chunk(service: Served, engine: StubEngine, model: str) -> None:
    """The engine has only said that it will stream."""
    engine.behave(first_wait=60)
    sock = send(service, {**STREAM, "model": model})
    until(lambda: engine.running == 1)
    left = leave(sock)
    assert (engine.until("closed")[0].ended_at or 0) - left < SOMETIME
    assert service.row().outcome == "client_closed_early"
    service.free()


@pytest.mark.parametrize("model", ["plain", "ollama"])
def test_in_the_middle(service: Served, engine: StubEngine, model: str) -> None:
    """While a chunk is awaited: what came by is counted, and marked as an estimate."""
    engine.behave(tokens=3, hang_after=2)
    took = []
    for number in range(1, 6):
        sock = send(service, {**STREAM, "model": model})
        text = b""
        while b"tok1" not in text:
            text += sock.recv(65536)
        left = leave(sock)
        record = engine.until("closed", number)[-1]
        took.append((record.ended_at or 0) - left)
        row = service.row(number)
        assert (row.outcome, row.status, row.tokens_out, row.estimated) == ("client_closed", 200, 2, True)
        assert row.tokens_out == record.tokens_out
        assert row.tokens_in > 0
        assert row.first_ms is not None
        service.free()
    assert min(took) < SOON
    assert max(took) < SOMETIME


def test_while_chunks_flow(service: Served, engine: StubEngine) -> None:
    """In the middle of a fast stream."""
    engine.behave(tokens=20_000, pace=0.001)
    sock = send(service, STREAM)
    text = b""
    while b"tok5" not in text:
        text += sock.recv(65536)
    left = leave(sock)
    record = engine.until("closed")[0]
    assert (record.ended_at or 0) - left < SOMETIME
    row = service.row()
    assert row.outcome == "client_closed"
    assert 0 < row.tokens_out <= record.tokens_out
    service.free()


def test_while_it_waits_for_a_place(engine: StubEngine) -> None:
    """It never takes the place, and the engine never hears of it."""
    with served(engine, wait_ms=60000) as service:
        service.parts.limiter.places = 0
        sock = send(service, ASK)
        until(lambda: service.parts.limiter.waiting == 1)
        left = leave(sock)
        until(lambda: service.parts.limiter.waiting == 0)
        assert time.monotonic() - left < SOMETIME
        row = service.row()
        assert (row.outcome, row.tokens_in, row.tokens_out) == ("client_closed_early", 0, 0)
        assert not engine.records
        service.parts.limiter.places = 1
        assert service.post("/v1/chat/completions", ASK).status_code == 200


def test_while_it_sends_the_body(service: Served, engine: StubEngine) -> None:
    """Half a body."""
    sock = socket.create_connection(("127.0.0.1", service.port))
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: box\r\nAuthorization: Bearer {SECRET}\r\n"
    sock.sendall(head.encode() + b'Content-Length: 99\r\n\r\n{"model":')
    until(lambda: service.app.state.active)
    leave(sock)
    row = service.row()
    assert (row.outcome, row.status) == ("client_closed_early", 499)
    assert not engine.records


def test_a_client_that_does_not_read(engine: StubEngine) -> None:
    """It keeps the connection and takes nothing: it may not hold a place for ever."""
    with served(engine, idle_seconds=0.5) as service:
        engine.behave(tokens=200_000)
        sock = send(service, STREAM)
        row = service.row(timeout=30)
        assert row.outcome == "client_closed"
        engine.until("closed")
        service.free()
        sock.close()


def test_accounts(engine: StubEngine) -> None:
    """Six hundred requests of all kinds, a tenth of them left: each has one row, and the tokens are the engine's."""

    async def all_of_them(service: Served) -> None:
        async with aiohttp.ClientSession(headers={"Authorization": f"Bearer {SECRET}"}) as session:
            numbers = iter(range(600))

            async def some() -> None:
                for number in numbers:
                    body = {
                        "model": "ollama" if number % 3 else "plain",
                        "messages": ASK["messages"],
                        "stream": number % 2 == 0,
                    }
                    body["options"] = {"stub": {"tokens": 1 + number % 7}}
                    leaves = number % 20 == 0
                    if leaves:
                        body["options"]["stub"] |= {"tokens": 50, "hang_after": 1 + number % 5}
                    async with session.post(service.url + "/v1/chat/completions", json=body) as response:
                        assert response.status == 200
                        if leaves:
                            await response.content.readany()
                            response.close()
                        else:
                            await response.read()

            await asyncio.gather(*(some() for _ in range(8)))

    with served(engine) as service:
        asyncio.run(all_of_them(service))
        engine.until("closed", 30)
        rows = {row.request_id: row for row in service.rows(600)}
        assert len(rows) == 600
        records = {record.request_id: record for record in engine.records}
        assert set(records) == set(rows)
        whole = [number for number, row in rows.items() if row.outcome == "ok"]
        assert len(whole) == 570
        for number in whole:
            row, record = rows[number], records[number]
            assert (row.tokens_in, row.tokens_out, row.estimated) == (record.tokens_in, record.tokens_out, False)
        for number in set(rows) - set(whole):
            assert rows[number].outcome == "client_closed"
            assert rows[number].tokens_out <= records[number].tokens_out
            assert rows[number].estimated
        assert service.parts.limiter.tokens == sum(row.tokens_in + row.tokens_out for row in rows.values())
        service.free()


def test_many_leave(engine: StubEngine) -> None:
    """Forty at once: forty rows, and nothing is left."""
    with served(engine, in_flight=100) as service:
        engine.behave(tokens=1000, pace=0.05)
        socks = [send(service, STREAM if number % 2 else {**ASK, "stub": {"wait": 60}}) for number in range(40)]
        until(lambda: engine.running == 40)
        for sock in socks:
            leave(sock)
        engine.until("closed", 40)
        rows = service.rows(40)
        assert {row.outcome for row in rows} <= {"client_closed", "client_closed_early"}
        service.free()
        until(lambda: not service.app.state.active)
