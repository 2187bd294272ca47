"""What reaches Ollama, seen by a stub of its API, and what clients get of its answers."""

from __future__ import annotations

import base64
import struct
from typing import Any

import orjson
import pytest
from boxwright_api.engines import Call
from boxwright_api.errors import ApiError
from boxwright_api.ollama import ollama_call
from boxwright_api.settings import ModelRoute
from served import Served
from stub_engine import StubEngine
from test_relay import CHAT, error, events

ROUTE = ModelRoute(name="ollama", upstream="http://127.0.0.1:1", engine="ollama", model="qwen3:8b")
USER = [{"role": "user", "content": "one two"}]
ASK: dict[str, Any] = {"model": "ollama", "messages": USER}
PNG = base64.b64encode(b"\x89PNG").decode()


def asked(body: dict[str, Any]) -> Any:
    call: Call = ollama_call(ROUTE, "chat", {**ASK, **body})
    assert call.path == "/api/chat"
    return orjson.loads(call.body)


def test_options_reach_it(service: Served, engine: StubEngine) -> None:
    """num_ctx, think and keep_alive, which Ollama's /v1 would drop: seen by /api/chat."""
    body = {
        "num_ctx": 8192,
        "think": False,
        "keep_alive": "30m",
        "options": {"top_k": 7, "num_ctx": 4096},
        "format": "json",
    }
    assert service.post(CHAT, {**ASK, **body, "temperature": 0.5, "stop": "x", "max_tokens": 4}).status_code == 200
    record = engine.last()
    assert record.path == "/api/chat"
    assert record.body == {
        "model": "qwen3:8b",
        "stream": False,
        "messages": USER,
        "think": False,
        "keep_alive": "30m",
        "format": "json",
        "options": {"temperature": 0.5, "stop": ["x"], "num_predict": 4, "num_ctx": 4096, "top_k": 7},
    }


@pytest.mark.parametrize(
    ("body", "name", "value"),
    [
        ({"reasoning_effort": "high"}, "think", "high"),
        ({"reasoning_effort": "none"}, "think", False),
        ({"reasoning": {"effort": "low"}}, "think", "low"),
        ({"reasoning_effort": "high", "think": True}, "think", True),
        ({"response_format": {"type": "json_object"}}, "format", "json"),
        ({"response_format": {"type": "text"}}, "format", None),
        ({"response_format": {"type": "json_schema", "json_schema": {"schema": {"a": 1}}}}, "format", {"a": 1}),
        ({"keep_alive": 0}, "keep_alive", 0),
        ({"keep_alive": -1}, "keep_alive", -1),
        ({"max_completion_tokens": 5}, "options", {"num_predict": 5}),
        ({"seed": 1, "stop": ["a", "b"]}, "options", {"seed": 1, "stop": ["a", "b"]}),
        ({"tools": [{"type": "function"}]}, "tools", [{"type": "function"}]),
        ({"tools": [{"type": "function"}], "tool_choice": "none"}, "tools", None),
        ({"logprobs": True, "top_logprobs": 2}, "top_logprobs", 2),
        ({"stream": True}, "stream", True),
        ({}, "options", None),
    ],
)
def test_members(body: dict[str, Any], name: str, value: object) -> None:
    """OpenAI's members in Ollama's words."""
    assert asked(body).get(name) == value


def test_messages() -> None:
    """Pictures, calls of tools and their results, thoughts."""
    call = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"city":"Bonn"}'}}
    url = {"url": f"data:image/png;base64,{PNG}"}
    messages = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "What"}, {"type": "image_url", "image_url": url}]},
        {"role": "assistant", "content": None, "tool_calls": [call], "reasoning": "hm"},
        {"role": "tool", "tool_call_id": "call_1", "content": "sunny"},
    ]
    assert asked({"messages": messages})["messages"] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "What", "images": [PNG]},
        {
            "role": "assistant",
            "content": "",
            "thinking": "hm",
            "tool_calls": [{"function": {"name": "weather", "arguments": {"city": "Bonn"}}, "id": "call_1"}],
        },
        {"role": "tool", "content": "sunny", "tool_name": "weather", "tool_call_id": "call_1"},
    ]


@pytest.mark.parametrize(
    ("message", "code"),
    [
        ({"content": [{"type": "image_url", "image_url": {"url": "http://169.254.169.254/"}}]}, "invalid_image_url"),
        ({"content": [{"type": "image_url", "image_url": {"url": "file:///etc/passwd"}}]}, "invalid_image_url"),
        ({"content": [{"type": "image_url", "image_url": "data:image/png;base64,!"}]}, "invalid_image_url"),
        ({"content": [{"type": "input_audio"}]}, "invalid_value"),
        ({"content": [{}]}, "invalid_value"),
        ({"tool_calls": [{"function": {"name": "a", "arguments": "no json"}}]}, "invalid_value"),
        ({"tool_calls": [{"function": {"name": "a", "arguments": "[]"}}]}, "invalid_value"),
        ({"tool_calls": [{}]}, "invalid_value"),
    ],
)
def test_refused(message: dict[str, Any], code: str) -> None:
    """What cannot be translated; addresses of pictures are not fetched."""
    with pytest.raises(ApiError) as caught:
        asked({"messages": [{"role": "user", **message}]})
    assert (caught.value.status, caught.value.code) == (400, code)


@pytest.mark.parametrize("member", [{"n": 2}, {"response_format": {"type": "json_schema"}}])
def test_not_offered(service: Served, engine: StubEngine, member: dict[str, Any]) -> None:
    """What Ollama cannot do is said."""
    assert error(service.post(CHAT, {**ASK, **member})) == (400, "invalid_value")
    assert not engine.records


def test_tools(service: Served, engine: StubEngine) -> None:
    """A call of a tool has text as arguments and an id, plain and streamed."""
    engine.behave(tool="weather", tokens=1)
    choice = service.post(CHAT, ASK).json()["choices"][0]
    (call,) = choice["message"]["tool_calls"]
    assert choice["finish_reason"] == "tool_calls"
    assert call["id"].startswith("call_")
    assert call["function"] == {"name": "weather", "arguments": '{"city":"Bonn"}'}
    first, last = (orjson.loads(event) for event in events(service.post(CHAT, {**ASK, "stream": True}).text)[:-1])
    (call,) = first["choices"][0]["delta"]["tool_calls"]
    assert (call["index"], call["type"], call["function"]["arguments"]) == (0, "function", '{"city":"Bonn"}')
    assert last["choices"][0]["finish_reason"] == "tool_calls"


def test_thinking(service: Served, engine: StubEngine) -> None:
    """Thoughts come as `reasoning`, apart from the answer."""
    engine.behave(thinking="hm")
    message = service.post(CHAT, ASK).json()["choices"][0]["message"]
    assert (message["reasoning"], message["content"][:4]) == ("hm", "tok0")
    first = orjson.loads(events(service.post(CHAT, {**ASK, "stream": True}).text)[0])["choices"][0]["delta"]
    assert (first["role"], first["reasoning"], first["content"]) == ("assistant", "hm", "")


def test_completions(service: Served, engine: StubEngine) -> None:
    """Its own /v1, and /api/generate when there are options that it would drop."""
    body = {"model": "ollama", "prompt": "one two", "temperature": 0.1}
    assert service.post("/v1/completions", body).status_code == 200
    assert engine.last().path == "/v1/completions"
    assert engine.last().body == {**body, "model": "qwen3:8b"}
    answer = service.post("/v1/completions", {**body, "num_ctx": 99, "suffix": "end"}).json()
    assert engine.last().path == "/api/generate"
    expected = {"model": "qwen3:8b", "prompt": "one two", "suffix": "end", "stream": False}
    assert engine.last().body == {**expected, "options": {"temperature": 0.1, "num_ctx": 99}}
    assert answer["choices"][0]["text"] == "tok0 tok1 tok2 tok3 tok4 "
    text = service.post("/v1/completions", {**body, "keep_alive": 5, "stream": True}).text
    parts = [orjson.loads(event)["choices"][0]["text"] for event in events(text)[:-1]]
    assert "".join(parts) == "tok0 tok1 tok2 tok3 tok4 "
    assert [(row.tokens_in, row.tokens_out, row.estimated) for row in service.rows(3)] == [(2, 5, False)] * 3


def test_embeddings(service: Served, engine: StubEngine) -> None:
    """The same for embeddings, in both encodings."""
    body = {"model": "ollama", "input": ["abcd", "x y"]}
    assert service.post("/v1/embeddings", body).json()["data"][0]["embedding"] == [0.5, 0.5, -0.25]
    assert engine.last().path == "/v1/embeddings"
    answer = service.post("/v1/embeddings", {**body, "options": {"num_ctx": 99}, "dimensions": 3}).json()
    assert engine.last().path == "/api/embed"
    expected = {"model": "qwen3:8b", "input": ["abcd", "x y"], "options": {"num_ctx": 99}, "dimensions": 3}
    assert engine.last().body == expected
    assert [item["embedding"] for item in answer["data"]] == [[0.5, 0.5, -0.25], [0.375, 0.5, -0.25]]
    assert answer["usage"] == {"prompt_tokens": 3, "total_tokens": 3}
    packed = service.post("/v1/embeddings", {**body, "num_ctx": 9, "encoding_format": "base64"}).json()["data"][0]
    assert struct.unpack("<3f", base64.b64decode(packed["embedding"])) == (0.5, 0.5, -0.25)


def test_responses(service: Served, engine: StubEngine) -> None:
    """There is only its /v1; options that it does not know are left out."""
    body = {"model": "ollama", "input": "one", "previous_response_id": "resp_1", "num_ctx": 5}
    assert service.post("/v1/responses", body).status_code == 200
    assert engine.last().path == "/v1/responses"
    assert engine.last().body == {"model": "qwen3:8b", "input": "one", "previous_response_id": "resp_1"}
