"""Variables of the lmstudio role."""

from collections.abc import Iterable
from typing import Annotated, Any, Literal

from pydantic import Field

from boxwright.artifacts import Download
from boxwright.describe import Words
from boxwright.engines import EngineSettings, gguf_problems, hidden_problems
from boxwright.errors import Problem
from boxwright.settings import ByteSize, On, Port, System

PUBLISHED_AT = "https://llmster.lmstudio.ai/download"

# SHA-512 and bytes of bundles. The publisher tells SHA-512 in a file beside each; these were noted from there by others
# on 2026-09-27 and not read there by us. A wrong one makes the installation fail, and nothing else.
BUNDLES = {
    ("0.0.25-1", "x64"): (
        "4d119af740379fc7509894d761a85183420a6dd3cb994596a1b6e4b37208a5d3"
        "e8cb94ffe583115b1473a6722bab5fffc09b90eb22c755f5dde1458774ab4951",
        1005168404,
    ),
    ("0.0.25-1", "x64+cuda12"): (
        "179e05cee62c1e1f61f1c6480179b1e21df63af64ffa3a949a94f026afc4552d"
        "7a36db7208345e65f21f040d864c1603bf6cd1c0292e4751d696bee5679db007",
        1105623572,
    ),
    ("0.0.25-1", "arm64"): (
        "9743cfce0fd1e2b76f4fcbef6fbe4ed68f4e953781c0eba5c5db33308209f007"
        "939f3f946995618f22f8c4bb977919408c23a5cbbb369f530e2c92738f6891bc",
        1257501655,
    ),
    ("0.0.25-1", "darwin-arm64"): (
        "edf1fb01f49b6ea101b3bd7027b4516eb73261d7b0df871c4286fac7011eb4f1"
        "2633f7f03c9c6a66322659231c248989b7d235528b41bd2f30d87ce085c13b32",
        615370329,
    ),
}

Sha512 = Annotated[str, Field(pattern=r"^([0-9a-f]{128})?$"), Words("128 hexadecimal digits in lower case")]


class LmstudioSettings(EngineSettings, prefix="lmstudio"):
    """LM Studio's headless server: GGUF models behind an OpenAI-compatible API on loopback."""

    port: Port = Field(1234, description="TCP port on loopback where the server listens.")
    version: str = Field(
        "0.0.25-1",
        pattern=r"^[0-9]+(\.[0-9]+)*-[0-9]+$",
        description="Version of the bundle, as its publisher names the file. Another one needs `lmstudio_sha512` and "
        "`lmstudio_size`.",
    )
    bundle: Literal["x64", "x64+cuda12", "arm64"] = On(
        "linux",
        "x64",
        description="Which bundle. `x64+cuda12` computes on a graphics card of NVIDIA with driver 550.54.14 or newer, "
        "the others on the processor. For a Mac there is one, which computes by Metal.",
    )
    sha512: Sha512 = Field("", description="SHA-512 of the bundle, as its publisher has it in `.sha512` beside it.")
    size: ByteSize | None = Field(None, description="Exact size of the bundle in bytes.")

    def download(self, system: System) -> Download:
        """The bundle for a box; raises KeyError for one that `problems` refuses."""
        sha512, size = self._digest(system)
        processor, plus, suffix = self._kind(system).partition("+")
        kernel = "" if system == "darwin" else "linux-"
        name = f"{self.version}-{kernel}{processor}.full{plus}{suffix}.tar.gz"
        return Download(
            name=f"LM Studio {self.version}",
            url=f"{PUBLISHED_AT}/{name}",
            sha512=sha512,
            size=size,
            licence="LicenseRef-LM-Studio-Terms",
        )

    def _kind(self, system: System) -> str:
        return "darwin-arm64" if system == "darwin" else self.bundle

    def _digest(self, system: System) -> tuple[str, int]:
        if self.sha512 and self.size is not None:
            return self.sha512, int(self.size)
        return BUNDLES[self.version, self._kind(system)]

    @property
    def on_graphics(self) -> bool:
        """Whether it computes on a graphics card."""
        return "cuda" in self.bundle

    @property
    def detached(self) -> bool:
        """Its daemon goes into the background."""
        return True

    @property
    def paths(self) -> tuple[str, ...]:
        """What others may call of it: not what loads and unloads models."""
        return ("/v1/models", "/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/responses")

    @property
    def health_path(self) -> str:
        """Unknown paths are answered with success too, so that the status says nothing."""
        return "/lmstudio-greeting"

    @property
    def health_body(self) -> str:
        """What tells the greeting from the answer to an unknown path."""
        return r".lmstudio.\s*:\s*true"

    def problems(self, box: Any) -> Iterable[Problem]:
        """What LM Studio cannot do with a model, and a bundle whose checksum nobody knows."""
        if not box.inference.runs("lmstudio"):
            return
        if bool(self.sha512) != (self.size is not None):
            yield self._problem("`lmstudio_sha512` and `lmstudio_size` belong together", "set both, or none")
        elif not self.sha512 and (self.version, self._kind(box.system)) not in BUNDLES:
            known = ", ".join(sorted({version for version, _ in BUNDLES}))
            yield self._problem(
                f"the checksum of version {self.version} is not known here (known: {known})",
                "set `lmstudio_sha512` and `lmstudio_size` to those of the bundle",
            )
        for model in box.inference.models_of("lmstudio"):
            yield from gguf_problems(model, "LM Studio")
            if box.system == "darwin":
                yield from hidden_problems(model, box.system)
            for what, help in _unable(model):
                yield Problem(
                    code="BW026", variable="inference_models", message=f"LM Studio: `{model.name}` {what}", help=help
                )

    def _problem(self, message: str, help: str) -> Problem:
        return Problem(code="BW022", variable="lmstudio_version", message=message, help=help)


def _unable(model: Any) -> Iterable[tuple[str, str]]:
    """What cannot be done with a model, and the way out."""
    if model.gpu_layers not in ("all", 0):
        yield (
            f"has `gpu_layers: {model.gpu_layers}`, and LM Studio takes a share of the model, not a number of layers",
            "write `all` or 0",
        )
    if model.keep_alive != -1 or not model.preload:
        yield (
            "is to be loaded when it is asked for, which LM Studio does under another name and with other settings",
            "leave out `keep_alive` and `preload`, or choose another engine",
        )
