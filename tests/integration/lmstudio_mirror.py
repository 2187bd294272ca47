"""Puts bundles of LM Studio's double into the lab's mirror, under the publisher's address.

The double is not the publisher's program. Its version numbers are made from its own content and belong to no published
version, so that nothing takes one for the other, and sessions with different doubles do not meet.
"""

from __future__ import annotations

import hashlib
import shutil
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from boxwright.lab.mirror import mirror_dir
from boxwright.lab.wheels import mirrored, place
from tests.doubles.lmstudio import bundle


@dataclass(frozen=True)
class Mirrored:
    """A version of the double that boxes can fetch."""

    version: str
    sha512: str
    size: int
    file: Path

    @property
    def variables(self) -> dict[str, Any]:
        """What a box must be told of it."""
        return {"lmstudio_version": self.version, "lmstudio_sha512": self.sha512, "lmstudio_size": self.size}


def version_of(wheel: Path, build: int) -> str:
    """The version that the double has with the build number `build` and llama.cpp from `wheel`."""
    content = hashlib.sha256(wheel.name.encode())
    for path in (Path(bundle.__file__), *sorted(bundle.PROGRAM.glob("*.py"))):
        content.update(path.read_bytes())
    return f"0.0.{int(content.hexdigest()[:6], 16)}-{build}"


def in_mirror(build: int) -> Mirrored:
    """The double with the build number `build`; the mirror must have been filled before."""
    files = mirror_dir() / "files"
    wheel = next((files / "wheels").glob("xllamacpp-*.whl"))
    version = version_of(wheel, build)
    folder = Path(tempfile.mkdtemp(dir=mirror_dir()))
    try:
        made = bundle.make(folder, version, wheel)
        made.path.chmod(0o644)
        target = mirrored(made.url, files)
        place(made.path, [target])
    finally:
        shutil.rmtree(folder)
    return Mirrored(version, made.sha512, made.size, target)


def main(inventory: Path) -> None:
    """For molecule: the boxes of a lab's inventory get the double's version."""
    groups = yaml.safe_load(inventory.read_text(encoding="utf-8"))
    for variables in groups["all"]["children"]["lab"]["hosts"].values():
        variables.update(in_mirror(1).variables)
    inventory.write_text(yaml.safe_dump(groups, sort_keys=False), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
