"""Secrets never reach the screen or a log: every registered value prints as ***, wherever it comes from.

Masking is by value, at the last step before the terminal or the pipe, since what is printed may come from pyinfra, from
a program on the box, or from a traceback. The encodings in which a value usually travels are masked with it.
"""

import atexit
import base64
import codecs
import html
import io
import json
import logging
import shlex
import sys
import threading
from collections.abc import Iterable, Iterator
from typing import Any, TextIO
from urllib.parse import quote, quote_plus

SHOWN_AS = "***"
# Shorter values would also blank out words and numbers that happen to look the same.
MIN_LENGTH = 6
# A piece of base64 shorter than this is not telling enough to look for.
_MIN_BASE64 = 8


class _Registry:
    """All forms of all secrets, and where they are in a text."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.clear()

    def clear(self) -> None:
        self._forms: frozenset[str] = frozenset()
        # By first character: a text is compared with few forms at each place.
        self._beginning_with: dict[str, tuple[str, ...]] = {}
        self._longest = 0
        self._of_many_lines = False

    def add(self, values: Iterable[str]) -> None:
        with self._lock:
            forms = self._forms.union(*map(_forms, values))
            if forms == self._forms:
                return
            by_first: dict[str, list[str]] = {}
            for form in forms:
                by_first.setdefault(form[0], []).append(form)
            self._forms = forms
            self._beginning_with = {first: tuple(group) for first, group in by_first.items()}
            self._longest = max(map(len, forms))
            self._of_many_lines = any("\n" in form for form in forms)

    def spans(self, text: str) -> list[tuple[int, int]]:
        """Where secrets are in `text`, as (start, end) in order; overlapping ones as one."""
        found: list[tuple[int, int]] = []
        for form in self._forms:
            start = text.find(form)
            while start != -1:
                found.append((start, start + len(form)))
                start = text.find(form, start + 1)
        merged: list[tuple[int, int]] = []
        for start, end in sorted(found):
            if merged and start < merged[-1][1]:
                merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
            else:
                merged.append((start, end))
        return merged

    def settled(self, text: str, spans: list[tuple[int, int]]) -> int:
        """How much of `text` can be printed now: its end may be the beginning of a secret that is still arriving."""
        first = max(0, len(text) - self._longest + 1)
        if not self._of_many_lines:
            first = max(first, text.rfind("\n") + 1)
        for start in range(first, len(text)):
            tail_length = len(text) - start
            for form in self._beginning_with.get(text[start], ()):
                if tail_length < len(form) and form.startswith(text[start:]):
                    return next((begin for begin, end in spans if begin < start < end), start)
        return len(text)


def _without(text: str, spans: Iterable[tuple[int, int]]) -> str:
    pieces, position = [], 0
    for start, end in spans:
        pieces += [text[position:start], SHOWN_AS]
        position = end
    return "".join([*pieces, text[position:]])


_registry = _Registry()


def _forms(value: str) -> Iterator[str]:
    """`value` and the ways it is written in other texts. Nothing for a value too short to be told from words."""
    if len(value) < MIN_LENGTH:
        return
    yield value
    yield repr(value)[1:-1]
    for ascii_only in (True, False):
        yield json.dumps(value, ensure_ascii=ascii_only)[1:-1]
    yield quote(value, safe="")
    yield quote(value)
    yield quote_plus(value)
    yield html.escape(value)
    yield value.replace("'", "'\"'\"'")
    yield shlex.quote(value)
    yield value.replace("$", "$$")  # Compose files
    yield from (form for form in _base64_forms(value.encode()) if len(form) >= _MIN_BASE64)
    lines = [line.strip() for line in value.splitlines()]
    if len(lines) > 1:
        # A key of many lines is often printed with something before each.
        yield from (line for line in lines if len(line) >= MIN_LENGTH)


def _base64_forms(value: bytes) -> Iterator[str]:
    """`value` in base64, alone and as part of a longer text such as `user:password`.

    Inside a longer text it begins at any of three places in a group; the characters that also hold bits of its
    neighbours are left out.
    """
    for encode in (base64.b64encode, base64.urlsafe_b64encode):
        yield encode(value).decode().rstrip("=")
        for before in range(3):
            encoded = encode(b"\0" * before + value).decode().rstrip("=")
            whole = (before + len(value)) // 3 * 4
            yield encoded[(0, 2, 3)[before] : whole]


def register(values: Iterable[str]) -> None:
    """From now on, `values` print as ***. Values shorter than 6 characters are left alone."""
    _registry.add(values)


def forget() -> None:
    """Forgets every registered value. For tests."""
    _registry.clear()


def mask(text: str) -> str:
    """`text` with every registered secret, in any of its usual encodings, as ***."""
    return _without(text, _registry.spans(text))


class _MaskedBytes(io.RawIOBase):
    """The `.buffer` of a masked stream: what is written here is masked too."""

    def __init__(self, owner: "MaskedStream") -> None:
        super().__init__()
        self._owner = owner
        # Keeps the first half of a character whose second half comes with the next write.
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        raw = bytes(data)
        self._owner.write(self._decoder.decode(raw))
        return len(raw)

    def flush(self) -> None:
        self._owner.flush()

    def fileno(self) -> int:
        return self._owner.fileno()

    def isatty(self) -> bool:
        return self._owner.isatty()

    def close(self) -> None:
        """Stays open: it belongs to the stream."""


class MaskedStream:
    """A text stream that prints secrets as ***, also when one arrives in pieces.

    Only an end that could be the beginning of a secret waits for what follows; everything else goes through at once, so
    progress lines stay alive. What waits is printed when more text shows that it is harmless, or by `finish`.
    """

    def __init__(self, stream: TextIO) -> None:
        self.wrapped = stream
        self.buffer = _MaskedBytes(self)
        self._waiting = ""
        self._lock = threading.RLock()

    def write(self, text: str) -> int:
        with self._lock:
            everything = self._waiting + text
            spans = _registry.spans(everything)
            settled = _registry.settled(everything, spans)
            # Forgotten first: when the write below fails, nothing is printed twice.
            self._waiting = everything[settled:]
            self.wrapped.write(_without(everything[:settled], [span for span in spans if span[1] <= settled]))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        # What waits stays: printing half a secret because of a flush would leave its other half in clear.
        self.wrapped.flush()

    def finish(self) -> None:
        """Prints what still waits: nothing follows that could complete a secret."""
        with self._lock:
            waiting, self._waiting = self._waiting, ""
            if waiting and not self.wrapped.closed:
                self.wrapped.write(mask(waiting))
                self.wrapped.flush()

    def isatty(self) -> bool:
        return self.wrapped.isatty()

    def fileno(self) -> int:
        return self.wrapped.fileno()

    def close(self) -> None:
        self.finish()
        self.wrapped.close()

    def __getattr__(self, name: str) -> Any:
        # encoding, errors, closed, name, reconfigure ...
        return getattr(self.wrapped, name)


def install() -> None:
    """Masks sys.stdout, sys.stderr, and logging that already writes to them. Can be called any number of times."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None or isinstance(stream, MaskedStream):
            continue
        masked = MaskedStream(stream)
        setattr(sys, name, masked)
        atexit.register(masked.finish)
        for handler in _stream_handlers():
            if handler.stream is stream:
                handler.stream = masked


def _stream_handlers() -> Iterator[Any]:
    loggers = [logging.root, *logging.Logger.manager.loggerDict.values()]
    for logger in loggers:
        for handler in getattr(logger, "handlers", ()):
            if isinstance(handler, logging.StreamHandler):
                yield handler
