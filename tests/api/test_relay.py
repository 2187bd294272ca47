"""What an engine's answer becomes for the client, and what is noted of it."""

from __future__ import annotations

import socket
from typing import Any

import httpx2 as httpx
import openai
import orjson
import pytest
from boxwright_api.settings import KeyLimits
from doubles import SECRET, key
from served import KEY, Served, served
from stub_engine import StubEngine

CHAT = "/v1/chat/completions"
ASK: dict[str, Any] = {"model": "plain", "messages": [{"role": "user", "content": "one two three"}]}
STREAM = {**ASK, "stream": True}


def error(response: httpx.Response) -> tuple[int, str]:
    """Status and code of a refusal, whose shape is checked."""
    found = response.json()["error"]
    assert set(found) == {"message", "type", "param", "code"}
    assert found["message"]
    return response.status_code, found["code"]


def events(text: str) -> list[Any]:
    return [part.removeprefix("data: ") for part in text.split("\n\n") if part]


def broken(service: Served, body: dict[str, Any]) -> tuple[str, bool]:
    """What arrives of a stream, and whether it ended in order."""
    text = ""
    with httpx.stream("POST", service.url + CHAT, content=orjson.dumps(body), headers=KEY) as answer:
        assert answer.status_code == 200
        try:
            for part in answer.iter_text():
                text += part
        except httpx.RemoteProtocolError:
            return text, False
    return text, True


def test_plain(service: Served, engine: StubEngine) -> None:
    """An answer in one piece, its tokens, and what the engine was asked."""
    response = service.post(CHAT, {**ASK, "grammar": "kept"})
    assert response.status_code == 200
    assert response.json()["choices"][0]["message"]["content"] == "tok0 tok1 tok2 tok3 tok4 "
    row = service.row()
    assert (row.route, row.model, row.status, row.outcome, row.key_id) == ("chat", "plain", 200, "ok", "testkey1")
    assert (row.tokens_in, row.tokens_out, row.estimated) == (3, 5, False)
    assert 0 < (row.first_ms or 0) <= row.total_ms
    assert row.request_id == response.headers["x-request-id"] == engine.last().request_id
    assert engine.last().body == {**ASK, "model": "gguf", "grammar": "kept"}
    assert service.parts.limiter.tokens == 8
    assert response.headers["x-ratelimit-limit-requests"] == "60"


@pytest.mark.parametrize("asked", [None, False, True])
def test_stream(service: Served, engine: StubEngine, asked: bool | None) -> None:
    """The usage is always asked for, and its event is shown to whoever has asked for it."""
    body = STREAM if asked is None else {**STREAM, "stream_options": {"include_usage": asked}}
    response = service.post(CHAT, body)
    assert response.headers["content-type"] == "text/event-stream"
    assert response.headers["x-ratelimit-limit-requests"] == "60"
    *chunks, done = events(response.text)
    assert done == "[DONE]"
    assert "".join(orjson.loads(chunk)["choices"][0]["delta"].get("content", "") for chunk in chunks[1:6]) == (
        "tok0 tok1 tok2 tok3 tok4 "
    )
    assert ('"prompt_tokens"' in response.text) is bool(asked)
    assert engine.last().body["stream_options"] == {"include_usage": True}
    row = service.row()
    assert (row.outcome, row.tokens_in, row.tokens_out, row.estimated) == ("ok", 3, 5, False)


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_stream_in_small_pieces(service: Served, engine: StubEngine, newline: str) -> None:
    """However the engine's bytes arrive."""
    engine.behave(piece=7, newline=newline)
    text = service.post(CHAT, STREAM).text.replace("\r\n", "\n")
    assert len(events(text)) == 8
    assert "prompt_tokens" not in text
    assert service.row().tokens_out == 5


def test_stream_arrives_at_once(service: Served, engine: StubEngine) -> None:
    """A chunk does not wait for the next one."""
    engine.behave(tokens=3, pace=0.4)
    with httpx.stream("POST", service.url + CHAT, content=orjson.dumps(STREAM), headers=KEY) as response:
        texts = response.iter_text()
        seen = next(texts)
        while "tok0" not in seen:
            seen += next(texts)
        assert engine.last().tokens_out == 1


def test_usage_without_the_engine(service: Served, engine: StubEngine) -> None:
    """An engine that says nothing of tokens: they are counted, and marked."""
    engine.behave(usage=False)
    service.post(CHAT, STREAM)
    row = service.row()
    assert (row.outcome, row.tokens_out, row.estimated) == ("ok", 5, True)
    assert row.tokens_in > 0
    for number, model in enumerate(("plain", "ollama"), 2):
        engine.behave(usage=False, tokens=20)
        service.post(CHAT, {**ASK, "model": model})
        row = service.row(number)
        assert row.estimated
        assert 10 <= row.tokens_out <= 40


@pytest.mark.parametrize(
    ("path", "body", "tokens"),
    [
        ("/v1/completions", {"model": "plain", "prompt": "one two"}, (2, 5)),
        ("/v1/completions", {"model": "plain", "prompt": "one two", "stream": True}, (2, 5)),
        ("/v1/embeddings", {"model": "plain", "input": ["one two", "three"]}, (3, 0)),
        ("/v1/responses", {"model": "plain", "input": "one two"}, (2, 5)),
        ("/v1/responses", {"model": "plain", "input": "one two", "stream": True}, (2, 5)),
        ("/v1/images/generations", {"model": "tied", "prompt": "a cat", "n": 2}, (0, 0)),
    ],
)
def test_other_apis(
    service: Served, engine: StubEngine, path: str, body: dict[str, Any], tokens: tuple[int, int]
) -> None:
    """Each reaches the engine's same address and is counted."""
    response = service.post(path, body)
    assert response.status_code == 200
    assert engine.last().path == path
    row = service.row()
    assert (row.outcome, (row.tokens_in, row.tokens_out), row.estimated) == ("ok", tokens, False)
    assert row.route == {"generations": "images"}.get(path.rsplit("/", 1)[1], path.rsplit("/", 1)[1])


def test_openai_client(service: Served) -> None:
    """OpenAI's own client is content."""
    client = openai.OpenAI(base_url=service.url + "/v1", api_key=SECRET, max_retries=0)
    messages: Any = ASK["messages"]
    assert [model.id for model in client.models.list()] == ["plain", "ollama", "embed", "tied"]
    assert client.models.retrieve("plain").id == "plain"
    answer = client.chat.completions.create(model="plain", messages=messages)
    assert answer.choices[0].message.content == "tok0 tok1 tok2 tok3 tok4 "
    for model in ("plain", "ollama"):
        options: Any = {"include_usage": True}
        stream = client.chat.completions.create(model=model, messages=messages, stream=True, stream_options=options)
        chunks = list(stream)
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices).startswith(
            "tok0 tok1"
        )
        assert chunks[-1].usage is not None
        assert chunks[-1].usage.completion_tokens == 5
        assert client.embeddings.create(model=model, input="abcd").data[0].embedding == [0.5, 0.5, -0.25]
    assert client.responses.create(model="plain", input="Hi").output_text.startswith("tok0")
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(model="other", messages=messages)
    wrong = client.with_options(api_key="bw_wrong")
    with pytest.raises(openai.AuthenticationError):
        wrong.models.list()


# Refusals.


def test_order(service: Served, engine: StubEngine) -> None:
    """Key, then model, then caps, then a place: what is refused has not counted, and each has a row."""
    bad = {"model": "other", "messages": "none"}
    assert error(httpx.post(service.url + CHAT, content=b"{", headers={})) == (401, "invalid_api_key")
    assert error(service.post(CHAT, bad)) == (400, "invalid_value")
    assert error(service.post(CHAT, {**ASK, "model": "other", "max_tokens": 1})) == (404, "model_not_found")
    assert error(service.post(CHAT, {**ASK, "model": "embed"})) == (400, "unsupported_for_model")
    assert not service.parts.limiter.asked
    assert not engine.records
    rows = service.rows(4)
    assert [(row.status, row.outcome, row.code) for row in rows] == [
        (401, "refused", "invalid_api_key"),
        (400, "refused", "invalid_value"),
        (404, "refused", "model_not_found"),
        (400, "refused", "unsupported_for_model"),
    ]
    assert [row.key_id for row in rows] == [None, "testkey1", "testkey1", "testkey1"]
    assert len({row.request_id for row in rows}) == 4
    assert sum(row.tokens_in + row.tokens_out for row in rows) == 0


def test_models_of_a_key(service: Served) -> None:
    """A key sees and uses its models only; another one is as if it were not there."""
    service.parts.keys.known[KEY["Authorization"]] = key(models=("ollama",))
    found = httpx.get(service.url + "/v1/models", headers=KEY).json()["data"]
    assert [model["id"] for model in found] == ["ollama"]
    assert httpx.get(service.url + "/v1/models/ollama", headers=KEY).status_code == 200
    hidden = httpx.get(service.url + "/v1/models/plain", headers=KEY)
    absent = httpx.get(service.url + "/v1/models/absent", headers=KEY)
    assert error(hidden) == error(absent) == (404, "model_not_found")
    assert hidden.text.replace("plain", "absent") == absent.text
    assert error(service.post(CHAT, ASK)) == (404, "model_not_found")
    assert error(httpx.get(service.url + "/v1/models")) == (401, "invalid_api_key")
    assert [row.route for row in service.rows(6)] == ["models"] * 4 + ["chat", "models"]


def test_busy(engine: StubEngine) -> None:
    """No place: 429 as OpenAI's clients know it, after the wait."""
    with served(engine, in_flight=1, wait_ms=50) as service:
        service.parts.limiter.places = 0
        response = service.post(CHAT, ASK)
        assert error(response) == (429, "chat_concurrency_limit")
        assert response.headers["retry-after"] == "1"
        assert response.headers["x-ratelimit-limit-requests"] == "60"
        row = service.row()
        assert (row.status, row.outcome, row.code) == (429, "limited", "chat_concurrency_limit")
        assert not engine.records


def test_place_is_free_with_the_last_byte(engine: StubEngine) -> None:
    """Whoever asks again after the last byte finds the place free, without any wait."""
    with served(engine, in_flight=1, wait_ms=0) as service, httpx.Client(headers=KEY) as client:
        service.parts.limiter.wait = 0.05
        for body in [ASK, STREAM] * 20:
            response = client.post(service.url + CHAT, content=orjson.dumps(body))
            assert response.status_code == 200
            assert not service.parts.limiter.taken
            assert service.parts.usage.rows[-1].request_id == response.headers["x-request-id"]
        assert engine.most == 1


def test_limits_of_a_key(engine: StubEngine) -> None:
    """The key's own limits, and the defaults where it has none."""
    with served(engine, key_defaults={"requests_per_minute": 5, "parallel": 2}) as service:
        known = key()
        object.__setattr__(known, "limits", KeyLimits(parallel=7))
        service.parts.keys.known[KEY["Authorization"]] = known
        service.post(CHAT, ASK)
        assert service.parts.limiter.asked[-1].limits == KeyLimits(requests_per_minute=5, parallel=7)


def test_parts_away(service: Served, engine: StubEngine) -> None:
    """Without limiter, keys or usage log nothing is passed on."""
    service.parts.limiter.up = False
    assert error(service.post(CHAT, ASK)) == (503, "limiter_unavailable")
    service.parts.limiter.up, service.parts.usage.full = True, True
    assert error(service.post(CHAT, ASK)) == (503, "usage_unavailable")
    service.parts.usage.full, service.parts.keys.up = False, False
    assert error(service.post(CHAT, ASK)) == (503, "store_unavailable")
    assert not engine.records
    assert [row.outcome for row in service.rows(3)] == ["refused"] * 3


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens", "n_predict", "num_predict", "max_new_tokens"])
def test_max_tokens(engine: StubEngine, name: str) -> None:
    """The cap holds by whatever name an engine knows, and is set when the client names none."""
    with served(engine, max_tokens=3) as service:
        assert error(service.post(CHAT, {**ASK, name: 4})) == (400, "max_tokens_too_large")
        assert error(service.post(CHAT, {**ASK, "options": {name: 4}})) == (400, "max_tokens_too_large")
        assert error(service.post(CHAT, {**ASK, name: -1})) == (400, "invalid_value")
        assert error(service.post(CHAT, {**ASK, "options": {name: -1}})) == (400, "invalid_value")
        assert not engine.records
        service.post(CHAT, ASK)
        assert engine.last().body["max_tokens"] == 3
        service.post("/v1/responses", {"model": "plain", "input": "Hi"})
        assert engine.last().body["max_output_tokens"] == 3
        service.post(CHAT, {**ASK, "model": "ollama"})
        assert engine.last().body["options"] == {"num_predict": 3}
        service.post(CHAT, {**ASK, name: 2})
        assert engine.last().body[name] == 2
        assert name == "max_tokens" or "max_tokens" not in engine.last().body


def test_defaults_of_a_route(engine: StubEngine) -> None:
    """A route's options are set where the client has not set them, also inside of `options`."""
    route = {"name": "ollama", "upstream": engine.url, "engine": "ollama"}
    route |= {"options": {"keep_alive": -1, "options": {"num_ctx": 4096, "top_k": 5}}}
    with served(engine, models=[route]) as service:
        service.post(CHAT, {**ASK, "model": "ollama", "options": {"top_k": 9}})
        body = engine.last().body
        assert (body["keep_alive"], body["options"]) == (-1, {"num_ctx": 4096, "top_k": 9})
        service.post(CHAT, {**ASK, "model": "ollama", "keep_alive": "5m", "num_ctx": 99})
        assert engine.last().body["keep_alive"] == "5m"


# The engine's failures.


@pytest.mark.parametrize("body", [ASK, STREAM])
def test_engine_away(service: Served, engine: StubEngine, body: dict[str, Any]) -> None:
    """Nobody listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        route = {"name": "plain", "upstream": f"http://127.0.0.1:{free.getsockname()[1]}", "warm": False}
        with served(engine, models=[route]) as other:
            assert error(other.post(CHAT, body)) == (502, "engine_unavailable")
            row = other.row()
            assert (row.outcome, row.status, row.code) == ("upstream_error", 502, "engine_unavailable")
            assert (row.tokens_in, row.tokens_out, row.estimated) == (0, 0, False)
            assert not other.parts.limiter.taken


@pytest.mark.parametrize("body", [ASK, STREAM])
def test_engine_silent(engine: StubEngine, body: dict[str, Any]) -> None:
    """It takes the request and says nothing: 504, and the connection is closed."""
    with served(engine, first_byte_seconds=0.3) as service:
        engine.behave(wait=60)
        response = service.post(CHAT, body)
        assert error(response) == (504, "engine_timeout")
        assert response.headers["x-ratelimit-limit-requests"] == "60"
        engine.until("closed")
        assert service.row().outcome == "upstream_error"
        assert not service.parts.limiter.taken
        engine.behave(first_wait=60)
        assert error(service.post(CHAT, STREAM)) == (504, "engine_timeout")


@pytest.mark.parametrize("model", ["plain", "ollama"])
@pytest.mark.parametrize("after", [{"break_after": 2}, {"end_after": 2}, {"hang_after": 2}])
def test_stream_breaks(engine: StubEngine, model: str, after: dict[str, int]) -> None:
    """A broken stream ends with an error event, without [DONE], and the connection is cut."""
    with served(engine, idle_seconds=0.3) as service:
        engine.behave(**after)
        text, whole = broken(service, {**STREAM, "model": model})
        assert not whole
        assert "tok1" in text
        assert "[DONE]" not in text
        assert "error" in orjson.loads(events(text)[-1])
        assert sum("error" in orjson.loads(event) for event in events(text)) == 1
        row = service.row()
        assert (row.outcome, row.status, row.tokens_out, row.estimated) == ("upstream_error", 200, 2, True)
        assert row.code == ("engine_timeout" if "hang_after" in after else "engine_broke_off")
        assert not service.parts.limiter.taken
        engine.behave(break_after=1)
        client = openai.OpenAI(base_url=service.url + "/v1", api_key=SECRET, max_retries=0)
        stream = client.chat.completions.create(model=model, messages=ASK["messages"], stream=True)
        with pytest.raises(openai.APIError):
            list(stream)


def test_breaks_before_the_first_byte(service: Served, engine: StubEngine) -> None:
    """Then there is still a status to say it with."""
    engine.behave(break_after=0)
    assert error(service.post("/v1/completions", {"model": "plain", "prompt": "Hi", "stream": True})) == (
        502,
        "engine_broke_off",
    )
    assert error(service.post(CHAT, ASK))[0] == 502
    assert [row.outcome for row in service.rows(2)] == ["upstream_error"] * 2


@pytest.mark.parametrize(
    ("status", "said", "expected"),
    [
        (400, {"message": "too long", "type": "x", "param": None, "code": "context_length"}, (400, "context_length")),
        (404, "model not found", (404, "engine_error")),
        (429, {"message": "full", "type": "x", "param": None, "code": "full"}, (429, "full")),
        (500, "broken", (500, "engine_error")),
        (503, {"message": "loading", "type": "x", "param": None, "code": "loading"}, (503, "loading")),
        (401, "who are you", (502, "engine_refused")),
        (302, "elsewhere", (502, "engine_refused")),
    ],
)
@pytest.mark.parametrize("model", ["plain", "ollama"])
@pytest.mark.parametrize("stream", [False, True])
def test_engine_refuses(
    service: Served, engine: StubEngine, status: int, said: Any, expected: tuple[int, str], model: str, stream: bool
) -> None:
    """The engine's refusals keep their status, and have OpenAI's shape."""
    engine.behave(status=status, error=said, headers=(("Retry-After", "7"), ("Location", "http://127.0.0.1:1/")))
    response = service.post(CHAT, {**ASK, "model": model, "stream": stream})
    assert error(response) == expected
    assert response.headers.get("retry-after") == ("7" if expected[1] != "engine_refused" else None)
    assert "location" not in response.headers
    row = service.row()
    assert (row.outcome, row.status, row.code, row.tokens_in) == ("upstream_error", expected[0], expected[1], 0)
    assert not service.parts.limiter.taken


def test_large_errors(service: Served, engine: StubEngine) -> None:
    """An error that comes in several pieces is read whole; one without end is not."""
    said = {"message": "x" * 30_000, "type": "x", "param": None, "code": "long"}
    engine.behave(status=400, error=said)
    assert service.post(CHAT, ASK).json() == {"error": said}
    engine.behave(status=400, error={**said, "message": "x" * 3_000_000})
    response = service.post(CHAT, ASK)
    assert error(response) == (400, "engine_error")
    assert len(response.content) < 3000


def test_no_nagle(service: Served) -> None:
    """Small chunks are sent at once: TCP_NODELAY on the client's connection (and aiohttp sets it on the engine's)."""
    with httpx.Client(headers=KEY) as client:
        client.post(service.url + CHAT, content=orjson.dumps(ASK))
        (connection,) = service.server.server_state.connections
        raw = connection.transport.get_extra_info("socket")
        assert raw.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_connections_to_the_engine_are_kept(service: Served, engine: StubEngine) -> None:
    """An answer that was read to its end leaves its connection for the next one."""
    pool = service.app.state.upstream._session.connector._conns

    def ports() -> set[Any]:
        return {pair[0].transport.get_extra_info("sockname") for pairs in pool.values() for pair in pairs}

    warm = ports()
    assert warm
    for body in [ASK, STREAM, {**STREAM, "model": "ollama"}] * 3:
        assert service.post(CHAT, body).status_code == 200
        assert ports() == warm
