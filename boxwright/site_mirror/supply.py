"""What the boxes of an inventory fetch through a mirror. Nothing here connects to anything."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from boxwright.artifacts import AptRepository, Download, Wheel, pinned

# Releases as `--release` names them: /etc/os-release's words, the C library and the Python that the distribution has.
# https://packages.debian.org and https://packages.ubuntu.com, of libc6 and python3.
RELEASES: Mapping[str, tuple[Mapping[str, str], int, str]] = {
    "debian-12": ({"distribution": "debian", "release": "12", "codename": "bookworm"}, 36, "3.11"),
    "debian-13": ({"distribution": "debian", "release": "13", "codename": "trixie"}, 41, "3.13"),
    "ubuntu-22.04": ({"distribution": "ubuntu", "release": "22.04", "codename": "jammy"}, 35, "3.10"),
    "ubuntu-24.04": ({"distribution": "ubuntu", "release": "24.04", "codename": "noble"}, 39, "3.12"),
    "ubuntu-26.04": ({"distribution": "ubuntu", "release": "26.04", "codename": "resolute"}, 43, "3.14"),
}
# Debian's names of processors, and those of the kernel.
ARCHITECTURES: Mapping[str, str] = {"amd64": "x86_64", "arm64": "aarch64"}


@dataclass(frozen=True)
class Target:
    """A kind of box: a release of RELEASES, and Debian's name of the processor (`amd64`, `arm64`)."""

    release: str
    architecture: str

    @property
    def system(self) -> Mapping[str, str]:
        """Distribution, release and codename as /etc/os-release has them."""
        return RELEASES[self.release][0]

    @property
    def machine(self) -> str:
        """The processor in the kernel's words (`x86_64`)."""
        return ARCHITECTURES[self.architecture]

    @property
    def glibc(self) -> int:
        """N of the C library 2.N."""
        return RELEASES[self.release][1]

    @property
    def python(self) -> str:
        """Version of the distribution's Python, such as "3.13"."""
        return RELEASES[self.release][2]


@dataclass(frozen=True)
class Packages:
    """Packages that boxes install from a repository; it is that of one release already (`AptRepository.on`)."""

    repository: AptRepository
    names: tuple[str, ...]
    architecture: str


@dataclass(frozen=True)
class Supply:
    """What one role of one box fetches: files, wheels, packages of repositories, container images by reference."""

    files: tuple[Download, ...] = ()
    wheels: tuple[Wheel, ...] = ()
    packages: tuple[Packages, ...] = ()
    images: tuple[str, ...] = ()

    def __add__(self, other: Supply) -> Supply:
        """What both fetch together, each thing once."""
        return Supply(
            files=tuple({one.url: one for one in (*self.files, *other.files)}.values()),
            wheels=_once(self.wheels, other.wheels),
            packages=tuple(dict.fromkeys((*self.packages, *other.packages))),
            images=tuple(dict.fromkeys((*self.images, *other.images))),
        )


def _once(*lists: Iterable[Wheel]) -> tuple[Wheel, ...]:
    """Each package and version once, with the digests of all its mentions."""
    found: dict[tuple[str, str], Wheel] = {}
    for wheel in (one for each in lists for one in each):
        key = (wheel.name.lower().replace("_", "-"), wheel.version)
        known = found.get(key)
        digests = {**(known.sha256 if known else {}), **wheel.sha256}
        found[key] = Wheel(name=wheel.name, version=wheel.version, sha256=digests, licence=wheel.licence)
    return tuple(found.values())


def packages_of(repository: AptRepository, names: Iterable[str], target: Target) -> Packages:
    """The packages `names` of `repository` for boxes of the kind `target`."""
    return Packages(repository.on(**target.system), tuple(names), target.architecture)


def pinned_wheels(text: str) -> tuple[Wheel, ...]:
    """The wheels of a requirements file with hashes."""
    return pinned(text)


@dataclass
class Wanted:
    """What the boxes of an inventory fetch, for each kind of box apart where it differs; and their processors."""

    common: Supply = field(default_factory=Supply)
    wheels: dict[Target, tuple[Wheel, ...]] = field(default_factory=dict)
    architectures: tuple[str, ...] = ()


def wanted(boxes: Iterable[Any], targets: Iterable[Target]) -> Wanted:
    """What `boxes` fetch when each may be of any kind of `targets`.

    A role says it by a function `supply(box, target)` in its module `tasks`; one without fetches nothing.
    """
    from boxwright.inventory import role_modules  # here: it reads the roles

    targets = tuple(targets)
    found = Wanted(architectures=tuple(dict.fromkeys(target.architecture for target in targets)))
    for box in boxes:
        for role in type(box).model_fields:
            for module in role_modules(role):
                if (tell := getattr(module, "supply", None)) is None or not module.__name__.endswith(".tasks"):
                    continue
                for target in targets:
                    told: Supply = tell(box, target)
                    if box.system == "darwin":
                        # `targets` are releases of Linux: which wheels a Mac takes is another question.
                        told = Supply(files=told.files)
                    found.wheels[target] = _once(found.wheels.get(target, ()), told.wheels)
                    found.common += Supply(files=told.files, packages=told.packages, images=told.images)
    return found
