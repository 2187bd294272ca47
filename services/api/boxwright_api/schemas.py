"""What clients may ask, as far as the service looks at it; everything else is the engine's business.

Members that are not named here are handed on as they are, so the models are checks and documentation, never a filter.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from boxwright_api.errors import ApiError
from boxwright_api.settings import Offer

# A request for many answers is many requests; nobody asks for more in earnest.
MOST_CHOICES = 8
# More would not fit into what most models read.
MOST_PASSAGES = 50

Tokens = Annotated[int, Field(ge=1, le=2**31 - 1)]
Choices = Annotated[int, Field(ge=1, le=MOST_CHOICES)]


class Asked(BaseModel):
    """What all requests have."""

    model_config = ConfigDict(strict=True, json_schema_extra={"additionalProperties": True})

    model: str = Field(min_length=1, max_length=256, description="A name of GET /v1/models.")
    user: str | None = Field(None, description="Handed on.")
    options: dict[str, Any] | None = Field(None, description="Options of Ollama, such as num_ctx; to Ollama only.")
    keep_alive: int | float | str | None = Field(None, description="How long Ollama keeps the model; to Ollama only.")
    think: bool | str | None = Field(None, description="Whether Ollama lets the model think first; to Ollama only.")


class StreamOptions(BaseModel):
    """How a stream ends."""

    model_config = ConfigDict(strict=True, json_schema_extra={"additionalProperties": True})

    include_usage: bool | None = Field(None, description="Send the usage as the last event before [DONE].")


class Streamed(Asked):
    """What requests for text have."""

    stream: bool | None = Field(None, description="Answer with server-sent events.")
    stream_options: StreamOptions | None = None
    temperature: float | None = Field(None, ge=0, le=100)
    top_p: float | None = Field(None, ge=0, le=1)


class Message(BaseModel):
    """A message of a chat."""

    model_config = ConfigDict(strict=True, json_schema_extra={"additionalProperties": True})

    role: str = Field(min_length=1, max_length=64)
    content: str | list[dict[str, Any]] | None = None
    name: str | None = None
    tool_calls: list[dict[str, Any]] | None = None
    tool_call_id: str | None = None


class Retrieval(BaseModel):
    """Passages that are to be looked up for the last message of the user, by that message's text."""

    model_config = ConfigDict(strict=True, extra="forbid")

    collection: str = Field(min_length=1, max_length=256, description="One that the key may read.")
    passages: int | None = Field(None, ge=1, le=MOST_PASSAGES, description="How many; left out: the service's default.")


class Chat(Streamed):
    """POST /v1/chat/completions."""

    retrieval: Retrieval | None = Field(
        None, description="Of boxwright: give the model passages of the box's documents. Not handed on."
    )
    messages: list[Message] = Field(min_length=1)
    max_tokens: Tokens | None = None
    max_completion_tokens: Tokens | None = None
    n: Choices | None = None
    tools: list[dict[str, Any]] | None = None
    stop: str | list[str] | None = None
    seed: int | None = Field(None, ge=-(2**63), le=2**63 - 1)
    response_format: dict[str, Any] | None = None


class Completion(Streamed):
    """POST /v1/completions."""

    prompt: str | list[Any]
    max_tokens: Annotated[int, Field(ge=0, le=2**31 - 1)] | None = None
    n: Choices | None = None
    best_of: Choices | None = None
    stop: str | list[str] | None = None
    seed: int | None = Field(None, ge=-(2**63), le=2**63 - 1)


class Embedding(Asked):
    """POST /v1/embeddings."""

    input: str | Annotated[list[Any], Field(min_length=1)]
    encoding_format: str | None = Field(None, pattern="^(float|base64)$")
    dimensions: int | None = Field(None, ge=1, le=2**31 - 1)


class Response(Streamed):
    """POST /v1/responses."""

    input: str | list[Any] | None = None
    max_output_tokens: Tokens | None = None
    previous_response_id: str | None = None
    store: bool | None = None


class Image(Asked):
    """POST /v1/images/generations."""

    prompt: str = Field(min_length=1)
    n: Choices | None = None
    size: str | None = None
    stream: bool | None = None


ASKED: dict[Offer, type[Asked]] = {
    "chat": Chat,
    "completions": Completion,
    "embeddings": Embedding,
    "responses": Response,
    "images": Image,
}


# Every name by which an engine takes the number of tokens to make: OpenAI's, llama.cpp's and Ollama's.
LIMITS = ("max_tokens", "max_completion_tokens", "max_output_tokens", "n_predict", "num_predict", "max_new_tokens")
LIMIT_OF: dict[Offer, str] = {"chat": "max_tokens", "completions": "max_tokens", "responses": "max_output_tokens"}
WHOLE = (*LIMITS, "n", "best_of", "seed", "dimensions")


def check(offer: Offer, body: object) -> dict[str, Any]:
    """The body, when it can be one of this request. Raises ApiError 400, naming the first member that is wrong."""
    if not isinstance(body, dict):
        raise ApiError(400, "invalid_body", "The body must be a JSON object.")
    # 5.0 is a whole number in JSON, and none to engines in Go.
    for name in WHOLE:
        if isinstance(value := body.get(name), float) and value.is_integer():
            body[name] = int(value)
    try:
        ASKED[offer].model_validate(body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"])[:200]
        code = "missing_required_parameter" if first["type"] == "missing" else "invalid_value"
        raise ApiError(400, code, f"`{where}`: {first['msg']}.", param=where) from None
    return body


def check_limits(body: dict[str, Any], most: int) -> None:
    """Raises ApiError 400 when the request asks for more than `most` tokens (0: no limit), by whatever name.

    A negative number means "without end" to llama.cpp and Ollama, so it is refused where there is a limit.
    """
    for name, value in _named(body):
        if isinstance(value, bool) or not isinstance(value, int) or value < (0 if most else -2):
            raise ApiError(400, "invalid_value", f"`{name}`: a whole number that is not negative.", param=name)
        if most and value > most:
            raise ApiError(400, "max_tokens_too_large", f"`{name}`: {most} at most.", param=name)


def limited(offer: Offer, body: dict[str, Any], most: int) -> dict[str, Any]:
    """The body with a limit of its tokens, where there is one and it names none."""
    if most and offer in LIMIT_OF and not _named(body):
        return {**body, LIMIT_OF[offer]: most}
    return body


def _named(body: dict[str, Any]) -> list[tuple[str, Any]]:
    named = [(name, body[name]) for name in LIMITS if body.get(name) is not None]
    options = body.get("options")
    if isinstance(options, dict):
        named += [(f"options.{name}", options[name]) for name in LIMITS if options.get(name) is not None]
    return named
