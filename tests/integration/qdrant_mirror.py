"""Puts the double of Qdrant into the lab's mirror, under the publisher's address."""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import yaml

from boxwright.lab.mirror import mirror_dir
from boxwright.lab.wheels import mirrored, place
from tests.doubles.qdrant import archive


def in_mirror(architecture: str = "x86_64", python: str = "") -> dict[str, Any]:
    """The variables with which a box takes the double; `python` runs it there, see `archive.make`."""
    made = archive.make(python=python)
    mirror_dir().mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(dir=mirror_dir()))
    try:
        file = folder / "archive"
        file.write_bytes(made.data)
        file.chmod(0o644)
        place(file, [mirrored(made.url(architecture), mirror_dir() / "files")])
    finally:
        shutil.rmtree(folder)
    return made.variables


def main(inventory: Path) -> None:
    """For molecule: the boxes of a lab's inventory get the double's version."""
    groups = yaml.safe_load(inventory.read_text(encoding="utf-8"))
    for variables in groups["all"]["children"]["lab"]["hosts"].values():
        variables.update(in_mirror())
    inventory.write_text(yaml.safe_dump(groups, sort_keys=False), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
