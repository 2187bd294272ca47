"""The running service is told to stop: what is under way comes to its end, and nothing is lost."""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Callable
from contextlib import suppress

import pytest
from running import ASK, STREAM, Running
from stub_engine import StubEngine
from waiting import until


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_streams_come_to_their_end(
    kind: str, own: Callable[..., Running], engine: StubEngine, number: signal.Signals
) -> None:
    """Eight streams and a request that waits are answered in full; whoever comes now is refused at once."""
    service = own(stop_seconds=30)
    made = service.key()
    engine.behave(tokens=40, pace=0.15)
    held = [service.send(made, {**STREAM}) for _ in range(8)] + [
        service.send(made, {**ASK, "stub": {"wait": 6.0, "tokens": 5}})
    ]
    until(lambda: engine.running == 9)
    assert service.process is not None
    service.process.send_signal(number)
    begun = time.monotonic()
    until(lambda: refused(service), 10)
    assert engine.running > 0, "they were over before new ones were refused, so this proves nothing"
    # And it stays so.
    assert refused(service)
    for connection in held:
        connection.settimeout(30)
        text = b""
        with suppress(ConnectionError):
            while part := connection.recv(65536):
                text += part
        assert text.startswith(b"HTTP/1.1 200 "), text
        assert b"[DONE]" in text or b'"finish_reason":"stop"' in text, text
    assert service.process.wait(30) == 0
    assert time.monotonic() - begun < 25
    assert [record.end for record in engine.records] == ["done"] * 9
    assert service.count(f"key_id = '{made.id}' AND outcome = 'ok'") == 9
    assert service.rows("sum(tokens_out)", f"key_id = '{made.id}'")[0] == [str(8 * 40 + 5)]
    assert not list((service.folder / "spill").iterdir())
    if kind == "full":
        assert service.taken() == 0
    assert "Traceback" not in service.text(), service.text()


def refused(service: Running) -> bool:
    """Whether nobody listens any more."""
    try:
        socket.create_connection(("127.0.0.1", service.port), timeout=2).close()
    except ConnectionRefusedError:
        return True
    except OSError:
        return False
    return False


def test_one_that_takes_too_long(kind: str, own: Callable[..., Running], engine: StubEngine) -> None:
    """After `stop_seconds` a stream is broken off, visibly, and its row is written."""
    service = own(stop_seconds=1)
    made = service.key()
    engine.behave(tokens=10_000, pace=0.05)
    connection = service.send(made, STREAM)
    until(lambda: engine.records and engine.records[0].tokens_out > 2)
    begun = time.monotonic()
    assert service.stop() == 0
    assert time.monotonic() - begun < 20
    text = b""
    with suppress(ConnectionError):
        while part := connection.recv(65536):
            text += part
    assert b"service_stopping" in text
    assert b"[DONE]" not in text
    assert not text.endswith(b"0\r\n\r\n")
    assert service.rows("outcome, code, estimated IN (true)", f"key_id = '{made.id}'")[0][:2] == [
        "upstream_error",
        "service_stopping",
    ]
    engine.until("closed")
    if kind == "full":
        assert service.taken() == 0


def test_rows_of_the_last_moment(kind: str, own: Callable[..., Running], engine: StubEngine) -> None:
    """Told to stop right after an answer, before the rows of the last moments were written."""
    service = own(usage_flush_ms=5000)
    made = service.key()
    for _ in range(30):
        assert service.post(made).status_code == 200
    assert service.count(f"key_id = '{made.id}'") < 30
    assert service.stop() == 0
    assert service.count(f"key_id = '{made.id}' AND outcome = 'ok'") == 30


def test_killed(kind: str, own: Callable[..., Running], engine: StubEngine) -> None:
    """With kill -9 only what is younger than the flush is lost, and the next start finds everything in order."""
    service = own(usage_flush_ms=200)
    made = service.key()
    for _ in range(10):
        assert service.post(made).status_code == 200
    until(lambda: service.count(f"key_id = '{made.id}'") == 10)
    time.sleep(0.3)
    for pid in service.processes():
        os.kill(pid, signal.SIGKILL)
    assert service.process is not None
    service.process.wait()
    assert service.count(f"key_id = '{made.id}'") == 10
    service.start()
    assert service.post(made).status_code == 200
    until(lambda: service.count(f"key_id = '{made.id}'") == 11)
