"""Cloudflare's package repository, with the double of cloudflared (tests/doubles/cloudflared) for the program."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import tempfile
from pathlib import Path

from kit import ROOT

from boxwright.lab.mirror import mirror_dir
from boxwright.lab.tailnet import SigningKey
from tests.operations.signed_repository import Key, publish

PROGRAM = ROOT / "tests" / "doubles" / "cloudflared" / "program.py"
# Below a mirror: the repository, and the key that it is signed with.
REPOSITORY, KEY = "pkg.cloudflare.com/cloudflared", "pkg.cloudflare.com/cloudflare-main.gpg"


def publish_in(root: Path, key: Key) -> None:
    """The repository becomes part of the mirror `root`, signed with `key`: the program in /usr/bin, and no unit."""
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        tree = folder / "tree"
        (tree / "DEBIAN").mkdir(parents=True)
        (tree / "usr/bin").mkdir(parents=True)
        program = tree / "usr/bin/cloudflared"
        shutil.copy(PROGRAM, program)
        program.chmod(0o755)
        control = (
            "Package: cloudflared\nVersion: 2026.8.2\nArchitecture: all\nMaintainer: Nobody <nobody@example.org>\n"
        )
        (tree / "DEBIAN/control").write_text(f"{control}Description: a double\n")
        package = folder / "cloudflared_2026.8.2_all.deb"
        subprocess.run(["dpkg-deb", "--root-owner-group", "--build", tree, package], capture_output=True, check=True)
        publish(root / REPOSITORY, key, [package], suite="any")
    (root / KEY).write_bytes(key.public(armored=False))


def in_mirror() -> dict[str, str]:
    """The repository is in the lab's mirror; the variables that a box needs for it."""
    with SigningKey.alone() as lab:
        fingerprint, root = lab.fingerprint(), mirror_dir() / "files"
        marker = root / "pkg.cloudflare.com" / "made-of"
        wanted = f"{hashlib.sha256(PROGRAM.read_bytes()).hexdigest()} {fingerprint}"
        if not marker.is_file() or marker.read_text(encoding="utf-8") != wanted:
            publish_in(root, Key(home=lab.home))
            marker.write_text(wanted, encoding="utf-8")
    return {"mirror_key_fingerprint": fingerprint}
