"""Ollama's own API behind the OpenAI API.

Ollama's /v1 drops `options`, `num_ctx`, `keep_alive` and `think` without a word: its requests have no such members
(ollama/ollama openai/openai.go). So chats go to /api/chat, and completions and embeddings that have any of them to
/api/generate and /api/embed (ollama/ollama docs/api.md). /v1/responses and images exist only in its /v1.
"""

from __future__ import annotations

import base64
import binascii
import secrets
import struct
import time
from collections.abc import Callable
from typing import Any

import orjson

from boxwright_api.engines import Call, dump, openai_call
from boxwright_api.errors import ApiError
from boxwright_api.settings import ModelRoute, Offer
from boxwright_api.streams import Tokens

# Members of OpenAI's requests that are options of Ollama, and what they are called there.
RENAMED = {
    "temperature": "temperature",
    "top_p": "top_p",
    "seed": "seed",
    "stop": "stop",
    "frequency_penalty": "frequency_penalty",
    "presence_penalty": "presence_penalty",
    "max_tokens": "num_predict",
    "max_completion_tokens": "num_predict",
    "n_predict": "num_predict",
}
# Ollama's own options, which clients may also write beside the others (docs/modelfile.md, api/types.go Options).
OPTIONS = (
    "num_ctx",
    "num_predict",
    "num_keep",
    "num_batch",
    "num_gpu",
    "main_gpu",
    "num_thread",
    "use_mmap",
    "top_k",
    "min_p",
    "typical_p",
    "repeat_last_n",
    "repeat_penalty",
)
# What only Ollama's own API takes.
NATIVE = ("options", "keep_alive", "think", "format", *OPTIONS)


def ollama_call(route: ModelRoute, offer: Offer, body: dict[str, Any]) -> Call:
    """The call for this request."""
    if offer == "chat":
        return _chat(route, body)
    if any(body.get(name) is not None for name in NATIVE):
        if offer == "completions":
            return _generate(route, body)
        if offer == "embeddings":
            return _embed(route, body)
    return openai_call(route, offer, {name: value for name, value in body.items() if name not in NATIVE})


def _chat(route: ModelRoute, body: dict[str, Any]) -> Call:
    _one(body)
    asked = _common(route, body)
    names: dict[str, str] = {}
    asked["messages"] = [_message(message, names) for message in body["messages"]]
    if body.get("tools") and body.get("tool_choice") != "none":
        asked["tools"] = body["tools"]
    for name in ("logprobs", "top_logprobs"):
        if body.get(name) is not None:
            asked[name] = body[name]

    def plain(data: bytes) -> tuple[bytes, Tokens | None]:
        answer = _answer(data)
        message, tokens = answer.get("message") or {}, _tokens(answer)
        calls = _calls(message.get("tool_calls"), 0)
        out: dict[str, Any] = {"role": "assistant", "content": message.get("content") or (None if calls else "")}
        if message.get("thinking"):
            out["reasoning"] = message["thinking"]
        if calls:
            out["tool_calls"] = calls
        choice = {"index": 0, "message": out, "finish_reason": _reason(answer, bool(calls))}
        if answer.get("logprobs"):
            choice["logprobs"] = {"content": answer["logprobs"]}
        return orjson.dumps(_head("chatcmpl", "chat.completion", route, [choice], tokens)), tokens

    stream = None
    if body.get("stream"):
        stream = Lines("chatcmpl", "chat.completion.chunk", route, _chat_choice, show_usage=_show_usage(body))
    return Call(path="/api/chat", body=dump(asked), plain=plain, stream=stream)


def _generate(route: ModelRoute, body: dict[str, Any]) -> Call:
    _one(body)
    prompt = body["prompt"]
    if isinstance(prompt, list) and len(prompt) == 1:
        prompt = prompt[0]
    if not isinstance(prompt, str):
        raise ApiError(400, "invalid_value", "`prompt`: this engine takes one text.", param="prompt")
    asked = {**_common(route, body), "prompt": prompt}
    if body.get("suffix") is not None:
        asked["suffix"] = body["suffix"]

    def plain(data: bytes) -> tuple[bytes, Tokens | None]:
        answer = _answer(data)
        tokens = _tokens(answer)
        choice = {"index": 0, "text": answer.get("response") or "", "finish_reason": _reason(answer, False)}
        return orjson.dumps(_head("cmpl", "text_completion", route, [choice], tokens)), tokens

    stream = None
    if body.get("stream"):
        stream = Lines("cmpl", "text_completion", route, _text_choice, show_usage=_show_usage(body))
    return Call(path="/api/generate", body=dump(asked), plain=plain, stream=stream)


def _embed(route: ModelRoute, body: dict[str, Any]) -> Call:
    texts = body["input"]
    if not isinstance(texts, str) and not all(isinstance(text, str) for text in texts):
        raise ApiError(400, "invalid_value", "`input`: this engine takes a text or a list of texts.", param="input")
    asked = {name: value for name, value in _common(route, body).items() if name in ("model", "options", "keep_alive")}
    asked["input"] = texts
    if body.get("dimensions") is not None:
        asked["dimensions"] = body["dimensions"]
    packed = body.get("encoding_format") == "base64"

    def plain(data: bytes) -> tuple[bytes, Tokens | None]:
        answer = _answer(data)
        into = answer.get("prompt_eval_count") or 0
        vectors = answer.get("embeddings") or []
        items = [
            {"object": "embedding", "index": index, "embedding": _packed(vector) if packed else vector}
            for index, vector in enumerate(vectors)
        ]
        usage = {"prompt_tokens": into, "total_tokens": into}
        return orjson.dumps({"object": "list", "data": items, "model": route.name, "usage": usage}), Tokens(into)

    return Call(path="/api/embed", body=dump(asked), plain=plain)


def _answer(data: bytes) -> dict[str, Any]:
    """Ollama's plain answer. Raises ApiError 502 when it is none."""
    try:
        answer = orjson.loads(data)
    except orjson.JSONDecodeError:
        answer = None
    if not isinstance(answer, dict):
        raise ApiError(502, "engine_error", "The engine's answer is not JSON.", kind="server_error")
    return answer


def _one(body: dict[str, Any]) -> None:
    """Ollama makes one answer."""
    for name in ("n", "best_of"):
        if (body.get(name) or 1) != 1:
            raise ApiError(400, "invalid_value", f"`{name}`: this engine makes one answer to a request.", param=name)


def _common(route: ModelRoute, body: dict[str, Any]) -> dict[str, Any]:
    """What /api/chat and /api/generate share."""
    options: dict[str, Any] = {}
    for name, ours in RENAMED.items():
        if body.get(name) is not None:
            options[ours] = body[name]
    options |= {name: body[name] for name in OPTIONS if body.get(name) is not None}
    options |= body.get("options") or {}
    if isinstance(options.get("stop"), str):
        options["stop"] = [options["stop"]]
    asked: dict[str, Any] = {"model": route.upstream_model, "stream": bool(body.get("stream"))}
    if options:
        asked["options"] = options
    if body.get("keep_alive") is not None:
        asked["keep_alive"] = body["keep_alive"]
    if (think := _think(body)) is not None:
        asked["think"] = think
    if (form := _format(body)) is not None:
        asked["format"] = form
    return asked


def _think(body: dict[str, Any]) -> object:
    """Ollama's `think`, or what OpenAI's clients call the effort; "none" is not to think."""
    if body.get("think") is not None:
        return body["think"]
    effort = body.get("reasoning_effort")
    if effort is None and isinstance(body.get("reasoning"), dict):
        effort = body["reasoning"].get("effort")
    return False if effort == "none" else effort


def _format(body: dict[str, Any]) -> object:
    """Ollama's `format`, or OpenAI's `response_format`."""
    if body.get("format") is not None:
        return body["format"]
    wanted = body.get("response_format")
    if not isinstance(wanted, dict):
        return None
    if wanted.get("type") == "json_schema":
        schema = wanted.get("json_schema")
        if not isinstance(schema, dict) or not isinstance(schema.get("schema"), dict):
            where = "response_format.json_schema.schema"
            raise ApiError(400, "invalid_value", f"`{where}`: must be a JSON schema.", param=where)
        return schema["schema"]
    return "json" if wanted.get("type") == "json_object" else None


def _message(message: dict[str, Any], names: dict[str, str]) -> dict[str, Any]:
    """One message; `names` remembers which tool a call named, for the tool's answer."""
    role = message["role"]
    out: dict[str, Any] = {"role": "system" if role == "developer" else role}
    content = message.get("content")
    if isinstance(content, list):
        texts, images = _parts(content)
        out["content"] = "\n".join(texts)
        if images:
            out["images"] = images
    else:
        out["content"] = content or ""
    thinking = message.get("reasoning") or message.get("reasoning_content")
    if isinstance(thinking, str):
        out["thinking"] = thinking
    if message.get("tool_calls"):
        out["tool_calls"] = [_call(call, names) for call in message["tool_calls"]]
    if role == "tool":
        id = message.get("tool_call_id")
        name = message.get("name") or (names.get(id) if isinstance(id, str) else None)
        if name:
            out["tool_name"] = name
        if id:
            out["tool_call_id"] = id
    return out


def _parts(parts: list[dict[str, Any]]) -> tuple[list[str], list[str]]:
    """Texts, and pictures in base64. A picture elsewhere is not fetched: the address would be the client's choice."""
    texts, images = [], []
    for part in parts:
        kind = part.get("type")
        if kind in ("text", "input_text") and isinstance(part.get("text"), str):
            texts.append(part["text"])
            continue
        url = part.get("image_url")
        url = url.get("url") if isinstance(url, dict) else url
        if kind != "image_url" or not isinstance(url, str):
            raise ApiError(400, "invalid_value", "`messages`: a part must be text or image_url.", param="messages")
        head, comma, data = url.partition(",")
        if not head.startswith("data:") or not head.endswith(";base64") or not comma:
            message = "`image_url`: must be a data: URL with base64; other addresses are not fetched."
            raise ApiError(400, "invalid_image_url", message, param="messages")
        try:
            base64.b64decode(data, validate=True)
        except (binascii.Error, ValueError):
            raise ApiError(400, "invalid_image_url", "`image_url`: no base64.", param="messages") from None
        images.append(data)
    return texts, images


def _call(call: object, names: dict[str, str]) -> dict[str, Any]:
    """A call of a tool that the model made before: Ollama wants its arguments as an object."""
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(call, dict) or not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise ApiError(400, "invalid_value", "`tool_calls`: each must have a function with a name.", param="messages")
    arguments = function.get("arguments") or {}
    if isinstance(arguments, str):
        try:
            arguments = orjson.loads(arguments)
        except orjson.JSONDecodeError:
            arguments = None
    if not isinstance(arguments, dict):
        raise ApiError(400, "invalid_value", "`tool_calls`: arguments must be a JSON object.", param="messages")
    out: dict[str, Any] = {"function": {"name": function["name"], "arguments": arguments}}
    if isinstance(call.get("id"), str):
        names[call["id"]] = function["name"]
        out["id"] = call["id"]
    return out


def _calls(calls: object, first: int) -> list[dict[str, Any]]:
    """Calls of tools as clients know them. Ollama gives them an id only in newer versions."""
    out = []
    for index, call in enumerate(calls if isinstance(calls, list) else [], first):
        function = call.get("function") or {}
        arguments = orjson.dumps(function.get("arguments") or {}).decode()
        out.append(
            {
                "index": index,
                "id": call.get("id") or f"call_{secrets.token_hex(8)}",
                "type": "function",
                "function": {"name": function.get("name", ""), "arguments": arguments},
            }
        )
    return out


def _reason(answer: dict[str, Any], called: bool) -> str | None:
    """Why it ended, in OpenAI's words."""
    if not answer.get("done"):
        return None
    return "tool_calls" if called else "length" if answer.get("done_reason") == "length" else "stop"


def _tokens(answer: dict[str, Any]) -> Tokens | None:
    """What the answer has cost. A prompt that was in the cache has no count in some versions."""
    if "eval_count" not in answer and "prompt_eval_count" not in answer:
        return None
    return Tokens(answer.get("prompt_eval_count") or 0, answer.get("eval_count") or 0)


def _packed(vector: list[float]) -> str:
    """OpenAI's base64: 32-bit numbers, the lowest byte first."""
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()


def _usage(tokens: Tokens) -> dict[str, int]:
    return {
        "prompt_tokens": tokens.into,
        "completion_tokens": tokens.out,
        "total_tokens": tokens.into + tokens.out,
    }


def _head(kind: str, name: str, route: ModelRoute, choices: list[Any], tokens: Tokens | None) -> dict[str, Any]:
    out: dict[str, Any] = {
        "id": f"{kind}-{secrets.token_hex(12)}",
        "object": name,
        "created": int(time.time()),
        "model": route.name,
        "choices": choices,
    }
    if tokens:
        out["usage"] = _usage(tokens)
    return out


def _show_usage(body: dict[str, Any]) -> bool:
    return bool((body.get("stream_options") or {}).get("include_usage"))


def _chat_choice(answer: dict[str, Any], stream: Lines) -> dict[str, Any] | None:
    message = answer.get("message") or {}
    delta: dict[str, Any] = {}
    if not stream.begun:
        delta = {"role": "assistant", "content": ""}
    if message.get("content"):
        delta["content"] = message["content"]
    if message.get("thinking"):
        delta["reasoning"] = message["thinking"]
    if calls := _calls(message.get("tool_calls"), stream.calls):
        delta["tool_calls"] = calls
        stream.calls += len(calls)
    if message.get("content") or message.get("thinking") or calls:
        stream.pieces += 1
    reason = _reason(answer, stream.calls > 0)
    choice = {"index": 0, "delta": delta, "finish_reason": reason}
    if answer.get("logprobs"):
        choice["logprobs"] = {"content": answer["logprobs"]}
    return choice if delta or reason else None


def _text_choice(answer: dict[str, Any], stream: Lines) -> dict[str, Any] | None:
    text, reason = answer.get("response") or "", _reason(answer, False)
    if text:
        stream.pieces += 1
    return {"index": 0, "text": text, "finish_reason": reason} if text or reason else None


class Lines:
    """Ollama's stream, a JSON object on each line, as events of the OpenAI API."""

    def __init__(
        self,
        kind: str,
        name: str,
        route: ModelRoute,
        choice: Callable[[dict[str, Any], Lines], dict[str, Any] | None],
        *,
        show_usage: bool,
    ) -> None:
        self.tokens: Tokens | None = None
        self.pieces = 0
        self.complete = False
        self.last = b""
        self.failed = False
        self.begun = False
        self.calls = 0
        self._choice, self._show_usage = choice, show_usage
        self._head = _head(kind, name, route, [], None)
        self._open = b""

    def feed(self, data: bytes) -> bytes:
        """Events for all whole lines."""
        if self.complete:
            return b""
        *lines, self._open = (self._open + data).split(b"\n")
        return b"".join(self._line(line) for line in lines if line.strip())

    def finish(self) -> bytes:
        """A last line that lacks its end is taken when it is whole."""
        rest, self._open = self._open.strip(), b""
        return self._line(rest) if rest and not self.complete else b""

    def _line(self, line: bytes) -> bytes:
        try:
            answer = orjson.loads(line)
        except orjson.JSONDecodeError:
            return b""
        if not isinstance(answer, dict) or self.complete:
            return b""
        if answer.get("error"):
            self.failed = True
            message = str(answer["error"])[:2000]
            error = {"message": message, "type": "server_error", "param": None, "code": "engine_error"}
            return _event({"error": error})
        choice = self._choice(answer, self)
        out = _event({**self._head, "choices": [choice]}) if choice else b""
        self.begun = True
        if answer.get("done"):
            self.complete = True
            self.tokens = _tokens(answer)
            if self._show_usage:
                out += _event({**self._head, "choices": [], "usage": _usage(self.tokens or Tokens(0, self.pieces))})
            self.last = b"data: [DONE]\n\n"
        return out


def _event(data: dict[str, Any]) -> bytes:
    return b"data: " + orjson.dumps(data) + b"\n\n"
