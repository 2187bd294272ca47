"""Variables of the ollama role."""

from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from boxwright.describe import Words
from boxwright.engines import EngineSettings, Server, cannot, gguf_problems
from boxwright.errors import Problem
from boxwright.graphics import Graphics
from boxwright.models import Model
from boxwright.settings import ByteSize, On, Port, Sha256, System

EnvironmentName = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]
EnvironmentValue = Annotated[str, Field(pattern=r"^[^\n]*$")]
Origin = Annotated[
    str,
    Field(pattern=r"^[a-z][a-z0-9+.-]*://[A-Za-z0-9.*-]+(:([0-9]{1,5}|\*))?$"),
    Words("an origin, such as https://app.example"),
]

# What this role decides itself; each of these has a variable or a fixed value.
RESERVED = ("HOME", "OLLAMA_HOST", "OLLAMA_MODELS", "OLLAMA_NOPRUNE", "OLLAMA_NO_CLOUD", "OLLAMA_ORIGINS")


class Archive(BaseModel):
    """An archive of Ollama's publisher, for one kind of machine."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    sha256: Sha256 = Field(description="SHA-256 of the archive; it is used only when this matches.")
    size: ByteSize = Field(description="Exact size of the archive in bytes.")


# The publisher's sha256sum.txt of each release, as packagers quote it: a Homebrew formula, an installer's tests and an
# application's list of downloads name the same digests, and the last one the sizes.
RELEASES = {
    "0.24.0": {
        "x86_64": Archive(
            sha256="15c5f8d66ba06e0d3b4719df8868612dbd66e14e82760929bb3552e1657cdcdb", size=ByteSize(1198635318)
        ),
        "aarch64": Archive(
            sha256="6e9a3ce5f64e93312902e39c420ec336255f078a368ca25e99b339d08a6dfa4b", size=ByteSize(1323731537)
        ),
    }
}
# The same for a Mac: one archive for both kinds of processor that Macs have had. From the same sources.
RELEASES_FOR_MACS = {
    "0.24.0": Archive(
        sha256="e6d5e8b4bc0cb2a35ff7901c58d81ca2170403a819c4726f58798155fa682e38", size=ByteSize(133395504)
    )
}


class OllamaSettings(EngineSettings, prefix="ollama"):
    """Ollama: several GGUF models behind an OpenAI-compatible API on loopback."""

    port: Port = Field(11434, description="TCP port on loopback where the engine listens.")
    version: str = Field(
        "0.24.0", pattern=r"^\d+\.\d+\.\d+$", description="Version of Ollama. Another one needs `ollama_archive`."
    )
    archive: Archive | None = Field(
        None,
        description="The archive `ollama-linux-amd64.tar.zst` or `ollama-linux-arm64.tar.zst` of `ollama_version`, for "
        "the box's processor, on a Mac `ollama-darwin.tgz`. Unset it is the published one, of a version that is known "
        "here.",
        examples=[{"sha256": "15c5f8d66ba06e0d3b4719df8868612dbd66e14e82760929bb3552e1657cdcdb", "size": 1198635318}],
    )
    profile: Literal["default", "gateway"] = Field(
        "default",
        description="Values of the tuning variables below that are not set. `default`: as the models say, else "
        "Ollama's own. `gateway`: one model for many clients, in memory for ever, with ten requests at a time.",
    )
    keep_alive: int | None = Field(
        None, ge=-1, le=31536000, description="Seconds that a model stays in memory after a request; -1 for ever."
    )
    parallel: int | None = Field(
        None, ge=1, le=256, description="Requests that each model serves at the same time, with a context each."
    )
    queue: int | None = Field(
        None, ge=1, le=100000, description="Requests that may wait until a model is loaded; more are refused with 503."
    )
    loaded_models: int | None = Field(None, ge=1, le=100, description="Models that may be in memory at the same time.")
    context: int | None = Field(
        None, ge=256, le=10485760, description="Tokens of one request, for models that do not say it themselves."
    )
    threads: int | None = Field(
        None,
        ge=1,
        le=1024,
        description="Threads of each model that computes on the processor. Unset it is one for each core; fewer are "
        "faster where other programs need the cores.",
    )
    flash_attention: bool | None = Field(
        None, description="Compute attention in the way that needs less memory; other values of the cache need it."
    )
    kv_cache: Literal["f16", "q8_0", "q4_0"] | None = Field(
        None, description="How exactly keys and values of the context are kept: q8_0 takes half of the memory of f16."
    )
    origins: tuple[Origin, ...] = Field(
        (),
        description="Origins of web pages that Ollama itself answers, beside pages of the box. Pages that come by the "
        "gateway are governed by `gateway_cors_origins` alone.",
    )
    graphics: Graphics = On(
        "linux",
        "none",
        description="Graphics cards that the service may use. Their driver must be installed. A Mac's are used without "
        "it.",
    )
    update: str = Field(
        "",
        pattern=r"^(((Mon|Tue|Wed|Thu|Fri|Sat|Sun) )?([01][0-9]|2[0-3]):[0-5][0-9])?$",
        description="When models of a registry (`ollama:`) are fetched anew, each day or once a week, in the box's "
        "time. Empty: never. A newer model gets its name when it has answered a question.",
        examples=["04:00", "Sun 04:00"],
    )
    environment: dict[EnvironmentName, EnvironmentValue] = Field(
        {},
        description="Further environment variables of Ollama, handed on as they are.",
        examples=[{"OLLAMA_SCHED_SPREAD": "1"}],
    )

    @property
    def on_graphics(self) -> bool:
        """Whether it computes on graphics cards."""
        return self.graphics != "none"

    @property
    def paths(self) -> tuple[str, ...]:
        """What version 0.24 has of the OpenAI API and of Anthropic's. What loads, removes or shows models stays
        inside.
        """
        return (
            "/v1/models",
            "/v1/models/*",
            "/v1/chat/completions",
            "/v1/completions",
            "/v1/embeddings",
            "/v1/responses",
            "/v1/messages",
        )

    @property
    def health_path(self) -> str:
        """Answers as soon as the server does."""
        return "/api/version"

    @property
    def health_body(self) -> str:
        """The version, as JSON."""
        return "version"

    def watched_question(self, server: Server) -> Mapping[str, Any]:
        """By its own API: /v1 has no word for the context with which the model is in memory (docs/api.md of 0.24)."""
        name = self.listed(server.model.name)
        asked: dict[str, tuple[str, dict[str, Any]]] = {
            "chat": (
                "/api/chat",
                {"messages": [{"role": "user", "content": "Hi"}], "stream": False, "options": {"num_predict": 1}},
            ),
            "embedding": ("/api/embed", {"input": "Hi", "options": {}}),
        }
        path, body = asked[server.model.kind]
        return {
            "url": f"{self.base_url}{path}",
            "body": {"model": name, **body},
            "loaded": {"url": f"{self.base_url}/api/ps", "name": name},
        }

    def listed(self, name: str) -> str:
        """Ollama adds the tag."""
        return name if ":" in name else f"{name}:latest"

    def archive_for(self, system: System, architecture: str) -> Archive:
        """The archive for a machine, in the words of its kernel (x86_64, aarch64). KeyError when none is known."""
        if system == "darwin":
            return self.archive or RELEASES_FOR_MACS[self.version]
        return self.archive or RELEASES[self.version][architecture]

    def problems(self, box: Any) -> Iterable[Problem]:
        """What Ollama cannot serve, and a version whose archive nobody has named."""
        if not box.inference.runs("ollama"):
            return
        if self.archive is None and self.version not in (RELEASES_FOR_MACS if box.system == "darwin" else RELEASES):
            yield Problem(
                code="BW022",
                variable="ollama_version",
                message=f"the archive of Ollama {self.version} is not known here",
                help="name its `sha256` and `size` in `ollama_archive`, from the sha256sum.txt of the release",
            )
        for name in sorted(set(self.environment) & set(RESERVED)):
            yield Problem(
                code="BW022",
                variable="ollama_environment",
                message=f"`ollama_environment` sets {name}, which boxwright sets itself",
                help="take it out; docs/roles/ollama.md names the variable for it, where there is one",
            )
        models = box.inference.models_of("ollama")
        for model in models:
            yield from gguf_problems(model, "Ollama")
            if model.name.count(":") > 1:
                yield cannot(
                    f"`{model.name}` cannot be the name of a model of Ollama",
                    "use at most one colon, before the tag",
                )
        yield from _one_file_twice(models)
        if self.keep_alive is None and self.profile == "default" and len({model.keep_alive for model in models}) > 1:
            yield cannot(
                "Ollama keeps all its models in memory for the same time, and they have different values of keep_alive",
                "give them the same one, or set `ollama_keep_alive`",
            )


def _one_file_twice(models: tuple[Model, ...]) -> Iterable[Problem]:
    """Models of the same file that are loaded in different ways.

    Ollama's scheduler finds what is in memory by the path of the file (server/sched.go of 0.24): each question to one
    of them would unload the other, and load the file anew.
    """
    first: dict[str, Model] = {}
    for model in models:
        source = model.sha256 or model.location or model.ollama
        other = first.setdefault(source, model)
        if (model.context, model.gpu_layers) != (other.context, other.gpu_layers):
            yield cannot(
                f"`{other.name}` and `{model.name}` are the same file, which Ollama has in memory only once: each "
                "question to one of them would unload the other",
                "give both the same `context` and `gpu_layers`",
            )
