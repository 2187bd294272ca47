"""SQLite, for one small box: one file, one worker, the same contract as PostgreSQL."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar

import aiosqlite

from boxwright_api.contracts import Span
from boxwright_api.errors import KeyChanged, SchemaError, StoreUnavailable
from boxwright_api.records import AuditEntry, Key, UsageRow, UsageSum
from boxwright_api.settings import Settings
from boxwright_api.store import rows
from boxwright_api.tasks import done_within, ended

log = logging.getLogger(__name__)
T = TypeVar("T")

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
MICROSECOND = timedelta(microseconds=1)
SPANS = {"hour": "%Y-%m-%dT%H:00:00", "day": "%Y-%m-%dT00:00:00", "month": "%Y-%m-01T00:00:00"}

# Seconds. SQLite itself waits for a lock of another process a little less than a caller waits for SQLite.
PATIENCE = 1.0
LOCK_PATIENCE = 0.8
REPORT_PATIENCE = 30.0
# How often it looks whether somebody else has written to the file, or taken it away.
LOOK = 0.25
# How often it looks for usage that is not kept any more, and how many rows of it go at a time: others write meanwhile.
FORGET_EVERY = 3600.0
FORGET_ROWS = 5000


def path(settings: Settings) -> Path:
    """The file of `sqlite:////absolute/path`."""
    return Path(settings.database.removeprefix("sqlite:///"))


def create(file: Path) -> None:
    """The file, readable by the service alone; its -wal and -shm take the same mode. Raises OSError."""
    os.close(os.open(file, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600))


def _stored(at: datetime) -> int:
    return (at - EPOCH) // MICROSECOND


def _time(stored: int) -> datetime:
    return EPOCH + stored * MICROSECOND


def _away(error: BaseException) -> bool:
    """Whether the file is at fault: locked, full, gone, damaged. Else it is what was to be written."""
    # aiosqlite raises ValueError for a connection that was closed.
    return type(error) in (sqlite3.OperationalError, sqlite3.DatabaseError, ValueError) or isinstance(error, OSError)


def _marks(columns: Sequence[str]) -> str:
    return ", ".join("?" * len(columns))


class SqliteStore:
    """Keys, usage and the audit log in one file (`contracts.Store`).

    Two connections: keys are read by one, everything is written by the other, and with WAL neither waits for the other.
    Reports have one for themselves, since they may take long.
    """

    def __init__(self, settings: Settings) -> None:
        self._path = path(settings)
        self._months = settings.usage_months
        self._reader: aiosqlite.Connection | None = None
        self._writer: aiosqlite.Connection | None = None
        self._writing = asyncio.Lock()
        self._inode = 0
        self._lost = False
        self._seen = 0
        self._changed: Callable[[str | None], None] = lambda id: None
        self._looking: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Future[Any]] = set()

    async def start(self, changed: Callable[[str | None], None]) -> None:
        """Open the file; when that fails, try again until it works. Raises SchemaError."""
        self._changed = changed
        with contextlib.suppress(StoreUnavailable):
            await self._open()
        self._looking = asyncio.create_task(self._look(), name="sqlite changes")

    async def close(self) -> None:
        """Close the file."""
        if self._looking:
            await ended(self._looking)
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=PATIENCE)
        await self._shut()

    async def alive(self) -> bool:
        """Whether the file can be read and is the one that was opened."""
        try:
            await self._read("SELECT version_num FROM alembic_version", ())
        except StoreUnavailable:
            return False
        return self._is_there()

    async def key(self, id: str) -> Key | None:
        """The key."""
        found = await self._read(f"SELECT {', '.join(rows.KEY)} FROM api_key WHERE id = ?", (id,))  # noqa: S608
        return rows.key(dict(found[0]), _time) if found else None

    async def keys(self) -> list[Key]:
        """All keys."""
        query = f"SELECT {', '.join(rows.KEY)} FROM api_key ORDER BY created_at DESC, id"  # noqa: S608
        return [rows.key(dict(row), _time) for row in await self._report(query, ())]

    async def put_key(self, key: Key, audit: AuditEntry) -> None:
        """Insert or replace."""
        values = rows.key_values(key, _stored)
        named = dict(zip(rows.KEY, values, strict=True))
        new = ", ".join(
            f"{name} = coalesce(api_key.{name}, :{name})" if name == "revoked_at" else f"{name} = :{name}"
            for name in rows.KEY
            if name not in ("id", "version")
        )
        insert = f"INSERT INTO api_key ({', '.join(rows.KEY)}) VALUES ({', '.join(':' + n for n in rows.KEY)})"  # noqa: S608
        if key.version is None:
            query = f"{insert} ON CONFLICT (id) DO UPDATE SET {new}, version = api_key.version + 1"
        elif key.version == 0:
            query = f"{insert} ON CONFLICT (id) DO NOTHING"
        else:
            query = f"UPDATE api_key SET {new}, version = :version WHERE id = :id AND version = :version - 1"  # noqa: S608

        async def work(connection: aiosqlite.Connection) -> None:
            async with connection.execute(query, named) as cursor:
                if cursor.rowcount == 0:
                    raise KeyChanged(key.id)
            await self._append(connection, audit)

        await self._write(work)
        self._changed(key.id)

    async def write_usage(self, rows_: Sequence[UsageRow]) -> None:
        """Insert rows that are not there."""
        query = f"INSERT INTO usage_log ({', '.join(rows.USAGE)}) VALUES ({_marks(rows.USAGE)}) ON CONFLICT DO NOTHING"  # noqa: S608
        values = [rows.usage_values(row, _stored) for row in rows_]

        async def work(connection: aiosqlite.Connection) -> None:
            async with connection.executemany(query, values):
                pass

        await self._write(work)

    async def usage(self, since: datetime, until: datetime, span: Span, key_id: str | None = None) -> list[UsageSum]:
        """Sums."""
        query = """
            SELECT strftime(?, at / 1000000, 'unixepoch') AS start, key_id, owner, model, count(*) AS requests,
                sum(outcome IN ('limited', 'refused')) AS refused,
                sum(outcome IN ('client_closed', 'client_closed_early')) AS aborted,
                sum(tokens_in) AS tokens_in, sum(tokens_out) AS tokens_out
            FROM usage_log LEFT JOIN api_key ON api_key.id = usage_log.key_id
            WHERE at >= ? AND at < ? AND (? IS NULL OR key_id = ?)
            GROUP BY 1, key_id, owner, model ORDER BY 1, key_id, model
        """
        values = (SPANS[span], _stored(since), _stored(until), key_id, key_id)
        return [
            UsageSum(**{**dict(row), "start": datetime.fromisoformat(row["start"]).replace(tzinfo=UTC)})
            for row in await self._report(query, values)
        ]

    async def write_audit(self, entry: AuditEntry) -> None:
        """Append."""
        await self._write(lambda connection: self._append(connection, entry))

    async def audit(self, limit: int = 100, before: datetime | None = None) -> list[AuditEntry]:
        """The newest first."""
        query = (
            f"SELECT {', '.join(rows.AUDIT)} FROM audit_log WHERE ? IS NULL OR at < ? "  # noqa: S608
            "ORDER BY at DESC, id DESC LIMIT ?"
        )
        edge = None if before is None else _stored(before)
        return [rows.audit(dict(row), _time) for row in await self._report(query, (edge, edge, limit))]

    async def _append(self, connection: aiosqlite.Connection, entry: AuditEntry) -> None:
        query = f"INSERT INTO audit_log ({', '.join(rows.AUDIT)}) VALUES ({_marks(rows.AUDIT)})"  # noqa: S608
        await connection.execute_insert(query, rows.audit_values(entry, _stored))

    async def _connect(self) -> aiosqlite.Connection:
        # rw: a file that is away is an error, not a new, empty database.
        connection = await aiosqlite.connect(
            f"{self._path.as_uri()}?mode=rw", uri=True, timeout=LOCK_PATIENCE, isolation_level=None
        )
        connection.row_factory = sqlite3.Row
        return connection

    async def _open(self) -> None:
        """Connect and look at the schema. Raises StoreUnavailable and SchemaError."""
        opened: list[aiosqlite.Connection] = []
        try:
            inode = self._path.stat().st_ino
            if self._lost or self._inode not in (0, inode):
                # SQLite would put the log of the old file on top of it (sqlite.org/howtocorrupt.html, 2.4).
                raise StoreUnavailable(
                    f"{self._path} was replaced while it was in use: stop the service, remove {self._path.name}-wal "
                    "and -shm, and start it again"
                )
            for _ in range(2):
                opened.append(await self._connect())
            reader, writer = opened
            async with writer.execute("PRAGMA journal_mode = WAL"):
                pass
            # A revoked key must not come back after a power cut.
            async with writer.execute("PRAGMA synchronous = FULL"):
                pass
            revision = await _revision(reader)
            if revision != rows.REVISION:
                raise SchemaError(
                    f"{self._path} has schema {revision or 'none'}, but {rows.REVISION} is expected: "
                    "run `python -m boxwright_api migrate`"
                )
            self._seen = await _data_version(writer)
        except BaseException as error:
            for connection in opened:
                await connection.close()
            if _away(error):
                raise StoreUnavailable(f"{self._path}: {error}") from error
            raise
        self._reader, self._writer, self._inode = reader, writer, inode

    def _is_there(self) -> bool:
        """Whether the file that is open still has its name."""
        try:
            return self._path.stat().st_ino == self._inode
        except OSError:
            return False

    async def _shut(self) -> None:
        connections, self._reader, self._writer = (self._reader, self._writer), None, None
        for connection in connections:
            if connection:
                with contextlib.suppress(sqlite3.Error, ValueError):
                    await connection.close()

    async def _look(self) -> None:
        """Notices what other processes write, and a file that is away; opens it when it comes."""
        away = False
        next_forget = 0.0
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(LOOK)
            try:
                if self._writer is None:
                    await self._open()
                    self._changed(None)
                elif not self._is_there():
                    self._lost = True
                    raise StoreUnavailable(f"{self._path} was removed or replaced while it was in use")
                else:
                    async with self._writing:
                        seen = await _data_version(self._writer)
                    if seen != self._seen:
                        self._seen = seen
                        self._changed(None)
                    if loop.time() >= next_forget:
                        next_forget = loop.time() + await self._forget_some()
                away = False
            except Exception as error:
                if not (isinstance(error, StoreUnavailable | SchemaError) or _away(error)):
                    log.exception("looking for changes")
                elif not away:
                    log.warning("no database: %s", error)
                if not away:
                    self._changed(None)
                away = True
                await self._shut()

    async def _forget_some(self) -> float:
        """Some usage of months that are not kept any more goes; seconds until the next try. Where another program has
        the file locked, or the disk is slow, that is no reason to take the database for away.
        """
        since = rows.kept_since(datetime.now(UTC), self._months)
        if since is None:
            return FORGET_EVERY
        gone = 0

        async def work(connection: aiosqlite.Connection) -> None:
            nonlocal gone
            query = "DELETE FROM usage_log WHERE rowid IN (SELECT rowid FROM usage_log WHERE at < ? LIMIT ?)"
            async with connection.execute(query, (_stored(since), FORGET_ROWS)) as cursor:
                gone = cursor.rowcount

        try:
            await self._write(work)
        except StoreUnavailable as error:
            log.warning("usage before %s is kept for now: %s", since.date(), error)
            return 60.0
        if gone:
            log.info("%d requests before %s are forgotten", gone, since.date())
        return 0.0 if gone == FORGET_ROWS else FORGET_EVERY

    async def _patiently(self, work: Awaitable[T], patience: float) -> T:
        """The result, waiting a limited time. What was begun is ended in any case, never left half done."""
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        task.add_done_callback(lambda task: task.cancelled() or task.exception())
        if not await done_within(task, patience):
            raise StoreUnavailable(f"{self._path}: no answer within {patience:g} s")
        try:
            return task.result()
        except Exception as error:
            if _away(error):
                raise StoreUnavailable(f"{self._path}: {error}") from error
            raise

    async def _read(self, query: str, values: Sequence[Any]) -> list[sqlite3.Row]:
        if self._reader is None:
            raise StoreUnavailable(f"{self._path} is not open")
        return list(await self._patiently(self._reader.execute_fetchall(query, values), PATIENCE))

    async def _report(self, query: str, values: Sequence[Any]) -> list[sqlite3.Row]:
        if self._reader is None:
            raise StoreUnavailable(f"{self._path} is not open")

        async def work() -> list[sqlite3.Row]:
            connection = await self._connect()
            try:
                return list(await connection.execute_fetchall(query, values))
            finally:
                await connection.close()

        return await self._patiently(work(), REPORT_PATIENCE)

    async def _write(self, work: Callable[[aiosqlite.Connection], Awaitable[None]]) -> None:
        """Run it in a transaction, which goes on to its end also when the caller is cancelled."""

        async def whole() -> None:
            async with self._writing:
                if self._writer is None:
                    raise StoreUnavailable(f"{self._path} is not open")
                async with _transaction(self._writer):
                    await work(self._writer)

        await self._patiently(whole(), PATIENCE)


@contextlib.asynccontextmanager
async def _transaction(connection: aiosqlite.Connection) -> AsyncIterator[None]:
    async with connection.execute("BEGIN IMMEDIATE"):
        pass
    try:
        yield
        async with connection.execute("COMMIT"):
            pass
    except BaseException:
        if connection.in_transaction:
            async with connection.execute("ROLLBACK"):
                pass
        raise


async def _revision(connection: aiosqlite.Connection) -> str | None:
    try:
        found = list(await connection.execute_fetchall("SELECT version_num FROM alembic_version"))
    except sqlite3.OperationalError as error:
        if "no such table" in str(error):
            return None
        raise
    return str(found[0][0]) if found else None


async def _data_version(connection: aiosqlite.Connection) -> int:
    """A number that differs when another connection has written (sqlite.org/pragma.html#pragma_data_version)."""
    return int(next(iter(await connection.execute_fetchall("PRAGMA data_version")))[0])
