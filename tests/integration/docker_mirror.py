"""Plays Docker's package repository in the lab's mirror, with real programs: Debian's, under the names of Docker's.

What is repacked are the packages of Debian 13 (docker.io, docker-cli, docker-compose, containerd, runc), with the
dependencies and conflicts that Docker's own packages declare. They are signed with the key of the lab's own
repositories, since nobody but Docker can sign with Docker's: a box must be told of it by `mirror_key_fingerprint`.
"""

from __future__ import annotations

import fcntl
import hashlib
import io
import shutil
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import Any

import docker
import yaml

from boxwright.lab.mirror import mirror_dir
from boxwright.lab.tailnet import SigningKey
from boxwright.paths import cache_dir
from tests.operations.signed_repository import Key, publish

# Which of Debian's packages each one is made of, and its fields (docker-ce-packaging, deb/common/control).
CONFLICTS = "docker (<< 1.5~), docker-engine, docker.io"
PACKAGES = {
    "docker-ce": ("docker.io", {"Depends": "containerd.io, docker-ce-cli, iptables, nftables", "Conflicts": CONFLICTS}),
    "docker-ce-cli": ("docker-cli", {"Conflicts": CONFLICTS}),
    "containerd.io": (
        "containerd runc",
        {"Conflicts": "containerd, runc", "Replaces": "containerd, runc", "Provides": "containerd, runc"},
    ),
    "docker-buildx-plugin": ("docker-buildx", {}),
    "docker-compose-plugin": (
        "docker-compose",
        {"Conflicts": "docker-compose", "Replaces": "docker-compose", "Breaks": "docker-compose"},
    ),
}
VERSION = "5:29.0.0-1~debian.13~trixie"

# $1 name, $2 Debian's packages, $3 fields. What else these need (libraries) is kept from their own dependencies.
REPACK = r"""
set -e
cd /var/tmp/repack
name=$1 sources=$2 fields=$3
rm -rf tree && mkdir -p tree/DEBIAN
depends=
for source in $sources; do
    rm -rf one && dpkg-deb -R "$source"_*.deb one
    libraries=$(sed -n 's/^Depends: //p' one/DEBIAN/control | tr ',' '\n' | grep -o 'lib[^ ]* ([^)]*)' || true)
    depends="$depends$(printf '%s' "$libraries" | sed 's/^/, /' | tr -d '\n')"
    for script in postinst prerm postrm conffiles; do
        [ ! -e "one/DEBIAN/$script" ] || cp "one/DEBIAN/$script" tree/DEBIAN/
    done
    rm -rf one/DEBIAN one/usr/share/doc one/usr/share/man
    cp -a one/. tree/
done
rm -rf one
installed=$(dpkg --print-architecture)
{
    printf 'Package: %s\nVersion: %s\nArchitecture: %s\n' "$name" "$4" "$installed"
    printf 'Maintainer: Nobody <nobody@example.org>\n'
    printf '%s' "$fields" | grep -v '^Depends: ' || true
    own=$(printf '%s' "$fields" | sed -n 's/^Depends: //p')
    all="$own$depends"
    all=${all#, }
    [ -z "$all" ] || printf 'Depends: %s\n' "$all"
    printf 'Description: repacked by a test\n'
} >tree/DEBIAN/control
dpkg-deb -Zgzip -z1 --root-owner-group --build tree "made/$name.deb" >/dev/null
rm -rf tree
"""


def _lock() -> Any:
    path = cache_dir() / "tests" / "docker-repository.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    handle = path.open("a")
    fcntl.flock(handle, fcntl.LOCK_EX)
    return handle


def _run(container: Any, *command: str) -> str:
    done = container.exec_run(list(command))
    said = bytes(done.output).decode(errors="replace")
    assert done.exit_code == 0, f"{command[:3]}: {said}"
    return said


def _debs(container: Any) -> Path:
    """The repacked packages, made on a lab box from what its own sources have; kept for the next time."""
    sources = sorted({name for names, _ in PACKAGES.values() for name in names.split()})
    _run(container, "apt-get", "update", "--quiet=2")
    uris = _run(container, "apt-get", "download", "--print-uris", *sources)
    content = hashlib.sha256((uris + REPACK + repr(PACKAGES) + VERSION).encode()).hexdigest()[:16]
    kept = cache_dir() / "tests" / f"docker-{content}"
    if kept.is_dir():
        return kept
    script = (
        "rm -rf /var/tmp/repack && mkdir -p /var/tmp/repack/made && cd /var/tmp/repack && apt-get download --quiet=2 "
    )
    _run(container, "sh", "-c", script + " ".join(sources))
    for name, (from_packages, fields) in PACKAGES.items():
        text = "".join(f"{key}: {value}\n" for key, value in fields.items())
        _run(container, "sh", "-c", REPACK, "repack", name, from_packages, text, VERSION)
    pieces, _ = container.get_archive("/var/tmp/repack/made")
    packed = b"".join(pieces)
    _run(container, "rm", "-rf", "/var/tmp/repack")
    work = Path(tempfile.mkdtemp(dir=kept.parent))
    with tarfile.open(fileobj=io.BytesIO(packed)) as archive:
        archive.extractall(work, filter="data")
    for old in kept.parent.glob("docker-????????????????"):
        shutil.rmtree(old)
    (work / "made").rename(kept)
    work.rmdir()
    return kept


def in_mirror(container: Any) -> dict[str, str]:
    """Docker's repository for Debian 13 is in the mirror; the variables that a box needs for it.

    `container` is a lab box, on which the packages are made; it is as before afterwards but for its package lists.
    """
    with _lock():
        debs = _debs(container)
    with SigningKey.alone() as lab:
        fingerprint = lab.fingerprint()
        folder = mirror_dir() / "files/download.docker.com/linux/debian"
        marker = folder / "made-of"
        wanted = f"{debs.name} {fingerprint}"
        if not marker.is_file() or marker.read_text() != wanted:
            folder.parent.mkdir(parents=True, exist_ok=True)
            work = Path(tempfile.mkdtemp(dir=folder.parent))
            work.chmod(0o755)
            publish(work, Key(home=lab.home), sorted(debs.iterdir()), suite="trixie", component="stable")
            (work / "key.asc").rename(work / "gpg")
            (work / "made-of").write_text(wanted)
            shutil.rmtree(folder, ignore_errors=True)
            work.rename(folder)
        return {"mirror_key_fingerprint": fingerprint, "docker_repository": "docker"}


def main(inventory: Path) -> None:
    """For molecule: the boxes of a lab's inventory get Docker from there."""
    groups = yaml.safe_load(inventory.read_text(encoding="utf-8"))
    container = docker.from_env(timeout=300).containers.get(f"boxwright-{inventory.parent.name}")
    for variables in groups["all"]["children"]["lab"]["hosts"].values():
        variables.update(in_mirror(container))
    inventory.write_text(yaml.safe_dump(groups, sort_keys=False), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
