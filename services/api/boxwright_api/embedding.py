"""Texts as vectors, by a model's own engine."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import aiohttp
import orjson

from boxwright_api.engines import openai_call, refusal, with_defaults
from boxwright_api.errors import ApiError
from boxwright_api.ollama import ollama_call
from boxwright_api.settings import ModelRoute
from boxwright_api.streams import Tokens
from boxwright_api.upstream import Upstream

# Characters of a token, where the engine counts none; as for answers.
LETTERS = 4


class NoVectors(Exception):
    """The engine did not answer with a vector for each text. `reached`: it may have worked on them. `words` are the
    engine's own, which may quote a text: not for a log.
    """

    def __init__(self, message: str, words: str = "", *, reached: bool = True) -> None:
        super().__init__(message)
        self.words, self.reached = words, reached


async def embed(
    upstream: Upstream, route: ModelRoute, texts: Sequence[str], request_id: str
) -> tuple[list[list[float]], Tokens]:
    """A vector for each text, all of one length, and what it has cost. Raises NoVectors; does not look at the clock."""
    body = with_defaults(route, {"model": route.name, "input": list(texts)})
    call = (ollama_call if route.engine == "ollama" else openai_call)(route, "embeddings", body)
    try:
        response = await upstream.post(route, call.path, call.body, request_id, stream=False)
    except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
        raise NoVectors(f"the engine cannot be reached: {type(error).__name__}", reached=False) from None
    except (aiohttp.ClientError, OSError) as error:
        raise NoVectors(f"the engine broke off: {type(error).__name__}") from None
    try:
        data = await response.read()
        if response.status != 200:
            raise NoVectors(f"the engine answered {response.status}", _words(response.status, data))
        plain, tokens = call.plain(data)
        return _vectors(orjson.loads(plain), len(texts)), tokens or estimate(texts)
    except (orjson.JSONDecodeError, ApiError):
        raise NoVectors("the engine's answer is not JSON") from None
    except (aiohttp.ClientError, OSError) as error:
        raise NoVectors(f"the engine broke off: {type(error).__name__}") from None
    finally:
        # Of no effect when the answer was read to its end.
        response.close()


def estimate(texts: Sequence[str]) -> Tokens:
    """What they cost, where nobody has counted."""
    return Tokens(sum(len(text) for text in texts) // LETTERS, 0, True)


def _vectors(answer: Any, count: int) -> list[list[float]]:
    data = answer.get("data") if isinstance(answer, dict) else None
    vectors: list[Any] = [None] * count
    for item in data if isinstance(data, list) else []:
        index = item.get("index") if isinstance(item, dict) else None
        if isinstance(index, int) and 0 <= index < count:
            vectors[index] = item.get("embedding")
    if not vectors or not all(map(_vector, vectors)) or len({len(vector) for vector in vectors}) != 1:
        raise NoVectors("the engine's answer has not a vector for each text")
    return vectors


def _vector(value: Any) -> bool:
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(number, int | float) and math.isfinite(number) for number in value)
        and any(value)
    )


def _words(status: int, data: bytes) -> str:
    """What the engine says, for an administrator."""
    body = orjson.loads(refusal(status, data, None)[1])
    message = body["error"].get("message") if isinstance(body.get("error"), dict) else None
    return str(message or "")[:200]
