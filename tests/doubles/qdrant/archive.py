"""The double as its publisher packs it: `qdrant-<target>.tar.gz` with the program `qdrant`.

Its version is made from its own content and belongs to no published one, so that nothing takes one for the other, and
sessions with different doubles do not meet.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from roles.qdrant.settings import ARCHIVES, PUBLISHED_AT

PROGRAM = Path(__file__).parent / "qdrant.py"


@dataclass(frozen=True)
class Archive:
    """A version of the double."""

    version: str
    data: bytes

    def url(self, architecture: str) -> str:
        """Where it would be published, for a processor in the kernel's words."""
        return f"{PUBLISHED_AT}/v{self.version}/{ARCHIVES[architecture]}"

    @property
    def variables(self) -> dict[str, Any]:
        """What a box must be told of it."""
        return {"qdrant_version": self.version, "qdrant_sha256": hashlib.sha256(self.data).hexdigest()}


def make(build: int = 0, python: str = "") -> Archive:
    """The double, the same for every processor; another number is another version of the same.

    `python` is what runs it (a path, and options) where /usr/bin/python3 does not.
    """
    text = PROGRAM.read_bytes()
    if python:
        text = b"#!%s\n%s" % (python.encode(), text.split(b"\n", 1)[1])
    version = f"0.{build}.{int(hashlib.sha256(text).hexdigest()[:6], 16)}"
    text = text.replace(b'VERSION = "1.18.3"', f'VERSION = "{version}"'.encode())
    packed = io.BytesIO()
    with (
        gzip.GzipFile(fileobj=packed, mode="wb", mtime=0) as zipped,
        tarfile.open(fileobj=zipped, mode="w") as archive,
    ):
        member = tarfile.TarInfo("qdrant")
        member.size, member.mode = len(text), 0o755
        archive.addfile(member, io.BytesIO(text))
    return Archive(version, packed.getvalue())
