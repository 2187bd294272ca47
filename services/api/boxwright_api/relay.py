"""One request of a client on its way: key, model, caps, admission, the engine, and its row of usage.

The bytes of an answer are handed on as they come. Whatever the end, the place is given back and a row is written,
once, and before the client has the last byte: whoever asks next finds the place free.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import time
from datetime import UTC, datetime
from typing import Any

import aiohttp
from starlette.types import Receive, Scope, Send

from boxwright_api import metrics
from boxwright_api.client import Body, ClientGone, Presence, authorization, refuse, visitor
from boxwright_api.engines import Call, openai_call, refusal, with_defaults
from boxwright_api.errors import ApiError, collection_not_allowed, unknown_model
from boxwright_api.library import Library, Lookup
from boxwright_api.ollama import ollama_call
from boxwright_api.parts import Parts
from boxwright_api.records import Ask, Key, Outcome, Ticket, UsageRow
from boxwright_api.retrieval import question, with_passages
from boxwright_api.schemas import check, check_limits, limited
from boxwright_api.settings import KeyLimits, ModelRoute, Offer
from boxwright_api.streams import Stream, Tokens, letters_of, texts_of
from boxwright_api.upstream import Upstream

log = logging.getLogger("boxwright_api")

# After an engine's last word its connection is closed in order within this time, or by us.
LAST_SECONDS = 0.25
# Letters of a token, where nobody counted: an estimate, and marked as one.
LETTERS = 4
# What is read of an engine's error.
ERROR_BYTES = 64 * 1024
JSON = b"application/json"
EVENTS = b"text/event-stream"


class Relay:
    """The endpoint of one of OpenAI's APIs: an ASGI application, to which Starlette routes."""

    def __init__(self, offer: Offer) -> None:
        self.offer = offer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        state = scope["app"].state
        exchange = Exchange(self.offer, scope, receive, send, state.parts, state.upstream, state.library)
        state.active.add(exchange)
        try:
            await exchange.run()
        finally:
            state.active.discard(exchange)


class Exchange:
    """One request and its answer."""

    def __init__(
        self,
        offer: Offer,
        scope: Scope,
        receive: Receive,
        send: Send,
        parts: Parts,
        upstream: Upstream,
        library: Library | None,
    ) -> None:
        self.offer, self.scope, self.receive, self.send = offer, scope, receive, send
        self.parts, self.upstream, self.library = parts, upstream, library
        self.id: str = scope["boxwright.request_id"]
        self.at, self.begun = datetime.now(UTC), time.perf_counter()
        self.key: Key | None = None
        self.model: str | None = None
        self.asked: dict[str, Any] = {}
        self.ticket: Ticket | None = None
        # What the client wants to be looked up, and what came of it.
        self.wanted: dict[str, Any] | None = None
        self.lookup = Lookup()
        self.started = False
        self.first_ms: float | None = None
        self.status = 0
        # Passed on to the engine: from now on it may have cost something.
        self.passed = False
        self.tokens: Tokens | None = None
        self.stream: Stream | None = None
        # Of a plain answer without usage.
        self.letters = 0
        self.ended = False

    async def run(self) -> None:
        """From the key to the last byte."""
        body = Body(self.scope, self.receive)
        try:
            route, call = await self._accept(body)
            async with Presence(self.receive) as presence:
                await self._admit()
                if self.wanted is not None:
                    call = await self._look_up(route, self.wanted)
                await self._pass_on(route, call, presence)
        except ApiError as error:
            await self._end(_outcome(error), error.status, error.code)
            if not self.started:
                if self.ticket is not None:
                    error.headers = {**self.ticket.headers, **error.headers}
                await refuse(self.send, error, body)
            elif self.stream is not None:
                await self._break_off(error)
        except ClientGone:
            # 499 is what web servers note for a client that left before an answer (nginx).
            await self._end("client_closed" if self.started else "client_closed_early", self.status or 499, None)
        except asyncio.CancelledError:
            # The service stops and has waited long enough.
            stop = ApiError(503, "service_stopping", "The service is being stopped.", kind="server_error")
            await self._end("upstream_error", self.status or 503, stop.code)
            if self.started:
                await self._break_off(stop)
            else:
                await refuse(self.send, stop)
        finally:
            await self._end("upstream_error", self.status or 500, "internal_error")

    # Before the engine.

    async def _accept(self, body: Body) -> tuple[ModelRoute, Call]:
        """Key, body, model, caps. Raises ApiError."""
        settings = self.parts.settings
        self.key = await self.parts.keys.authenticate(authorization(self.scope))
        self.parts.usage.check()
        asked = check(self.offer, await body.json(settings.max_body))
        name = asked["model"]
        route = settings.route(name)
        if route is None or (self.key.models is not None and name not in self.key.models):
            raise unknown_model(name)
        self.model = name
        if self.offer not in route.offers:
            message = f"The model {name!r} does not offer this: it has {', '.join(route.offers)}."
            raise ApiError(400, "unsupported_for_model", message, param="model")
        check_limits(asked, settings.max_tokens)
        self.wanted = self._wanted(asked)
        asked = {name: value for name, value in asked.items() if name != "retrieval"}
        self.asked = limited(self.offer, with_defaults(route, asked), settings.max_tokens)
        return route, self._call(route)

    def _call(self, route: ModelRoute) -> Call:
        make = ollama_call if route.engine == "ollama" else openai_call
        return make(route, self.offer, self.asked)

    def _wanted(self, asked: dict[str, Any]) -> dict[str, Any] | None:
        """The passages that the client wants. Raises ApiError when it may not, or nothing could be looked up."""
        wanted: dict[str, Any] | None = asked.get("retrieval")
        if wanted is None:
            return None
        if self.library is None or self.offer != "chat":
            where = "for chats only" if self.library else "not configured on this service"
            raise ApiError(400, "retrieval_not_available", f"`retrieval` is {where}.", param="retrieval")
        if self.key is None or wanted["collection"] not in self.key.collections:
            raise collection_not_allowed(wanted["collection"])
        if not question(asked["messages"]):
            message = "`retrieval` looks up the text of the last message of the user, and there is none."
            raise ApiError(400, "invalid_value", message, param="messages")
        return wanted

    async def _admit(self) -> None:
        """A place. Raises ApiError."""
        if self.key is None:
            raise RuntimeError("a request is admitted without a key")
        settings = self.parts.settings
        limits = _limits(settings.key_defaults, self.key.limits)
        ask = Ask(request_id=self.id, key_id=self.key.id, limits=limits, visitor=visitor(self.scope, settings))
        self.ticket = await self.parts.limiter.admit(ask)
        metrics.IN_FLIGHT.inc()
        metrics.QUEUE.observe(self.ticket.queue_ms / 1000)

    async def _look_up(self, route: ModelRoute, wanted: dict[str, Any]) -> Call:
        """The call with the passages that were found. Raises ApiError."""
        if self.library is None:
            raise RuntimeError("passages are looked up without a library")
        messages = self.asked["messages"]
        count = wanted.get("passages") or self.library.passages
        await self.library.find(self.lookup, wanted["collection"], question(messages), count, self.id)
        if not self.lookup.passages:
            return self._call(route)
        self.asked = {**self.asked, "messages": with_passages(messages, self.lookup.passages)}
        return self._call(route)

    # The engine.

    async def _pass_on(self, route: ModelRoute, call: Call, presence: Presence) -> None:
        """Asks the engine and hands its answer on. Raises ApiError for all its failures."""
        settings = self.parts.settings
        self.passed, self.stream = True, call.stream
        response: aiohttp.ClientResponse | None = None
        sending = False
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(settings.first_byte_seconds) as patience:
                response = await self.upstream.post(
                    route, call.path, call.body, self.id, stream=call.stream is not None
                )
                kind = response.headers.get("content-type", "")
                if not 200 <= response.status < 300:
                    await self._engine_refused(response, presence)
                    return
                stream = call.stream
                if stream is None or kind.startswith("application/json"):
                    self.stream = None
                    data, tokens = call.plain(await response.read())
                    self.tokens, self.letters = tokens, letters_of(data) if tokens is None else 0
                    await self._whole(200, data, JSON, presence)
                    return
                while data := await response.content.readany():
                    out = stream.feed(data)
                    patience.reschedule(loop.time() + settings.idle_seconds)
                    if out:
                        sending = True
                        await self._piece(out)
                        sending = False
                        patience.reschedule(loop.time() + settings.idle_seconds)
                    if stream.complete:
                        break
                if out := stream.finish() if not stream.complete else b"":
                    await self._piece(out)
                if stream.failed or not stream.complete:
                    raise _broke_off()
            await self._last(response, stream, presence)
        except aiohttp.ConnectionTimeoutError:
            raise self._unreachable(route) from None
        except TimeoutError:
            if sending:
                # It is the client who takes nothing any more.
                raise ClientGone from None
            where = "stopped answering" if self.started else "did not answer in time"
            raise ApiError(504, "engine_timeout", f"The engine {where}.", kind="server_error") from None
        except (aiohttp.ClientError, OSError):
            raise (self._unreachable(route) if response is None else _broke_off()) from None
        finally:
            if response is not None:
                # Of no effect when the answer was read to its end: then the connection is back in the pool.
                response.close()

    def _unreachable(self, route: ModelRoute) -> ApiError:
        """Nobody answered, so nothing was worked on."""
        self.passed = False
        log.warning("the engine of %s cannot be reached at %s", route.name, route.upstream)
        message = "The engine cannot be reached; it may be starting."
        return ApiError(502, "engine_unavailable", message, kind="server_error", retry_after=1)

    async def _engine_refused(self, response: aiohttp.ClientResponse, presence: Presence) -> None:
        """Hands on an engine's error."""
        data = b""
        while len(data) < ERROR_BYTES and (part := await response.content.readany()):
            data += part
        status, body, code, more = refusal(response.status, data, response.headers.get("retry-after"))
        self.tokens = Tokens()
        await self._whole(status, body, JSON, presence, outcome="upstream_error", code=code, more=more)

    async def _whole(
        self,
        status: int,
        data: bytes,
        kind: bytes,
        presence: Presence,
        *,
        outcome: Outcome = "ok",
        code: str | None = None,
        more: dict[str, str] | None = None,
    ) -> None:
        """A plain answer."""
        self.first_ms = self._since()
        await self._end(outcome, status, code)
        head = [(b"content-type", kind), (b"content-length", str(len(data)).encode()), *self._notes()]
        head += [(name.lower().encode(), value.encode("latin-1")) for name, value in (more or {}).items()]
        self.started = True
        presence.over()
        await self.send({"type": "http.response.start", "status": status, "headers": head})
        await self.send({"type": "http.response.body", "body": data, "more_body": False})

    async def _piece(self, data: bytes) -> None:
        """A part of a stream; the first one brings the headers, so that a failure before it has a status of its own."""
        if not self.started:
            self.first_ms = self._since()
            self.started, self.status = True, 200
            head = [(b"content-type", EVENTS), (b"cache-control", b"no-cache"), (b"x-accel-buffering", b"no")]
            await self.send({"type": "http.response.start", "status": 200, "headers": [*head, *self._notes()]})
        await self.send({"type": "http.response.body", "body": data, "more_body": True})

    async def _last(self, response: aiohttp.ClientResponse, stream: Stream, presence: Presence) -> None:
        """The last word, when everything is in order."""
        try:
            async with asyncio.timeout(LAST_SECONDS):
                while await response.content.readany():
                    pass
        except (TimeoutError, aiohttp.ClientError, OSError):
            response.close()
        self.tokens = stream.tokens
        if not self.started:
            await self._piece(b"")
        await self._end("ok", 200, None)
        presence.over()
        await self.send({"type": "http.response.body", "body": stream.last, "more_body": False})

    async def _break_off(self, error: ApiError) -> None:
        """The client must see that a stream is not whole: an error event (once), no last word, and an answer that ends
        without its last chunk, for which the server closes the connection.
        """
        if self.stream is None or self.stream.failed:
            return
        data = error.body()
        if self.offer == "responses":
            data = b'{"type":"error",' + data[1:]
        await self.send({"type": "http.response.body", "body": b"data: " + data + b"\n\n", "more_body": True})

    def _notes(self) -> list[tuple[bytes, bytes]]:
        """Headers with what is left of the limits, and how many passages the model was given."""
        notes = [] if self.ticket is None else list(self.ticket.headers.items())
        if self.wanted is not None:
            notes.append(("x-boxwright-passages", str(len(self.lookup.passages))))
        return [(name.lower().encode(), value.encode("latin-1")) for name, value in notes]

    # The end.

    def _since(self) -> float:
        return (time.perf_counter() - self.begun) * 1000

    async def _end(self, outcome: Outcome, status: int, code: str | None) -> None:
        """The row and the place, once."""
        if self.ended:
            return
        self.ended = True
        tokens, looked_up = self._cost(), self.lookup.tokens
        # The question was read twice, by two models; the row and the budgets have both.
        estimated = tokens.estimated or looked_up.estimated
        tokens = Tokens(tokens.into + looked_up.into, tokens.out, estimated)
        self._write(tokens, outcome, self.status or status, code)
        if self.ticket is not None:
            metrics.IN_FLIGHT.dec()
            await self.upstream.finish(self.parts.limiter.release(self.ticket, tokens.into + tokens.out))

    def _cost(self) -> Tokens:
        """What the engine said; else what came by, and the prompt by its length."""
        if not self.passed:
            return Tokens()
        if self.tokens is not None:
            return self.tokens
        if self.stream is not None and self.stream.tokens is not None:
            return self.stream.tokens
        if self.offer == "images":
            return Tokens()
        text = self.asked.get("messages") or self.asked.get("prompt") or self.asked.get("input")
        out = self.stream.pieces if self.stream else self.letters // LETTERS
        return Tokens(texts_of(text) // LETTERS, out, True)

    def _write(self, tokens: Tokens, outcome: Outcome, status: int, code: str | None) -> None:
        row = UsageRow(
            request_id=self.id,
            at=self.at,
            key_id=self.key.id if self.key else None,
            route=self.offer,
            model=self.model,
            status=status,
            outcome=outcome,
            code=code,
            tokens_in=tokens.into,
            tokens_out=tokens.out,
            estimated=tokens.estimated,
            queue_ms=self.ticket.queue_ms if self.ticket else 0.0,
            first_ms=self.first_ms,
            total_ms=self._since(),
        )
        self.parts.usage.put(row)
        metrics.count(row)


@functools.lru_cache(maxsize=1024)
def _limits(defaults: KeyLimits, own: KeyLimits) -> KeyLimits:
    """The key's limits, and the defaults where it has none."""
    return defaults.model_copy(update=own.model_dump(exclude_none=True))


def _outcome(error: ApiError) -> Outcome:
    if error.code.startswith("engine_") or error.code == "retrieval_unavailable":
        return "upstream_error"
    return "limited" if error.status == 429 else "refused"


def _broke_off() -> ApiError:
    return ApiError(502, "engine_broke_off", "The engine broke off its answer.", kind="server_error")
