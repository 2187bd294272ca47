"""Ollama for the lab's mirror: the real program, compiled from its Go module, packed as its publisher packs it.

The publisher's archive (1.2 GB, most of it for graphics cards) is in no package registry, so the mirror's copy is
built: the folders of ollama-go pin the modules, and three headers that a Go module cannot carry come from Debian and
PyPI. It computes on the processor alone. A C++ compiler takes part, so the bytes differ between machines; whoever uses
the archive is told its checksum, which is not the published one.
"""

from __future__ import annotations

import hashlib
import re
import shutil
import sys
import tarfile
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from boxwright import caddy_build
from boxwright.artifacts import Download
from boxwright.caddy_build import builder
from boxwright.errors import Failed, Problem, Refused
from boxwright.lab import machine, wheels
from boxwright.lab.locks import locked
from boxwright.lab.progress import Progress
from boxwright.paths import cache_dir, state_dir

#: go.mod and go.sum of each version that can be built. From 0.30.0 on the module has no inference of its own.
SOURCES = Path(__file__).parent / "ollama-go"
#: What a box gets whose variables name no version, and the one before it.
VERSION, EARLIER = "0.24.0", "0.23.2"
MODULE = "github.com/ollama/ollama"
LICENCE = "MIT"
#: Compiler and headers; Ollama's own copies of them are in folders that Go leaves out of modules.
PACKAGES = ("g++", "nlohmann-json3-dev", "libstb-dev")
#: What packs it; nothing of it is in the program.
PACKER = ("zstd",)
#: A source package that holds miniaudio/miniaudio.h.
HEADER = "miniaudio==1.71 --hash=sha256:ff51e2887bb673e2e757752b586b3dc924d59aa5fbcae9bbc45f4a111bd3262b"
HEADER_MEMBER = "miniaudio/miniaudio.h"
#: Bytes that a build writes: toolchain, modules and compiled packages, with a margin.
SPACE = 4_000_000_000


def versions() -> tuple[str, ...]:
    """The versions that can be built."""
    return tuple(sorted(path.name for path in SOURCES.iterdir() if (path / "go.mod").is_file()))


def url(version: str, architecture: str) -> str:
    """Where the publisher has the archive of `version` ("0.24.0") for `architecture` (amd64, arm64)."""
    return f"https://{MODULE}/releases/download/v{version}/ollama-linux-{architecture}.tar.zst"


def processor_flags() -> tuple[str, ...]:
    """The compiler's options for this machine's processor: ten times faster than what every x86_64 has.

    The publisher's archive holds a library for each kind of processor, of which Ollama chooses one at its start; this
    build has one.
    """
    path = Path("/proc/cpuinfo")
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    return ("-march=x86-64-v3",) if re.search(r"^flags\s*:.* avx2\b", text, re.MULTILINE) else ()


def environment(folder: Path, headers: Path, modules: Mapping[str, str]) -> dict[str, str]:
    """Go's environment in the work folder `folder`; the folder `headers` holds miniaudio/miniaudio.h."""
    flags = " ".join(["-O2", *processor_flags(), f"-I{headers}", "-I/usr/include/stb"])
    return {
        **builder.go_environment(caddy_build.own_architecture(), folder, modules),
        "CGO_ENABLED": "1",
        "CGO_CFLAGS": flags,
        "CGO_CXXFLAGS": flags,
    }


def build_command(go: str, version: str, made: Path) -> list[str]:
    """Go's command that compiles `version` into the file `made`; without the flag it would call itself 0.0.0."""
    flags = f"-ldflags=-s -w -buildid= -X={MODULE}/version.Version={version}"
    return [go, "build", "-C", str(SOURCES / version), "-trimpath", "-buildvcs=false", flags, "-o", str(made), MODULE]


def digest(version: str) -> str:
    """16 hexadecimal digits that change when anything changes that the program is made from on a machine like this."""
    parts = [caddy_build.GO_VERSION, caddy_build.own_architecture(), HEADER, *PACKAGES]
    parts += [hashlib.sha256((SOURCES / version / name).read_bytes()).hexdigest() for name in ("go.mod", "go.sum")]
    # Where this checkout lies is not part of it: -trimpath leaves paths out of the program.
    command = build_command("go", version, Path("made"))
    parts += [word for word in command if word != str(SOURCES / version)]
    parts += sorted(environment(Path("/w"), Path("/h"), {}).values())
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]


def home() -> Path:
    """The folder of everything here, below the user's cache."""
    return cache_dir() / "ollama"


def archive(version: str) -> Path:
    """Where the archive of `version` lies once it is built; says nothing about whether it is there."""
    return home() / digest(version) / f"ollama-{version}.tar.zst"


def build(version: str, progress: Progress) -> Path:
    """Make the archive of `version` unless it is there; its path. Builds at once wait for each other.

    Raises Refused (BW301, BW302, BW305 on a machine that cannot, BW308 for another version) and Failed (BW307). An
    interrupted build goes on from what it had compiled.
    """
    if version not in versions():
        raise Refused(
            Problem(
                "BW308",
                f"the lab cannot make Ollama {version}",
                help=f"`ollama_version` can be {' or '.join(versions())} on a lab box",
            )
        )
    place = archive(version)
    if not place.exists():
        with locked(home() / "lock"):
            if not place.exists():
                _build(version, place, progress)
    return place


def _build(version: str, place: Path, progress: Progress) -> None:
    work = home() / "work"
    machine.require_disk(work, SPACE, why=f"build Ollama {version}")
    log = state_dir() / "log"
    with progress.step("Ollama's headers", "installing", quiet=True) as step:
        if machine.install_packages((*PACKAGES, *PACKER), why="build Ollama", log=log / "ollama-packages.log"):
            step.say("installed")
    work.mkdir(parents=True, exist_ok=True)
    with progress.step(f"Ollama {version}", "compiling, which takes minutes") as step:
        with tempfile.TemporaryDirectory(prefix="tmp-", dir=work, ignore_cleanup_errors=True) as temporary:
            tree = Path(temporary) / "tree"
            (tree / "bin").mkdir(parents=True)
            made = tree / "bin" / "ollama"
            headers = _headers(work, Path(temporary))
            go = builder.toolchain(work, Path(temporary))
            settings = {**environment(work, headers, builder.modules_of_user()), "GOTMPDIR": temporary}
            command = build_command(go, version, made)
            machine.run(command, what=f"compiling Ollama {version}", log=log / "ollama-build.log", environment=settings)
            packed = Path(temporary) / "packed"
            machine.run(pack_command(tree, packed), what=f"packing Ollama {version}", log=log / "ollama-pack.log")
            packed.chmod(0o644)
            place.parent.mkdir(parents=True, exist_ok=True)
            packed.replace(place)
        shutil.rmtree(work, ignore_errors=True)
        step.result = f"{place.stat().st_size / 1e6:.0f} MB"


def pack_command(tree: Path, packed: Path) -> list[str]:
    """tar's command that packs the folder `tree` as the publisher does; equal trees give equal files."""
    tar = ["tar", "--create", "--zstd", "--sort=name", "--mtime=@0", "--owner=0", "--group=0", "--numeric-owner"]
    return [*tar, "--mode=u+rwX,go+rX,go-w", f"--file={packed}", f"--directory={tree}", "--", "bin"]


def _headers(work: Path, temporary: Path) -> Path:
    """A folder with the one header that Debian 12 has no package for, from its source package.

    Its path is the same for each build: Go keeps what it compiled by the compiler's options.
    """
    place = work / "headers"
    if place.exists():  # it appears complete
        return place
    wanted, target, unpacked = temporary / "header.txt", temporary / "source", temporary / "headers"
    wanted.write_text(HEADER + "\n", encoding="utf-8")
    target.mkdir()
    machine.run(
        [
            *(sys.executable, "-m", "pip", "download", "--quiet", "--dest", str(target), "--no-deps"),
            *("--no-binary", ":all:", "--require-hashes", "--requirement", str(wanted)),
        ],
        what="downloading miniaudio's source",
        log=state_dir() / "log" / "pip-download-miniaudio.log",
        environment=wheels.PIP,
    )
    with tarfile.open(next(target.glob("*.tar.gz"))) as source:
        for member in source.getmembers():
            if member.name.partition("/")[2] == HEADER_MEMBER and (handle := source.extractfile(member)) is not None:
                path = unpacked / HEADER_MEMBER
                path.parent.mkdir(parents=True)
                path.write_bytes(handle.read())
                unpacked.replace(place)
                return place
    raise Failed(Problem("BW307", f"the source package {HEADER.split()[0]} has no {HEADER_MEMBER}"))


def fill(root: Path, version: str, progress: Progress) -> Download:
    """Make the mirror's folder `root` hold the archive of `version`, at the publisher's address; what it is."""
    built = build(version, progress)
    published = url(version, machine.architecture())
    target = wheels.mirrored(published, root)
    with locked(home() / "place.lock"):
        if not target.exists() or not target.samefile(built):
            wheels.place(built, [target])
    return Download(
        name=f"Ollama {version}",
        url=published,
        sha256=wheels.sha256_of(built),
        size=built.stat().st_size,
        licence=LICENCE,
    )


def variables(root: Path, given: Mapping[str, Any], progress: Progress) -> dict[str, Any]:
    """Fill the mirror for a box with the variables `given`; the variables that say what its Ollama is."""
    version = str(given.get("ollama_version", VERSION))
    made = fill(root, version, progress)
    return {"ollama_version": version, "ollama_archive": {"sha256": made.sha256, "size": made.size}}
