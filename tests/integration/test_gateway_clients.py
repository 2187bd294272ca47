"""Real clients at the gateway: the OpenAI SDK and curl."""

from __future__ import annotations

import asyncio
import json
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from engine_double import EngineDouble
from gateway_box import TOKEN, Crowd, Gateway, gateway_box, question, this_machine, trust
from kit import Box, Lab, eventually

pytestmark = pytest.mark.lab

MESSAGES: Any = [{"role": "user", "content": "What is the weather in Graz?"}]
TOOLS: Any = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "The weather in a city.",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
        },
    }
]


@pytest.fixture(scope="module")
def engine(lab: Lab) -> Iterator[EngineDouble]:
    with EngineDouble(this_machine(gateway_box(lab))) as engine:
        yield engine


@pytest.fixture(scope="module")
def gateway(lab: Lab, engine: EngineDouble) -> Gateway:
    return Gateway(gateway_box(lab), "clients", gateway_engines=[engine.upstream], gateway_in_flight=2)


def sdk(box: Box, token: str, **options: Any) -> openai.OpenAI:
    """The SDK as its users set it up, with the box's certificate authority."""
    client = openai.DefaultHttpxClient(verify=trust(box), trust_env=False)
    return openai.OpenAI(base_url=f"https://{box.address}/v1", api_key=token, http_client=client, **options)


@pytest.fixture
def client(gateway: Gateway) -> Iterator[openai.OpenAI]:
    with sdk(gateway.box, TOKEN) as client:
        yield client


def test_the_sdk_asks_and_lists(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["double"]
    answer = client.chat.completions.create(model="double", messages=MESSAGES)
    assert answer.choices[0].message.content == "Hello there."
    assert answer.choices[0].finish_reason == "stop"


def test_the_sdk_streams(client: openai.OpenAI, engine: EngineDouble) -> None:
    """Each piece is here before the next is made."""
    answer = engine.answer("sdk streams")
    stream = client.chat.completions.create(model="sdk streams", messages=MESSAGES, stream=True)
    for text in ("one", "two", "three"):
        answer.say(text)
        assert next(stream).choices[0].delta.content == text
    answer.finish()
    assert [chunk.choices[0].finish_reason for chunk in stream] == ["stop"]


def test_the_sdk_asks_many_at_once(gateway: Gateway, engine: EngineDouble) -> None:
    """Its asynchronous half. Two requests are at work; what is refused meanwhile the SDK asks again by itself."""
    answer = engine.answer("many", held=True)
    statuses: list[int] = []

    async def note(response: Any) -> None:
        statuses.append(response.status_code)

    async def ask() -> list[str | None]:
        http = openai.DefaultAsyncHttpxClient(
            verify=trust(gateway.box), trust_env=False, event_hooks={"response": [note]}
        )
        async with openai.AsyncOpenAI(
            base_url=f"{gateway.url}/v1", api_key=TOKEN, http_client=http, max_retries=10
        ) as client:
            stream = await client.chat.completions.create(model="double", messages=MESSAGES, stream=True)
            pieces = [chunk.choices[0].delta.content async for chunk in stream]
            asked = [
                asyncio.ensure_future(client.chat.completions.create(model="many", messages=MESSAGES)) for _ in range(6)
            ]
            while 429 not in statuses:
                await asyncio.sleep(0.02)
            answer.release()
            return [*pieces, *(found.choices[0].message.content for found in await asyncio.gather(*asked))]

    assert asyncio.run(asyncio.wait_for(ask(), 60)) == ["Hello ", "there. ", None, *["Hello."] * 6]
    again = [int(asked.header("x-stainless-retry-count") or 0) for asked in engine.of("many")]
    assert len(again) == 6
    assert max(again) > 0


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_the_sdk_calls_a_tool(client: openai.OpenAI, engine: EngineDouble, stream: bool) -> None:
    """The engine asks for the tool, gets its result, and answers with it."""
    if stream:
        name, arguments = "", ""
        for chunk in client.chat.completions.create(model="double", messages=MESSAGES, tools=TOOLS, stream=True):
            for call in chunk.choices[0].delta.tool_calls or []:
                assert call.function is not None
                name += call.function.name or ""
                arguments += call.function.arguments or ""
    else:
        answer = client.chat.completions.create(model="double", messages=MESSAGES, tools=TOOLS)
        assert answer.choices[0].finish_reason == "tool_calls"
        (found,) = answer.choices[0].message.tool_calls or []
        assert found.type == "function"
        name, arguments = found.function.name, found.function.arguments
    assert name == "weather"
    assert json.loads(arguments) == {"city": "Graz"}
    call = {"id": "call_1", "type": "function", "function": {"name": name, "arguments": arguments}}
    messages = [
        *MESSAGES,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": "rain"},
    ]
    answer = client.chat.completions.create(model="double", messages=messages, tools=TOOLS)
    assert answer.choices[0].message.content == "The tool says rain."
    # What was sent arrived as it was.
    assert engine.asked[-1].json["messages"] == messages


def test_errors_are_the_sdks_own(gateway: Gateway, engine: EngineDouble) -> None:
    """What went wrong is a class of the SDK, with the code of the gateway."""

    def ask(token: str = TOKEN, model: str = "double", **more: Any) -> Any:
        with sdk(gateway.box, token, max_retries=0) as client:
            return client.chat.completions.create(model=model, messages=MESSAGES, **more)

    with pytest.raises(openai.AuthenticationError) as refused:
        ask("no-such-token-0123456789")
    assert (refused.value.status_code, refused.value.code) == (401, "invalid_api_key")

    with pytest.raises(openai.APIStatusError) as large:
        ask(extra_body={"padding": "x" * 33 * 1024**2})
    assert (large.value.status_code, large.value.code) == (413, "request_too_large")

    with sdk(gateway.box, TOKEN) as client, pytest.raises(openai.NotFoundError) as unknown:
        client.files.list()
    assert unknown.value.code == "unknown_path"

    answer = engine.answer("busy", held=True)
    with Crowd(gateway, 2) as crowd:
        held = [crowd.ask(question("busy")) for _ in range(2)]
        eventually("both are at work", lambda: len(engine.of("busy")) == 2)
        with pytest.raises(openai.RateLimitError) as busy:
            ask(model="busy")
        assert (busy.value.status_code, busy.value.code) == (429, "chat_concurrency_limit")
        assert int(busy.value.response.headers["Retry-After"]) >= 1
        answer.release()
        assert {one.result().status_code for one in held} == {200}

    engine.kill()
    try:
        with pytest.raises(openai.InternalServerError) as gone:
            ask()
        assert (gone.value.status_code, gone.value.code) == (502, "engine_unavailable")
    finally:
        engine.start()


def test_the_sdk_gets_a_real_answer(light: Box) -> None:
    """llama.cpp behind the gateway, with a token that the command made."""
    token = light.run("boxwright", "token", "add", "sdk").expect().out.strip()
    try:
        with sdk(light, token) as client:
            whole = client.chat.completions.create(model="local-llm", messages=MESSAGES, max_tokens=16)
            assert (whole.choices[0].message.content or "").strip()
            assert whole.usage is not None
            assert whole.usage.completion_tokens > 0
            stream = client.chat.completions.create(
                model="local-llm", messages=MESSAGES, max_tokens=16, temperature=0, stream=True
            )
            pieces = [choice.delta.content or "" for chunk in stream for choice in chunk.choices]
        assert "".join(pieces).strip()
        assert len(pieces) > 5
    finally:
        light.run("boxwright", "token", "revoke", "sdk").expect()


def test_curl_as_a_run_prints_it(light: Box) -> None:
    """The line under "ask the model", as it is, with the password in a file that only its owner reads."""
    lines = light.run("boxwright", "apply").expect().text.splitlines()
    command = shlex.split(lines[lines.index("  ask the model:") + 1])
    assert command[0] == "curl"
    netrc = Path(command[command.index("--netrc-file") + 1])
    assert netrc.stat().st_mode & 0o777 == 0o600
    assert light.secrets["gateway_password"] in netrc.read_text(encoding="utf-8")
    done = subprocess.run([*command, "--noproxy", "*"], capture_output=True, text=True, timeout=120, check=True)
    assert json.loads(done.stdout)["choices"][0]["message"]["content"].strip()
    wrong = [argument for argument in command if argument not in ("--netrc-file", str(netrc))]
    refused = subprocess.run([*wrong, "--noproxy", "*"], capture_output=True, text=True, timeout=120, check=False)
    assert refused.returncode == 22
    assert json.loads(refused.stdout)["error"]["code"] == "invalid_api_key"
