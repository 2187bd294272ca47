"""The admin API below /admin: keys, usage and the audit log, behind a secret of its own."""

from __future__ import annotations

import dataclasses
import hashlib
import hmac
import re
from collections.abc import Callable, Coroutine, Mapping
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, cast
from weakref import WeakKeyDictionary

import orjson
from fastapi import APIRouter, Body, Depends, Path, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from fastapi.security import HTTPBearer
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field
from starlette.exceptions import HTTPException
from starlette.types import Message

from boxwright_api import keys
from boxwright_api.audit import Refusals
from boxwright_api.client import refusal
from boxwright_api.contracts import Span, Store
from boxwright_api.errors import ApiError, KeyChanged, StoreUnavailable, unavailable
from boxwright_api.parts import Parts
from boxwright_api.records import AuditEntry, Key, UsageSum
from boxwright_api.retrieval import CollectionName
from boxwright_api.settings import KeyLimits, Settings

ACTOR_HEADER = "X-Boxwright-Actor"
ACTOR = re.compile(r"[A-Za-z0-9][A-Za-z0-9 ._@+-]{0,63}", re.ASCII)
NOBODY = "unnamed"

# Bytes of a request.
LARGEST_BODY = 64 * 1024
OVERLAP = 86_400
LONGEST_OVERLAP = 366 * 86_400
# How long a time usage is summed up for by hours and days, so that an answer has an end.
LONGEST = {"hour": timedelta(days=93), "day": timedelta(days=3 * 366), "month": timedelta(days=100 * 366)}
# How often a key that somebody else changes at the same moment is read again.
TRIES = 5


# What is asked


def _owner(text: str) -> str:
    if not text.strip() or not text.isprintable():
        raise ValueError("expected who has the key, in printable characters")
    return text.strip()


def _written(value: object) -> object:
    # pydantic would take a number, also as a text, for seconds since 1970: more often a mistake than a wish.
    if not isinstance(value, str) or not re.match(r"\d{4}-\d\d-\d\d[Tt ]", value, re.ASCII):
        raise ValueError("expected a time as 2027-01-31T12:00:00Z")
    # A plus sign in an address that was not encoded arrives as a space.
    return re.sub(r" (\d\d:\d\d)$", r"+\1", value)


def _utc(at: datetime) -> datetime:
    if at.tzinfo is None:
        raise ValueError("expected a time with its zone, as 2027-01-31T12:00:00Z")
    try:
        return at.astimezone(UTC)
    except OverflowError:
        raise ValueError("that is too far away") from None


Owner = Annotated[str, Field(max_length=128), AfterValidator(_owner)]
Time = Annotated[datetime, BeforeValidator(_written), AfterValidator(_utc)]
ModelNames = Annotated[list[Annotated[str, Field(max_length=256)]], Field(min_length=1, max_length=256)]
CollectionNames = Annotated[list[CollectionName], Field(max_length=256)]
# Redis counts in doubles, which are exact up to here.
Limit = Annotated[int, Field(ge=1, le=2**53, strict=True)] | None


class Limits(BaseModel):
    """Limits of a key; null is the service's default."""

    model_config = ConfigDict(extra="forbid")

    requests_per_minute: Limit = None
    tokens_per_minute: Limit = None
    parallel: Limit = None
    tokens_per_day: Limit = None
    tokens_per_month: Limit = None


class Change(BaseModel):
    """What of a key is to be changed; what is not named stays."""

    model_config = ConfigDict(extra="forbid")

    owner: Owner = Field("", description="Who has the key.")
    expires_at: Time | None = Field(None, description="From when on it is refused; null: never.")
    models: ModelNames | None = Field(None, description="The only models it may use; null: all.")
    collections: CollectionNames = Field(
        [], description="Whose passages its requests may ask for, whether they are there yet or not; none: nothing."
    )
    limits: Limits | None = Field(None, description="Those that are named are changed; null: all are the default.")


class New(Change):
    """A key that is to be made."""

    owner: Owner = Field(description="Who has the key.")


class Rotation(BaseModel):
    """A new secret for a key."""

    model_config = ConfigDict(extra="forbid")

    overlap_seconds: int = Field(
        OVERLAP, ge=0, le=LONGEST_OVERLAP, strict=True, description="How long the old secret is still accepted."
    )


# What is answered


class Known(BaseModel):
    """A key, without its secret."""

    id: str
    owner: str
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None
    old_until: datetime | None = Field(description="Until when the secret before the last rotation is accepted.")
    models: list[str] | None
    collections: list[str]
    limits: KeyLimits


class Made(Known):
    """A key with its secret, which is shown this once."""

    key: str


class Sum(BaseModel):
    """Usage of one key and model in one span of time."""

    start: datetime
    key_id: str | None
    owner: str | None
    model: str | None
    requests: int
    refused: int
    aborted: int
    tokens_in: int
    tokens_out: int


class Entry(BaseModel):
    """What an administrator did, or a refusal that one should know of."""

    at: datetime
    actor: str
    action: str
    target: str
    details: dict[str, Any]


class RefusalError(BaseModel):
    """Why."""

    message: str
    type: str
    param: str | None
    code: str


class Refusal(BaseModel):
    """An error as clients of the OpenAI API know it."""

    error: RefusalError


def _known(key: Key) -> dict[str, Any]:
    shown = {name: getattr(key, name) for name in Known.model_fields}
    return shown | {"models": None if key.models is None else list(key.models), "collections": list(key.collections)}


# Who asks


def parts_of(request: Request) -> Parts:
    return cast(Parts, request.app.state.parts)


class _Doors:
    """The refusals that were noted, for each store."""

    def __init__(self) -> None:
        self._refusals: WeakKeyDictionary[Store, Refusals] = WeakKeyDictionary()

    def enter(self, request: Request) -> None:
        """Raises ApiError 401 unless the request has the admin secret."""
        parts = parts_of(request)
        wanted = parts.settings.admin_secret.get_secret_value()
        bearer = keys.BEARER.fullmatch(request.headers.get("authorization", ""))
        given = bearer[1] if bearer else ""
        # Of digests, since the time of a comparison tells the length of what is compared.
        same = hmac.compare_digest(_digest(given), _digest(wanted))
        if same and wanted:
            return
        refusals = self._refusals.get(parts.store)
        if refusals is None:
            refusals = self._refusals[parts.store] = Refusals(parts.store)
        client = request.client.host if request.client else "unknown"
        refusals.note("admin.refused", client, "wrong secret" if given else "no secret", actor="unknown")
        raise ApiError(
            401, "invalid_admin_secret", "Missing or wrong admin secret.", headers={"WWW-Authenticate": "Bearer"}
        )


def _digest(secret: str) -> bytes:
    return hashlib.sha256(secret.encode("utf-8", "surrogateescape")).digest()


def _actor(request: Request) -> str:
    """Who acts, for the audit log."""
    name = request.headers.get(ACTOR_HEADER)
    if name is None:
        return NOBODY
    if not ACTOR.fullmatch(name):
        message = (
            f"{ACTOR_HEADER}: expected 1 to 64 letters, digits, spaces or any of ._@+- , beginning with the former."
        )
        raise ApiError(400, "invalid_actor", message)
    return name


Actor = Annotated[str, Depends(_actor)]
Id = Annotated[str, Path(pattern=r"^[A-Za-z0-9]{8}$", description="The 8 characters after `bw_`.")]


# How it is answered


class AdminRoute(APIRoute):
    """A route that asks for the admin secret before it looks at anything else, and answers errors as OpenAI does."""

    # Bytes of a text; None: it takes JSON.
    text: int | None = None

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        inner = super().get_route_handler()

        async def handler(request: Request) -> Response:
            try:
                DOORS.enter(request)
                response = await inner(Request(request.scope, await _read(request, self.text)))
            except ApiError as error:
                response = refusal(error)
            except RequestValidationError as error:
                response = refusal(_invalid(error))
            except HTTPException as error:
                response = refusal(ApiError(error.status_code, "invalid_request", str(error.detail)))
            except StoreUnavailable:
                response = refusal(unavailable("store_unavailable", "The database does not answer."))
            response.headers["Cache-Control"] = "no-store"
            return response

        return handler


DOORS = _Doors()


async def _read(request: Request, most: int | None) -> Callable[[], Coroutine[Any, Any, Message]]:
    """The request's body, as what gives it to the handler: a text of `most` bytes, or JSON. Raises ApiError."""
    parts, size = [], 0
    async for part in request.stream():
        parts.append(part)
        size += len(part)
        if size > (most or LARGEST_BODY):
            message = f"The request is larger than {most or LARGEST_BODY} bytes."
            raise ApiError(413, "request_too_large", message, headers={"Connection": "close"})
    body = b"".join(parts)
    if body and most is None:
        try:
            # Stricter than FastAPI's own: no NaN, no half a surrogate pair.
            orjson.loads(body)
        except orjson.JSONDecodeError as error:
            raise ApiError(400, "invalid_json", f"The body is not JSON: {error.msg}.") from None

    async def receive() -> Message:
        return {"type": "http.request", "body": body, "more_body": False}

    return receive


def _invalid(error: RequestValidationError) -> ApiError:
    """The first thing that is wrong. What was sent is not repeated."""
    found = error.errors()[0]
    # Behind where it was: body, query or path.
    param = ".".join(str(part) for part in found["loc"][1:])
    return ApiError(400, "invalid_request", f"{param or 'body'}: {found['msg']}.", param=param or None)


def _usable(settings: Settings, key: Key, now: datetime) -> Key:
    """The key as it is to be stored. Raises ApiError for what could never be used."""
    if key.expires_at is not None and key.expires_at <= now:
        raise ApiError(400, "expired", f"expires_at: it is {now:%Y-%m-%dT%H:%M:%SZ} now.", param="expires_at")
    known = [route.name for route in settings.models]
    unknown = [name for name in key.models or () if name not in known]
    if unknown:
        message = f"models: there is no {', '.join(map(repr, unknown))}; there is {', '.join(map(repr, known))}."
        raise ApiError(400, "unknown_model", message, param="models")
    return key


async def _found(store: Store, id: str) -> Key:
    key = await store.key(id)
    if key is None:
        raise ApiError(404, "key_not_found", f"There is no key {id}.", param="id")
    return key


async def _change(
    parts: Parts, id: str, actor: str, action: str, change: Callable[[Key], tuple[Key, Mapping[str, object]]]
) -> Key:
    """The key with a change, which is made to what is stored at that moment, with its details in the audit log."""
    for _ in range(TRIES):
        key, details = change(await _found(parts.store, id))
        entry = AuditEntry(at=datetime.now(UTC), actor=actor, action=action, target=id, details=details)
        try:
            await parts.store.put_key(key, entry)
        except KeyChanged:
            continue
        return key
    raise ApiError(409, "key_changed", "Somebody else changes this key at the same time; nothing was done.")


def _not_revoked(key: Key) -> None:
    if key.revoked_at is not None:
        raise ApiError(409, "key_revoked", "The key is revoked, which is for good.", param="id")


# The routes


def admin_router(prefix: str, route: type[AdminRoute] = AdminRoute) -> APIRouter:
    """A router for what only the administrator may do."""
    return APIRouter(
        prefix=prefix,
        route_class=route,
        tags=["admin"],
        # For the documentation alone; `_Doors` looks at it.
        dependencies=[Depends(HTTPBearer(scheme_name="Admin secret", auto_error=False))],
        responses={
            "4XX": {"model": Refusal, "description": "Refused; nothing was done."},
            503: {"model": Refusal, "description": "Something that the service needs does not answer."},
        },
    )


_routes = admin_router("/admin")


def router() -> APIRouter:
    """All routes below /admin."""
    return _routes


@_routes.post("/keys", status_code=201)
async def make(request: Request, asked: Annotated[New, Body()], actor: Actor) -> Made:
    """Make a key. Its secret is in this answer and nowhere else."""
    parts, now = parts_of(request), datetime.now(UTC)
    peppers = keys.Peppers(parts.settings.peppers.get_secret_value())
    secret = keys.make_secret()
    for _ in range(TRIES):
        key = Key(
            id=keys.make_id(),
            owner=asked.owner,
            digest=peppers.digest(secret),
            pepper=peppers.newest,
            created_at=now,
            expires_at=asked.expires_at,
            models=None if asked.models is None else tuple(dict.fromkeys(asked.models)),
            collections=tuple(dict.fromkeys(asked.collections)),
            limits=KeyLimits(**(asked.limits or Limits()).model_dump()),
            version=0,
        )
        details = {name: getattr(asked, name) for name in ("owner", "expires_at", "models", "collections")}
        details["limits"] = key.limits.model_dump(exclude_none=True)
        entry = AuditEntry(at=now, actor=actor, action="key.add", target=key.id, details=_plain(details))
        try:
            await parts.store.put_key(_usable(parts.settings, key, now), entry)
        except KeyChanged:
            # The id is another key's, which happens once in 10^14.
            continue
        return Made(**_known(key), key=keys.join(key.id, secret))
    raise ApiError(409, "key_changed", "No free id was found; nothing was done.")


@_routes.get("/keys")
async def list_keys(request: Request) -> list[Known]:
    """All keys, the newest first, also those that are revoked or expired."""
    return [Known(**_known(key)) for key in await parts_of(request).store.keys()]


@_routes.get("/keys/{id}")
async def show(request: Request, id: Id) -> Known:
    """One key."""
    return Known(**_known(await _found(parts_of(request).store, id)))


@_routes.patch("/keys/{id}")
async def alter(request: Request, id: Id, asked: Annotated[Change, Body()], actor: Actor) -> Known:
    """Change a key. What is not named stays as it is."""
    parts, now = parts_of(request), datetime.now(UTC)
    if not asked.model_fields_set:
        raise ApiError(
            400, "invalid_request", "Nothing to change: name owner, expires_at, models, collections, limits."
        )

    def change(key: Key) -> tuple[Key, Mapping[str, object]]:
        _not_revoked(key)
        new: dict[str, Any] = {name: getattr(asked, name) for name in asked.model_fields_set}
        for name in ("models", "collections"):
            if new.get(name) is not None:
                new[name] = tuple(dict.fromkeys(new[name]))
        if "limits" in new:
            named = (
                asked.limits.model_dump(exclude_unset=True) if asked.limits else dict.fromkeys(KeyLimits.model_fields)
            )
            new["limits"] = KeyLimits(**key.limits.model_dump() | named)
        changed = dataclasses.replace(key, **new)
        # What the key had before may be over or gone since, and is none of this change's business.
        checked: dict[str, Any] = {name: None for name in ("expires_at", "models") if name not in new}
        _usable(parts.settings, dataclasses.replace(changed, **checked), now)
        old = {name: getattr(key, name) for name in new}
        return changed, {"before": _plain(old), "after": _plain(new)}

    return Known(**_known(await _change(parts, id, actor, "key.change", change)))


@_routes.post("/keys/{id}/rotate")
async def rotate(request: Request, id: Id, actor: Actor, asked: Annotated[Rotation | None, Body()] = None) -> Made:
    """Give a key another secret, which is in this answer and nowhere else. The old one is accepted for the overlap; one
    that was still accepted from a rotation before is refused from now on.
    """
    parts, now = parts_of(request), datetime.now(UTC)
    overlap = (asked or Rotation()).overlap_seconds
    peppers = keys.Peppers(parts.settings.peppers.get_secret_value())
    secret = keys.make_secret()

    def change(key: Key) -> tuple[Key, Mapping[str, object]]:
        _not_revoked(key)
        if key.expires_at is not None and key.expires_at <= now:
            raise ApiError(409, "key_expired", "The key has expired: change expires_at first.", param="id")
        changed = dataclasses.replace(
            key,
            digest=peppers.digest(secret),
            pepper=peppers.newest,
            old_digest=key.digest if overlap else None,
            old_pepper=key.pepper if overlap else None,
            old_until=now + timedelta(seconds=overlap) if overlap else None,
        )
        return changed, {"overlap_seconds": overlap}

    key = await _change(parts, id, actor, "key.rotate", change)
    return Made(**_known(key), key=keys.join(id, secret))


@_routes.post("/keys/{id}/revoke")
async def revoke(request: Request, id: Id, actor: Actor) -> Known:
    """Refuse a key from now on, for good."""
    now = datetime.now(UTC)

    def change(key: Key) -> tuple[Key, Mapping[str, object]]:
        if key.revoked_at is not None:
            return key, {"revoked_before": _plain(key.revoked_at)}
        return dataclasses.replace(key, revoked_at=now, old_digest=None, old_pepper=None, old_until=None), {}

    return Known(**_known(await _change(parts_of(request), id, actor, "key.revoke", change)))


@_routes.get("/usage")
async def usage(
    request: Request,
    since: Annotated[Time | None, Query(description="Left out: 30 days before `until`.")] = None,
    until: Annotated[Time | None, Query(description="Left out: now.")] = None,
    span: Annotated[Span, Query(description="What is summed up, in UTC.")] = "day",
    key_id: Annotated[str | None, Query(max_length=64, description="Of this key alone.")] = None,
) -> list[Sum]:
    """Requests and tokens by span, key and model, the oldest first."""
    end = until or datetime.now(UTC)
    try:
        begin = since or end - timedelta(days=30)
    except OverflowError:
        begin = datetime.min.replace(tzinfo=UTC)
    if begin >= end:
        raise ApiError(400, "invalid_request", "since: expected a time before `until`.", param="since")
    if end - begin > LONGEST[span]:
        message = f"span: at most {LONGEST[span].days} days are summed up by {span}; take a longer span."
        raise ApiError(400, "invalid_request", message, param="span")
    sums: list[UsageSum] = await parts_of(request).store.usage(begin, end, span, key_id)
    return [Sum(**dataclasses.asdict(sum)) for sum in sums]


@_routes.get("/audit")
async def audit(
    request: Request,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
    before: Annotated[Time | None, Query(description="Older entries only.")] = None,
) -> list[Entry]:
    """What was done, the newest first."""
    entries = await parts_of(request).store.audit(limit, before)
    return [
        Entry(at=entry.at, actor=entry.actor, action=entry.action, target=entry.target, details=dict(entry.details))
        for entry in entries
    ]


def _plain(value: Any) -> Any:
    """As the audit log can hold it."""
    if isinstance(value, BaseModel):
        return value.model_dump(exclude_none=True)
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, dict):
        return {name: _plain(part) for name, part in value.items()}
    return list(value) if isinstance(value, tuple) else value
