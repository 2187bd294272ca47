"""Brings the tables of a database to a schema, forward or back; several at once wait for each other."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable
from typing import Any, TypeVar

import asyncpg
import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.util import CommandError
from sqlalchemy import Connection
from sqlalchemy.ext.asyncio import create_async_engine

from boxwright_api.errors import SchemaError, StoreUnavailable
from boxwright_api.settings import Settings
from boxwright_api.store import postgres, sqlite

T = TypeVar("T")

# Any number that nobody else uses in this database.
LOCK = 8_430_217_551


def migrate(settings: Settings, down: str | None = None) -> str | None:
    """Bring the database to the newest schema, or back to the revision `down` (`base`: no tables at all). Returns the
    revision that it has then. All or nothing. Raises StoreUnavailable, and SchemaError for an unknown revision.
    """

    def work(connection: Connection) -> str | None:
        if connection.dialect.name == "postgresql":
            connection.execute(sa.text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": LOCK})
        config = Config()
        config.set_main_option("script_location", "boxwright_api:migrations")
        config.set_main_option("path_separator", "os")
        config.attributes["connection"] = connection
        try:
            if down is None:
                command.upgrade(config, "head")
            else:
                command.downgrade(config, down)
        except CommandError as error:
            raise SchemaError(str(error)) from None
        return _revision(connection)

    return _connected(settings, work)


def current(settings: Settings) -> str | None:
    """The revision that the database has; None: no tables. Raises StoreUnavailable."""
    return _connected(settings, _revision)


def _revision(connection: Connection) -> str | None:
    return MigrationContext.configure(connection).get_current_revision()


def _connected(settings: Settings, work: Callable[[Connection], T]) -> T:
    """Run it in one transaction."""
    try:
        if settings.database.startswith("sqlite"):
            return _sqlite(settings, work)
        return asyncio.run(_postgresql(settings, work))
    except (OSError, TimeoutError, sqlite3.Error, asyncpg.PostgresError, sa.exc.DBAPIError) as error:
        cause = error.orig if isinstance(error, sa.exc.DBAPIError) and error.orig else error
        raise StoreUnavailable(f"{type(cause).__name__}: {cause}") from error


async def _postgresql(settings: Settings, work: Callable[[Connection], T]) -> T:
    engine = create_async_engine("postgresql+asyncpg://", async_creator=lambda: postgres.connect(settings, 10))
    try:
        async with engine.begin() as connection:
            return await connection.run_sync(work)
    finally:
        await engine.dispose()


def _sqlite(settings: Settings, work: Callable[[Connection], T]) -> T:
    path = sqlite.path(settings)
    sqlite.create(path)
    # Another migration may hold the file for a while.
    engine = sa.create_engine("sqlite://", creator=lambda: sqlite3.connect(path, timeout=10, isolation_level=None))

    @sa.event.listens_for(engine, "begin")
    def begin(connection: Any) -> None:
        # The driver would begin before data only, so that half a migration could stay.
        connection.exec_driver_sql("BEGIN IMMEDIATE")

    try:
        with engine.begin() as connection:
            return work(connection)
    finally:
        engine.dispose()
