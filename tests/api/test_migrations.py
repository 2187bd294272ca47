"""The tables, forward and back, with data in them."""

from __future__ import annotations

import asyncio
import dataclasses
import multiprocessing
import sqlite3
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import asyncpg
import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from boxwright_api.errors import SchemaError, StoreUnavailable
from boxwright_api.settings import Settings
from boxwright_api.store import rows
from boxwright_api.store.migrate import current, migrate
from boxwright_api.store.tables import metadata
from stores import Place, a_key, a_row, an_entry, settings

TABLES = {
    "sqlite": "SELECT name FROM sqlite_master WHERE type IN ('table', 'index') AND name NOT LIKE 'sqlite_%' ORDER BY 1",
    "postgresql": "SELECT relname FROM pg_class WHERE relkind IN ('r', 'p') AND relnamespace = 'public'::regnamespace "
    "UNION SELECT proname FROM pg_proc WHERE pronamespace = 'public'::regnamespace ORDER BY 1",
}


def test_the_newest_is_what_the_stores_expect() -> None:
    """Whoever adds a migration also says so where it is looked for."""
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", "boxwright_api:migrations")
    config.set_main_option("path_separator", "os")
    assert ScriptDirectory.from_config(config).get_current_head() == rows.REVISION


def test_up_and_down_with_data(empty: Place) -> None:
    """What a step does not concern is the same before and after; down to the base nothing is left."""
    key, _ = a_key(models=("small",), collections=("manuals",))
    entry = an_entry(details={"a": 1})
    keys = f"SELECT {', '.join(name for name in rows.KEY if name != 'collections')} FROM api_key"

    async def fill() -> None:
        async with empty.opened() as store:
            await store.put_key(key, entry)
            await store.write_usage([a_row(1), a_row(2)])

    async def look() -> None:
        async with empty.opened() as store:
            # A key that comes from a time without collections may read none of them.
            assert await store.key(key.id) == dataclasses.replace(key, collections=())
            assert await store.audit() == [entry]

    assert current(empty.settings) is None
    assert migrate(empty.settings) == rows.REVISION
    asyncio.run(fill())
    before = empty.sql(keys)
    assert migrate(empty.settings) == rows.REVISION  # the second run: nothing to do
    assert empty.sql("SELECT count(*) FROM usage_log") == "2"

    assert empty.sql("SELECT collections FROM api_key") == '["manuals"]'

    assert migrate(empty.settings, "0002") == "0002"
    assert empty.sql(keys) == before
    assert empty.sql("SELECT count(*) FROM usage_log") == "2"
    with pytest.raises(RuntimeError, match="collections"):
        empty.sql("SELECT collections FROM api_key")

    assert migrate(empty.settings, "0001") == "0001"
    assert current(empty.settings) == "0001"
    assert empty.sql(keys) == before
    with pytest.raises(RuntimeError, match="usage_log"):
        empty.sql("SELECT count(*) FROM usage_log")
    with pytest.raises(RuntimeError, match="only appended to"):
        empty.sql("DELETE FROM audit_log")

    assert migrate(empty.settings) == rows.REVISION
    assert empty.sql("SELECT count(*) FROM usage_log") == "0"
    assert empty.sql("SELECT collections FROM api_key") == "[]"
    asyncio.run(look())

    assert migrate(empty.settings, "base") is None
    assert current(empty.settings) is None
    assert set(empty.sql(TABLES[empty.kind]).split()) <= {"alembic_version"}
    assert migrate(empty.settings) == rows.REVISION
    assert empty.sql("SELECT count(*) FROM api_key") == "0"


def test_the_tables_are_those_that_are_described(place: Place) -> None:
    """`tables.py` and what the migrations made do not differ."""

    def differences(connection: sa.Connection) -> Any:
        def named(name: str | None, kind: str, _: Any) -> bool:
            return kind != "table" or not (name or "").startswith("usage_log_")

        options = {"compare_type": True, "include_name": named}
        return compare_metadata(MigrationContext.configure(connection, opts=options), metadata)

    async def of_postgresql() -> Any:
        from sqlalchemy.ext.asyncio import create_async_engine

        password = place.settings.database_password
        assert password is not None

        async def connect() -> Any:
            return await asyncpg.connect(place.settings.database, password=password.get_secret_value())

        engine = create_async_engine("postgresql+asyncpg://", async_creator=connect)
        try:
            async with engine.connect() as connection:
                return await connection.run_sync(differences)
        finally:
            await engine.dispose()

    if place.kind == "postgresql":
        assert asyncio.run(of_postgresql()) == []
    else:
        engine = sa.create_engine("sqlite://", creator=lambda: sqlite3.connect(place.file))
        with engine.connect() as connection:
            assert differences(connection) == []
        engine.dispose()


def _migrated(database: str, password: str | None) -> str | None:
    return migrate(settings(database, database_password=password))


def test_several_at_once(empty: Place) -> None:
    """They wait for each other; one does it."""
    password = empty.settings.database_password
    arguments = (empty.settings.database, password.get_secret_value() if password else None)
    with ProcessPoolExecutor(3, mp_context=multiprocessing.get_context("spawn")) as processes:
        done = [processes.submit(_migrated, *arguments) for _ in range(3)]
        assert [one.result() for one in done] == [rows.REVISION] * 3
    assert empty.sql("SELECT version_num FROM alembic_version") == rows.REVISION


def test_a_step_that_fails_has_done_nothing(empty: Place) -> None:
    """All or nothing: the table is made before the index whose name is taken."""
    migrate(empty.settings)
    migrate(empty.settings, "0001")
    empty.sql("CREATE TABLE usage_log_at (x int)")
    with pytest.raises(StoreUnavailable, match="usage_log_at"):
        migrate(empty.settings)
    assert current(empty.settings) == "0001"
    with pytest.raises(RuntimeError, match="usage_log"):
        empty.sql("SELECT * FROM usage_log")
    empty.sql("DROP TABLE usage_log_at")
    assert migrate(empty.settings) == rows.REVISION


def test_a_revision_that_does_not_exist(place: Place) -> None:
    """It is said, and nothing is changed."""
    with pytest.raises(SchemaError, match="0815"):
        migrate(place.settings, "0815")
    assert current(place.settings) == rows.REVISION


@pytest.mark.parametrize("url", ["sqlite:////nowhere/at/all/api.db", "postgresql://nobody@127.0.0.1:9/none"])
def test_no_database(url: str) -> None:
    """It is said with the reason."""
    nowhere: Settings = settings(url)
    for work in (migrate, current):
        with pytest.raises(StoreUnavailable, match=r"No such file|Connect call failed"):
            work(nowhere)
