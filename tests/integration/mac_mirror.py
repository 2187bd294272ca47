"""What publishers have for a Mac, in the lab's mirror: for the double, whose programs are Linux's."""

from __future__ import annotations

import gzip
import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path
from typing import Any

from kit import mirror_lock
from lmstudio_mirror import version_of

from boxwright.artifacts import pinned
from boxwright.lab import engine, mirror, needed, ollama, wheels
from boxwright.lab.progress import Progress
from tests.doubles.lmstudio import bundle

FILES = mirror.mirror_dir() / "files"
PYTHON = "/opt/homebrew/opt/python@3.13/bin/python3.13"


def address(**variables: Any) -> str:
    """The address of the lab's mirror, which runs and has what a box with these variables fetches."""
    with mirror_lock(), Progress(plain=True) as progress:
        client = engine.ensure(progress)
        _, servers = mirror.prepare(client, progress, needed.wheels, needed.programs(variables))
    return servers.url


def archive_of_ollama() -> dict[str, Any]:
    """The variables of Ollama's archive for a Mac, which is put into the mirror: the lab's program."""
    with Progress(plain=True) as progress:
        built = ollama.build(ollama.VERSION, progress)
    url = ollama.url(ollama.VERSION, "amd64").replace("ollama-linux-amd64.tar.zst", "ollama-darwin.tgz")
    work = Path(tempfile.mkdtemp(dir=mirror.mirror_dir()))
    try:
        subprocess.run(["tar", "--zstd", "-xf", str(built), "-C", str(work)], check=True)
        packed = work / "ollama-darwin.tgz"
        # The same bytes each time: several sessions may have it in the mirror.
        with (
            packed.open("wb") as file,
            gzip.GzipFile(filename="", mode="wb", fileobj=file, compresslevel=1, mtime=0) as stream,
            tarfile.open(fileobj=stream, mode="w") as archive,
        ):
            archive.add(work / "bin" / "ollama", "ollama")
        packed.chmod(0o644)
        wheels.place(packed, [wheels.mirrored(url, FILES)])
        return {"ollama_archive": {"sha256": wheels.sha256_of(packed), "size": packed.stat().st_size}}
    finally:
        shutil.rmtree(work)


def bundle_of_lm_studio() -> dict[str, Any]:
    """The variables of LM Studio's double, which is put into the mirror as the publisher has it for a Mac."""
    wheel = next((FILES / "wheels").glob("xllamacpp-*linux*.whl"))
    version = version_of(wheel, 1)
    work = Path(tempfile.mkdtemp(dir=mirror.mirror_dir()))
    try:
        made = bundle.make(work, version, wheel, kind="darwin-arm64", python=PYTHON)
        made.path.chmod(0o644)
        wheels.place(made.path, [wheels.mirrored(made.url, FILES)])
        return {"lmstudio_version": version, "lmstudio_sha512": made.sha512, "lmstudio_size": made.size}
    finally:
        shutil.rmtree(work)


def packages_of_mlx() -> dict[str, Any]:
    """The variables of MLX's packages as Linux has them: those for Metal cannot run here."""
    packages = needed.requirements_of("mlx").read_text(encoding="utf-8")
    with Progress(plain=True) as progress:
        mirror.fill_wheels(progress, lambda: pinned(packages), what="wheels for MLX")
    return {"mlx_requirements": packages}
