"""An inference engine without a model: the OpenAI API and Ollama's own, with behaviour that a test sets.

It runs in a thread (`with StubEngine() as engine:`) or as a process of its own, for benchmarks
(`python tests/api/stub_engine.py --port 9000`; it prints its address). It keeps the truth about each request: what was
asked, how many tokens were really sent, whether and when the connection was closed under it. Times are
CLOCK_MONOTONIC, comparable over processes.

What it does is `Behaviour`: the one it was started with or that was last put (`engine.behave(...)`, or POST
/stub/behaviour), with the members of the request's own `stub` object above it (`options.stub` for Ollama's API).
GET /stub/truth gives all records, DELETE /stub/truth forgets them.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import contextlib
import re
import struct
import threading
import time
import zlib
from collections.abc import AsyncIterator, Iterator
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Self

import orjson
from aiohttp import web


@dataclass(frozen=True)
class Behaviour:
    """How requests are answered. Seconds."""

    # Tokens of an answer, each a chunk of a stream; never more than the request's max_tokens.
    tokens: int = 5
    # Between two chunks of a stream.
    pace: float = 0.0
    # Before anything is answered.
    wait: float = 0.0
    # Nothing is answered until the test says `open`.
    gate: bool = False
    # Between the headers of a stream and its first chunk.
    first_wait: float = 0.0
    # Answer with this status and error instead.
    status: int = 200
    error: Any = None
    # Cut the connection after so many chunks of a stream (0: after the headers); -1: do not.
    break_after: int = -1
    # End a stream in order after so many chunks, but without its last words; -1: do not.
    end_after: int = -1
    # Stop sending after so many chunks and keep the connection; -1: do not.
    hang_after: int = -1
    # Send the usage as asked for.
    usage: bool = True
    # Line ends of the event stream.
    newline: str = "\n"
    # Pieces of at most so many bytes, each written by itself; 0: an event at a time.
    piece: int = 0
    # Answer with a call of this tool instead of text.
    tool: str = ""
    # Text that is thought before the answer.
    thinking: str = ""
    # Numbers of a vector; more than 3: texts with the same words are near each other.
    size: int = 3
    # What is answered instead of an answer.
    instead: Any = None
    # Extra headers of the answer.
    headers: tuple[tuple[str, str], ...] = ()


@dataclass
class Record:
    """What happened with one request."""

    number: int
    path: str
    at: float
    headers: list[tuple[str, str]] = field(default_factory=list)
    body: Any = None
    model: str = ""
    request_id: str = ""
    tokens_in: int = 0
    # Really sent.
    tokens_out: int = 0
    # "running", "done", "closed" (the other side closed the connection), "broken" (as told).
    end: str = "running"
    ended_at: float | None = None


class StubEngine:
    """The engine, in a thread of this process."""

    def __init__(self, behaviour: Behaviour | None = None, *, keep: bool = True, port: int = 0) -> None:
        self.behaviour = behaviour or Behaviour()
        self.records: list[Record] = []
        # Whether headers and bodies are kept: not for very many requests.
        self.keep = keep
        self.port = port
        self.running = 0
        self.most = 0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop: asyncio.Event | None = None
        self._gate = asyncio.Event()
        self._thread: threading.Thread | None = None

    # In a thread.

    def __enter__(self) -> Self:
        ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._main(ready)), daemon=True)
        self._thread.start()
        if not ready.wait(30):
            raise RuntimeError("the stub engine did not start")
        return self

    def __exit__(self, *_: object) -> None:
        if self._loop and self._stop and self._thread:
            self._loop.call_soon_threadsafe(self._stop.set)
            self._thread.join(30)

    @property
    def url(self) -> str:
        """Its address, without a path."""
        return f"http://127.0.0.1:{self.port}"

    def behave(self, **changes: Any) -> None:
        """From now on; what is not named is as at the start."""
        self.behaviour = replace(Behaviour(), **changes)

    def open(self) -> None:
        """All that wait at the gate are answered; whoever comes later waits until the next time."""

        def swing() -> None:
            self._gate.set()
            self._gate = asyncio.Event()

        assert self._loop is not None
        self._loop.call_soon_threadsafe(swing)

    def clear(self) -> None:
        """Forget what was."""
        self.records.clear()
        self.most = self.running

    def last(self, path: str | None = None) -> Record:
        """The newest request, of this path."""
        return next(record for record in reversed(self.records) if path in (None, record.path))

    def until(self, end: str, count: int = 1, timeout: float = 30.0) -> list[Record]:
        """Waits until so many requests have ended so."""
        deadline = time.monotonic() + timeout
        while True:
            found = [record for record in self.records if record.end == end]
            if len(found) >= count:
                return found
            if time.monotonic() > deadline:
                raise AssertionError(f"{len(found)} of {count} requests are {end!r}: {self.records}")
            time.sleep(0.002)

    def truth(self) -> dict[str, int]:
        """Sums over all requests to a model."""
        return {
            "requests": len(self.records),
            "tokens_in": sum(record.tokens_in for record in self.records),
            "tokens_out": sum(record.tokens_out for record in self.records),
            "most": self.most,
            "running": self.running,
        }

    async def _main(self, ready: threading.Event) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        async with self.serving():
            ready.set()
            await self._stop.wait()

    @contextlib.asynccontextmanager
    async def serving(self) -> AsyncIterator[None]:
        """Serve in this event loop."""
        runner = web.AppRunner(self._app(), handler_cancellation=True, access_log=None, shutdown_timeout=0.5)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", self.port, backlog=1024)
        await site.start()
        self.port = runner.addresses[0][1]
        try:
            yield
        finally:
            await runner.cleanup()

    def _app(self) -> web.Application:
        app = web.Application(client_max_size=256 * 1024**2)
        app.add_routes(
            [
                web.get("/v1/models", self._models),
                web.post("/v1/chat/completions", self._chat),
                web.post("/v1/completions", self._completions),
                web.post("/v1/embeddings", self._embeddings),
                web.post("/v1/responses", self._responses),
                web.post("/v1/images/generations", self._images),
                web.get("/api/version", self._version),
                web.post("/api/chat", self._ollama_chat),
                web.post("/api/generate", self._ollama_generate),
                web.post("/api/embed", self._ollama_embed),
                web.post("/stub/behaviour", self._put_behaviour),
                web.get("/stub/truth", self._get_truth),
                web.delete("/stub/truth", self._delete_truth),
            ]
        )
        return app

    # One request.

    async def _begin(self, request: web.Request) -> tuple[Record, dict[str, Any], Behaviour]:
        record = Record(len(self.records), request.path, time.monotonic())
        self.records.append(record)
        body = orjson.loads(await request.read())
        record.model = body.get("model", "")
        record.request_id = request.headers.get("x-request-id", "")
        if self.keep:
            record.headers = [(name.lower(), value) for name, value in request.headers.items()]
            record.body = body
        own = body.get("stub") or (body.get("options") or {}).get("stub") or {}
        behaviour = replace(self.behaviour, **own) if own else self.behaviour
        limit = (
            body.get("max_tokens")
            or body.get("max_completion_tokens")
            or body.get("max_output_tokens")
            or (body.get("options") or {}).get("num_predict")
        )
        if limit and limit > 0:
            behaviour = replace(behaviour, tokens=min(behaviour.tokens, limit))
        record.tokens_in = len(
            " ".join(_texts(body.get("messages") or body.get("prompt") or body.get("input"))).split()
        )
        return record, body, behaviour

    @contextlib.contextmanager
    def _running(self, record: Record) -> Iterator[None]:
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            yield
            if record.end == "running":
                record.end = "done"
        except (asyncio.CancelledError, ConnectionError):
            record.end = "closed"
            raise
        finally:
            record.ended_at = time.monotonic()
            self.running -= 1

    async def _answer(
        self, request: web.Request, record: Record, how: Behaviour, make: Any, *, ollama: bool = False
    ) -> web.StreamResponse:
        """A plain answer."""
        with self._running(record):
            await self._wait(how)
            headers = dict(how.headers)
            if how.status != 200:
                error = how.error or (
                    "stub error" if ollama else {"message": "stub error", "type": "stub", "code": "stub"}
                )
                content = error if isinstance(error, str) and not ollama else orjson.dumps({"error": error})
                return web.Response(status=how.status, body=content, content_type="application/json", headers=headers)
            if how.break_after >= 0:
                record.end = "broken"
                assert request.transport is not None
                request.transport.abort()
                return web.Response()
            record.tokens_out = how.tokens
            if how.instead is not None:
                make = lambda: how.instead  # noqa: E731
            return web.Response(body=orjson.dumps(make()), content_type="application/json", headers=headers)

    async def _stream(
        self,
        request: web.Request,
        record: Record,
        how: Behaviour,
        chunks: list[bytes],
        tail: list[bytes],
        kind: str,
        head: list[bytes] | None = None,
    ) -> web.StreamResponse:
        """A stream: `head`, one of `chunks` for each token, then `tail`."""
        if how.status != 200:
            return await self._answer(request, record, how, dict, ollama=kind != "text/event-stream")
        with self._running(record):
            await self._wait(how)
            response = web.StreamResponse(headers={"Content-Type": kind, **dict(how.headers)})
            await response.prepare(request)
            if how.first_wait:
                await asyncio.sleep(how.first_wait)
            for data in head or []:
                await self._write(response, data, how)
            for index, data in enumerate(chunks):
                if index == how.break_after:
                    record.end = "broken"
                    assert request.transport is not None
                    request.transport.close()
                    return response
                if index == how.end_after:
                    record.end = "broken"
                    await response.write_eof()
                    return response
                if index == how.hang_after:
                    await asyncio.sleep(3600)
                if index and how.pace:
                    await asyncio.sleep(how.pace)
                await self._write(response, data, how)
                record.tokens_out += 1
            for data in tail:
                await self._write(response, data, how)
            await response.write_eof()
            return response

    async def _wait(self, how: Behaviour) -> None:
        if how.gate:
            await self._gate.wait()
        if how.wait:
            await asyncio.sleep(how.wait)

    async def _write(self, response: web.StreamResponse, data: bytes, how: Behaviour) -> None:
        data = data.replace(b"@SENT@", b"%.6f" % time.monotonic())
        if how.newline != "\n":
            data = data.replace(b"\n", how.newline.encode())
        if not how.piece:
            await response.write(data)
            return
        for start in range(0, len(data), how.piece):
            await response.write(data[start : start + how.piece])
            await asyncio.sleep(0)

    # The OpenAI API.

    async def _models(self, request: web.Request) -> web.Response:
        return web.json_response({"object": "list", "data": []})

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        record, body, how = await self._begin(request)
        base = {"id": f"chatcmpl-{record.number}", "created": int(time.time()), "model": record.model}
        usage = _usage(record.tokens_in, how.tokens)
        text = [f"tok{index} " for index in range(how.tokens)]
        call = [
            {
                "index": 0,
                "id": "call_0",
                "type": "function",
                "function": {"name": how.tool, "arguments": '{"city":"Bonn"}'},
            }
        ]
        finish = "tool_calls" if how.tool else "stop"
        if not body.get("stream"):
            message: dict[str, Any] = {"role": "assistant", "content": None if how.tool else "".join(text)}
            if how.tool:
                message["tool_calls"] = call
            choice = {"index": 0, "message": message, "finish_reason": finish}
            answer = {**base, "object": "chat.completion", "choices": [choice]} | (
                {"usage": usage} if how.usage else {}
            )
            return await self._answer(request, record, how, lambda: answer)

        def event(delta: dict[str, Any], end: str | None = None) -> bytes:
            choices = [{"index": 0, "delta": delta, "finish_reason": end}]
            return _event({**base, "object": "chat.completion.chunk", "choices": choices, "sent": "@SENT@"})

        chunks = [event({"content": part}) for part in text]
        if how.tool:
            chunks = [event({"tool_calls": call})]
        tail = [event({}, finish)]
        if how.usage and (body.get("stream_options") or {}).get("include_usage"):
            tail.append(_event({**base, "object": "chat.completion.chunk", "choices": [], "usage": usage}))
        tail.append(b"data: [DONE]\n\n")
        head = [event({"role": "assistant", "content": ""})]
        return await self._stream(request, record, how, chunks, tail, "text/event-stream", head)

    async def _completions(self, request: web.Request) -> web.StreamResponse:
        record, body, how = await self._begin(request)
        base = {"id": f"cmpl-{record.number}", "object": "text_completion", "created": int(time.time())}
        base |= {"model": record.model}
        usage = _usage(record.tokens_in, how.tokens)
        text = [f"tok{index} " for index in range(how.tokens)]
        if not body.get("stream"):
            choice = {"index": 0, "text": "".join(text), "finish_reason": "stop"}
            return await self._answer(request, record, how, lambda: {**base, "choices": [choice], "usage": usage})
        chunks = [_event({**base, "choices": [{"index": 0, "text": part, "finish_reason": None}]}) for part in text]
        tail = [_event({**base, "choices": [{"index": 0, "text": "", "finish_reason": "stop"}]})]
        if how.usage and (body.get("stream_options") or {}).get("include_usage"):
            tail.append(_event({**base, "choices": [], "usage": usage}))
        tail.append(b"data: [DONE]\n\n")
        return await self._stream(request, record, how, chunks, tail, "text/event-stream")

    async def _embeddings(self, request: web.Request) -> web.StreamResponse:
        record, body, how = await self._begin(request)
        how = replace(how, tokens=0)
        vectors = [_vector(text, how.size) for text in _texts(body.get("input"))]
        packed = body.get("encoding_format") == "base64"
        data = [
            {"object": "embedding", "index": index, "embedding": _packed(vector) if packed else vector}
            for index, vector in enumerate(vectors)
        ]
        usage = {"prompt_tokens": record.tokens_in, "total_tokens": record.tokens_in}
        answer = {"object": "list", "data": data, "model": record.model} | ({"usage": usage} if how.usage else {})
        return await self._answer(request, record, how, lambda: answer)

    async def _responses(self, request: web.Request) -> web.StreamResponse:
        record, body, how = await self._begin(request)
        text = [f"tok{index} " for index in range(how.tokens)]
        usage = {"input_tokens": record.tokens_in, "output_tokens": how.tokens}
        usage |= {"total_tokens": record.tokens_in + how.tokens}
        content = [{"type": "output_text", "text": "".join(text), "annotations": []}]
        output = [{"type": "message", "id": "msg_0", "role": "assistant", "status": "completed", "content": content}]
        answer = {"id": f"resp_{record.number}", "object": "response", "created_at": int(time.time())}
        answer |= {"model": record.model, "status": "completed", "output": output, "usage": usage}
        answer |= {"previous_response_id": body.get("previous_response_id")}
        if not body.get("stream"):
            return await self._answer(request, record, how, lambda: answer)

        def event(name: str, data: dict[str, Any]) -> bytes:
            return b"event: " + name.encode() + b"\n" + _event({"type": name, **data})

        head = [event("response.created", {"response": {"id": answer["id"], "object": "response", "usage": None}})]
        delta = "response.output_text.delta"
        chunks = [event(delta, {"item_id": "msg_0", "output_index": 0, "delta": part}) for part in text]
        tail = [event("response.completed", {"response": answer})]
        return await self._stream(request, record, how, chunks, tail, "text/event-stream", head)

    async def _images(self, request: web.Request) -> web.StreamResponse:
        record, body, how = await self._begin(request)
        data = [{"b64_json": base64.b64encode(b"\x89PNG").decode()}] * (body.get("n") or 1)
        how = replace(how, tokens=0)
        return await self._answer(request, record, how, lambda: {"created": int(time.time()), "data": data})

    # Ollama's API.

    async def _version(self, request: web.Request) -> web.Response:
        return web.json_response({"version": "0.33.3"})

    async def _ollama_chat(self, request: web.Request) -> web.StreamResponse:
        record, body, how = await self._begin(request)
        base = {"model": record.model, "created_at": "2026-11-30T12:00:00.123456789Z"}
        end = {"done": True, "done_reason": "stop", "total_duration": 1, "load_duration": 1}
        if how.usage:
            end |= {"prompt_eval_count": record.tokens_in, "eval_count": how.tokens}
        text = [f"tok{index} " for index in range(how.tokens)]
        call = [{"function": {"index": 0, "name": how.tool, "arguments": {"city": "Bonn"}}}]
        if body.get("stream") is False:
            message: dict[str, Any] = {"role": "assistant", "content": "" if how.tool else "".join(text)}
            message |= {"tool_calls": call} if how.tool else {}
            message |= {"thinking": how.thinking} if how.thinking else {}
            return await self._answer(request, record, how, lambda: {**base, "message": message, **end}, ollama=True)

        def line(message: dict[str, Any], **more: Any) -> bytes:
            message = {"role": "assistant", "content": "", **message}
            return orjson.dumps({**base, "message": message, "done": False, **more}) + b"\n"

        chunks = [line({"tool_calls": call})] if how.tool else [line({"content": part}) for part in text]
        head = [line({"thinking": how.thinking})] if how.thinking else []
        return await self._stream(request, record, how, chunks, [line({}, **end)], "application/x-ndjson", head)

    async def _ollama_generate(self, request: web.Request) -> web.StreamResponse:
        record, body, how = await self._begin(request)
        base = {"model": record.model, "created_at": "2026-11-30T12:00:00.123456789Z"}
        end = {"done": True, "done_reason": "stop", "prompt_eval_count": record.tokens_in, "eval_count": how.tokens}
        text = [f"tok{index} " for index in range(how.tokens)]
        if body.get("stream") is False:
            answer = {**base, "response": "".join(text), **end}
            return await self._answer(request, record, how, lambda: answer, ollama=True)
        chunks = [orjson.dumps({**base, "response": part, "done": False}) + b"\n" for part in text]
        tail = [orjson.dumps({**base, "response": "", **end}) + b"\n"]
        return await self._stream(request, record, how, chunks, tail, "application/x-ndjson")

    async def _ollama_embed(self, request: web.Request) -> web.StreamResponse:
        record, body, how = await self._begin(request)
        how = replace(how, tokens=0)
        vectors = [_vector(text, how.size) for text in _texts(body.get("input"))]
        answer = {"model": record.model, "embeddings": vectors, "prompt_eval_count": record.tokens_in}
        return await self._answer(request, record, how, lambda: answer, ollama=True)

    # From outside.

    async def _put_behaviour(self, request: web.Request) -> web.Response:
        known = {field.name for field in fields(Behaviour)}
        asked = orjson.loads(await request.read())
        if unknown := set(asked) - known:
            return web.json_response({"error": f"unknown: {sorted(unknown)}"}, status=400)
        self.behave(**asked)
        return web.json_response(asdict(self.behaviour))

    async def _get_truth(self, request: web.Request) -> web.Response:
        answer = {**self.truth(), "records": [asdict(record) for record in self.records]}
        return web.Response(body=orjson.dumps(answer), content_type="application/json")

    async def _delete_truth(self, request: web.Request) -> web.Response:
        self.clear()
        return web.json_response({})


def _texts(value: Any) -> list[str]:
    """All texts of messages, a prompt or an input."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, list):
        return [text for item in value for text in _texts(item)]
    if isinstance(value, dict):
        return _texts(value.get("content") or value.get("text") or "")
    return []


def _usage(tokens_in: int, tokens_out: int) -> dict[str, int]:
    return {"prompt_tokens": tokens_in, "completion_tokens": tokens_out, "total_tokens": tokens_in + tokens_out}


def _event(data: dict[str, Any]) -> bytes:
    return b"data: " + orjson.dumps(data) + b"\n\n"


def _vector(text: str, size: int) -> list[float]:
    if size <= 3:
        return [len(text) / 8, 0.5, -0.25][:size]
    found = [0.01] * size
    for word in re.findall(r"\w+", text.lower()):
        found[zlib.crc32(word.encode()) % size] += 1.0
    return found


def _packed(vector: list[float]) -> str:
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()


async def _run(engine: StubEngine) -> None:
    async with engine.serving():
        print(engine.url, flush=True)
        await asyncio.Event().wait()


def main() -> None:
    """As a process of its own."""
    parser = argparse.ArgumentParser(description="An inference engine without a model.")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--tokens", type=int, default=5)
    parser.add_argument("--pace", type=float, default=0.0, help="seconds between two chunks")
    parser.add_argument("--wait", type=float, default=0.0, help="seconds before an answer")
    parser.add_argument("--keep", action="store_true", help="keep headers and bodies of all requests")
    arguments = parser.parse_args()
    behaviour = Behaviour(tokens=arguments.tokens, pace=arguments.pace, wait=arguments.wait)
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(_run(StubEngine(behaviour, keep=arguments.keep, port=arguments.port)))


if __name__ == "__main__":
    main()
