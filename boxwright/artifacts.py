"""What a box fetches, each named with its checksum and licence, and the mirror that any fetch can be redirected to."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Annotated, Any
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, field_validator

from boxwright.describe import Words
from boxwright.errors import Problem
from boxwright.settings import RoleSettings


class MirrorSettings(RoleSettings, prefix="mirror"):
    """Where a box fetches files, Python wheels and container images from, when not from their publishers."""

    url: str = Field(
        "",
        pattern=r"^(https?://[^/\s?#]+(/[^\s?#]*)?)?$",
        description="Web server that holds the files as `<host>/<path>` and the Python wheels in `wheels/`. "
        "Empty: every file comes from its publisher.",
        examples=["http://10.0.0.2:8000"],
    )
    registry: str = Field(
        "",
        pattern=r"^(https?://[^/\s?#]+/?)?$",
        description="Container registry that holds the images as `<original registry>/<name>:<tag>`. "
        "Empty: every image comes from its own registry. With http:// Docker is told to accept it without TLS.",
        examples=["http://10.0.0.2:5000"],
    )

    key_fingerprint: str = Field(
        "",
        pattern=r"^([0-9A-F]{40})?$",
        description="Fingerprint of the key with which the mirror signs the package repositories that it holds. Empty: "
        "they are copies as their publishers signed them. The key itself is where the publisher's would be.",
    )

    @field_validator("url", "registry")
    @classmethod
    def _without_final_slash(cls, value: str) -> str:
        return value.rstrip("/")

    def problems(self, box: Any) -> Iterable[Problem]:
        """Refuses a mirror's key without a mirror: every publisher would be expected to sign with it."""
        if self.key_fingerprint and not self.url:
            yield Problem(
                code="BW022",
                variable="mirror_key_fingerprint",
                message="`mirror_key_fingerprint` is set, but there is no mirror that could sign with that key",
                help="set `mirror_url` too, or take `mirror_key_fingerprint` out",
            )

    def file_url(self, url: str) -> str:
        """Where to fetch the file that is published at `url`; a query is not part of a mirrored name."""
        if not self.url:
            return url
        published = urlsplit(url)
        if published.scheme not in ("http", "https") or not published.hostname:
            raise ValueError(f"not the address of a file: {url}")
        host = published.hostname if published.port is None else f"{published.hostname}:{published.port}"
        return f"{self.url}/{host}{published.path}"

    def image(self, reference: str) -> str:
        """Where to pull the image `reference` from; the name on the box stays `reference`."""
        if not self.registry:
            return reference
        return f"{urlsplit(self.registry).netloc}/{full_reference(reference)}"

    @property
    def insecure_registries(self) -> tuple[str, ...]:
        """The registry as `host:port` when it is reached without TLS: what Docker's `insecure-registries` wants."""
        parts = urlsplit(self.registry)
        return (parts.netloc,) if parts.scheme == "http" else ()

    def pip_arguments(self) -> tuple[str, ...]:
        """Arguments that make pip take wheels from the mirror alone; empty without one."""
        if not self.url:
            return ()
        parts = urlsplit(self.url)
        arguments = ("--no-index", "--find-links", f"{self.url}/wheels/")
        return (*arguments, "--trusted-host", parts.netloc) if parts.scheme == "http" else arguments


def full_reference(reference: str) -> str:
    """`reference` of an image with its registry and tag written out: `redis` is `docker.io/library/redis:latest`."""
    name, at, digest = reference.partition("@")
    first, slash, rest = name.partition("/")
    # Docker's own rule: the part before the first slash is a registry when it looks like a host name.
    if not slash or ("." not in first and ":" not in first and first != "localhost"):
        first, rest = "docker.io", name if slash else f"library/{name}"
    if not at and ":" not in rest.rpartition("/")[2]:
        rest += ":latest"
    return f"{first}/{rest}{at}{digest}"


@dataclass(frozen=True, kw_only=True)
class Download:
    """A file to fetch: published at `url`, `size` bytes with digest `sha256`; `licence` is an SPDX expression.

    `size` is 0 where nobody tells it: then it is not compared, and room for the file is not looked for.

    `token` is what its publisher wants as `Authorization: Bearer`; no mirror is told.
    Where a publisher tells SHA-512 alone, that is given as `sha512` in place of the other.
    """

    name: str
    url: str
    sha256: str = ""
    sha512: str = ""
    size: int
    licence: str = ""
    token: str = field(default="", repr=False)

    def __post_init__(self) -> None:
        if bool(self.sha256) == bool(self.sha512):
            raise ValueError(f"{self.name} needs one digest")

    @property
    def digest(self) -> str:
        """By its length it is a SHA-256 (64 hexadecimal digits) or a SHA-512 (128)."""
        return self.sha256 or self.sha512


@dataclass(frozen=True, kw_only=True)
class Wheel:
    """A Python package that is installed from wheels with exactly these digests.

    `sha256` maps what a wheel is for, in the words of its kernel (`x86_64`, `aarch64`, on a Mac `arm64`) or `any`, to
    its digest; pip takes the one that fits the box.
    """

    name: str
    version: str
    sha256: Mapping[str, str]
    licence: str


@dataclass(frozen=True, kw_only=True)
class AptRepository:
    """A repository of Debian packages, and the one key that its lists must be signed with.

    `name` names its files on the box. `{distribution}`, `{release}` and `{codename}` in `url`, `suite` and `key_url`
    stand for those of the box (`ubuntu`, `24.04`, `noble`): see `on`. A `suite` that ends in `/` is a flat repository
    and has no `components`. `key_fingerprint` is that of the primary key, 40 hexadecimal digits; `licence` is an SPDX
    expression for the packages in it. `architectures` as Debian calls them (`amd64`); empty means the box's own.
    """

    name: str
    url: str
    suite: str = "{codename}"
    components: tuple[str, ...] = ("main",)
    key_url: str
    key_fingerprint: str
    licence: str
    architectures: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[a-z0-9][a-z0-9-]*", self.name):
            raise ValueError(f"not a name for a package repository: {self.name!r}")
        for url in (self.url, self.key_url):
            if not re.fullmatch(r"https?://[^\s?#\[\]]+", url):
                raise ValueError(f"not the address of a package repository or its key: {url!r}")
        if not re.fullmatch(r"[0-9A-F]{40}", self.key_fingerprint):
            raise ValueError(f"the fingerprint of {self.name} is not 40 hexadecimal digits in capitals")
        words = (self.suite, *self.components, *self.architectures)
        if any(not re.fullmatch(r"[\w.{}/~+-]+", word) for word in words):
            raise ValueError(f"not a suite, component or architecture of {self.name}: {words!r}")
        if self.suite.endswith("/") == bool(self.components):
            raise ValueError(f"{self.name} has components, or a suite that ends in a slash: one of both")

    def on(self, *, distribution: str, release: str, codename: str) -> "AptRepository":
        """The repository for a box with this distribution and release, in the words of its /etc/os-release."""

        def filled(text: str) -> str:
            return text.format(distribution=distribution, release=release, codename=codename)

        return replace(self, url=filled(self.url), suite=filled(self.suite), key_url=filled(self.key_url))


def requirements(wheels: Iterable[Wheel]) -> str:
    """The pip requirements file that admits `wheels` and nothing else; one line each, with every digest."""
    lines = []
    for wheel in wheels:
        hashes = " ".join(f"--hash=sha256:{digest}" for _, digest in sorted(wheel.sha256.items()))
        lines.append(f"{wheel.name}=={wheel.version} {hashes}\n")
    return "".join(lines)


def _entries(text: str) -> list[str]:
    """The lines of a requirements file, without comments, each with the lines that continue it."""
    plain = re.sub(r"(^|\s)#.*", "", text, flags=re.MULTILINE)
    return [line.strip() for line in re.sub(r"\\\n", " ", plain).splitlines() if line.strip()]


def _hashed(text: str) -> str:
    for line in _entries(text):
        if not re.match(r"[A-Za-z0-9].*==.*--hash=sha256:[0-9a-f]{64}", line):
            raise ValueError(f"every line must name a version and SHA-256 digests: {line[:60]!r}")
    return text


#: Text of a requirements file that is installed as it is; empty for none.
Requirements = Annotated[
    str, AfterValidator(_hashed), Words("the text of a requirements file, with a version and hashes for each package")
]


def pinned(text: str) -> tuple[Wheel, ...]:
    """The packages of a requirements file that `uv pip compile --generate-hashes` or `pip-compile` wrote.

    Raises ValueError for a line that does not pin a version with SHA-256 digests, and for conditions (`; ...`): what is
    installed must not depend on who reads the file. Nothing in such a file says what a digest's wheel is for, nor its
    licence.
    """
    found = []
    for line in _entries(text):
        match = re.fullmatch(r"([\w.-]+)(?:\[[^]]*\])?==([^\s;]+)((?:\s+--hash=sha256:[0-9a-f]{64})+)", line)
        if match is None:
            raise ValueError(f"not a version with its SHA-256 digests: {line[:80]!r}")
        digests = re.findall(r"sha256:([0-9a-f]{64})", match[3])
        found.append(Wheel(name=match[1], version=match[2], sha256={digest: digest for digest in digests}, licence=""))
    return tuple(found)
