"""A model as an inventory declares it: where it comes from, what is fetched for it, and how it is served."""

from collections.abc import Iterator
from hashlib import sha256
from pathlib import PurePosixPath
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from boxwright.artifacts import Download
from boxwright.describe import Words
from boxwright.settings import ByteSize, Sha256

Engine = Literal["llamacpp", "ollama", "lmstudio", "mlx", "vllm"]
# Where the models' files lie on a box, whatever engine reads them.
MODELS = "/var/lib/boxwright/models"
HUB = "https://huggingface.co"

ModelName = Annotated[
    str,
    Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._:-]{0,126}$"),
    Words("a name of letters, digits, dots, colons, dashes and underscores"),
]
FileName = Annotated[
    str,
    Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9._-]*(/[A-Za-z0-9_][A-Za-z0-9._-]*)*$"),
    Words("the path of a file in the repository, such as model.gguf"),
]


class ModelFile(BaseModel):
    """One file of a model that is a folder."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: FileName = Field(description="Path of the file in the repository.")
    sha256: Sha256 = Field(description="SHA-256 of the file.")
    size: ByteSize = Field(description="Exact size of the file in bytes.")


class Model(BaseModel):
    """A model: its public name, where it comes from, and how it is served."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: ModelName = Field(description="Public name: what clients ask for.")
    engine: Engine | None = Field(
        None, description="Engine that serves it. Unset it is `inference_engine`; another one runs beside that."
    )
    kind: Literal["chat", "embedding"] = Field("chat", description="What it is for.")

    # Where it comes from: exactly one of these.
    url: str = Field(
        "",
        pattern=r"^(https?://[^/\s?#]+/[^\s?#]+\.gguf)?$",
        description="Address of a GGUF file. Needs sha256 and size.",
    )
    hub: str = Field(
        "",
        pattern=r"^([A-Za-z0-9_.-]+/[A-Za-z0-9_.-]+)?$",
        description="Repository of Hugging Face. Needs `file` with sha256 and size, or `files`.",
    )
    path: str = Field(
        "",
        pattern=r"^(/[^\s:]+[^\s:/])?$",
        description="File or folder that is on the box already. boxwright never writes there.",
    )

    ollama: str = Field(
        "",
        pattern=r"^([A-Za-z0-9][A-Za-z0-9._:/-]*)?$",
        description="Name in a registry of Ollama, such as smollm2:135m. Of the engine `ollama` alone, which pulls it.",
    )

    revision: str = Field(
        "main",
        pattern=r"^[A-Za-z0-9._-]+$",
        description="Of `hub`: commit, tag or branch. A commit never changes.",
    )
    file: FileName | Literal[""] = Field("", description="Of `hub`: the GGUF file.")
    files: tuple[ModelFile, ...] = Field((), description="Of `hub`: the files of a model that is a folder.")
    sha256: Sha256 | None = Field(None, description="SHA-256 of the file; it is used only when this matches.")
    size: ByteSize | None = Field(
        None, description="Exact size of the file in bytes; compared with memory and disk before it is downloaded."
    )

    # How it is served.
    context: int = Field(4096, ge=256, le=10485760, description="Context length of one request, in tokens.")
    parallel: int = Field(
        2, ge=1, le=256, description="Requests served at the same time; each has a context of its own."
    )
    gpu_layers: int | Literal["all"] = Field(
        "all", description="Layers put on the graphics card, where there is one; 0 keeps the model on the processor."
    )
    keep_alive: int = Field(
        -1, ge=-1, le=31536000, description="Seconds it stays in memory after a request; -1 for ever."
    )
    preload: bool = Field(True, description="Load it when the engine starts, not at the first request.")

    @property
    def file_url(self) -> str:
        """Address of the one file; empty when it is none, or none that is fetched."""
        if self.url:
            return self.url
        return f"{HUB}/{self.hub}/resolve/{self.revision}/{self.file}" if self.hub and self.file else ""

    @property
    def location(self) -> str:
        """The file or folder on the box; empty when the engine itself fetches it. It begins with a digest, so that two
        models never share a file.
        """
        if self.path:
            return self.path
        if self.files:
            digests = "".join(f"{file.name} {file.sha256}\n" for file in self.files)
            return f"{MODELS}/{sha256(digests.encode()).hexdigest()[:12]}-{self.hub.rpartition('/')[2]}"
        return f"{MODELS}/{(self.sha256 or '')[:12]}-{PurePosixPath(self.file_url).name}" if self.file_url else ""

    @property
    def downloads(self) -> tuple[tuple[str, Download], ...]:
        """What is fetched: the path on the box, and the file."""
        if self.files:
            return tuple(
                (
                    f"{self.location}/{file.name}",
                    Download(
                        name=f"{file.name} of {self.name}",
                        url=f"{HUB}/{self.hub}/resolve/{self.revision}/{file.name}",
                        sha256=file.sha256,
                        size=file.size,
                    ),
                )
                for file in self.files
            )
        if not self.file_url or self.sha256 is None or self.size is None:
            return ()
        return ((self.location, Download(name="model", url=self.file_url, sha256=self.sha256, size=self.size)),)

    @property
    def bytes(self) -> int:
        """Size of all its files as far as it is known; 0 when it is not."""
        return sum(int(file.size) for file in self.files) if self.files else int(self.size or 0)

    @property
    def is_gguf(self) -> bool:
        """Whether it is a GGUF file."""
        return self.location.endswith(".gguf")

    def faults(self) -> Iterator[str]:
        """What is wrong with how its source is written."""
        named = [key for key in ("url", "hub", "path", "ollama") if getattr(self, key)]
        if len(named) != 1:
            sources = "exactly one of url, hub, path and ollama"
            yield f"names {' and '.join(named) if named else 'no source'}, and needs {sources}"
            return
        if "//" in self.ollama or self.ollama.count("/") > 2:
            yield "has an `ollama` that is not a name such as smollm2:135m or registry.example/library/smollm2:135m"
        if self.hub and bool(self.file) == bool(self.files):
            yield "has a `hub`, and needs exactly one of `file` and `files`"
        if not self.hub and (self.file or self.files):
            yield "has `file` or `files` without `hub`"
        if self.file_url and (self.sha256 is None or self.size is None):
            yield "is downloaded, and needs `sha256` and `size`"
        if len({file.name for file in self.files}) < len(self.files):
            yield "has a file twice in `files`"
