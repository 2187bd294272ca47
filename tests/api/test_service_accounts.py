"""Thousands of requests of all kinds, some of which are broken off: every one has a row, and every token is counted.

BOXWRIGHT_PROOF_REQUESTS says how many, where a machine has no time for the 10,000 that the project demands: half a
minute where it is idle.
"""

from __future__ import annotations

import asyncio
import os
import random
from collections import Counter
from collections.abc import Callable
from typing import Any

import aiohttp
import orjson
import pytest
from running import CHAT, Made, Running
from stub_engine import StubEngine
from waiting import until

REQUESTS = int(os.environ.get("BOXWRIGHT_PROOF_REQUESTS", "10000"))
AT_ONCE = 16
# How a request ends that its client breaks off: as soon as it is sent, while the engine works, after some chunks.
PHASES = ("at once", "before the first byte", "in the middle")


def asked(choice: random.Random, number: int) -> tuple[str, dict[str, Any], str]:
    """A request: path, body, and what it is: good, refused, or one of PHASES."""
    words = " ".join(["word"] * choice.randint(1, 9))
    tokens = choice.randint(1, 9)
    kind = choice.random()
    model = choice.choice(["plain", "ollama"])
    body: dict[str, Any] = {"model": model, "messages": [{"role": "user", "content": words}]}
    # By this name the stub's record of a request is found again.
    if kind < 0.1:
        phase = PHASES[number % len(PHASES)]
        stub = {"tokens": 400, "pace": 0.02, "wait": 0.0 if phase == "in the middle" else 30.0}
        stream = phase == "in the middle" or choice.random() < 0.5
        return CHAT, {**body, "stream": stream} | _stub(model, stub), phase
    if kind < 0.2:
        refused = choice.choice(["model", "messages", "key"])
        if refused == "model":
            body["model"] = "missing"
        elif refused == "messages":
            body["messages"] = "none"
        return CHAT, body, "wrong key" if refused == "key" else "refused"
    if kind < 0.35:
        return "/v1/embeddings", {"model": model, "input": [words]}, "good"
    if kind < 0.45:
        stream = choice.random() < 0.5
        return "/v1/completions", {"model": model, "prompt": words, "stream": stream, "max_tokens": tokens}, "good"
    return CHAT, {**body, "stream": choice.random() < 0.5} | _stub(model, {"tokens": tokens}), "good"


def _stub(model: str, behaviour: dict[str, Any]) -> dict[str, Any]:
    return {"options": {"stub": behaviour}} if model == "ollama" else {"stub": behaviour}


class Clients:
    """Some that ask at the same time, until all is asked. A refusal for want of a place is taken as one more."""

    def __init__(self, running: Running, made: Made) -> None:
        self.running, self.made = running, made
        self.found: Counter[str] = Counter()
        self.tokens: Counter[str] = Counter()
        self.aborted = 0

    async def run(self, requests: int) -> None:
        choice = random.Random(1)
        queue = [asked(choice, number) for number in range(requests)]
        queue.reverse()
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
            await asyncio.gather(*(self._one_after_the_other(session, queue) for _ in range(AT_ONCE)))

    async def _one_after_the_other(
        self, session: aiohttp.ClientSession, queue: list[tuple[str, dict[str, Any], str]]
    ) -> None:
        while queue:
            path, body, what = queue.pop()
            if what in PHASES:
                await self._leave(path, body, what)
            else:
                await self._ask(session, path, body, what)

    async def _ask(self, session: aiohttp.ClientSession, path: str, body: dict[str, Any], what: str) -> None:
        headers = {"Authorization": "Bearer wrong"} if what == "wrong key" else self.made.headers
        async with session.post(self.running.url + path, data=orjson.dumps(body), headers=headers) as answer:
            text = await answer.read()
        if what == "good":
            assert answer.status in (200, 429), text
            if answer.status == 200 and body.get("stream"):
                assert text.rstrip().endswith(b"[DONE]"), text
        else:
            assert answer.status in (400, 401, 404)
        self.found[f"{what} {answer.status}"] += 1

    async def _leave(self, path: str, body: dict[str, Any], phase: str) -> None:
        data = orjson.dumps(body)
        head = f"POST {path} HTTP/1.1\r\nHost: box\r\nAuthorization: Bearer {self.made.key}\r\n"
        reader, writer = await asyncio.open_connection("127.0.0.1", self.running.port)
        writer.write(f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data)
        await writer.drain()
        if phase == "before the first byte":
            await asyncio.sleep(0.05)
        elif phase == "in the middle":
            line = await reader.readline()
            if b" 200 " in line:
                for _ in range(12):
                    await reader.readline()
        writer.transport.abort()
        self.aborted += 1


def test_every_token_is_counted(kind: str, own: Callable[..., Running], engine: StubEngine) -> None:
    running = own(wait_ms=20_000)
    engine.keep = False
    try:
        made = running.key()
        clients = Clients(running, made)
        asyncio.run(clients.run(REQUESTS))
        _judge(running, engine, clients)
    finally:
        engine.keep = True


def _judge(running: Running, engine: StubEngine, clients: Clients) -> None:
    asked_ = sum(clients.found.values()) + clients.aborted
    assert asked_ == REQUESTS
    assert clients.aborted >= REQUESTS // 20
    until(lambda: engine.running == 0)
    answered = "outcome NOT IN ('client_closed', 'client_closed_early')"
    until(lambda: running.count(answered) == sum(clients.found.values()), why=lambda: running.count(answered))
    # Those that were broken off are written when they are noticed. A client that leaves at once may have done so before
    # its request was read: then there was none, and no engine has seen it.
    seen = {record.request_id for record in engine.records}
    until(lambda: seen <= {row[0] for row in running.rows("request_id")})
    until(lambda: running.taken() == 0)
    until(lambda: running.metric("boxwright_api_in_flight") == 0)
    # One row for each request: none twice, and none missing of those that were answered or with the engine.
    assert running.rows("count(*) - count(distinct request_id)")[0] == ["0"]
    for what, count in clients.found.items():
        status = what.rsplit(" ", 1)[1]
        same = sum(number for name, number in clients.found.items() if name.endswith(status))
        assert running.count(f"{answered} AND status = {status}") == same, (what, count)
    rows = {
        row[0]: (int(row[1]), int(row[2]), row[3] in ("t", "1"), row[4])
        for row in running.rows("request_id, tokens_in, tokens_out, estimated, outcome")
    }
    into = out = 0
    for record in engine.records:
        got_into, got_out, estimated, outcome = rows[record.request_id]
        if record.end == "done" and outcome == "ok":
            # The engine's own numbers, to the last token.
            assert (got_into, got_out, estimated) == (record.tokens_in, record.tokens_out, False), (record, outcome)
            into, out = into + record.tokens_in, out + record.tokens_out
        else:
            assert outcome in ("client_closed", "client_closed_early"), record
            assert estimated
            # Of what was sent, what had come through when the client left.
            assert 0 <= got_out <= record.tokens_out, (record, got_out)
    sums = running.rows("sum(tokens_in), sum(tokens_out)", "outcome = 'ok'")[0]
    assert sums == [str(into), str(out)]
    # Rows of requests that no engine saw cost nothing, but for those that their clients left on the way to it.
    for id, (got_into, got_out, estimated, outcome) in rows.items():
        if id not in seen:
            assert got_out == 0
            assert got_into == 0 or (estimated and outcome == "client_closed_early")
    assert running.metric("boxwright_api_usage_dropped_total") == 0
    # Of the admin API the same.
    told = running.admin.get("/admin/usage", params={"span": "hour"}).json()
    whole = running.rows("sum(tokens_in), sum(tokens_out), count(*)")[0]
    assert [str(sum(one[name] for one in told)) for name in ("tokens_in", "tokens_out", "requests")] == whole
    middle = running.count("outcome = 'client_closed' AND tokens_out > 0 AND estimated")
    assert middle > 0


@pytest.mark.parametrize("count", [20])
def test_estimates_are_near(running: Running, engine: StubEngine, count: int) -> None:
    """What is counted of a stream that was broken off: at least what its client had read, at most what was sent."""
    made = running.key()
    for _ in range(count):
        with running.send(
            made,
            {"model": "plain", "stream": True, "messages": [{"role": "user", "content": "x" * 40}]}
            | {"stub": {"tokens": 1000, "pace": 0.003}},
        ) as connection:
            text = b""
            while text.count(b'"content":"tok') < 5:
                text += connection.recv(4096)
        read = text.count(b'"content":"tok')
        record = engine.until("closed")[-1]
        engine.clear()
        where = f"request_id = '{record.request_id}'"
        until(lambda where=where: running.count(where) == 1)  # type: ignore[misc]
        into, out, estimated, outcome = running.rows("tokens_in, tokens_out, estimated, outcome", where)[0]
        # A token for four letters.
        assert (int(into), outcome) == (11, "client_closed")
        assert estimated in ("t", "1")
        assert read <= int(out) <= record.tokens_out + 1
