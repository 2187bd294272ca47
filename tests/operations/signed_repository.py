"""A repository of Debian packages that a test makes and signs itself with real gpg, and serves over HTTP."""

from __future__ import annotations

import gzip
import hashlib
import http.server
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any


class Key:
    """A signing key, made at the moment `created`; the one that is in the folder `home` already, if there is one."""

    def __init__(self, name: str = "A Publisher", created: datetime | None = None, home: Path | None = None) -> None:
        # A short path: gpg-agent's socket lies in it.
        self.home = home or Path(tempfile.mkdtemp(prefix="gpg-", dir="/tmp"))
        self.home.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.home.chmod(0o700)
        self.created = created or datetime.now(UTC)
        who = f"{name} <packages@example.org>"
        if not self.gpg("--list-secret-keys", "--with-colons"):
            self.gpg(
                *self.at(self.created), "--passphrase", "", "--quick-generate-key", who, "rsa2048", "sign", "never"
            )
        listed = self.gpg("--list-keys", "--with-colons").decode()
        self.fingerprint = next(line.split(":")[9] for line in listed.splitlines() if line.startswith("fpr:"))

    def gpg(self, *arguments: str, stdin: bytes = b"") -> bytes:
        command = ["gpg", "--homedir", str(self.home), "--batch", "--pinentry-mode", "loopback"]
        return subprocess.run([*command, *arguments], input=stdin, capture_output=True, check=True).stdout

    @staticmethod
    def at(moment: datetime) -> list[str]:
        """Arguments that make gpg take `moment` for the present."""
        return ["--faked-system-time", f"{int(moment.timestamp())}!"]

    def expire(self, after: timedelta) -> None:
        """From now on its public part says that it expires so long after it was made."""
        # gpg wants a later signature than the one it made with the key.
        moment = self.at(self.created + timedelta(hours=1))
        self.gpg(
            *moment, "--passphrase", "", "--quick-set-expire", self.fingerprint, f"seconds={after.total_seconds():.0f}"
        )

    def public(self, armored: bool = True) -> bytes:
        return self.gpg(*(["--armor"] if armored else []), "--export", self.fingerprint)

    def rest(self) -> None:
        """End what gpg left running in the background; the key stays."""
        subprocess.run(["gpgconf", "--homedir", str(self.home), "--kill", "all"], capture_output=True, check=False)

    def close(self) -> None:
        self.rest()
        shutil.rmtree(self.home, ignore_errors=True)


def package(folder: Path, name: str, version: str = "1.0", depends: str = "", says: str = "") -> Path:
    """A package for every architecture with one program, /usr/bin/NAME, that prints `says`."""
    tree = folder / f"{name}-tree"
    (tree / "DEBIAN").mkdir(parents=True)
    (tree / "usr/bin").mkdir(parents=True)
    program = tree / "usr/bin" / name
    program.write_text(f"#!/bin/sh\necho {says or name}\n")
    program.chmod(0o755)
    control = f"Package: {name}\nVersion: {version}\nArchitecture: all\nMaintainer: Nobody <nobody@example.org>\n"
    control += f"Depends: {depends}\n" if depends else ""
    (tree / "DEBIAN/control").write_text(control + "Description: made by a test\n")
    made = folder / f"{name}_{version}_all.deb"
    subprocess.run(["dpkg-deb", "--root-owner-group", "--build", tree, made], capture_output=True, check=True)
    shutil.rmtree(tree)
    return made


def publish(
    root: Path,
    key: Key,
    packages: Iterable[Path] = (),
    *,
    suite: str = "trixie",
    component: str = "main",
    architecture: str = "amd64",
    date: datetime | None = None,
    valid_until: datetime | None = None,
    public: bytes | None = None,
    signing: Iterable[str] = (),
) -> None:
    """The folder `root` becomes a repository with `packages`, signed with `key`; its key is `root`/key.asc.

    `signing` are further arguments of gpg when it signs.
    """
    pool = root / "pool"
    pool.mkdir(parents=True, exist_ok=True)
    entries = []
    for path in packages:
        if path.parent != pool:
            shutil.copy(path, pool)
        fields = subprocess.run(["dpkg-deb", "--field", path], capture_output=True, check=True, text=True).stdout
        content = path.read_bytes()
        entries.append(
            f"{fields.rstrip()}\nFilename: pool/{path.name}\nSize: {len(content)}\n"
            f"SHA256: {hashlib.sha256(content).hexdigest()}\n"
        )
    folder = root / "dists" / suite
    binary = folder / component / f"binary-{architecture}"
    shutil.rmtree(folder.parent, ignore_errors=True)
    binary.mkdir(parents=True)
    index = "\n".join(entries).encode()
    (binary / "Packages").write_bytes(index)
    (binary / "Packages.gz").write_bytes(gzip.compress(index, mtime=0))
    lines = [
        "Origin: Test",
        f"Suite: {suite}",
        f"Codename: {suite}",
        f"Architectures: {architecture}",
        f"Components: {component}",
        f"Date: {(date or datetime.now(UTC)):%a, %d %b %Y %H:%M:%S} UTC",
    ]
    if valid_until:
        lines.append(f"Valid-Until: {valid_until:%a, %d %b %Y %H:%M:%S} UTC")
    lines.append("SHA256:")
    for name in ("Packages", "Packages.gz"):
        content = (binary / name).read_bytes()
        lines.append(f" {hashlib.sha256(content).hexdigest()} {len(content)} {component}/binary-{architecture}/{name}")
    release = ("\n".join(lines) + "\n").encode()
    (folder / "Release").write_bytes(release)
    (folder / "InRelease").write_bytes(key.gpg(*signing, "--clearsign", "--output", "-", stdin=release))
    (root / "key.asc").write_bytes(key.public() if public is None else public)


class Server:
    """Serves a folder on every address of this machine until closed; `asked` are the paths that were asked for."""

    def __init__(self, folder: Path) -> None:
        asked: list[str] = []

        class Handler(http.server.SimpleHTTPRequestHandler):
            def log_message(self, *arguments: Any) -> None:
                asked.append(self.path)

        self.asked, self.folder = asked, folder
        self.server = http.server.ThreadingHTTPServer(("0.0.0.0", 0), partial(Handler, directory=folder))
        self.port = self.server.server_address[1]
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
