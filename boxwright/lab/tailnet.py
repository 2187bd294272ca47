"""Tailscale and a control server for the lab: the real programs, compiled from their Go modules.

Tailscale's package repository and its control server cannot be reached from a lab. The folders of tailnet-go pin the
modules of Tailscale and of Headscale, a control server that anybody may run; both are built once and kept by what they
are made from.
"""

from __future__ import annotations

import gzip
import hashlib
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

from boxwright import caddy_build
from boxwright.caddy_build import builder
from boxwright.errors import Failed, Problem
from boxwright.lab import machine, wheels
from boxwright.lab.locks import locked
from boxwright.lab.progress import Progress
from boxwright.paths import cache_dir, state_dir

#: go.mod and go.sum of each program.
SOURCES = Path(__file__).parent / "tailnet-go"
#: Bytes that a build writes: toolchain, modules and compiled packages, with a margin.
SPACE = 4_000_000_000


@dataclass(frozen=True)
class Program:
    """What is built from the folder `name` of `SOURCES`: the Go packages `packages`, with the linker's `flags`.

    `taken` are files of the module `module` that are kept with the programs.
    """

    name: str
    module: str
    version: str
    packages: tuple[str, ...]
    flags: str = ""
    taken: tuple[str, ...] = ()
    settings: tuple[tuple[str, str], ...] = ()

    @property
    def files(self) -> tuple[str, ...]:
        """Names of the programs."""
        return tuple(package.rpartition("/")[2] for package in self.packages)


_STAMPS = ("longStamp", "shortStamp")
TAILSCALE = Program(
    name="tailscale",
    module="tailscale.com",
    version="1.98.1",
    packages=("tailscale.com/cmd/tailscale", "tailscale.com/cmd/tailscaled"),
    flags=" ".join(f"-X=tailscale.com/version.{stamp}=1.98.1" for stamp in _STAMPS),
    taken=(
        *("cmd/tailscaled/tailscaled.service", "cmd/tailscaled/tailscaled.defaults"),
        *(f"release/deb/debian.{script}.sh" for script in ("postinst", "prerm", "postrm")),
    ),
    # A module of that time expects a draft of what became part of Go 1.27; without it, it brings its own.
    settings=(("GOEXPERIMENT", "nojsonv2"),),
)
HEADSCALE = Program(
    name="headscale",
    module="github.com/juanfont/headscale",
    version="0.29.2",
    packages=("github.com/juanfont/headscale/cmd/headscale",),
)
#: The suites of the repository in the lab's mirror: those of the lab's boxes.
SUITES = ("bookworm", "trixie")
PUBLISHED = "https://pkgs.tailscale.com/stable/debian"


def environment(program: Program, folder: Path, modules: Mapping[str, str]) -> dict[str, str]:
    """Go's environment in the work folder `folder`."""
    return {**builder.go_environment(caddy_build.own_architecture(), folder, modules), **dict(program.settings)}


def build_command(go: str, program: Program, target: Path) -> list[str]:
    """Go's command that compiles `program` into the folder `target`."""
    flags = f"-ldflags=-s -w -buildid= {program.flags}".rstrip()
    folder = str(SOURCES / program.name)
    return [go, "build", "-C", folder, "-trimpath", "-buildvcs=false", flags, "-o", f"{target}/", *program.packages]


def digest(program: Program) -> str:
    """16 hexadecimal digits that change when anything changes that `program` is made from on a machine like this."""
    parts = [caddy_build.GO_VERSION, caddy_build.own_architecture(), *program.taken]
    parts += [hashlib.sha256((SOURCES / program.name / name).read_bytes()).hexdigest() for name in ("go.mod", "go.sum")]
    command = build_command("go", program, Path("made"))
    parts += [word for word in command if word != str(SOURCES / program.name)]
    parts += sorted(environment(program, Path("/w"), {}).values())
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]


def home() -> Path:
    """The folder of everything here, below the user's cache."""
    return cache_dir() / "tailnet"


def folder(program: Program) -> Path:
    """Where the programs lie once they are built; says nothing about whether they are there."""
    return home() / f"{program.name}-{program.version}-{digest(program)}"


def build(program: Program, progress: Progress) -> Path:
    """The folder with the programs of `program`, made unless it is there. Builds at once wait for each other.

    Raises Refused (BW305) for too little disk space and Failed (BW307, BW320). An interrupted build goes on from what
    it had compiled.
    """
    place = folder(program)
    if not place.exists():
        with locked(home() / "lock"):
            if not place.exists():
                _build(program, place, progress)
    return place


def _build(program: Program, place: Path, progress: Progress) -> None:
    work = home() / "work"
    machine.require_disk(work, SPACE, why=f"build {program.name} {program.version}")
    work.mkdir(parents=True, exist_ok=True)
    with progress.step(f"{program.name} {program.version}", "compiling, which takes minutes") as step:
        with tempfile.TemporaryDirectory(prefix="tmp-", dir=work, ignore_cleanup_errors=True) as temporary:
            made = Path(temporary) / "made"
            made.mkdir(mode=0o755)
            go = builder.toolchain(work, Path(temporary))
            settings = {**environment(program, work, builder.modules_of_user()), "GOTMPDIR": temporary}
            machine.run(
                build_command(go, program, made),
                what=f"compiling {program.name} {program.version}",
                log=state_dir() / "log" / f"{program.name}-build.log",
                environment=settings,
            )
            for file in program.files:
                (made / file).chmod(0o755)
            for file in program.taken:
                module = work / "modules" / f"{program.module}@v{program.version}"
                (made / Path(file).name).write_bytes((module / file).read_bytes())
            made.rename(place)
        step.result = f"{sum(file.stat().st_size for file in place.iterdir()) / 1e6:.0f} MB"
    if all(folder(other).exists() for other in (TAILSCALE, HEADSCALE)):
        shutil.rmtree(work, ignore_errors=True)


def control(architecture: str, kilobytes: int) -> str:
    """The control file of the package, with what the publisher's says that matters to apt."""
    return (
        f"Package: tailscale\nVersion: {TAILSCALE.version}\nArchitecture: {architecture}\n"
        f"Maintainer: Tailscale Inc <info@tailscale.com>\nInstalled-Size: {kilobytes}\nDepends: iptables\n"
        "Section: net\nPriority: extra\nDescription: The easiest, most secure, cross platform way to use WireGuard\n"
    )


def pack(built: Path, target: Path, architecture: str, log: Path) -> Path:
    """The Debian package of the programs in the folder `built`, below `target`, laid out as the publisher's."""
    tree = target / "tree"
    for place, name, mode in (
        ("usr/bin/tailscale", "tailscale", 0o755),
        ("usr/sbin/tailscaled", "tailscaled", 0o755),
        ("usr/lib/systemd/system/tailscaled.service", "tailscaled.service", 0o644),
        ("etc/default/tailscaled", "tailscaled.defaults", 0o644),
        ("DEBIAN/postinst", "debian.postinst.sh", 0o755),
        ("DEBIAN/prerm", "debian.prerm.sh", 0o755),
        ("DEBIAN/postrm", "debian.postrm.sh", 0o755),
    ):
        path = tree / place
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(built / name, path)
        path.chmod(mode)
    size = sum(path.stat().st_size for path in tree.rglob("*") if path.is_file())
    (tree / "DEBIAN/control").write_text(control(architecture, size // 1024), encoding="utf-8")
    (tree / "DEBIAN/conffiles").write_text("/etc/default/tailscaled\n", encoding="utf-8")
    for path in (tree, *tree.rglob("*")):
        if path.is_dir():
            path.chmod(0o755)
    made = target / f"tailscale_{TAILSCALE.version}_{architecture}.deb"
    command = ["dpkg-deb", "--root-owner-group", "-Zgzip", "-z1", "--build", str(tree), str(made)]
    machine.run(command, what="packing Tailscale", log=log)
    shutil.rmtree(tree)
    return made


class SigningKey:
    """The key of the lab's own package repositories, made once for each user of this machine and never handed out."""

    def __init__(self) -> None:
        self.home = cache_dir() / "lab" / "signing"

    @classmethod
    @contextmanager
    def alone(cls) -> Iterator[Self]:
        """The key, while no other process uses it; what gpg leaves running in the background is ended afterwards."""
        with locked(cache_dir() / "lab" / "signing.lock"):
            key = cls()
            try:
                yield key
            finally:
                command = ["gpgconf", "--homedir", str(key.home), "--kill", "all"]
                subprocess.run(command, capture_output=True, check=False)

    def gpg(self, *arguments: str, stdin: bytes = b"") -> bytes:
        """What gpg prints with this key's folder. Raises Failed (BW307)."""
        command = ["gpg", "--homedir", str(self.home), "--batch", "--pinentry-mode", "loopback", *arguments]
        done = subprocess.run(command, input=stdin, capture_output=True, check=False)
        if done.returncode:
            said = done.stderr.decode(errors="replace").strip()
            raise Failed(Problem("BW307", f"signing the lab's packages failed: {said}", help="`gpg` must work here"))
        return done.stdout

    def fingerprint(self) -> str:
        """The key's fingerprint; the key is made when it is not there."""
        self.home.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not (found := self._found()):
            who = "boxwright lab <lab@boxwright.invalid>"
            self.gpg("--passphrase", "", "--quick-generate-key", who, "rsa3072", "sign", "never")
            found = self._found()
        return found

    def _found(self) -> str:
        listed = self.gpg("--list-keys", "--with-colons").decode()
        return next((line.split(":")[9] for line in listed.splitlines() if line.startswith("fpr:")), "")


def release(suite: str, indexes: Mapping[str, bytes], architecture: str) -> bytes:
    """The Release file of `suite` with `indexes`, texts by their path below it."""
    lines = [f"Origin: Tailscale\nSuite: {suite}\nCodename: {suite}\nArchitectures: {architecture}\nComponents: main"]
    lines += [f"Date: {datetime.now(UTC):%a, %d %b %Y %H:%M:%S} UTC", "SHA256:"]
    lines += [f" {hashlib.sha256(text).hexdigest()} {len(text)} {name}" for name, text in indexes.items()]
    return ("\n".join(lines) + "\n").encode()


def fill(root: Path, progress: Progress) -> Mapping[str, Any]:
    """Make the mirror's folder `root` hold Tailscale's package repository; what a box must know of it.

    It is signed with the lab's own key, since only its publisher can sign with the other.
    """
    log = state_dir() / "log"
    built = build(TAILSCALE, progress)
    machine.install_packages(("gpg", "gpg-agent"), why="sign the lab's packages", log=log / "gpg-packages.log")
    with SigningKey.alone() as key:
        fingerprint = key.fingerprint()
        place = wheels.mirrored(PUBLISHED, root)
        note = place / ".made-from"
        wanted = f"{built.name} {fingerprint}\n"
        if not note.exists() or note.read_text(encoding="utf-8") != wanted:
            with progress.step("Tailscale's packages", "packing"):
                _publish(built, place, key, log / "tailscale-pack.log")
            note.write_text(wanted, encoding="utf-8")
    return {"mirror_key_fingerprint": fingerprint}


def _publish(built: Path, place: Path, key: SigningKey, log: Path) -> None:
    architecture = machine.architecture()
    place.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".new-", dir=place) as temporary:
        package = pack(built, Path(temporary), architecture, log)
        content = package.read_bytes()
        index = (
            f"{control(architecture, len(content) // 1024).rstrip()}\nFilename: pool/{package.name}\n"
            f"Size: {len(content)}\nSHA256: {hashlib.sha256(content).hexdigest()}\n"
        ).encode()
        wheels.place(package, [place / "pool" / package.name])
        for suite in SUITES:
            name = f"main/binary-{architecture}/Packages"
            indexes = {name: index, f"{name}.gz": gzip.compress(index, mtime=0)}
            text = release(suite, indexes, architecture)
            signed = key.gpg("--clearsign", "--output", "-", stdin=text)
            for path, data in (
                *((f"dists/{suite}/{inner}", data) for inner, data in indexes.items()),
                (f"dists/{suite}/InRelease", signed),
                (f"{suite}.noarmor.gpg", key.gpg("--export")),
            ):
                new = Path(temporary) / "file"
                new.write_bytes(data)
                new.chmod(0o644)
                (place / path).parent.mkdir(parents=True, exist_ok=True)
                new.replace(place / path)
