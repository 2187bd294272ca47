"""Variables of the qdrant role."""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import Field

from boxwright.artifacts import Download
from boxwright.errors import Problem
from boxwright.settings import Generated, Port, RoleSettings, Secret, Sha256

PUBLISHED_AT = "https://github.com/qdrant/qdrant/releases/download"

# The publisher's static programs, by the processor in the kernel's words; `arm64` is a Mac's.
ARCHIVES: Mapping[str, str] = {
    "x86_64": "qdrant-x86_64-unknown-linux-musl.tar.gz",
    "aarch64": "qdrant-aarch64-unknown-linux-musl.tar.gz",
    "arm64": "qdrant-aarch64-apple-darwin.tar.gz",
}
# The publisher tells no checksums. These were noted from its files by others who do not know of each other: a recipe of
# Julia's BinaryBuilder, formulae for Homebrew, installers of applications. A wrong one makes the installation fail, and
# nothing else.
RELEASES: Mapping[str, Mapping[str, str]] = {
    "1.18.3": {
        "x86_64": "b4faedcdf8c9577bf1c8f2ab9b454636b87e056c116c99d49bd4f9fb2e634285",
        "aarch64": "1e738b45f90935c383b4076c30f377f390964cb5962b5bff24439812d157dc24",
        "arm64": "0cb040a261035c316779bd7b4cca2e6ab39faf62640d6918bbbe320e2a9a6547",
    }
}


class QdrantSettings(RoleSettings, prefix="qdrant"):
    """Qdrant on loopback, for services of the box that look up passages."""

    enabled: bool | None = Field(
        None, description="Run it. Unset it runs where a service of the box needs it (`api_retrieval_model`)."
    )
    port: Port = Field(6333, description="TCP port on loopback where it listens.")
    version: str = Field(
        "1.18.3",
        pattern=r"^\d+\.\d+\.\d+$",
        description="Version of Qdrant. Another one needs `qdrant_sha256`. An older one may not read what a newer one "
        "has written.",
    )
    sha256: Sha256 | None = Field(
        None,
        description="SHA-256 of the publisher's archive of `qdrant_version` for the box: "
        "`qdrant-x86_64-unknown-linux-musl.tar.gz` or `qdrant-aarch64-unknown-linux-musl.tar.gz`, on a Mac "
        "`qdrant-aarch64-apple-darwin.tar.gz`. Unset it is that of a version that is known here.",
    )
    api_key: Secret = Generated(bytes=32, description="Opens it, for services of the box. Made once.")

    @property
    def unit(self) -> str:
        """The name of its service, and of its account on Linux."""
        return "boxwright-qdrant"

    @property
    def digests(self) -> Mapping[str, str]:
        """SHA-256 of the archive, by processor. Raises KeyError for a version that `problems` refuses."""
        return dict.fromkeys(ARCHIVES, self.sha256) if self.sha256 else RELEASES[self.version]

    def download(self, architecture: str) -> Download:
        """The archive for a processor, in the kernel's words (`x86_64`, `aarch64`, on a Mac `arm64`)."""
        return Download(
            name=f"Qdrant {self.version}",
            url=f"{PUBLISHED_AT}/v{self.version}/{ARCHIVES[architecture]}",
            sha256=self.digests[architecture],
            size=0,
            licence="Apache-2.0",
        )

    def runs(self, box: Any) -> bool:
        """Whether it runs on the box."""
        return bool(box.api.retrieves) if self.enabled is None else self.enabled

    def switch(self, box: Any) -> str:
        """The variable that makes it run."""
        return ("qdrant_enabled" if self.enabled else "api_retrieval_model") if self.runs(box) else ""

    def problems(self, box: Any) -> Iterable[Problem]:
        """A version whose archive nobody has named, and a key that no header can carry."""
        if not self.runs(box):
            return
        if not self.sha256 and self.version not in RELEASES:
            yield Problem(
                code="BW022",
                variable="qdrant_version",
                message=f"the archive of Qdrant {self.version} is not known here (known: {', '.join(RELEASES)})",
                help="set `qdrant_sha256` to the SHA-256 of the archive for the box's processor",
            )
        if not re.fullmatch(r"[A-Za-z0-9._~+/=-]{16,256}", self.api_key.get_secret_value()):
            yield Problem(
                code="BW022",
                variable="qdrant_api_key",
                message="`qdrant_api_key` is sent in a header, and is shorter than 16 characters or has others than "
                "letters, digits and `._~+/=-`",
                help="set another one, or remove it: then one is made",
            )
