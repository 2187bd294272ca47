"""Makes the double's bundle, as the publisher of LM Studio offers one for a version. See README.md beside this."""

from __future__ import annotations

import gzip
import hashlib
import io
import tarfile
from dataclasses import dataclass
from pathlib import Path

PROGRAM = Path(__file__).parent / "program"
PUBLISHED_AT = "https://llmster.lmstudio.ai/download"

# Both find the rest by where they lie; the home tells `lms` where that is.
_LLMSTER = """#!@PYTHON@
import os, runpy, sys
here = os.path.join(os.path.dirname(os.path.realpath(__file__)), ".bundle", "program")
sys.path.insert(0, here)
runpy.run_path(os.path.join(here, "llmster.py"), run_name="__main__")
"""
_LMS = """#!@PYTHON@
import json, os, runpy, sys
home = os.path.dirname(os.path.dirname(os.path.realpath(__file__)))
with open(os.path.join(home, ".internal", "llmster-install-location.json")) as place:
    here = os.path.join(json.load(place)["cwd"], ".bundle", "program")
sys.path.insert(0, here)
runpy.run_path(os.path.join(here, "lms.py"), run_name="__main__")
"""


@dataclass(frozen=True)
class Bundle:
    """A bundle in a file: where its publisher would have it, its SHA-512 and its size in bytes."""

    path: Path
    url: str
    sha512: str
    size: int


def name(version: str, variant: str = "", kind: str = "linux-x64") -> str:
    """What the publisher calls the file; `variant` is empty or `+cuda12`, `kind` for a Mac `darwin-arm64`."""
    return f"{version}-{kind}.full{variant}.tar.gz"


def make(
    folder: Path,
    version: str,
    wheel: Path,
    variant: str = "",
    kind: str = "linux-x64",
    python: str = "/usr/bin/env python3",
) -> Bundle:
    """The bundle of `version` in `folder`, with llama.cpp's server from `wheel`; the same bytes each time.

    `python` is what runs it on the box.
    """
    llmster, lms = (text.replace("@PYTHON@", python).encode() for text in (_LLMSTER, _LMS))
    engines = ["llama.cpp-linux-x86_64-avx2@2.31.2"]
    if variant:
        engines.append("llama.cpp-linux-x86_64-nvidia-cuda12-avx2@2.31.2")
    members = {
        "llmster": (llmster, 0o755),
        ".bundle/lms": (lms, 0o755),
        ".bundle/version": (f"{version}\n".encode(), 0o644),
        ".bundle/engines": ("\n".join(engines).encode(), 0o644),
        f".bundle/backends/{wheel.name}": (wheel.read_bytes(), 0o644),
    }
    for source in sorted(PROGRAM.glob("*.py")):
        members[f".bundle/program/{source.name}"] = (source.read_bytes(), 0o644)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name(version, variant, kind)
    with (
        path.open("wb") as file,
        gzip.GzipFile(filename="", mode="wb", fileobj=file, compresslevel=1, mtime=0) as packed,
        tarfile.open(fileobj=packed, mode="w") as archive,
    ):
        for member, (content, mode) in members.items():
            information = tarfile.TarInfo(member)
            information.size, information.mode = len(content), mode
            archive.addfile(information, io.BytesIO(content))
    digest = hashlib.sha512(path.read_bytes()).hexdigest()
    path.with_name(path.name.removesuffix(".tar.gz") + ".sha512").write_text(digest)
    return Bundle(path=path, url=f"{PUBLISHED_AT}/{path.name}", sha512=digest, size=path.stat().st_size)
