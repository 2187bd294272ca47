"""Errors as clients of the OpenAI API know them: {"error": {"message", "type", "param", "code"}}."""

from __future__ import annotations

from collections.abc import Mapping

import orjson


class ApiError(Exception):
    """An answer that refuses. `code` is for programs and has one meaning for good; `message` is for people.

    `retry_after` is seconds; `headers` are added to the answer.
    """

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        *,
        kind: str = "invalid_request_error",
        param: str | None = None,
        retry_after: float | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.code, self.message, self.kind, self.param = status, code, message, kind, param
        self.retry_after, self.headers = retry_after, dict(headers or {})

    def body(self) -> bytes:
        """The answer's body."""
        return orjson.dumps(
            {"error": {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}}
        )


class StoreUnavailable(Exception):
    """The database does not answer."""


class SchemaError(Exception):
    """The tables of the database are not those that this version works with."""


class KeyChanged(Exception):
    """Somebody else has changed the key since it was read."""


def invalid_key() -> ApiError:
    """No key, an unknown, wrong, revoked or expired one: the same answer, which tells nobody what exists."""
    return ApiError(401, "invalid_api_key", "Missing or wrong API key.", headers={"WWW-Authenticate": "Bearer"})


def unknown_model(name: str) -> ApiError:
    """A model that is not there, or not for this key: the same answer."""
    return ApiError(404, "model_not_found", f"The model {name!r} does not exist or is not for this key.", param="model")


def collection_not_allowed(name: str) -> ApiError:
    """A collection of documents that is not there, or not for this key: the same answer."""
    message = f"The collection {name!r} does not exist or is not for this key."
    return ApiError(403, "collection_not_allowed", message, param="retrieval.collection")


def no_passages() -> ApiError:
    """What looks them up is away, so the model was not asked."""
    message = "Passages cannot be looked up now; nothing was asked of the model."
    return unavailable("retrieval_unavailable", message)


def busy(retry_after: float, headers: Mapping[str, str] | None = None) -> ApiError:
    """No place became free within the wait."""
    message = "The model is busy; try again shortly."
    return ApiError(
        429, "chat_concurrency_limit", message, kind="rate_limit_error", retry_after=retry_after, headers=headers
    )


def limited(code: str, message: str, retry_after: float, headers: Mapping[str, str] | None = None) -> ApiError:
    """A window or a budget is used up."""
    return ApiError(429, code, message, kind="rate_limit_error", retry_after=retry_after, headers=headers)


def unavailable(code: str, message: str) -> ApiError:
    """Something that the service needs does not answer; nothing was passed on."""
    return ApiError(503, code, message, kind="server_error", retry_after=1)
