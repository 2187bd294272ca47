"""Rows of usage that the database did not take, in files of JSON lines, until it takes them.

Each process writes files of its own and holds a lock on the one it appends to (flock(2), which ends with the process).
So whoever can lock a file may give its rows to the database, whichever process has written them.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import logging
import os
import secrets
from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path

from boxwright_api.records import UsageRow

log = logging.getLogger(__name__)

PATTERN = "usage-*.jsonl"
BATCH = 500


class Spill:
    """A folder of such files, of `limit` bytes together. Methods block, and are called by one thread at a time."""

    def __init__(self, folder: Path, limit: int) -> None:
        self._folder, self._limit = folder, limit
        self._file: int | None = None
        # Whether it refused rows, for lack of room or because the disk refused them.
        self.full = False

    def look(self) -> None:
        """Whether there is room."""
        self.full = self._size() >= self._limit

    def append(self, rows: Sequence[UsageRow]) -> bool:
        """Keep the rows, on the disk when it returns; False: none of them, and it is full."""
        data = b"".join(_line(row) for row in rows)
        try:
            if self._size() + len(data) > self._limit:
                self.full = True
                return False
            self._write(data)
        except OSError as error:
            if not self.full:
                log.error("usage cannot be kept in %s: %s", self._folder, error)
            self.full = True
            return False
        self.full = False
        return True

    def finish(self) -> None:
        """Append no more to the file that is open; the next rows get a new one."""
        if self._file is not None:
            os.close(self._file)
            self._file = None

    @contextlib.contextmanager
    def take(self) -> Iterator[tuple[Path, Iterator[tuple[list[UsageRow], int]]] | None]:
        """A file that no living process appends to: its rows in batches, and with each how many lines were no rows.
        None when there is none. Remove the file (`Path.unlink`) within, when all its rows are kept elsewhere.
        """
        with contextlib.ExitStack() as stack:
            for path in sorted(self._folder.glob(PATTERN)):
                try:
                    file = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
                except OSError:
                    continue
                stack.callback(os.close, file)
                if _lock(file) and _same(path, file):
                    yield path, _batches(file)
                    return
            yield None

    def _size(self) -> int:
        size = 0
        for path in self._folder.glob(PATTERN):
            with contextlib.suppress(FileNotFoundError):
                size += path.lstat().st_size
        return size

    def _write(self, data: bytes) -> None:
        while self._file is None:
            self._file = self._new()
        before = os.fstat(self._file).st_size
        try:
            left = memoryview(data)
            while left:
                left = left[os.write(self._file, left) :]
            os.fsync(self._file)
        except OSError:
            # No half a line, behind which the next one would be lost.
            with contextlib.suppress(OSError):
                os.ftruncate(self._file, before)
            raise

    def _new(self) -> int | None:
        """A new file with our lock; None when another process had it first, found it empty and removed it."""
        self._folder.mkdir(mode=0o700, exist_ok=True)
        path = self._folder / f"usage-{secrets.token_hex(8)}.jsonl"
        file = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC, 0o600)
        if not _lock(file) or not _same(path, file):
            os.close(file)
            return None
        folder = os.open(self._folder, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
        return file


def _lock(file: int) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _same(path: Path, file: int) -> bool:
    """Whether the file that is open still has its name."""
    try:
        return os.path.samestat(path.lstat(), os.fstat(file))
    except FileNotFoundError:
        return False


def _line(row: UsageRow) -> bytes:
    return json.dumps(dataclasses.asdict(row) | {"at": row.at.isoformat()}).encode() + b"\n"


def _batches(file: int) -> Iterator[tuple[list[UsageRow], int]]:
    rows: list[UsageRow] = []
    bad = 0
    with os.fdopen(os.dup(file), "rb") as lines:
        for line in lines:
            try:
                found = json.loads(line)
                rows.append(UsageRow(**found | {"at": datetime.fromisoformat(found["at"])}))
            except (ValueError, TypeError, KeyError):
                # The last line of a process that died while it wrote.
                bad += 1
            if len(rows) >= BATCH:
                yield rows, bad
                rows, bad = [], 0
    yield rows, bad
