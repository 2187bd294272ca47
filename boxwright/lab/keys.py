"""Keys and passwords of the lab: SSH key pairs and password hashes, made in this process."""

from __future__ import annotations

import os
import secrets
from pathlib import Path


def write_private(path: Path, text: str) -> None:
    """Write a file that only its owner can read, at any moment, replacing an older one in one step."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.unlink(missing_ok=True)
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as handle:
        handle.write(text)
    temporary.rename(path)


def key_pair(path: Path, comment: str) -> str:
    """The public line of the ed25519 key at `path` (OpenSSH format), which is made with its `.pub` when missing."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

    public_path = path.with_name(f"{path.name}.pub")
    if not path.exists() or not public_path.exists():
        key = Ed25519PrivateKey.generate()
        public = key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()
        # The public half first: a key without it would look complete to OpenSSH and never be completed here.
        write_private(public_path, f"{public} {comment}\n")
        write_private(path, key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()).decode())
        public_path.chmod(0o644)
    return public_path.read_text(encoding="utf-8").strip()


def password(path: Path) -> str:
    """The password kept in `path`, made when there is none."""
    if not path.exists():
        write_private(path, secrets.token_urlsafe(18) + "\n")
    return path.read_text(encoding="utf-8").strip()


def password_hash(plain: str) -> str:
    """A bcrypt hash for /etc/shadow (Debian's libcrypt reads it)."""
    import bcrypt

    return bcrypt.hashpw(plain.encode(), bcrypt.gensalt(8)).decode()


def with_password(shadow: str, user: str, hashed: str) -> str:
    """The text of /etc/shadow with the user's password hash replaced. Raises KeyError when it has no such user."""
    lines = shadow.splitlines()
    for number, line in enumerate(lines):
        fields = line.split(":")
        if fields[0] == user:
            lines[number] = ":".join([user, hashed, *fields[2:]])
            return "\n".join(lines) + "\n"
    raise KeyError(user)
