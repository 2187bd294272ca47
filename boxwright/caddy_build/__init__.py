"""The custom Caddy: with limits per client, exact ones and ACME by DNS, built on the control machine.

What is built is said by main.go, slots/, go.mod and go.sum in this folder. With the Go version, the flags below and no
C compiler, Go makes the same bytes from them on every machine, so the program is pinned by its checksum like a
download. This module says what the program is and where it lies, and imports nothing heavy; builder.py makes it.
"""

from __future__ import annotations

import hashlib
import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from boxwright.paths import cache_dir

State = Literal["ready", "missing", "damaged"]

#: main.go, slots/, go.mod and go.sum.
SOURCE = Path(__file__).parent
GO_VERSION = "1.27.3"
#: SPDX expression of what is linked in: Caddy, its rate limit, its DNS module and our own are all under Apache-2.0.
LICENCE = "Apache-2.0"
#: The modules that the stock program lacks, by the names of `caddy list-modules`, and the Go modules that have them.
MODULES: Mapping[str, str] = {
    "http.handlers.rate_limit": "github.com/mholt/caddy-ratelimit",
    "dns.providers.cloudflare": "github.com/caddy-dns/cloudflare",
}
#: Those of our own, whose source is the folder slots here.
OWN_MODULES = ("http.handlers.slots", "http.reverse_proxy.selection_policies.slots")
CADDY = "github.com/caddyserver/caddy/v2"
#: No paths, no symbols, no build id and no repository's state in the program: all would differ between machines.
FLAGS = ("-trimpath", "-buildvcs=false", "-ldflags=-s -w -buildid=")
#: For which machines it is made: Linux by its processor, and a Mac with Apple silicon.
MAC = "macos-arm64"
#: Go's names of them, with the oldest processors of each, as Caddy's own releases have it. Go's linker signs a program
#: for macOS by itself (ad hoc), without which Apple silicon would not start it.
TARGETS: Mapping[str, Mapping[str, str]] = {
    "x86_64": {"GOOS": "linux", "GOARCH": "amd64", "GOAMD64": "v1"},
    "aarch64": {"GOOS": "linux", "GOARCH": "arm64", "GOARM64": "v8.0"},
    MAC: {"GOOS": "darwin", "GOARCH": "arm64", "GOARM64": "v8.0"},
}
#: SHA-256 of the built program; docs/custom-caddy.md says how to get new ones when anything here or in go.mod changes.
SHA256: Mapping[str, str] = {
    "x86_64": "53482b6f8047230db1c1acfdbb8f8d3855aff7417224a58305b2708beb87aefa",
    "aarch64": "e40daee629c3bad613541371714891e5bdde56de77baaf69d4b993da657b3818",
    MAC: "9329d87501c043537335860cbe2c97494ab79bbba790d7baa7d43dde431db6bb",
}


def own_architecture() -> str:
    """This machine in the words of `TARGETS`; another kind of processor by its own name."""
    machine = os.uname().machine
    if sys.platform == "darwin" and machine == "arm64":
        return MAC
    return "aarch64" if machine == "arm64" else machine


def versions(go_mod: str) -> dict[str, str]:
    """The Go modules that the text of a go.mod requires for itself, with versions; none that only come along."""
    return dict(re.findall(r"^(?:require)?\s+(\S+) (v\S+)$", go_mod, re.MULTILINE))


def pinned() -> dict[str, str]:
    """The Go modules that our sources import, with their versions ("v2.11.7"), as go.mod has them."""
    return versions((SOURCE / "go.mod").read_text(encoding="utf-8"))


def sources() -> list[Path]:
    """The files that decide the program's bytes, tests not among them, in an order that is always the same."""
    code = (path for path in SOURCE.rglob("*.go") if not path.name.endswith("_test.go"))
    return [SOURCE / "go.mod", SOURCE / "go.sum", *sorted(code)]


def key() -> str:
    """Digest (16 hexadecimal digits) of all that decides the program's bytes: sources, Go's version, flags, targets."""
    digest = hashlib.sha256(repr((GO_VERSION, FLAGS, {name: dict(TARGETS[name]) for name in TARGETS})).encode())
    for path in sources():
        digest.update(path.relative_to(SOURCE).as_posix().encode() + hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()[:16]


def home() -> Path:
    """The folder of everything here, below the user's cache."""
    return cache_dir() / "caddy"


def binary(arch: str) -> Path:
    """Where the program for `arch` (see `TARGETS`) lies once it is built; says nothing about whether it is there."""
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
    """True when the program for `arch` (see `TARGETS`) is built and is the pinned one to the byte."""
    return state(arch) == "ready"
