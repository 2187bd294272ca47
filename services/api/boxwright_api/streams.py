"""What passes through while an engine answers: events are handed on as they are, and tokens are counted.

Nothing here parses every chunk: an event is looked into only when it has one of a few words in it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal, Protocol

import orjson

# An empty line ends an event; the standard allows both line ends, and engines in Python use the longer one
# (https://html.spec.whatwg.org/multipage/server-sent-events.html, "Parsing an event stream").
END = re.compile(rb"\r?\n\r?\n")
# Only events with one of these are looked into. Inside a JSON string a quote has a backslash, so text that a model
# writes does not match the first.
NOTABLE = re.compile(rb'"usage"\s*:\s*\{|\[DONE\]|"error"\s*:\s*[{"]|"response\.(?:completed|incomplete|failed)"')
# A piece of an answer that is not empty: what OpenAI's three streaming APIs and the engines' reasoning call it.
PIECE = re.compile(rb'"(?:content|reasoning_content|reasoning|text|arguments|delta)"\s*:\s*"(?!")')
# An event longer than this is not waited for. The longest are images.
LONGEST = 32 * 1024**2


@dataclass(frozen=True)
class Tokens:
    """What a request has cost. `estimated`: the engine did not say."""

    into: int = 0
    out: int = 0
    estimated: bool = False


class Stream(Protocol):
    """A stream of an engine on its way to the client."""

    # From the engine's own words.
    tokens: Tokens | None
    # Pieces of the answer that were handed on.
    pieces: int
    # The engine has said its last word, which is kept back as `last`.
    complete: bool
    last: bytes
    # The engine has reported an error, and the client has been given it.
    failed: bool

    def feed(self, data: bytes) -> bytes:
        """What the client gets for what the engine has sent."""

    def finish(self) -> bytes:
        """The same when the engine has closed the stream in order."""


def usage_of(body: object) -> Tokens | None:
    """The engine's own count, in an answer or in an event, in the words of all of OpenAI's APIs."""
    if not isinstance(body, dict):
        return None
    usage = body.get("usage")
    if usage is None and isinstance(body.get("response"), dict):
        usage = body["response"].get("usage")
    if not isinstance(usage, dict):
        return None
    into = usage.get("prompt_tokens", usage.get("input_tokens"))
    out = usage.get("completion_tokens", usage.get("output_tokens"))
    return Tokens(into if isinstance(into, int) else 0, out if isinstance(out, int) else 0)


def texts_of(value: object) -> int:
    """Characters of text in messages, a prompt or an input; a picture counts nothing."""
    if isinstance(value, str):
        return 0 if value.startswith("data:") else len(value)
    if isinstance(value, list):
        return sum(texts_of(item) for item in value)
    if isinstance(value, dict):
        return sum(texts_of(item) for item in value.values())
    return 0


def letters_of(answer: bytes) -> int:
    """Characters of text in a plain answer."""
    body = _json(answer)
    if not isinstance(body, dict):
        return 0
    choices = body.get("choices")
    if isinstance(choices, list):
        return sum(texts_of(part.get("message") or part.get("text")) for part in choices if isinstance(part, dict))
    return texts_of(body.get("output"))


class Events:
    """An OpenAI-style event stream. Whole events are handed on, byte for byte.

    `ends`: "done" for the APIs whose last event is [DONE], "response" for /v1/responses, whose last event is a
    response that is completed, incomplete or failed, and "closed" where the end of the stream is the end.
    `show_usage`: the client has asked for the event with the usage.
    """

    def __init__(self, ends: Literal["done", "response", "closed"], *, show_usage: bool) -> None:
        self.tokens: Tokens | None = None
        self.pieces = 0
        self.complete = False
        self.last = b""
        self.failed = False
        self._ends, self._show_usage = ends, show_usage
        self._open = b""

    def feed(self, data: bytes) -> bytes:
        """Everything up to the last end of an event."""
        if self.complete:
            return b""
        if self._open:
            data = self._open + data
        cut = _last_end(data)
        whole, self._open = data[:cut], data[cut:]
        if len(self._open) > LONGEST:
            whole, self._open = data, b""
        if NOTABLE.search(whole):
            whole = self._look(whole)
        self.pieces += len(PIECE.findall(whole))
        return whole

    def finish(self) -> bytes:
        """An event that lacks its empty line is taken when it is whole."""
        rest, self._open = self._open.strip(), b""
        data = rest.removeprefix(b"data:").strip()
        out = b""
        if rest and not self.complete and (data == b"[DONE]" or _json(data) is not None):
            out = self._look(rest + b"\n\n")
            self.pieces += len(PIECE.findall(out))
        if self._ends == "closed" and not self.failed:
            self.complete = True
        return out

    def _look(self, whole: bytes) -> bytes:
        """Event by event."""
        kept: list[bytes] = []
        start = 0
        for match in END.finditer(whole):
            event, start = whole[start : match.end()], match.end()
            if NOTABLE.search(event) and not self._keep(event):
                continue
            if self.complete:
                # Whatever comes after the last word is not for the client.
                self.last = event
                return b"".join(kept)
            kept.append(event)
        kept.append(whole[start:])
        return b"".join(kept)

    def _keep(self, event: bytes) -> bool:
        """Notes what it says; False: the client is not to see it."""
        lines = [line[5:].strip() for line in event.splitlines() if line.startswith(b"data:")]
        data = b"\n".join(lines)
        if data == b"[DONE]":
            self.complete = True
            return True
        body = _json(data)
        if not isinstance(body, dict):
            return True
        tokens = usage_of(body)
        if tokens is not None:
            self.tokens = tokens
        kind = body.get("type")
        if body.get("error") and "choices" not in body and "response" not in body and body.get("object") != "response":
            self.failed = True
        elif self._ends == "response" and kind in ("response.completed", "response.incomplete", "response.failed"):
            self.complete = True
        return self._show_usage or tokens is None or body.get("choices") != []


def _last_end(data: bytes) -> int:
    """Where the last whole event ends."""
    short, long = data.rfind(b"\n\n"), data.rfind(b"\n\r\n")
    return max(short + 2 if short >= 0 else 0, long + 3 if long >= 0 else 0)


def _json(data: bytes) -> object | None:
    try:
        value: object = orjson.loads(data)
    except orjson.JSONDecodeError:
        return None
    return value
