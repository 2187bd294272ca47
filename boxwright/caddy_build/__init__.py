"""The custom Caddy: Caddy with limits per client and ACME by DNS, built on the control machine from pinned sources.

What is built is said by main.go, go.mod and go.sum in this folder. With the Go version, the flags below and no C
compiler, Go makes the same bytes from them on every machine, so the program is pinned by its checksum like a download.
This module says what the program is and where it lies, and imports nothing heavy; builder.py makes it.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from boxwright.paths import cache_dir

State = Literal["ready", "missing", "damaged"]

#: main.go, go.mod and go.sum.
SOURCE = Path(__file__).parent
GO_VERSION = "1.27.3"
#: SPDX expression of what is linked in: Caddy, its rate limit and its DNS module are all under Apache-2.0.
LICENCE = "Apache-2.0"
#: The modules that the stock program lacks, by the names of `caddy list-modules`, and the Go modules that have them.
MODULES: Mapping[str, str] = {
    "http.handlers.rate_limit": "github.com/mholt/caddy-ratelimit",
    "dns.providers.cloudflare": "github.com/caddy-dns/cloudflare",
}
CADDY = "github.com/caddyserver/caddy/v2"
#: No paths, no symbols, no build id and no repository's state in the program: all would differ between machines.
FLAGS = ("-trimpath", "-buildvcs=false", "-ldflags=-s -w -buildid=")
#: Go's names of the architectures, with the oldest processors of each, as Caddy's own releases have it.
TARGETS: Mapping[str, Mapping[str, str]] = {
    "x86_64": {"GOARCH": "amd64", "GOAMD64": "v1"},
    "aarch64": {"GOARCH": "arm64", "GOARM64": "v8.0"},
}
#: SHA-256 of the built program; docs/custom-caddy.md says how to get new ones when anything here or in go.mod changes.
SHA256: Mapping[str, str] = {
    "x86_64": "e0ef90e187e3a3b4ee93d4fc1fe704671a371eb768f2ee8ed572bf513467f4f2",
    "aarch64": "f0bf3a6c63571cf0c799f8eb9a0268c8ed03c91d4ee8b298fa9fba7b2049cc07",
}


def own_architecture() -> str:
    """This machine's architecture in the words of `TARGETS`; another kind of processor by its own name."""
    machine = os.uname().machine
    return "aarch64" if machine == "arm64" else machine


def versions(go_mod: str) -> dict[str, str]:
    """The Go modules that the text of a go.mod requires for itself, with versions; none that only come along."""
    return dict(re.findall(r"^(?:require)?\s+(\S+) (v\S+)$", go_mod, re.MULTILINE))


def pinned() -> dict[str, str]:
    """The Go modules that main.go imports, with their versions ("v2.11.7"), as go.mod has them."""
    return versions((SOURCE / "go.mod").read_text(encoding="utf-8"))


def key() -> str:
    """Digest (16 hexadecimal digits) of all that decides the program's bytes: sources, Go's version, flags, targets."""
    digest = hashlib.sha256(repr((GO_VERSION, FLAGS, {name: dict(TARGETS[name]) for name in TARGETS})).encode())
    for name in ("main.go", "go.mod", "go.sum"):
        digest.update(hashlib.sha256((SOURCE / name).read_bytes()).digest())
    return digest.hexdigest()[:16]


def home() -> Path:
    """The folder of everything here, below the user's cache."""
    return cache_dir() / "caddy"


def binary(arch: str) -> Path:
    """Where the program for `arch` (x86_64, aarch64) lies once it is built; says nothing about whether it is there."""
    return home() / key() / f"caddy-{arch}"


def state(arch: str) -> State:
    """Whether the program for `arch` is there, and with the pinned checksum."""
    path = binary(arch)
    try:
        with path.open("rb") as handle:
            found = hashlib.file_digest(handle, "sha256").hexdigest()
    except FileNotFoundError:
        return "missing"
    return "ready" if found == SHA256[arch] else "damaged"


def available(arch: str) -> bool:
    """True when the program for `arch` (x86_64, aarch64) is built and is the pinned one to the byte."""
    return state(arch) == "ready"
