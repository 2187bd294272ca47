"""A double of an inference server: what the gateway takes for an engine, under the control of a test.

It stands in for llama.cpp's, vLLM's or MLX's server. It speaks their HTTP API -- /health, /v1/models,
/v1/chat/completions with JSON, streams and tool calls -- and has no model: it says what a test tells it to say, when
the test tells it to. Like MLX's server it sends CORS headers of its own, and like most it answers on administrative
paths too: any other path gets an echo. It runs in a thread of the test process, on an address of this machine.

How a chat request is answered is decided by its `model`, so that tests which run at the same time have one engine and
do not meet: `engine.answer("mine", held=True)`. A model that was not announced gets a short answer at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import struct
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

# As much of a request's body is kept; all of it is read and counted.
KEPT = 1024**2
# What MLX's server sends with every answer.
CORS = "Access-Control-Allow-Origin: *\r\nAccess-Control-Allow-Methods: *\r\nAccess-Control-Allow-Headers: *\r\n"
CHAT = "/v1/chat/completions"


@dataclass
class Asked:
    """A request as it came in. Times are those of time.monotonic(), None until it is so far."""

    method: str
    target: str
    # Names in lower case, in the order of the request, twice when they came twice.
    headers: list[tuple[str, str]]
    # The request line and the headers, byte for byte.
    head: bytes
    began: float = field(default_factory=time.monotonic)
    body: bytes = b""
    body_size: int = 0
    body_ended: float | None = None
    # The whole answer was written.
    ended: float | None = None
    # The other side closed the connection before that.
    left: float | None = None

    def header(self, name: str) -> str | None:
        """The value of a header; the last one when it came twice."""
        return dict(self.headers).get(name.lower())

    @property
    def json(self) -> Any:
        """The body, which must be JSON; {} when there is none."""
        return json.loads(self.body or b"{}")

    @property
    def over(self) -> bool:
        """Whether the engine has no more work with it."""
        return self.ended is not None or self.left is not None


class Input:
    """What comes in on a connection. It can be watched for its end without anything being lost."""

    def __init__(self, reader: asyncio.StreamReader) -> None:
        self._reader = reader
        self._buffer = bytearray()

    async def some(self, limit: int = KEPT) -> bytes:
        """What is here, at most `limit` bytes; something, or b"" at the end."""
        if not self._buffer:
            self._buffer += await self._reader.read(65536)
        found = bytes(self._buffer[:limit])
        del self._buffer[:limit]
        return found

    async def until(self, end: bytes) -> bytes:
        """All up to `end` and with it; raises EOFError when it does not come."""
        while (place := self._buffer.find(end)) < 0:
            piece = await self._reader.read(65536)
            if not piece:
                raise EOFError
            self._buffer += piece
        return await self.some(place + len(end))

    async def closed(self) -> None:
        """Return when the other side has closed the connection."""
        with contextlib.suppress(OSError):
            while piece := await self._reader.read(65536):
                self._buffer += piece


class Answer:
    """How chat requests for one model are answered: what is in the answer, and when."""

    def __init__(self, loop: asyncio.AbstractEventLoop, *, held: bool, endless: float | None) -> None:
        self._loop = loop
        self._changed = asyncio.Condition()
        self._permits: int | None = 0 if held else None
        self._texts: list[str] = []
        self._finished = False
        self.endless = endless

    # For tests, from any thread

    def release(self, count: int | None = None) -> None:
        """Let `count` held requests go on; without a number all, and those that are yet to come."""

        def do() -> None:
            self._permits = None if count is None or self._permits is None else self._permits + count

        self._change(do)

    def hold(self) -> None:
        """From now on requests wait for `release` before anything is answered."""
        self._change(lambda: setattr(self, "_permits", 0))

    def say(self, *texts: str) -> None:
        """Send one event for each text, at once, in every stream of this model."""
        self._change(lambda: self._texts.extend(texts))

    def finish(self) -> None:
        """End the streams of this model."""
        self._change(lambda: setattr(self, "_finished", True))

    def _change(self, do: Callable[[], None]) -> None:
        async def change() -> None:
            async with self._changed:
                do()
                self._changed.notify_all()

        asyncio.run_coroutine_threadsafe(change(), self._loop).result(30)

    # For the engine, in its loop

    async def admitted(self) -> None:
        """Return when the request may be answered."""
        async with self._changed:
            await self._changed.wait_for(lambda: self._permits is None or self._permits > 0)
            if self._permits is not None:
                self._permits -= 1

    async def texts(self) -> AsyncIterator[str]:
        """The texts of a stream, each as soon as it is said."""
        number = 0
        while self.endless is not None:
            yield f"{number} "
            number += 1
            await asyncio.sleep(self.endless)
        while True:
            async with self._changed:
                while len(self._texts) <= number:
                    if self._finished:
                        return
                    await self._changed.wait()
                text = self._texts[number]
            yield text
            number += 1

    async def whole(self) -> str:
        """The text of an answer that is not streamed."""
        return "".join(self._texts) or "Hello."


class EngineDouble:
    """One engine. As a context manager it listens inside and is gone after."""

    def __init__(self, address: str = "127.0.0.1", port: int = 0, name: str = "double") -> None:
        self.address, self.port, self.name = address, port, name
        self.asked: list[Asked] = []
        self.in_flight = 0
        # The most requests that it worked on at the same time.
        self.peak = 0
        # Status and body of /health.
        self.health = (200, '{"status":"ok"}')
        # Close a connection when a second request comes on it, as an engine does that was just about to.
        self.hangs_up = False
        # Requests that were lost so.
        self.lost = 0
        self._answers: dict[str, Answer] = {}
        self._connections: dict[asyncio.Task[None], asyncio.StreamWriter] = {}
        self._server: asyncio.Server | None = None
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name=f"engine {name}", daemon=True)
        self._thread.start()

    # For tests, from any thread

    @property
    def upstream(self) -> str:
        """Where it listens, as `gateway_engines` and routes are written."""
        return f"{self.address}:{self.port}"

    def answer(self, model: str, *, held: bool = False, endless: float | None = None) -> Answer:
        """Announce how chat requests for `model` are answered, instead of what was announced before.

        Streams get what `say` says until `finish`, or with `endless` an event every so many seconds without end.
        """
        self._answers[model] = Answer(self._loop, held=held, endless=endless)
        return self._answers[model]

    def of(self, model: str) -> list[Asked]:
        """The chat requests for one model, in the order in which they came; those whose body is here."""
        return [asked for asked in list(self.asked) if asked.target.endswith(CHAT) and _model(asked) == model]

    def forget(self) -> None:
        """Begin the records anew."""
        self.asked = []
        self.peak = self.in_flight

    def start(self) -> None:
        """Listen; again on the same port after `kill`."""
        self._run(self._listen())

    def kill(self) -> None:
        """Be gone at once, as a machine whose process was killed: nobody listens, and connections are reset."""
        self._run(self._die())

    def close(self) -> None:
        """End for good."""
        self.kill()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(30)
        self._loop.close()

    def __enter__(self) -> EngineDouble:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _run(self, work: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(30)

    # In its loop

    async def _listen(self) -> None:
        self._server = await asyncio.start_server(
            self._connected, self.address, self.port, backlog=1024, reuse_address=True
        )
        self.port = self._server.sockets[0].getsockname()[1]

    async def _die(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None
        connections = dict(self._connections)
        for task, writer in connections.items():
            # Without lingering, closing is a reset.
            with contextlib.suppress(OSError):
                writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()
            task.cancel()
        await asyncio.gather(*connections, return_exceptions=True)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections[task] = writer
        source = Input(reader)
        try:
            while await self._serve(source, writer):
                if self.hangs_up:
                    await source.until(b"\r\n\r\n")
                    self.lost += 1
                    break
        except (OSError, EOFError, asyncio.CancelledError):
            pass  # the other side left, or `kill` did
        finally:
            del self._connections[task]
            writer.close()

    async def _serve(self, source: Input, writer: asyncio.StreamWriter) -> bool:
        """One request and its answer; whether another one may follow."""
        head = await source.until(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").rstrip("\r\n").split("\r\n")
        method, target = first.split(" ")[:2]
        pairs = (line.partition(":") for line in lines)
        asked = Asked(method, target, [(name.lower(), value.strip()) for name, _, value in pairs], head)
        self.asked.append(asked)
        counted = target != "/health"
        if counted:
            self.in_flight += 1
            self.peak = max(self.peak, self.in_flight)

        def over() -> None:
            """The work is done. Called before the last byte: who has that may send the next request at once."""
            nonlocal counted
            if counted:
                self.in_flight -= 1
                counted = False

        try:
            await self._read_body(asked, source, writer)
            answering = asyncio.ensure_future(self._reply(asked, writer, over))
            leaving = asyncio.ensure_future(source.closed())
            try:
                await asyncio.wait((answering, leaving), return_when=asyncio.FIRST_COMPLETED)
                if answering.done():
                    answering.result()
                    asked.ended = time.monotonic()
                else:
                    asked.left = time.monotonic()
            finally:
                for work in (answering, leaving):
                    work.cancel()
                await asyncio.gather(answering, leaving, return_exceptions=True)
        except (OSError, EOFError):
            asked.left = time.monotonic()
        finally:
            over()
        return asked.left is None and (asked.header("connection") or "").lower() != "close"

    async def _read_body(self, asked: Asked, source: Input, writer: asyncio.StreamWriter) -> None:
        if (asked.header("expect") or "").lower() == "100-continue":
            writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        if "chunked" in (asked.header("transfer-encoding") or ""):
            while size := int((await source.until(b"\r\n")).split(b";")[0], 16):
                await self._read(asked, source, size)
                await source.until(b"\r\n")
            while await source.until(b"\r\n") != b"\r\n":
                pass
        else:
            await self._read(asked, source, int(asked.header("content-length") or 0))
        asked.body_ended = time.monotonic()

    async def _read(self, asked: Asked, source: Input, size: int) -> None:
        while size:
            piece = await source.some(size)
            if not piece:
                raise EOFError
            size -= len(piece)
            asked.body += piece[: KEPT - len(asked.body)]
            asked.body_size += len(piece)

    async def _reply(self, asked: Asked, writer: asyncio.StreamWriter, over: Callable[[], None]) -> None:
        path = asked.target.partition("?")[0]
        if path == "/health":
            status, body = self.health
            await self._send(writer, body, over, status)
        elif path.endswith("/v1/models"):
            models = [{"id": "double", "object": "model", "created": 0, "owned_by": self.name}]
            await self._send(writer, json.dumps({"object": "list", "data": models}), over)
        elif path.endswith(CHAT) and asked.method == "POST":
            await self._chat(asked, writer, over)
        else:
            await self._send(writer, json.dumps({"method": asked.method, "target": asked.target}), over)

    async def _send(self, writer: asyncio.StreamWriter, body: str, over: Callable[[], None], status: int = 200) -> None:
        data = body.encode()
        over()
        writer.write(self._head(status, "application/json", f"Content-Length: {len(data)}") + data)
        await writer.drain()

    def _head(self, status: int, kind: str, more: str) -> bytes:
        lines = f"HTTP/1.1 {status} Status\r\nContent-Type: {kind}\r\n{more}\r\nX-Engine: {self.name}\r\n{CORS}"
        return f"{lines}\r\n".encode()

    async def _chat(self, asked: Asked, writer: asyncio.StreamWriter, over: Callable[[], None]) -> None:
        try:
            question = dict(asked.json)
        except (ValueError, TypeError):
            await self._send(writer, '{"error":{"message":"The body is not a JSON object.","code":400}}', over, 400)
            return
        model = _model(asked)
        answer = self._answers.get(model)
        calls = _tool_calls(question)
        if answer is not None:
            await answer.admitted()
        if not question.get("stream"):
            text = await answer.whole() if answer else _plain(question)
            message = {"role": "assistant", "content": None, "tool_calls": calls} if calls else None
            message = message or {"role": "assistant", "content": text}
            choice = {"index": 0, "message": message, "finish_reason": "tool_calls" if calls else "stop"}
            usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
            await self._send(writer, json.dumps(_envelope(model, "chat.completion", choice) | {"usage": usage}), over)
            return
        writer.write(self._head(200, "text/event-stream", "Cache-Control: no-cache\r\nTransfer-Encoding: chunked"))
        reason = "tool_calls" if calls else "stop"
        if calls:
            for delta in _in_pieces(calls):
                await _event(writer, _envelope(model, "chat.completion.chunk", _choice(delta)))
        elif answer is not None:
            async for text in answer.texts():
                await _event(writer, _envelope(model, "chat.completion.chunk", _choice({"content": text})))
        else:
            for word in _plain(question).split(" "):
                await _event(writer, _envelope(model, "chat.completion.chunk", _choice({"content": f"{word} "})))
        await _event(writer, _envelope(model, "chat.completion.chunk", _choice({}, reason)))
        over()
        writer.write(_chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n")
        await writer.drain()


def _model(asked: Asked) -> str:
    try:
        return str(asked.json.get("model", ""))
    except (ValueError, AttributeError):
        return ""


def _plain(question: dict[str, Any]) -> str:
    """What is said to a model that was not announced: the result of a tool when there is one."""
    last = (question.get("messages") or [{}])[-1]
    return f"The tool says {last['content']}." if last.get("role") == "tool" else "Hello there."


def _tool_calls(question: dict[str, Any]) -> list[dict[str, Any]]:
    """A call of the first tool that is offered, until its result is among the messages."""
    messages = question.get("messages") or []
    if not question.get("tools") or any(message.get("role") == "tool" for message in messages):
        return []
    function = {"name": question["tools"][0]["function"]["name"], "arguments": '{"city": "Graz"}'}
    return [{"index": 0, "id": "call_1", "type": "function", "function": function}]


def _in_pieces(calls: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Tool calls as streams tell them: the name first, then the arguments in pieces."""
    call = calls[0]
    arguments = call["function"]["arguments"]
    first = {**call, "function": {**call["function"], "arguments": ""}}
    rest = [{"index": 0, "function": {"arguments": arguments[at : at + 5]}} for at in range(0, len(arguments), 5)]
    return [{"role": "assistant", "content": None, "tool_calls": [first]}, *({"tool_calls": [piece]} for piece in rest)]


def _envelope(model: str, kind: str, choice: dict[str, Any]) -> dict[str, Any]:
    return {"id": "chatcmpl-double", "object": kind, "created": 0, "model": model, "choices": [choice]}


def _choice(delta: dict[str, Any], reason: str | None = None) -> dict[str, Any]:
    return {"index": 0, "delta": delta, "finish_reason": reason}


async def _event(writer: asyncio.StreamWriter, content: dict[str, Any]) -> None:
    writer.write(_chunk(f"data: {json.dumps(content)}\n\n".encode()))
    await writer.drain()


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)
