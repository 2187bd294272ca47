"""PostgreSQL: a pool of connections for the work, and one that listens for changed keys and looks after the others."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, date, datetime, timedelta
from typing import Any, TypeVar

import asyncpg

from boxwright_api.contracts import Span
from boxwright_api.errors import KeyChanged, SchemaError, StoreUnavailable
from boxwright_api.records import AuditEntry, Key, UsageRow, UsageSum
from boxwright_api.settings import Settings
from boxwright_api.store import rows
from boxwright_api.tasks import done_within, ended

log = logging.getLogger(__name__)
T = TypeVar("T")

# What a trigger notifies with the id of a key (migration 0001).
CHANNEL = "boxwright_key"
CONNECTIONS = 4

# Seconds: a caller who waits for a key; a batch or an admin's act; a report; a connection in the making.
PATIENCE = 1.0
WRITE_PATIENCE = 5.0
REPORT_PATIENCE = 30.0
CONNECT_PATIENCE = 3.0
# How often it asks whether the database is there and how long it waits for that, and how often it tries to connect.
BEAT = 1.0
BEAT_PATIENCE = 2.0
RETRY = 0.25
# How often it makes sure of the partitions of this month and the next ones, and how many those are.
MONTHS_EVERY = 3600.0
MONTHS = 3
# What migration 0002 calls them.
MONTH = re.compile(r"usage_log_[0-9]{4}_[0-9]{2}")

# What the server says when it is at fault, not what it was asked: connection (08), authentication (28), no such
# database, out of resources (53), shutting down or cancelled (57), input and output (58), read-only, a lock held by
# somebody, tables that are not there (yet).
AWAY = (
    OSError,
    TimeoutError,
    asyncpg.InterfaceError,
    # A connection that breaks at the wrong moment, as asyncpg says it.
    asyncpg.InternalClientError,
    asyncpg.PostgresConnectionError,
    asyncpg.InvalidAuthorizationSpecificationError,
    asyncpg.InvalidCatalogNameError,
    asyncpg.InsufficientResourcesError,
    asyncpg.OperatorInterventionError,
    asyncpg.PostgresSystemError,
    asyncpg.ReadOnlySQLTransactionError,
    asyncpg.LockNotAvailableError,
    asyncpg.UndefinedTableError,
    asyncpg.InsufficientPrivilegeError,
)

USAGE_TYPES = (
    *("text", "timestamptz", "text", "text", "text", "int", "text", "text"),
    *("bigint", "bigint", "boolean", "float8", "float8", "float8"),
)


def _away(error: BaseException) -> bool:
    # asyncpg's own error for a value that does not fit is an InterfaceError and a ValueError.
    return isinstance(error, AWAY) and not isinstance(error, ValueError)


def _time(at: datetime) -> datetime:
    return at


def _selected(columns: Sequence[str]) -> str:
    return ", ".join(f"{name}::text" if name in ("models", "collections", "details") else name for name in columns)


async def connect(settings: Settings, patience: float, **options: str) -> Any:
    """One connection; `options` are settings of the server for it. Raises one of AWAY."""
    password = settings.database_password
    return await asyncpg.connect(
        settings.database,
        password=password.get_secret_value() if password else None,
        timeout=patience,
        server_settings={"application_name": f"boxwright-api {settings.instance}", "timezone": "UTC", **options},
    )


class PostgresStore:
    """Keys, usage and the audit log in PostgreSQL (`contracts.Store`)."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._pool: Any = None
        self._listener: Any = None
        self._changed: Callable[[str | None], None] = lambda id: None
        self._look = asyncio.Event()
        self._tending: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Future[Any]] = set()

    async def start(self, changed: Callable[[str | None], None]) -> None:
        """Connect; when that fails, try again until it works. Raises SchemaError."""
        self._changed = changed
        with contextlib.suppress(StoreUnavailable):
            await self._open()
        self._tending = asyncio.create_task(self._tend(), name="postgresql")

    async def close(self) -> None:
        """Disconnect."""
        if self._tending:
            await ended(self._tending)
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=PATIENCE)
        self._drop()

    async def alive(self) -> bool:
        """Whether the database answers."""
        try:
            await self._call(lambda connection: connection.fetchval("SELECT 1"), PATIENCE)
        except StoreUnavailable:
            return False
        return True

    async def key(self, id: str) -> Key | None:
        """The key."""
        query = f"SELECT {_selected(rows.KEY)} FROM api_key WHERE id = $1"  # noqa: S608
        found = await self._call(lambda connection: connection.fetchrow(query, id), PATIENCE)
        return rows.key(found, _time) if found else None

    async def keys(self) -> list[Key]:
        """All keys."""
        query = f"SELECT {_selected(rows.KEY)} FROM api_key ORDER BY created_at DESC, id"  # noqa: S608
        return [rows.key(row, _time) for row in await self._report(query)]

    async def put_key(self, key: Key, audit: AuditEntry) -> None:
        """Insert or replace."""
        places = {name: f"${number}" for number, name in enumerate(rows.KEY, 1)}
        new = ", ".join(
            f"{name} = coalesce(api_key.{name}, {place})" if name == "revoked_at" else f"{name} = {place}"
            for name, place in places.items()
            if name not in ("id", "version")
        )
        insert = f"INSERT INTO api_key ({', '.join(places)}) VALUES ({', '.join(places.values())})"  # noqa: S608
        version = places["version"]
        if key.version is None:
            query = f"{insert} ON CONFLICT (id) DO UPDATE SET {new}, version = api_key.version + 1"
        elif key.version == 0:
            query = f"{insert} ON CONFLICT (id) DO NOTHING"
        else:
            query = (
                f"UPDATE api_key SET {new}, version = {version} "  # noqa: S608
                f"WHERE id = {places['id']} AND version = {version} - 1"
            )

        async def work(connection: Any) -> None:
            async with connection.transaction():
                # The answer ends in the number of rows: `INSERT 0 1`, `UPDATE 1`.
                if (await connection.execute(query, *rows.key_values(key, _time))).endswith(" 0"):
                    raise KeyChanged(key.id)
                await self._append(connection, audit)

        await self._call(work, WRITE_PATIENCE)
        self._changed(key.id)

    async def write_usage(self, rows_: Sequence[UsageRow]) -> None:
        """Insert rows that are not there."""
        arrays = ", ".join(f"${number}::{kind}[]" for number, kind in enumerate(USAGE_TYPES, 1))
        query = (
            f"INSERT INTO usage_log ({', '.join(rows.USAGE)}) "  # noqa: S608
            f"SELECT * FROM unnest({arrays}) ON CONFLICT DO NOTHING"
        )
        columns = list(zip(*(rows.usage_values(row, _time) for row in rows_), strict=True))
        if columns:
            await self._call(lambda connection: connection.execute(query, *columns), WRITE_PATIENCE)

    async def usage(self, since: datetime, until: datetime, span: Span, key_id: str | None = None) -> list[UsageSum]:
        """Sums."""
        query = """
            SELECT date_trunc($1, at AT TIME ZONE 'UTC') AT TIME ZONE 'UTC' AS start, key_id, owner, model,
                count(*) AS requests,
                count(*) FILTER (WHERE outcome IN ('limited', 'refused')) AS refused,
                count(*) FILTER (WHERE outcome IN ('client_closed', 'client_closed_early')) AS aborted,
                sum(tokens_in)::bigint AS tokens_in, sum(tokens_out)::bigint AS tokens_out
            FROM usage_log LEFT JOIN api_key ON api_key.id = usage_log.key_id
            WHERE at >= $2 AND at < $3 AND ($4::text IS NULL OR key_id = $4)
            GROUP BY 1, key_id, owner, model ORDER BY 1, key_id NULLS FIRST, model NULLS FIRST
        """
        return [UsageSum(**dict(row)) for row in await self._report(query, span, since, until, key_id)]

    async def write_audit(self, entry: AuditEntry) -> None:
        """Append."""
        await self._call(lambda connection: self._append(connection, entry), WRITE_PATIENCE)

    async def audit(self, limit: int = 100, before: datetime | None = None) -> list[AuditEntry]:
        """The newest first."""
        query = (
            f"SELECT {_selected(rows.AUDIT)} FROM audit_log "  # noqa: S608
            "WHERE $1::timestamptz IS NULL OR at < $1 ORDER BY at DESC, id DESC LIMIT $2"
        )
        return [rows.audit(row, _time) for row in await self._report(query, before, limit)]

    async def _append(self, connection: Any, entry: AuditEntry) -> None:
        query = f"INSERT INTO audit_log ({', '.join(rows.AUDIT)}) VALUES ($1, $2, $3, $4, $5::jsonb)"  # noqa: S608
        await connection.execute(query, *rows.audit_values(entry, _time))

    async def _open(self) -> None:
        """Connect, look at the schema and listen. Raises StoreUnavailable and SchemaError."""
        listener = pool = None
        # The server gives up a little after the caller, so that a lost caller costs it nothing.
        limits = {
            "statement_timeout": f"{WRITE_PATIENCE + 1:g}s",
            "lock_timeout": f"{PATIENCE:g}s",
            "idle_in_transaction_session_timeout": "10s",
        }
        try:
            async with asyncio.timeout(2 * CONNECT_PATIENCE):
                listener = await connect(self._settings, CONNECT_PATIENCE)
                revision = await _revision(listener)
                if revision != rows.REVISION:
                    raise SchemaError(
                        f"the database has schema {revision or 'none'}, but {rows.REVISION} is expected: "
                        "run `python -m boxwright_api migrate`"
                    )
                listener.add_termination_listener(lambda connection: self._look.set())
                await listener.add_listener(CHANNEL, self._heard)
                pool = await asyncpg.create_pool(
                    # No more than are needed, and those stay: a first request does not wait for a login.
                    min_size=0,
                    max_size=CONNECTIONS,
                    max_inactive_connection_lifetime=0,
                    connect=lambda *args, **kwargs: connect(self._settings, CONNECT_PATIENCE, **limits),
                )
                await pool.fetchval("SELECT 1")
        except BaseException as error:
            for part in (listener, pool):
                if part is not None:
                    part.terminate()
            if _away(error):
                raise StoreUnavailable(f"{type(error).__name__}: {error}") from error
            raise
        self._listener, self._pool = listener, pool

    def _heard(self, connection: Any, process: int, channel: str, id: str) -> None:
        self._changed(id or None)

    def _drop(self) -> None:
        """Disconnect without waiting for anybody."""
        parts, self._listener, self._pool = (self._listener, self._pool), None, None
        for part in parts:
            if part is not None:
                part.terminate()

    async def _tend(self) -> None:
        """Keeps the connections: asks now and then, and when a caller or the listener has trouble, whether the database
        is still there; connects again when it was not.
        """
        away = self._pool is None
        next_months = 0.0
        loop = asyncio.get_running_loop()
        while True:
            try:
                if self._pool is None:
                    await self._open()
                    # What was notified meanwhile, nobody heard.
                    self._changed(None)
                    away = False
                if loop.time() >= next_months:
                    done = await self._make_months() and await self._forget_months()
                    next_months = loop.time() + (MONTHS_EVERY if done else 60.0)
                # Not wait_for, which in Python 3.11 loses a cancellation that comes together with the event.
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(BEAT):
                        await self._look.wait()
                self._look.clear()
                await self._patiently(self._listener.fetchval("SELECT 1"), BEAT_PATIENCE)
            except Exception as error:
                if not isinstance(error, StoreUnavailable | SchemaError):
                    log.exception("looking after the database")
                elif not away:
                    log.warning("no database: %s", error)
                if not away:
                    self._changed(None)
                away = True
                self._drop()
                await asyncio.sleep(RETRY)

    async def _make_months(self) -> bool:
        """The partitions of the usage log for this month and the next ones. Rows that come without one lose nothing:
        they lie in the default partition until it is made.
        """
        day = datetime.now(UTC).date().replace(day=1)
        for _ in range(MONTHS):
            try:
                await self._call(_month(day), WRITE_PATIENCE)
            except Exception as error:
                log.warning("no partition of the usage log for %s yet: %s", day, error)
                return False
            day = (day + timedelta(days=31)).replace(day=1)
        return True

    async def _forget_months(self) -> bool:
        """Whole months of usage that are not kept any more go. One that is being read is tried again later."""
        since = rows.kept_since(datetime.now(UTC), self._settings.usage_months)
        if since is None:
            return True
        try:
            for name in await self._call(_leaves, WRITE_PATIENCE):
                if MONTH.fullmatch(name) and name < f"usage_log_{since:%Y_%m}":
                    await self._call(_dropped(name), WRITE_PATIENCE)
                    log.info("usage of %s is forgotten", name.removeprefix("usage_log_"))
            query = "DELETE FROM usage_log_default WHERE at < $1"
            await self._call(lambda connection: connection.execute(query, since), WRITE_PATIENCE)
        except Exception as error:
            log.warning("usage before %s is kept for now: %s", since.date(), error)
            return False
        return True

    async def _call(self, work: Callable[[Any], Awaitable[T]], patience: float) -> T:
        """Work with a connection of the pool. Raises StoreUnavailable."""
        pool = self._pool
        if pool is None:
            raise StoreUnavailable("not connected")

        async def whole() -> T:
            async with pool.acquire() as connection:
                return await work(connection)

        return await self._patiently(whole(), patience)

    async def _report(self, query: str, *values: Any) -> list[Any]:
        async def work(connection: Any) -> list[Any]:
            async with connection.transaction(readonly=True):
                await connection.execute(f"SET LOCAL statement_timeout = '{REPORT_PATIENCE:g}s'")
                return list(await connection.fetch(query, *values))

        return await self._call(work, REPORT_PATIENCE)

    async def _patiently(self, work: Awaitable[T], patience: float) -> T:
        """The result, waiting a limited time, also for a server that has stopped in the middle. A caller who leaves
        does not end what was begun.
        """
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        task.add_done_callback(lambda task: task.cancelled() or task.exception())
        if not await done_within(task, patience):
            # Not waited for: asyncpg asks the server to cancel, which may not answer that either.
            task.cancel()
            self._look.set()
            raise StoreUnavailable(f"no answer within {patience:g} s")
        try:
            return task.result()
        except asyncio.CancelledError:
            raise StoreUnavailable("disconnected") from None
        except Exception as error:
            if not _away(error):
                raise
            self._look.set()
            raise StoreUnavailable(f"{type(error).__name__}: {error}") from error


def _month(day: date) -> Callable[[Any], Awaitable[Any]]:
    return lambda connection: connection.execute("SELECT usage_log_month($1)", day)


async def _leaves(connection: Any) -> list[str]:
    """The partitions of the usage log."""
    found = await connection.fetch("SELECT relid::regclass::text FROM pg_partition_tree('usage_log') WHERE isleaf")
    return [str(row[0]) for row in found]


def _dropped(name: str) -> Callable[[Any], Awaitable[None]]:
    async def work(connection: Any) -> None:
        async with connection.transaction():
            # It waits for who reads the log, and those who write would wait behind it.
            await connection.execute("SET LOCAL lock_timeout = '500ms'")
            await connection.execute(f"DROP TABLE IF EXISTS {name}")

    return work


async def _revision(connection: Any) -> str | None:
    try:
        found = await connection.fetchval("SELECT version_num FROM alembic_version")
    except asyncpg.UndefinedTableError:
        return None
    return None if found is None else str(found)
