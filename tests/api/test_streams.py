"""The filter between an engine's stream and the client, however the bytes are cut."""

from __future__ import annotations

from itertools import pairwise

import orjson
import pytest
from boxwright_api.ollama import ollama_call
from boxwright_api.settings import ModelRoute
from boxwright_api.streams import Events, Stream, Tokens, texts_of
from hypothesis import given
from hypothesis import strategies as st

ROUTE = ModelRoute(name="m", upstream="http://127.0.0.1:1", engine="ollama")


def event(data: object, end: str) -> bytes:
    return b"data: " + orjson.dumps(data) + end.encode()


def chunk(text: str) -> dict[str, object]:
    return {"choices": [{"index": 0, "delta": {"content": text}, "finish_reason": None}], "usage": None}


USAGE = {"choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}}


def cut(data: bytes, places: list[int]) -> list[bytes]:
    """The same bytes in pieces."""
    borders = sorted({place % (len(data) + 1) for place in places} | {0, len(data)})
    return [data[a:b] for a, b in pairwise(borders)]


def through(stream: Stream, pieces: list[bytes]) -> bytes:
    return b"".join(stream.feed(piece) for piece in pieces) + stream.finish() + stream.last


# Texts that look like what the filter looks for.
TEXTS = st.one_of(
    st.text(),
    st.sampled_from(['"usage":{', "[DONE]", "data: [DONE]\n\n", '{"choices":[],"usage":{}}', '"error":{"', "\r\n\r\n"]),
)
PLACES = st.lists(st.integers(0, 10**6), max_size=40)
ENDS = st.sampled_from(["\n\n", "\r\n\r\n"])


@given(texts=st.lists(TEXTS, max_size=8), places=PLACES, end=ENDS, asked=st.booleans(), comment=st.booleans())
def test_any_cut(texts: list[str], places: list[int], end: str, asked: bool, comment: bool) -> None:
    """The client gets every byte but the usage that it has not asked for; it is found, and the pieces are counted."""
    before = (b": ping" + end.encode() if comment else b"") + b"".join(event(chunk(text), end) for text in texts)
    usage, done = event(USAGE, end), b"data: [DONE]" + end.encode()
    stream = Events("done", show_usage=asked)
    got = through(stream, cut(before + usage + done, places))
    assert got == before + (usage if asked else b"") + done
    assert stream.complete
    assert not stream.failed
    assert stream.tokens == Tokens(7, 3)
    assert stream.pieces == sum(1 for text in texts if text)


@given(texts=st.lists(TEXTS, min_size=1, max_size=8), places=PLACES, end=ENDS, where=st.integers(1, 10**6))
def test_any_break(texts: list[str], places: list[int], end: str, where: int) -> None:
    """Of a stream that breaks off only whole events arrive, and it is not complete."""
    events = [event(chunk(text), end) for text in texts]
    data = b"".join(events)
    broken = data[: where % len(data)]
    stream = Events("done", show_usage=False)
    got = through(stream, cut(broken, places))
    assert not stream.complete
    assert got.rstrip() in {b"".join(events[:count]).rstrip() for count in range(len(events) + 1)}


@given(places=PLACES)
def test_whole_without_the_last_line_end(places: list[int]) -> None:
    """Engines that forget the empty line after [DONE]."""
    stream = Events("done", show_usage=False)
    data = event(chunk("a"), "\n\n") + event(USAGE, "\n\n") + b"data: [DONE]"
    assert through(stream, cut(data, places)) == event(chunk("a"), "\n\n") + b"data: [DONE]\n\n"
    assert stream.complete


@given(places=PLACES)
def test_usage_of_each_chunk(places: list[int]) -> None:
    """Usage beside a choice is not hidden: the choice is the client's (vLLM's continuous_usage_stats)."""
    both = {**chunk("a"), "usage": {"prompt_tokens": 1, "completion_tokens": 1}}
    data = event(both, "\n\n") + event(USAGE, "\n\n") + b"data: [DONE]\n\n"
    stream = Events("done", show_usage=False)
    assert through(stream, cut(data, places)) == event(both, "\n\n") + b"data: [DONE]\n\n"
    assert stream.tokens == Tokens(7, 3)


@given(places=PLACES)
def test_error_event(places: list[int]) -> None:
    """An engine that reports an error has failed, and the client is told in the engine's words."""
    error = event({"error": {"message": "out of memory"}}, "\n\n")
    stream = Events("done", show_usage=False)
    assert through(stream, cut(event(chunk("a"), "\n\n") + error, places)) == event(chunk("a"), "\n\n") + error
    assert stream.failed
    assert not stream.complete


@given(places=PLACES)
def test_responses(places: list[int]) -> None:
    """/v1/responses has other last words, and usage in them that is the client's."""
    created = event({"type": "response.created", "response": {"usage": None, "error": None}}, "\n\n")
    delta = event({"type": "response.output_text.delta", "delta": "a"}, "\n\n")
    usage = {"input_tokens": 7, "output_tokens": 3}
    last = event({"type": "response.completed", "response": {"error": None, "usage": usage}}, "\n\n")
    stream = Events("response", show_usage=False)
    assert through(stream, cut(created + delta + last, places)) == created + delta + last
    assert (stream.complete, stream.failed, stream.tokens, stream.pieces) == (True, False, Tokens(7, 3), 1)


@given(texts=st.lists(st.text(min_size=1), max_size=8), places=PLACES, asked=st.booleans())
def test_ollama(texts: list[str], places: list[int], asked: bool) -> None:
    """Ollama's lines become the same events wherever they are cut."""
    lines = [{"message": {"role": "assistant", "content": text}, "done": False} for text in texts]
    last = {"message": {"content": ""}, "done": True, "done_reason": "length", "prompt_eval_count": 7, "eval_count": 3}
    data = b"".join(orjson.dumps(line) + b"\n" for line in [*lines, last])
    body = {"messages": [], "stream": True, "stream_options": {"include_usage": asked}}
    call = ollama_call(ROUTE, "chat", body)
    assert call.stream is not None
    got = through(call.stream, cut(data, places))
    assert call.stream.complete
    assert call.stream.tokens == Tokens(7, 3)
    assert call.stream.pieces == len(texts)
    *events, done, empty = got.split(b"\n\n")
    assert (done, empty) == (b"data: [DONE]", b"")
    chunks = [orjson.loads(part.removeprefix(b"data: ")) for part in events]
    usage = chunks.pop() if asked else None
    assert (usage or {}).get("usage") == (
        {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10} if asked else None
    )
    assert [chunk["choices"][0]["delta"].get("content") for chunk in chunks[: len(texts)]] == texts
    assert chunks[-1]["choices"][0]["finish_reason"] == "length"
    assert chunks[0]["choices"][0]["delta"]["role"] == "assistant"
    assert len({chunk["id"] for chunk in chunks}) == 1


@pytest.mark.parametrize(
    ("value", "letters"),
    [("abc", 3), (None, 0), ([{"role": "u", "content": [{"text": "abc"}, {"url": "data:image/png;base64,AAAA"}]}], 4)],
)
def test_letters(value: object, letters: int) -> None:
    """Pictures are no text."""
    assert texts_of(value) == letters
