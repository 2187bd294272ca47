"""Clients leave the running service, in every phase: its engine stops, its place is free, its row is written.

How soon on a quiet machine is for bench/api.py to say; here it only must not be as long as the engine would go on.
"""

from __future__ import annotations

import time
from typing import Any

import pytest
from running import ASK, STREAM, Running
from stub_engine import StubEngine
from waiting import until

SOON = 2.0
TIMES = 5


@pytest.mark.parametrize("model", ["plain", "ollama"])
@pytest.mark.parametrize("stream", [True, False])
def test_before_the_first_byte(running: Running, engine: StubEngine, model: str, stream: bool) -> None:
    """The engine reads the prompt, which takes a minute."""
    engine.behave(wait=60.0)
    left(running, engine, {**ASK, "model": model, "stream": stream}, "client_closed_early", lambda connection: None)


@pytest.mark.parametrize("model", ["plain", "ollama"])
def test_in_the_middle(running: Running, engine: StubEngine, model: str) -> None:
    """Chunks come slowly, so that nothing is written when the client leaves."""
    engine.behave(tokens=1000, pace=10.0)

    def read(connection: Any) -> None:
        text = b""
        while b"tok0" not in text:
            text += connection.recv(4096)

    left(running, engine, {**STREAM, "model": model}, "client_closed", read)


def left(running: Running, engine: StubEngine, body: dict[str, Any], outcome: str, before: Any) -> None:
    """A client that leaves, some times."""
    made = running.key()
    for _ in range(TIMES):
        engine.clear()
        connection = running.send(made, body)
        until(lambda: engine.running == 1)
        before(connection)
        connection.close()
        gone = time.monotonic()
        record = engine.until("closed")[0]
        assert record.ended_at is not None
        assert record.ended_at - gone < SOON
        assert until(lambda: running.taken() == 0) < SOON
        where = f"request_id = '{record.request_id}'"
        until(lambda where=where: running.count(where) == 1)  # type: ignore[misc]
        estimated, found = running.rows("estimated, outcome", where)[0]
        assert (estimated in ("t", "1"), found) == (True, outcome)


def test_while_it_waits_for_a_place(running: Running, engine: StubEngine) -> None:
    """It never reaches the engine, and takes no place from those who wait behind it."""
    made = running.key(limits={"parallel": 1})
    engine.behave(wait=60.0)
    held = running.send(made)
    until(lambda: engine.running == 1)
    for number in range(TIMES):
        waiting = running.send(made)
        # Within the wait for a place, of a quarter of a second, on a machine that is not too busy.
        time.sleep(0.05)
        waiting.close()
        until(lambda number=number: running.count(f"key_id = '{made.id}'") == number + 1)  # type: ignore[misc]
        assert running.taken() == 1
    assert len(engine.records) == 1
    held.close()
    engine.until("closed")
    assert until(lambda: running.taken() == 0) < SOON
    until(lambda: running.count(f"key_id = '{made.id}'") == TIMES + 1)
    assert running.count(f"key_id = '{made.id}' AND outcome = 'client_closed_early'") >= 2
    engine.behave()
    assert running.post(made).status_code == 200
