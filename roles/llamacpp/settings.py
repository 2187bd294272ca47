"""Variables of the llamacpp role."""

from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import Field

from boxwright.artifacts import Requirements
from boxwright.engines import EngineSettings, Server, gguf_problems, hidden_problems, lasting_problems, several_problems
from boxwright.errors import Problem
from boxwright.graphics import Graphics
from boxwright.settings import On, Port


class LlamacppSettings(EngineSettings, prefix="llamacpp"):
    """The llama.cpp server: a GGUF model behind an OpenAI-compatible API on loopback, and one for embeddings."""

    port: Port = Field(8081, description="TCP port on loopback where the chat model's server listens.")
    embedding_port: Port = Field(
        8082, description="TCP port on loopback where the embedding model's server listens, when one is declared."
    )

    requirements: Requirements = Field(
        "",
        description="Text of a requirements file with hashes to install in place of the wheel that is known here: "
        "another version of xllamacpp, or one made for graphics cards. Versions 2026.9 and 2026.10 were tried.",
        examples=[f"xllamacpp==2026.10.11549 --hash=sha256:{'0' * 64}\n"],
    )
    index: str = Field(
        "",
        pattern=r"^(https?://[^\s@]+)?$",
        description="Package index from which `llamacpp_requirements` come. Empty: the one that the box is configured "
        "for, or `mirror_url`.",
        examples=["https://xorbitsai.github.io/xllamacpp/whl/cu128"],
    )
    graphics: Graphics = On(
        "linux",
        "none",
        description="Graphics cards that the service may use. Their driver must be installed, and "
        "`llamacpp_requirements` must name a wheel that was made for them. A Mac's are used without it.",
    )

    @property
    def on_graphics(self) -> bool:
        """Whether it computes on graphics cards."""
        return self.graphics != "none"

    def ports(self, box: Any) -> Mapping[str, int]:
        """One for each model."""
        fields = {"chat": "port", "embedding": "embedding_port"}
        return {fields[server.model.kind]: server.port for server in self.servers(box)}

    def servers(self, box: Any) -> tuple[Server, ...]:
        """One for each model."""
        ports = {"chat": ("llamacpp", self.port), "embedding": ("llamacpp-embedding", self.embedding_port)}
        return tuple(Server(*ports[model.kind], model) for model in box.inference.models_of("llamacpp"))

    def elsewhere(self, box: Any) -> Mapping[str, int]:
        """Embeddings come from a server of their own, when there is a model for them."""
        return {"/v1/embeddings": self.embedding_port} if "embedding_port" in self.ports(box) else {}

    def problems(self, box: Any) -> Iterable[Problem]:
        """A server of llama.cpp has one model; a second server has the one for embeddings."""
        models = box.inference.models_of("llamacpp")
        if models and self.on_graphics and not self.requirements:
            yield Problem(
                code="BW022",
                variable="llamacpp_graphics",
                message="`llamacpp_graphics` is set, and the wheel that is known here computes on the processor alone",
                help="name a wheel for the card in `llamacpp_requirements`; docs/engines/llamacpp.md tells which",
            )
        for kind in ("chat", "embedding"):
            yield from several_problems([model for model in models if model.kind == kind], "llama.cpp", kind)
        for model in models:
            yield from gguf_problems(model, "llama.cpp")
            if box.system == "darwin":
                yield from hidden_problems(model, box.system, box.inference.agent_user)
            yield from lasting_problems(model, "llama.cpp")
