"""Variables of the mlx role."""

from collections.abc import Iterable
from typing import Any

from pydantic import Field

from boxwright.artifacts import Requirements
from boxwright.engines import EngineSettings, cannot, folder_problems, several_problems
from boxwright.errors import Problem
from boxwright.settings import ByteSize, Port


class MlxSettings(EngineSettings, prefix="mlx"):
    """MLX's server: one model in the form of a folder behind an OpenAI-compatible API on loopback."""

    port: Port = Field(8083, description="TCP port on loopback where the server listens.")
    max_tokens: int | None = Field(
        None,
        ge=1,
        description="Tokens of an answer when the request does not say; unset it is all that the context has left.",
    )
    cache: ByteSize = Field(
        ByteSize(1024**3),
        description="Memory for what was computed of earlier prompts, so that a conversation goes on quickly.",
    )
    requirements: Requirements = Field(
        "",
        description="Text of a requirements file with hashes to install in place of that of the role; the program "
        "is written for version 0.32.2 of mlx-lm.",
        examples=[f"mlx-lm==0.32.2 --hash=sha256:{'0' * 64}\n"],
    )

    @property
    def paths(self) -> tuple[str, ...]:
        """What it has of the OpenAI API."""
        return ("/v1/models", "/v1/models/*", "/v1/chat/completions", "/v1/completions")

    def problems(self, box: Any) -> Iterable[Problem]:
        """One chat model in a folder, which stays in memory."""
        models = box.inference.models_of("mlx")
        yield from several_problems(models, "MLX")
        for model in models:
            if model.kind != "chat":
                yield cannot(
                    f"MLX's server has no embeddings, and the model `{model.name}` is for them",
                    "give it another engine, for example `engine: llamacpp`",
                )
            yield from folder_problems(model, "MLX", box.system, box.inference.agent_user)
