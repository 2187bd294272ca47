"""OpenAI's own client against the running service."""

from __future__ import annotations

import time
from typing import Any

import openai
import pytest
from running import ASK, Running
from stub_engine import StubEngine

TEXT = "tok0 tok1 tok2 tok3 tok4 "
MESSAGES: Any = ASK["messages"]
TOOL: Any = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}


def client(running: Running, **more: Any) -> openai.OpenAI:
    """With a new key; it does not try again unless told."""
    asked = {name: more.pop(name) for name in ("limits", "models") if name in more}
    values = {"api_key": running.key(**asked).key, "max_retries": 0, **more}
    return openai.OpenAI(base_url=f"{running.url}/v1", **values)


@pytest.mark.parametrize("model", ["plain", "ollama"])
def test_chat(running: Running, engine: StubEngine, model: str) -> None:
    answer = client(running).chat.completions.create(model=model, messages=MESSAGES)
    assert answer.choices[0].message.content == TEXT
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (3, 5)


@pytest.mark.parametrize("model", ["plain", "ollama"])
@pytest.mark.parametrize("asked", [True, False, None])
def test_streamed_chat(running: Running, engine: StubEngine, model: str, asked: bool | None) -> None:
    """The usage is a chunk for those who asked for it, and no chunk at all for others."""
    more: Any = {} if asked is None else {"stream_options": {"include_usage": asked}}
    with client(running).chat.completions.create(model=model, messages=MESSAGES, stream=True, **more) as stream:
        chunks = list(stream)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == TEXT
    usages = [chunk.usage for chunk in chunks if chunk.usage]
    assert [(usage.prompt_tokens, usage.completion_tokens) for usage in usages] == ([(3, 5)] if asked else [])
    assert [chunk for chunk in chunks if not chunk.choices] == (chunks[-1:] if asked else [])


@pytest.mark.parametrize("model", ["plain", "ollama"])
@pytest.mark.parametrize("streamed", [True, False])
def test_tools(running: Running, engine: StubEngine, model: str, streamed: bool) -> None:
    engine.behave(tool="weather")
    with client(running) as asker:
        if streamed:
            stream = asker.chat.completions.create(model=model, messages=MESSAGES, tools=[TOOL], stream=True)
            calls: Any = [call for chunk in stream for call in chunk.choices[0].delta.tool_calls or []]
        else:
            answer = asker.chat.completions.create(model=model, messages=MESSAGES, tools=[TOOL])
            calls = answer.choices[0].message.tool_calls
            assert answer.choices[0].finish_reason == "tool_calls"
    assert [(call.function.name, call.function.arguments.replace(" ", "")) for call in calls] == [
        ("weather", '{"city":"Bonn"}')
    ]


@pytest.mark.parametrize("model", ["plain", "ollama"])
def test_completions(running: Running, engine: StubEngine, model: str) -> None:
    with client(running) as asker:
        assert asker.completions.create(model=model, prompt="one two").choices[0].text == TEXT
        stream = asker.completions.create(model=model, prompt="one two", stream=True)
        assert "".join(chunk.choices[0].text for chunk in stream) == TEXT


@pytest.mark.parametrize("model", ["plain", "ollama"])
def test_embeddings(running: Running, engine: StubEngine, model: str) -> None:
    """The client asks for base64 unless it is told otherwise."""
    with client(running) as asker:
        for more in ({}, {"encoding_format": "float"}):
            answer = asker.embeddings.create(model=model, input=["abcd", "ab"], **more)  # type: ignore[call-overload]
            assert [one.embedding for one in answer.data] == [[0.5, 0.5, -0.25], [0.25, 0.5, -0.25]]


def test_responses(running: Running, engine: StubEngine) -> None:
    with client(running) as asker:
        assert asker.responses.create(model="plain", input="one two").output_text == TEXT
        with asker.responses.create(model="plain", input="one two", stream=True) as stream:
            events = list(stream)
    assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == TEXT
    assert events[-1].type == "response.completed"
    assert events[-1].response.usage is not None
    assert events[-1].response.usage.output_tokens == 5


def test_images_and_models(running: Running, engine: StubEngine) -> None:
    with client(running) as asker:
        made = asker.images.generate(model="plain", prompt="a box", n=2)
        assert [image.b64_json for image in made.data or []] == ["iVBORw=="] * 2
        assert [model.id for model in asker.models.list()] == ["plain", "ollama", "tied"]
        assert asker.models.retrieve("ollama").id == "ollama"
    with client(running, models=["ollama"]) as asker:
        assert [model.id for model in asker.models.list()] == ["ollama"]


def test_error_classes(running: Running, engine: StubEngine) -> None:
    with client(running, models=["plain"]) as asker:
        with pytest.raises(openai.AuthenticationError) as wrong:
            asker.with_options(api_key="bw_AAAAAAAA_" + "A" * 43).models.list()
        assert wrong.value.code == "invalid_api_key"
        for model in ("nothing", "ollama"):
            with pytest.raises(openai.NotFoundError) as missing:
                asker.chat.completions.create(model=model, messages=MESSAGES)
            assert (missing.value.code, missing.value.param) == ("model_not_found", "model")
        with pytest.raises(openai.BadRequestError) as bad:
            asker.chat.completions.create(model="plain", messages=MESSAGES, max_tokens=-5)
        assert (bad.value.code, bad.value.param) == ("invalid_value", "max_tokens")
        engine.behave(status=500)
        with pytest.raises(openai.InternalServerError):
            asker.chat.completions.create(model="plain", messages=MESSAGES)
        engine.behave(break_after=2)
        with pytest.raises(openai.APIError):  # noqa: PT012 -- the second line is where it shows
            stream = asker.chat.completions.create(model="plain", messages=MESSAGES, stream=True)
            list(stream)


def test_rate_limit_error(running: Running, engine: StubEngine) -> None:
    with client(running, limits={"requests_per_minute": 1}) as asker:
        asker.chat.completions.create(model="plain", messages=MESSAGES)
        with pytest.raises(openai.RateLimitError) as over:
            asker.chat.completions.create(model="plain", messages=MESSAGES)
    assert over.value.code == "rate_limit_exceeded"
    assert 1 <= int(over.value.response.headers["retry-after"]) <= 60
    assert over.value.response.headers["x-ratelimit-remaining-requests"] == "0"


def test_the_client_gets_through_when_it_tries_again(running: Running, engine: StubEngine) -> None:
    """It waits as long as Retry-After says, which is what makes the second try a success."""
    made = running.key(limits={"parallel": 1})
    engine.behave(wait=1.0)
    held = running.send(made)
    until_running(engine)
    with openai.OpenAI(base_url=f"{running.url}/v1", api_key=made.key, max_retries=3) as asker:
        begun = time.monotonic()
        answer = asker.chat.completions.with_raw_response.create(model="plain", messages=MESSAGES)
    assert answer.retries_taken >= 1
    # One second as told, and one in which the engine works.
    assert time.monotonic() - begun >= 2
    held.close()


def until_running(engine: StubEngine) -> None:
    """Waits until a request is with the engine."""
    while not engine.running:
        time.sleep(0.005)
