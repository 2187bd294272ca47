"""Variables of the api role."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field

from boxwright.describe import Words
from boxwright.engines import EngineSettings
from boxwright.errors import Problem
from boxwright.models import Model
from boxwright.settings import ByteSize, Generated, Port, RoleSettings, Secret

Offer = Literal["chat", "completions", "embeddings", "responses", "images"]
InstanceName = Literal["production", "development"]
KeyName = Annotated[
    str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,62}$"), Words("a name of letters, digits, dashes and underscores")
]
Header = Annotated[str, Field(pattern=r"^([A-Za-z][A-Za-z0-9-]{0,62})?$"), Words("the name of a header")]

# What clients may call of a model, by what it is for.
OFFERS: Mapping[str, tuple[Offer, ...]] = {
    "chat": ("chat", "completions", "responses"),
    "embedding": ("embeddings",),
}
# The path by which an engine is asked for a model of that kind: some have a server of its own for it.
PATHS: Mapping[str, str] = {"chat": "/v1/chat/completions", "embedding": "/v1/embeddings"}


class ApiModel(BaseModel):
    """A model that clients may name, and the engine that serves it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._:/@-]{0,127}$", description="What clients say.")
    upstream: str = Field(
        pattern=r"^http://[A-Za-z0-9.\[\]:-]+$",
        description="The engine, without a path.",
        examples=["http://127.0.0.1:11434"],
    )
    engine: Literal["openai", "ollama"] = Field(
        "openai",
        description="`ollama`: chat is translated to its own API, so that options reach it that its /v1 drops. "
        "`openai`: any engine that speaks the OpenAI API.",
    )
    model: str = Field("", description="What the engine calls it; empty: as clients do.")
    key: KeyName | Literal[""] = Field("", description="Name in `api_engine_keys` of the key that the engine wants.")
    offers: tuple[Offer, ...] = Field(
        ("chat", "completions", "embeddings", "responses"), min_length=1, description="What clients may call of it."
    )
    options: dict[str, Any] = Field(
        {}, description="Members of the request's body that are set where the client has not set them."
    )
    warm: bool = Field(True, description="The service is ready only when the engine has answered with this model once.")


class KeyLimits(BaseModel):
    """Limits of a key; unset is no limit."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    requests_per_minute: int | None = Field(None, ge=1, description="Requests in a minute.")
    tokens_per_minute: int | None = Field(None, ge=1, description="Tokens in a minute.")
    parallel: int | None = Field(None, ge=1, description="Requests at the same time.")
    tokens_per_day: int | None = Field(None, ge=1, description="Tokens in a day.")
    tokens_per_month: int | None = Field(None, ge=1, description="Tokens in a month.")


@dataclass(frozen=True)
class Instance:
    """One running service: its own account, unit, settings, secrets, database and prefix in Redis and Qdrant."""

    name: InstanceName
    port: int
    pepper: Secret
    admin_secret: Secret
    database_password: Secret

    @property
    def unit(self) -> str:
        """The name of its service, and of its account on Linux."""
        return f"boxwright-api-{self.name}"

    @property
    def database(self) -> str:
        """The database in PostgreSQL, and the role that owns it."""
        return f"boxwright_api_{self.name}"

    @property
    def redis_prefix(self) -> str:
        """What its keys in Redis begin with."""
        return f"bw-{self.name}:"

    @property
    def retrieval_prefix(self) -> str:
        """What its collections in Qdrant begin with."""
        return f"bw-{self.name}-"


class ApiSettings(RoleSettings, prefix="api"):
    """The API service: keys, budgets, limits and a usage log in front of the engines, on loopback."""

    enabled: bool = Field(False, description="Run the API service. `gateway_auth: keys` puts it behind the door.")
    port: Port = Field(8000, description="TCP port on loopback where it listens.")
    development: bool = Field(
        False,
        description="Run a second instance beside it that shares nothing with it but the engines: an account, "
        "database, keys, limits and secrets of its own. The gateway does not lead there.",
    )
    development_port: Port = Field(8010, description="TCP port on loopback of the second instance.")
    store: Literal["embedded", "full"] = Field(
        "embedded",
        description="Where keys, usage and limits are kept. `embedded`: a SQLite file and the process itself, for one "
        "small box. `full`: PostgreSQL and Redis or Valkey on the box, and several workers.",
    )
    workers: int | None = Field(
        None, ge=1, le=64, description="Processes that serve. Unset it is 2, and 1 with `api_store: embedded`."
    )
    python: str = Field(
        "",
        pattern=r"^(/[^\s:]+)?$",
        description="Interpreter that it runs with, of Python 3.11 or later. Empty: that of the distribution; on a Mac "
        "that of Homebrew.",
        examples=["/usr/local/bin/python3.12"],
    )

    # What is offered.
    models: tuple[ApiModel, ...] = Field(
        (),
        description="Models by the names that clients say. Empty: those of `inference_models`, by the box's engines.",
        examples=[[{"name": "large", "upstream": "http://127.0.0.1:11434", "engine": "ollama", "model": "qwen3:14b"}]],
    )
    engine_keys: dict[KeyName, Secret] = Field(
        {},
        description="Keys of engines by the names in `api_models`; those of the box's engines are known.",
    )

    # Passages.
    retrieval_model: str = Field(
        "",
        description="Name of the offered model that turns text into vectors. With it, requests may ask for passages of "
        "documents that were given to the service, which keeps them in Qdrant on the box. Empty: no request can.",
        examples=["embedder"],
    )
    retrieval_passages: int = Field(
        4, ge=1, le=50, description="Passages that are given to the model where a request does not say how many."
    )

    # Limits.
    in_flight: int = Field(
        10, ge=1, le=10000, description="Requests that all engines together work on at the same time."
    )
    wait: int = Field(
        250,
        ge=0,
        le=60000,
        description="Milliseconds that a further request waits for a place before it is refused with status 429 and "
        "the code `chat_concurrency_limit`.",
    )
    breaker_requests: int = Field(0, ge=0, description="Requests of all callers in a minute; 0: no limit.")
    visitor_requests: int = Field(0, ge=0, description="Requests of one visitor in a minute; 0: no limit.")
    visitor_header: Header = Field(
        "",
        description="Header by which the gateway's clients name their visitor. Empty: the client's address counts.",
    )
    key_defaults: KeyLimits = Field(KeyLimits(), description="Limits of a key that has none of its own.")
    max_body: ByteSize = Field(ByteSize(8 * 1024**2), ge=1024, description="Largest request.")
    usage_months: int = Field(
        13,
        ge=0,
        le=1200,
        description="Calendar months of which the usage log is kept, this one included; 0 keeps all. It grows by some "
        "200 bytes with each request.",
    )
    max_tokens: int = Field(0, ge=0, description="Largest `max_tokens` that a request may ask for; 0: no limit.")
    fail_open: bool = Field(
        False, description="Let requests pass without limits when Redis is away. Off, they are refused with status 503."
    )
    stop_seconds: int = Field(60, ge=1, le=3600, description="How long streams may go on when the service is stopped.")
    backups: int = Field(
        5, ge=1, le=100, description="Copies of the database that are kept of those made before each new version."
    )
    options: dict[str, Any] = Field(
        {},
        description="Further settings of the service, handed on as they are: services/api/boxwright_api/settings.py "
        "names them.",
        examples=[{"key_cache_seconds": 1, "idle_seconds": 600}],
    )

    # Secrets.
    pepper: Secret = Generated(
        bytes=32, description="What keys are hashed with, version 1. Another one makes every key of it useless."
    )
    further_peppers: Secret | None = Field(
        None,
        description="Later versions, as `2:<64 hexadecimal digits>`, several joined by semicolons. New keys take the "
        "highest; older keys stay good as long as their version is there.",
    )
    admin_secret: Secret = Generated(bytes=32, description="Opens /admin of the service, on the box itself only.")
    database_password: Secret = Generated(bytes=32, description="Of its role in PostgreSQL.")
    development_pepper: Secret = Generated(bytes=32, description="`api_pepper` of the second instance.")
    development_admin_secret: Secret = Generated(bytes=32, description="`api_admin_secret` of the second instance.")
    development_database_password: Secret = Generated(
        bytes=32, description="`api_database_password` of the second instance."
    )

    @property
    def every_instance(self) -> tuple[Instance, ...]:
        """The instances that there can be."""
        return (
            Instance("production", self.port, self.pepper, self.admin_secret, self.database_password),
            Instance(
                "development",
                self.development_port,
                self.development_pepper,
                self.development_admin_secret,
                self.development_database_password,
            ),
        )

    @property
    def instances(self) -> tuple[Instance, ...]:
        """The instances that run."""
        if not self.enabled:
            return ()
        return self.every_instance if self.development else self.every_instance[:1]

    @property
    def full(self) -> bool:
        """Whether it keeps everything in PostgreSQL and Redis."""
        return self.enabled and self.store == "full"

    @property
    def retrieves(self) -> bool:
        """Whether it looks up passages."""
        return self.enabled and bool(self.retrieval_model)

    @property
    def processes(self) -> int:
        """The number of workers."""
        return self.workers or (2 if self.store == "full" else 1)

    def routes(self, box: Any) -> tuple[ApiModel, ...]:
        """The models that are offered: those declared here, else those of the box's engines."""
        if self.models:
            return self.models
        return tuple(
            _route(box, box.engine(engine), model)
            for engine in box.inference.running
            for model in box.inference.models_of(engine)
        )

    def upstream_keys(self, box: Any) -> dict[str, Secret]:
        """The keys of engines, by the names that routes have for them."""
        own = {name: box.engine(name).key for name in box.inference.running}
        return {**{name: key for name, key in own.items() if key is not None}, **self.engine_keys}

    def other_machines(self, box: Any) -> bool:
        """Whether an engine is on another machine."""
        return not all(_on_loopback(urlsplit(route.upstream).hostname or "") for route in self.routes(box))

    def peppers(self, instance: Instance) -> str:
        """All versions, as the service reads them."""
        # The service wants hexadecimal digits, whatever text the secret is.
        first = f"1:{hashlib.sha256(instance.pepper.get_secret_value().encode()).hexdigest()}"
        return ";".join([first, *([self.further_peppers.get_secret_value().strip()] if self.further_peppers else [])])

    def problems(self, box: Any) -> Iterable[Problem]:
        """Something to serve, by names that are told apart, and what the store can do."""
        if not self.enabled:
            return
        routes, known = self.routes(box), self.upstream_keys(box)
        names = [route.name for route in routes]
        if not routes:
            yield self._problem(
                "api_enabled",
                "the API service has no model to offer: no engine runs on the box, and `api_models` is empty",
                "declare `inference_models`, or name engines of other machines in `api_models`",
            )
        for name in sorted({name for name in names if names.count(name) > 1}):
            yield self._problem(
                "api_models" if self.models else "inference_models",
                f"the API service would offer two models with the name {name}",
                "give each a name of its own",
            )
        for route in routes:
            if route.key and route.key not in known:
                yield self._problem(
                    "api_models",
                    f"the model `{route.name}` wants the key `{route.key}`, which `api_engine_keys` does not have",
                    "add it there, in a file made by ansible-vault",
                )
        if self.store == "embedded" and self.processes > 1:
            yield self._problem(
                "api_workers",
                f"`api_workers` is {self.workers}, and with `api_store: embedded` limits are counted in one process",
                "remove `api_workers`, or set `api_store: full`",
            )
        for service in ("postgresql", "redis"):
            if self.full and not getattr(box, service).runs(box):
                yield self._problem(
                    f"{service}_enabled",
                    f"`api_store` is full, but `{service}_enabled` is false",
                    f"remove `{service}_enabled`, or set `api_store: embedded`",
                )

        if self.retrieves:
            yield from self._retrieval_problems(box)

    def _retrieval_problems(self, box: Any) -> Iterable[Problem]:
        """Something that turns text into vectors, and something that keeps them."""
        able = [route.name for route in self.routes(box) if "embeddings" in route.offers]
        if self.retrieval_model not in able:
            known = ", ".join(f"`{name}`" for name in able) or "none"
            yield self._problem(
                "api_retrieval_model",
                f"the API service offers no model `{self.retrieval_model}` for embeddings (it offers: {known})",
                "name one that it offers, or declare one in `inference_models` with `kind: embedding`",
            )
        if not box.qdrant.runs(box):
            yield self._problem(
                "qdrant_enabled",
                "`api_retrieval_model` is set, but `qdrant_enabled` is false",
                "remove `qdrant_enabled`, or `api_retrieval_model`",
            )

    def _problem(self, variable: str, message: str, help: str) -> Problem:
        return Problem(code="BW022", variable=variable, message=message, help=help)


def _route(box: Any, engine: EngineSettings, model: Model) -> ApiModel:
    """How the service reaches a model of an engine of the box."""
    path = PATHS[model.kind]
    port = engine.elsewhere(box).get(path) or engine.ports(box)["port"]
    return ApiModel(
        name=model.name,
        upstream=f"http://127.0.0.1:{port}",
        engine="ollama" if engine.prefix == "ollama" else "openai",
        key=engine.prefix if engine.key is not None else "",
        offers=OFFERS[model.kind],
        warm=model.preload,
    )


def _on_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False


def engine_keys_text(keys: Mapping[str, Secret]) -> str:
    """The keys of engines, as the service reads them."""
    return json.dumps({name: key.get_secret_value() for name, key in sorted(keys.items())})
