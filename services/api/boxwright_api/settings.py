"""Settings of the service: one JSON file without secrets, and a folder with one file for each secret.

The file is named by the variable BOXWRIGHT_API_SETTINGS, the folder by CREDENTIALS_DIRECTORY, as systemd sets it
(systemd.exec(5), LoadCredential=). Nothing else of the environment is read, and an unknown name is refused.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, IPvAnyNetwork, SecretStr, model_validator
from pydantic_settings import (
    BaseSettings,
    JsonConfigSettingsSource,
    PydanticBaseSettingsSource,
    SecretsSettingsSource,
    SettingsConfigDict,
)

SETTINGS_VARIABLE = "BOXWRIGHT_API_SETTINGS"
SECRETS_VARIABLE = "CREDENTIALS_DIRECTORY"

# What a client may call, by the name that a route's `offers` has for it.
Offer = Literal["chat", "completions", "embeddings", "responses", "images"]
ModelName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._:/@-]{0,127}$")]


class Frozen(BaseModel):
    """A part of the settings."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class ModelRoute(Frozen):
    """A model that clients may name, and the engine that serves it."""

    name: ModelName = Field(description="What clients say.")
    upstream: str = Field(
        pattern=r"^http://[A-Za-z0-9.\[\]:-]+$", description="The engine, without a path: http://127.0.0.1:11434."
    )
    engine: Literal["openai", "ollama"] = Field(
        "openai",
        description="`ollama`: chat is translated to its own /api/chat, so that options reach it that its /v1 drops. "
        "`openai`: any engine that speaks the OpenAI API.",
    )
    model: str = Field("", description="What the engine calls it; empty: as clients do.")
    key: str = Field("", description="Name of the secret that the engine wants as a bearer token; empty: none.")
    offers: tuple[Offer, ...] = Field(("chat", "completions", "embeddings", "responses"), min_length=1)
    options: dict[str, object] = Field(
        {}, description="Members of the request's body that are set where the client has not set them."
    )
    warm: bool = Field(True, description="The service is ready only when the engine has answered with this model once.")

    @property
    def upstream_model(self) -> str:
        """What the engine calls it."""
        return self.model or self.name


class Retrieval(Frozen):
    """Where passages are looked up that a request asks for: a Qdrant, and the model that turns text into vectors."""

    url: str = Field(pattern=r"^http://[A-Za-z0-9.\[\]:-]+$", description="Qdrant, without a path.")
    model: ModelName = Field(description="A model of `models` that offers embeddings.")
    prefix: str = Field("", pattern=r"^[a-z0-9-]{0,63}$", description="What its collections in Qdrant begin with.")
    passages: int = Field(4, ge=1, le=50, description="How many are given to the model where a request does not say.")
    seconds: float = Field(60, gt=0, description="How long a lookup may take; the model may have to be loaded first.")


class KeyLimits(Frozen):
    """Limits of a key; None is no limit."""

    requests_per_minute: int | None = Field(None, ge=1)
    tokens_per_minute: int | None = Field(None, ge=1)
    parallel: int | None = Field(None, ge=1)
    tokens_per_day: int | None = Field(None, ge=1)
    tokens_per_month: int | None = Field(None, ge=1)


class Settings(BaseSettings):
    """All settings of one instance."""

    model_config = SettingsConfigDict(frozen=True, extra="forbid", env_ignore_empty=True)

    instance: str = Field("production", pattern=r"^[a-z][a-z0-9-]{0,30}$", description="Shown in answers and metrics.")
    host: str = Field("127.0.0.1", description="Address on which it listens.")
    port: int = Field(8000, ge=1, le=65535)
    workers: int = Field(1, ge=1, le=64)
    stop_seconds: int = Field(60, ge=1, description="How long streams may go on when the service is told to stop.")

    database: str = Field(
        pattern=r"^(sqlite:////.+|postgresql://.+)$",
        description="sqlite:////absolute/path, or postgresql://user@host:port/name; with ?host=FOLDER by a socket.",
    )
    database_password: SecretStr | None = None
    redis: str = Field(
        "",
        pattern=r"^((redis|unix)://.+)?$",
        description="redis://host:port/0 or unix:///path; empty: limits are counted in the process, for one worker.",
    )
    redis_password: SecretStr | None = None
    redis_prefix: str = Field("bw:", min_length=1, max_length=64)

    # Secrets. A pepper has a version, so that it can be changed: "1:<hex>;2:<hex>"; new keys take the highest.
    peppers: SecretStr
    admin_secret: SecretStr
    engine_keys: SecretStr | None = Field(None, description="JSON object: the secrets that `ModelRoute.key` names.")

    models: tuple[ModelRoute, ...] = Field(min_length=1)

    retrieval: Retrieval | None = Field(None, description="Unset, no request can ask for passages.")
    retrieval_key: SecretStr | None = Field(None, description="The key that Qdrant wants.")

    # Admission.
    in_flight: int = Field(10, ge=1, description="Requests that all engines together work on at the same time.")
    wait_ms: int = Field(250, ge=0, le=60000, description="How long a request waits for a place before it is refused.")
    breaker_requests: int = Field(0, ge=0, description="Requests of all callers in a minute; 0: no limit.")
    visitor_requests: int = Field(0, ge=0, description="Requests of one visitor in a minute; 0: no limit.")
    visitor_header: str = Field(
        "", description="Header with which a trusted client names its visitor; empty: the client's address."
    )
    trusted_proxies: tuple[IPvAnyNetwork, ...] = Field(
        (), description="Proxies whose X-Forwarded-For and visitor header are believed."
    )
    key_defaults: KeyLimits = Field(KeyLimits(), description="Limits of a key where it has none of its own.")
    lease_seconds: float = Field(15, gt=0, description="After this a place is free whose worker died.")
    fail_open: bool = Field(False, description="Let requests pass when Redis is away. Off, they get 503.")
    max_body: int = Field(8 * 1024**2, ge=1024, description="Bytes of the largest request.")
    max_tokens: int = Field(0, ge=0, description="Largest max_tokens that a request may ask for; 0: no limit.")

    # Keys and usage.
    key_cache_seconds: float = Field(5, ge=0, description="How long a key is believed without asking the database.")
    key_stale_seconds: float = Field(60, ge=0, description="The same while the database is away.")
    usage_months: int = Field(
        13, ge=0, le=1200, description="Calendar months of which usage is kept, this one included; 0: all."
    )
    usage_flush_ms: int = Field(200, ge=1)
    usage_queue: int = Field(10000, ge=1, description="Rows that are kept in memory.")
    spill: Path | None = Field(None, description="Folder for rows that the database did not take.")
    spill_bytes: int = Field(64 * 1024**2, ge=1024, description="When it has so much, requests are refused with 503.")

    # The engines.
    connect_seconds: float = Field(5, gt=0)
    first_byte_seconds: float = Field(600, gt=0)
    idle_seconds: float = Field(300, gt=0, description="Silence in an answer after which it is given up.")

    @model_validator(mode="after")
    def _fits(self) -> Settings:
        if self.workers > 1 and (not self.redis or self.database.startswith("sqlite")):
            raise ValueError("several workers need `redis` and a PostgreSQL `database`")
        names = [route.name for route in self.models]
        if len(set(names)) != len(names):
            raise ValueError("`models` has a name twice")
        if self.retrieval and "embeddings" not in getattr(self.route(self.retrieval.model), "offers", ()):
            raise ValueError("`retrieval.model` is not a model of `models` that offers embeddings")
        return self

    @property
    def embedded(self) -> bool:
        """Whether limits and keys are the process's own: one worker."""
        return not self.redis

    def route(self, name: str) -> ModelRoute | None:
        """The model that clients call `name`."""
        return next((route for route in self.models if route.name == name), None)

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """What is given in code, then the secrets, then the file."""
        sources: list[PydanticBaseSettingsSource] = [init_settings]
        if folder := os.environ.get(SECRETS_VARIABLE):
            sources.append(SecretsSettingsSource(settings_cls, secrets_dir=folder))
        if file := os.environ.get(SETTINGS_VARIABLE):
            sources.append(JsonConfigSettingsSource(settings_cls, json_file=file))
        return tuple(sources)
