"""Secrets that are made once and kept on the control machine: one file per host, readable by its owner alone.

A box that is wiped and built again gets the same ones. They are never made again silently: a damaged file is refused,
since new secrets would lock people and programs out.
"""

import fcntl
import json
import os
import stat
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

from boxwright.errors import Location, Problem, Refused
from boxwright.paths import state_dir

# bcrypt reads no further than this; longer passwords would silently be cut (bcrypt >= 5 refuses them).
BCRYPT_MAX_BYTES = 72
_BCRYPT_COST = 10


class SecretStore:
    """Secrets by host and variable, in `<directory>/<host>.json`. Methods raise Refused when that is not safe."""

    def __init__(self, directory: Path | None = None) -> None:
        self.directory = directory if directory is not None else state_dir() / "secrets"

    def path(self, host: str) -> Path:
        """The file of `host`. A name that is no plain file name is percent-encoded."""
        return self.directory / f"{quote(host, safe='@+=,')}.json"

    def get(self, host: str, variable: str) -> str | None:
        """The secret, or None when it was never made."""
        return self.all(host).get(variable)

    def all(self, host: str) -> dict[str, str]:
        """All secrets of `host` by variable."""
        try:
            self._check_directory()
            return self._read(self.path(host))
        except OSError as error:
            raise self._unusable(error) from error

    @staticmethod
    def member(variable: str, name: str) -> str:
        """The variable under which one of the many secrets of `variable` is kept, the one that is called `name`."""
        return f"{variable}.{name}"

    @classmethod
    def members(cls, secrets: Mapping[str, str], variable: str) -> dict[str, str]:
        """Of all secrets of a host those of `variable` that `member` names, by their names."""
        prefix = cls.member(variable, "")
        return {key.removeprefix(prefix): value for key, value in secrets.items() if key.startswith(prefix)}

    def get_or_create(self, host: str, variable: str, make: Callable[[], str]) -> str:
        """The secret; the first time it is made by `make` and kept."""
        if (known := self.get(host, variable)) is not None:
            return known
        with self._locked():
            secrets = self._read(self.path(host))
            # Another process may have made it while this one waited for the lock.
            if variable not in secrets:
                secrets[variable] = make()
                self._write(self.path(host), secrets)
            return secrets[variable]

    def put(self, host: str, variable: str, value: str) -> None:
        """Keeps `value` in place of what was there."""
        with self._locked():
            secrets = self._read(self.path(host))
            if secrets.get(variable) != value:
                secrets[variable] = value
                self._write(self.path(host), secrets)

    def forget(self, host: str, variable: str) -> None:
        """Forgets one secret; nothing happens when there is none."""
        if self.get(host, variable) is not None:
            with self._locked():
                secrets = self._read(self.path(host))
                secrets.pop(variable, None)
                self._write(self.path(host), secrets)

    def delete(self, host: str) -> None:
        """Forgets all secrets of `host`."""
        if self.path(host).exists():
            with self._locked():
                self.path(host).unlink(missing_ok=True)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """One writer at a time, over all processes; the lock goes with the process that held it."""
        try:
            self.directory.parent.mkdir(parents=True, exist_ok=True)
            self.directory.mkdir(mode=0o700, exist_ok=True)
            self._check_directory()
            descriptor = os.open(self.directory / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX)
                yield
            finally:
                os.close(descriptor)
        except OSError as error:
            raise self._unusable(error) from error

    def _check_directory(self) -> None:
        if self.directory.exists():
            _refuse_access_by_others(self.directory, "700")

    def _read(self, path: Path) -> dict[str, str]:
        if not path.exists():
            return {}
        _refuse_access_by_others(path, "600")
        try:
            secrets = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise self._damaged(path, "is not valid JSON") from error
        if not isinstance(secrets, dict) or not all(isinstance(value, str) and value for value in secrets.values()):
            raise self._damaged(path, "does not hold one text for each variable")
        return secrets

    def _write(self, path: Path, secrets: dict[str, str]) -> None:
        """Replaces the file in one step: after a crash there is the old one or the new one, never a half."""
        # mkstemp makes the file with mode 0600 from its first moment.
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=".new-")
        try:
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                json.dump(secrets, file, indent=2, sort_keys=True)
                file.write("\n")
                file.flush()
                os.fsync(file.fileno())
            Path(temporary).replace(path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
        directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)

    @staticmethod
    def _damaged(path: Path, what: str) -> Refused:
        return Refused(
            Problem(
                code="BW030",
                message=f"the file with the generated secrets {what}: {path}",
                location=Location(str(path)),
                help="restore it from a backup; or delete it to have new secrets made at the next run, "
                "which changes the passwords of the box",
                sensitive=True,
            )
        )

    def _unusable(self, error: OSError) -> Refused:
        path = error.filename or self.directory
        return Refused(
            Problem(
                code="BW032",
                message=f"the generated secrets cannot be kept in {self.directory}: {path}: {error.strerror}",
                location=Location(str(path)),
                help="make the folder writable for the user who runs boxwright, or name another one in "
                "BOXWRIGHT_STATE_DIR",
            )
        )


def _refuse_access_by_others(path: Path, wanted: str) -> None:
    mode = stat.S_IMODE(path.stat().st_mode)
    if mode & 0o077:
        raise Refused(
            Problem(
                code="BW031",
                message=f"other users of this machine can reach the generated secrets: {path} has mode {mode:04o}",
                location=Location(str(path)),
                help=f"chmod {wanted} {path}    (and consider the secrets in it as known to them)",
            )
        )


def hash_text(password: str, kind: str = "bcrypt") -> str:
    """A hash of `password` with a new salt, by `kind`: `bcrypt` or `argon2id`.

    argon2id takes 19 MiB and two passes, the least that OWASP's password storage cheat sheet recommends: whoever asks
    the gateway makes it spend them. Raises ValueError when the password is longer than the 72 bytes that bcrypt takes.
    """
    if kind == "argon2id":
        from argon2 import PasswordHasher

        return PasswordHasher(time_cost=2, memory_cost=19 * 1024, parallelism=1).hash(password)
    import bcrypt

    plain = password.encode()
    if len(plain) > BCRYPT_MAX_BYTES:
        raise ValueError(f"bcrypt takes at most {BCRYPT_MAX_BYTES} bytes, not {len(plain)}")
    return bcrypt.hashpw(plain, bcrypt.gensalt(_BCRYPT_COST)).decode()


def kept_hash(store: SecretStore, host: str, variable: str, password: str, kind: str = "bcrypt") -> str:
    """The hash of `password`, kept as `variable`: the same on every run, a new one when password or kind changed.

    Raises ValueError as `hash_text`.
    """
    known = store.get(host, variable)
    if known is not None and _matches(password, known, kind):
        return known
    made = hash_text(password, kind)
    store.put(host, variable, made)
    return made


def _matches(password: str, hashed: str, kind: str) -> bool:
    if kind == "argon2id":
        from argon2 import PasswordHasher
        from argon2.exceptions import InvalidHashError, VerificationError

        try:
            return PasswordHasher().verify(hashed, password)
        except (InvalidHashError, VerificationError):  # another password, or what was kept is no such hash
            return False
    import bcrypt

    try:
        return bcrypt.checkpw(password.encode(), hashed.encode())
    except ValueError:  # the password is too long, or what was kept is no bcrypt hash
        return False
