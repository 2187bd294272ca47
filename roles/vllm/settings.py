"""Variables of the vllm role."""

import re
from collections.abc import Iterable
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from boxwright.artifacts import Requirements
from boxwright.describe import Words
from boxwright.engines import EngineSettings, folder_problems, several_problems
from boxwright.errors import Problem
from boxwright.settings import Generated, Port, Secret

# What the role decides itself, or what would open a door beside the gateway's.
OWN = (
    *("--host", "--port", "--uds", "--fd", "--api-key", "--served-model-name", "--model", "--config", "--ssl-keyfile"),
    *("--max-model-len", "--max-num-seqs", "--gpu-memory-utilization", "--tensor-parallel-size", "--runner"),
    *("--disable-fastapi-docs", "--allowed-media-domains", "--allowed-local-media-path", "--middleware", "--root-path"),
)


def _plain(key: Secret) -> Secret:
    """It stands in configuration files of the gateway and of systemd, each with rules of its own for special signs."""
    if not re.fullmatch(r"[A-Za-z0-9._~+/-]{20,}", key.get_secret_value()):
        raise ValueError("a secret text of at least 20 letters, digits or ._~+/-")
    return key


Key = Annotated[Secret, AfterValidator(_plain), Words("a secret text of at least 20 letters, digits or ._~+/-")]
Argument = Annotated[str, Field(pattern=r"^[^\s\x00-\x1f]+$"), Words("a word without spaces")]


class VllmSettings(EngineSettings, prefix="vllm", systems={"linux"}):
    """vLLM: one model in the form of a folder behind an OpenAI-compatible API on loopback."""

    port: Port = Field(8000, description="TCP port on loopback where the server listens.")
    requirements: Requirements = Field(
        "",
        description="Text of the requirements file with hashes that vLLM is installed from, made for the graphics card "
        "of the machine by `uv pip compile --generate-hashes`.",
        examples=[f"vllm==0.33.0 --hash=sha256:{'0' * 64}\n"],
    )
    device: Literal["cuda", "rocm", "cpu"] = Field("cuda", description="What it computes on.")
    gpu_memory: float = Field(
        0.9, gt=0, le=1, description="Part of each graphics card's memory that it takes at its start."
    )
    tensor_parallel: int = Field(1, ge=1, le=64, description="Graphics cards that share the model.")
    arguments: tuple[Argument, ...] = Field(
        (),
        description="Further arguments of `vllm serve`, one word each.",
        examples=[["--enable-prefix-caching", "--kv-cache-dtype=fp8"]],
    )
    api_key: Key = Generated(bytes=32, description="Key that the gateway presents to vLLM; no client has it.")

    @property
    def on_graphics(self) -> bool:
        """Whether it computes on graphics cards."""
        return self.device != "cpu"

    @property
    def exposure(self) -> float:
        """It compiles while it runs, on whatever it computes."""
        return 2.5

    @property
    def key(self) -> Secret:
        """Without it /v1 would be open to every account of the box."""
        return self.api_key

    @property
    def version(self) -> str:
        """The version that the requirements name; empty when they name none."""
        found = re.search(r"^vllm(?:\[[^]]*\])?==([^\s;\\]+)", self.requirements, re.MULTILINE)
        return found[1] if found else ""

    def problems(self, box: Any) -> Iterable[Problem]:
        """One model in a folder, a version to install, and no argument that takes the role's decisions back."""
        if not box.inference.runs("vllm"):
            return
        models = box.inference.models_of("vllm")
        yield from several_problems(models, "vLLM")
        for model in models:
            yield from folder_problems(model, "vLLM", box.system)
        if not self.version:
            yield Problem(
                code="BW022",
                variable="vllm_requirements",
                message="vLLM is declared, and `vllm_requirements` does not say which one to install",
                help="docs/engines/vllm.md tells how to make the file",
            )
        for argument in self.arguments:
            # argparse, which reads them, also takes the beginning of a name for the name, and _ for -.
            name = argument.partition("=")[0].replace("_", "-")
            taken = [own for own in OWN if len(name) > 2 and own.startswith(name)]
            if name.startswith("--") and taken:
                yield Problem(
                    code="BW022",
                    variable="vllm_arguments",
                    message=f"`{argument}` in `vllm_arguments` is decided by boxwright ({taken[0]})",
                    help="remove it; docs/engines/vllm.md names the variable for it, where there is one",
                )
