"""Both stores keep the contract."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import sqlite3
import stat
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from boxwright_api.errors import KeyChanged, SchemaError, StoreUnavailable
from boxwright_api.records import Key, UsageSum
from boxwright_api.settings import KeyLimits
from boxwright_api.store import open_store
from boxwright_api.store import sqlite as sqlite_store
from boxwright_api.store.migrate import migrate
from boxwright_api.store.postgres import PostgresStore, connect
from boxwright_api.store.rows import kept_since
from databases import Databases
from stores import NOW, Place, a_key, a_row, an_entry, settings, until_alive
from waiting import until_async

pytestmark = pytest.mark.anyio

DAY = timedelta(days=1)


# Keys


async def test_every_member_of_a_key_is_kept(place: Place) -> None:
    """What is read is what was written, to the microsecond."""
    limits = KeyLimits(
        requests_per_minute=1, tokens_per_minute=2, parallel=3, tokens_per_day=4 * 10**12, tokens_per_month=2**53
    )
    key, _ = a_key(
        old_digest=b"o" * 32,
        old_pepper=1,
        old_until=NOW + DAY,
        expires_at=NOW + 2 * DAY,
        models=("small", "läärge"),
        collections=("manuals", "faq"),
        limits=limits,
    )
    plain, _ = a_key(created_at=NOW - DAY)
    async with place.opened() as store:
        await store.put_key(key, an_entry())
        await store.put_key(plain, an_entry())
        found = await store.key(key.id)
        assert found == key
        assert found is not None
        assert (found.digest, found.old_digest, found.created_at.utcoffset()) == (key.digest, b"o" * 32, timedelta(0))
        assert await store.key(plain.id) == plain
        assert await store.keys() == [key, plain]
        assert await store.key("unknown1") is None


async def test_a_key_is_replaced_and_stays_revoked(place: Place) -> None:
    """Whoever writes what was read before the revocation does not undo it."""
    key, _ = a_key()
    async with place.opened() as store:
        await store.put_key(key, an_entry())
        await store.put_key(dataclasses.replace(key, owner="other", revoked_at=NOW), an_entry())
        await store.put_key(dataclasses.replace(key, owner="third"), an_entry())
        assert await store.key(key.id) == dataclasses.replace(key, owner="third", revoked_at=NOW)


async def test_a_change_of_an_older_state_is_refused(place: Place) -> None:
    """Of two who read the same key and change it, the second is refused and nothing is written, no entry either."""
    key, _ = a_key(version=0)
    async with place.opened() as store:
        await store.put_key(key, an_entry())
        with pytest.raises(KeyChanged):
            await store.put_key(key, an_entry(action="again"))
        first = await store.key(key.id)
        second = await store.key(key.id)
        assert first is not None
        assert second is not None
        await store.put_key(dataclasses.replace(first, owner="first"), an_entry())
        with pytest.raises(KeyChanged):
            await store.put_key(dataclasses.replace(second, owner="second"), an_entry(action="second"))
        now = await store.key(key.id)
        assert now is not None
        assert now.owner == "first"
        await store.put_key(dataclasses.replace(now, owner="third"), an_entry())
        assert {entry.action for entry in await store.audit()} == {"test"}
    assert place.sql("SELECT owner FROM api_key") == "third"


async def test_a_key_that_was_deleted_is_not_brought_back(place: Place) -> None:
    """A change of it is refused."""
    key, _ = a_key()
    async with place.opened() as store:
        await store.put_key(key, an_entry())
        read = await store.key(key.id)
        assert read is not None
        place.sql("DELETE FROM api_key")
        with pytest.raises(KeyChanged):
            await store.put_key(read, an_entry())
        assert await store.key(key.id) is None


async def test_no_key_without_its_entry(place: Place) -> None:
    """Key and audit entry are one transaction."""
    key, _ = a_key()
    async with place.opened() as store:
        place.sql("ALTER TABLE audit_log RENAME TO elsewhere")
        with pytest.raises(StoreUnavailable):
            await store.put_key(key, an_entry())
        place.sql("ALTER TABLE elsewhere RENAME TO audit_log")
        await until_alive(store)
        assert await store.key(key.id) is None
        await store.put_key(key, an_entry())
        assert await store.key(key.id) == key


@pytest.mark.parametrize("moment", range(6))
async def test_a_caller_who_leaves_leaves_no_half(place: Place, moment: int) -> None:
    """Cancelled at any step, a write is done as a whole or not at all, and the next one works."""
    key, _ = a_key()
    other, _ = a_key()
    async with place.opened() as store:
        task = asyncio.create_task(store.put_key(key, an_entry(target=key.id)))
        for _ in range(moment):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait({task})
        await store.put_key(other, an_entry())
        assert await store.key(other.id) == other
    there = place.sql("SELECT id FROM api_key").splitlines()
    assert (key.id in there) == (key.id in place.sql("SELECT target FROM audit_log").splitlines())


@pytest.mark.parametrize("owner", ["'; DROP TABLE api_key; --", 'a"b', "\\'", "%s $1 :id ?", "Zoë 中文 🙂"])
async def test_sql_in_the_name_of_an_owner(place: Place, owner: str) -> None:
    """It is a name like any other."""
    key, _ = a_key(owner=owner)
    async with place.opened() as store:
        await store.put_key(key, an_entry(target=owner, details={"owner": owner}))
        await store.write_usage([a_row(key_id=key.id, model=owner)])
        assert await store.key(key.id) == key
        assert [entry.details for entry in await store.audit()] == [{"owner": owner}]
        assert [(sum.owner, sum.model) for sum in await store.usage(NOW - DAY, NOW + DAY, "day")] == [(owner, owner)]
        assert await store.usage(NOW - DAY, NOW + DAY, "day", key_id=owner) == []
    assert place.sql("SELECT count(*) FROM api_key") == "1"


@pytest.mark.parametrize("models", ["{}", '"small"', "7"])
async def test_models_that_are_no_list_are_none(place: Place, models: str) -> None:
    """What somebody has broken by hand allows nothing."""
    key, _ = a_key(models=("small",))
    async with place.opened() as store:
        await store.put_key(key, an_entry())
        place.sql(f"UPDATE api_key SET models = '{models}', collections = '{models}'")
        found = await store.key(key.id)
        assert found is not None
        assert (found.models, found.collections) == ((), ())


async def test_the_database_refuses_limits_below_one(place: Place) -> None:
    """Also by plain SQL."""
    key, _ = a_key()
    async with place.opened() as store:
        await store.put_key(key, an_entry())
    with pytest.raises(RuntimeError, match="parallel"):
        place.sql("UPDATE api_key SET parallel = 0")


# Usage


async def test_a_row_is_counted_once(place: Place) -> None:
    """Written again, alone or among others, it changes nothing."""
    async with place.opened() as store:
        await store.write_usage([])
        await store.write_usage([a_row(1), a_row(2)])
        await store.write_usage([a_row(2, tokens_in=99), a_row(3), a_row(3)])
        sums = await store.usage(NOW - DAY, NOW + DAY, "month")
    assert [(sum.requests, sum.tokens_in, sum.tokens_out) for sum in sums] == [(3, 9, 15)]
    assert place.sql("SELECT count(*) FROM usage_log") == "3"


async def test_usage_is_summed_up(place: Place) -> None:
    """By span in UTC, key and model; what is refused or aborted is counted, too; both ends of the time are exact."""
    key, _ = a_key()
    hour = datetime(2026, 11, 30, 23, tzinfo=UTC)
    rows = [
        a_row(1, at=hour, key_id=key.id),
        a_row(2, at=hour + timedelta(minutes=59), key_id=key.id, outcome="client_closed"),
        a_row(3, at=hour + timedelta(minutes=59), key_id=key.id, outcome="client_closed_early", model="large"),
        a_row(4, at=hour + timedelta(hours=1), key_id=key.id, outcome="limited", status=429, tokens_in=0, tokens_out=0),
        a_row(5, at=hour + timedelta(hours=1), key_id=None, model=None, outcome="refused", tokens_in=0, tokens_out=0),
        a_row(6, at=hour + timedelta(hours=2), key_id=key.id, outcome="upstream_error"),
    ]

    def total(start: datetime, model: str | None, counts: str, key_id: str | None = key.id) -> UsageSum:
        requests, refused, aborted, tokens_in, tokens_out = map(int, counts.split())
        return UsageSum(
            start=start,
            key_id=key_id,
            owner=key.owner if key_id else None,
            model=model,
            requests=requests,
            refused=refused,
            aborted=aborted,
            tokens_in=tokens_in,
            tokens_out=tokens_out,
        )

    november, december = datetime(2026, 11, 1, tzinfo=UTC), datetime(2026, 12, 1, tzinfo=UTC)
    async with place.opened() as store:
        await store.put_key(key, an_entry())
        await store.write_usage(rows)
        until = hour + timedelta(hours=2)
        assert await store.usage(hour, until, "hour") == [
            total(hour, "large", "1 0 1 3 5"),
            total(hour, "small", "2 0 1 6 10"),
            total(december, None, "1 1 0 0 0", None),
            total(december, "small", "1 1 0 0 0"),
        ]
        # The end is not part of it, and the beginning is.
        assert await store.usage(hour + timedelta(microseconds=1), until + timedelta(microseconds=1), "day") == [
            total(datetime(2026, 11, 30, tzinfo=UTC), "large", "1 0 1 3 5"),
            total(datetime(2026, 11, 30, tzinfo=UTC), "small", "1 0 1 3 5"),
            total(december, None, "1 1 0 0 0", None),
            total(december, "small", "2 1 0 3 5"),
        ]
        assert await store.usage(november, until + DAY, "month", key_id=key.id) == [
            total(november, "large", "1 0 1 3 5"),
            total(november, "small", "2 0 1 6 10"),
            total(december, "small", "2 1 0 3 5"),
        ]


@pytest.mark.parametrize(
    "broken",
    [
        {"model": "a\0b"},
        {"model": "\ud800"},
        {"model": "x" * 100_000},
        {"tokens_in": 2**70, "tokens_out": -1},
        {"queue_ms": float("nan"), "first_ms": float("inf"), "total_ms": float("-inf")},
        {"code": "\ud800\0", "key_id": "\0", "request_id": "\0"},
    ],
)
async def test_what_clients_send_does_not_stop_the_log(place: Place, broken: dict[str, object]) -> None:
    """Texts and numbers that no database takes are made to fit."""
    async with place.opened() as store:
        await store.write_usage([a_row(1), a_row(2, **broken), a_row(3)])
    assert place.sql("SELECT count(*) FROM usage_log") == "3"
    assert int(place.sql("SELECT max(length(model)) FROM usage_log")) <= 200


# The audit log


async def test_the_audit_log_is_read_newest_first(place: Place) -> None:
    """With a limit, and from a moment on backwards."""
    entries = [an_entry(at=NOW + number * DAY, action=f"a{number}", details={"n": number}) for number in range(5)]
    async with place.opened() as store:
        for entry in entries:
            await store.write_audit(entry)
        assert await store.audit() == entries[::-1]
        assert await store.audit(limit=2) == entries[:2:-1]
        assert await store.audit(limit=2, before=NOW + 3 * DAY) == entries[2:0:-1]
        await store.write_audit(an_entry(at=NOW + 9 * DAY, action="\0\ud800", details={"x": "\0", "y": NOW}))
        assert (await store.audit(limit=1))[0].details["y"] == str(NOW)


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE audit_log SET actor = 'nobody'",
        "DELETE FROM audit_log",
        "DELETE FROM audit_log WHERE false",
        "TRUNCATE audit_log",
        "INSERT OR REPLACE INTO audit_log (id, at, actor, action, target, details) VALUES (1, 0, '', '', '', '{}')",
    ],
)
async def test_the_audit_log_is_only_appended_to(place: Place, statement: str) -> None:
    """Plain SQL cannot alter it."""
    only = {"TRUNCATE": "postgresql", "INSERT OR": "sqlite"}
    if any(statement.startswith(start) and kind != place.kind for start, kind in only.items()):
        pytest.skip("no such statement there")
    async with place.opened() as store:
        await store.write_audit(an_entry())
        if place.kind == "sqlite" and "false" in statement:
            # SQLite's triggers run for rows, and here is none.
            place.sql(statement)
        else:
            with pytest.raises(RuntimeError, match="audit_log is only appended to"):
                place.sql(statement)
        await store.write_audit(an_entry())
        assert await store.audit() == [an_entry(), an_entry()]


# Changes by others, and a database that is away


@pytest.mark.parametrize("how", ["UPDATE api_key SET revoked_at = {now}", "DELETE FROM api_key"])
async def test_changes_by_plain_sql_are_told_soon(place: Place, how: str) -> None:
    """Whoever makes them."""
    key, _ = a_key()
    async with place.opened() as store:
        await store.put_key(key, an_entry())
        await until_async(lambda: key.id in place.changes)
        await asyncio.sleep(0.5)
        place.changes.clear()
        place.sql(how.format(now="now()" if place.kind == "postgresql" else "1"))
        since = time.monotonic()
        await until_async(lambda: place.changes)
        assert time.monotonic() - since < 10
        assert place.changes[0] == (key.id if place.kind == "postgresql" else None)


async def test_writing_usage_is_no_change(place: Place) -> None:
    """Keys are not asked for again because requests are counted."""
    async with place.opened() as store:
        await asyncio.sleep(0.3)
        place.changes.clear()
        for number in range(5):
            await store.write_usage([a_row(number)])
            await asyncio.sleep(0.2)
        assert place.changes == []


async def test_a_schema_that_is_not_the_expected_one(empty: Place) -> None:
    """It is an error that says what to do, before any table is used."""
    if empty.kind == "sqlite":
        empty.file.touch()
    store = open_store(empty.settings)
    with pytest.raises(SchemaError, match=r"has schema none, .* boxwright_api migrate"):
        await store.start(empty.changes.append)
    await store.close()
    await asyncio.to_thread(migrate, empty.settings)
    await asyncio.to_thread(migrate, empty.settings, "0001")
    store = open_store(empty.settings)
    with pytest.raises(SchemaError, match="has schema 0001, but 0003 is expected"):
        await store.start(empty.changes.append)
    await store.close()


async def test_it_starts_without_a_database(tmp_path: object) -> None:
    """Nothing hangs, nothing raises at the start; calls say that it is away."""
    for url in (f"sqlite:///{tmp_path}/none/api.db", "postgresql://nobody@127.0.0.1:9/none"):
        store = open_store(settings(url))
        changes: list[str | None] = []
        await store.start(changes.append)
        assert not await store.alive()
        since = time.monotonic()
        for call in (store.key("Aaaaaaa1"), store.write_usage([a_row()]), store.write_audit(an_entry()), store.keys()):
            with pytest.raises(StoreUnavailable):
                await call
        assert time.monotonic() - since < 10
        await store.close()


async def test_sqlite_comes_when_its_file_comes(sqlite: Place) -> None:
    """The service was started before the file was made."""
    async with sqlite.opened() as store:
        assert not await store.alive()
        await asyncio.to_thread(migrate, sqlite.settings)
        await until_alive(store)
        key, _ = a_key()
        await store.put_key(key, an_entry())
        assert await store.key(key.id) == key


async def test_sqlite_does_not_go_on_without_its_file(sqlite: Place) -> None:
    """What it wrote to a file that was removed, or that another one replaced, would be lost: it refuses."""
    await asyncio.to_thread(migrate, sqlite.settings)
    copy = sqlite.file.read_bytes()
    async with sqlite.opened() as store:
        sqlite.file.unlink()
        for _ in range(2):
            await until_async(lambda: None in sqlite.changes)
            assert not await store.alive()
            with pytest.raises(StoreUnavailable):
                await store.write_usage([a_row()])
            # SQLite would put the log of the old file on top of the new one, while somebody has it open.
            sqlite.file.write_bytes(copy)


async def test_sqlite_locked_by_another_program(sqlite: Place) -> None:
    """Keys are read all the same; a write says soon that it cannot, and works again afterwards."""
    await asyncio.to_thread(migrate, sqlite.settings)
    key, _ = a_key()
    async with sqlite.opened() as store:
        await store.put_key(key, an_entry())
        lock = sqlite3.connect(sqlite.file, isolation_level=None)
        lock.execute("BEGIN IMMEDIATE")
        since = time.monotonic()
        with pytest.raises(StoreUnavailable):
            await store.write_usage([a_row()])
        assert time.monotonic() - since < 4
        assert await store.key(key.id) == key
        lock.execute("ROLLBACK")
        lock.close()
        await store.write_usage([a_row()])
    assert sqlite.sql("SELECT count(*) FROM usage_log") == "1"


async def test_sqlite_files_are_the_services_own(sqlite: Place) -> None:
    """Nobody else reads them, whatever the umask."""
    before = os.umask(0)
    try:
        await asyncio.to_thread(migrate, sqlite.settings)
        async with sqlite.opened() as store:
            await store.put_key(a_key()[0], an_entry())
            files = list(sqlite.file.parent.glob("api.db*"))
            modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in files}
    finally:
        os.umask(before)
    assert modes == {"api.db": 0o600, "api.db-wal": 0o600, "api.db-shm": 0o600}


@pytest.mark.lab
async def test_workers_hear_of_each_other(postgresql: Place) -> None:
    """A key that one worker writes is told to the other at once."""
    await asyncio.to_thread(migrate, postgresql.settings)
    other = Place("postgresql", postgresql.settings, postgresql.databases)
    async with postgresql.opened() as store, other.opened():
        key, _ = a_key()
        since = time.monotonic()
        await store.put_key(key, an_entry())
        await until_async(lambda: key.id in other.changes)
        assert time.monotonic() - since < 10


@pytest.mark.lab
async def test_connections_that_the_server_ends(postgresql: Place) -> None:
    """They are replaced at once, and what was changed meanwhile is asked for again."""
    await asyncio.to_thread(migrate, postgresql.settings)
    key, _ = a_key()
    async with postgresql.opened() as store:
        await store.put_key(key, an_entry())
        for _ in range(3):
            postgresql.changes.clear()
            postgresql.sql(
                "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity "
                "WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
            since = time.monotonic()
            await until_async(lambda: None in postgresql.changes)
            await until_alive(store)
            assert await store.key(key.id) == key
            assert time.monotonic() - since < 10
        postgresql.changes.clear()
        postgresql.sql("UPDATE api_key SET owner = 'other'")
        await until_async(lambda: key.id in postgresql.changes)


@pytest.mark.lab
async def test_a_server_that_stands_still(postgresql: Place, databases: Databases) -> None:
    """It accepts connections and says nothing: callers wait a second at most, and it is used again when it goes on."""
    await asyncio.to_thread(migrate, postgresql.settings)
    key, _ = a_key()
    async with postgresql.opened() as store:
        await store.put_key(key, an_entry())
        databases.sh("pkill -STOP postgres")
        try:
            for _ in range(4):
                since = time.monotonic()
                with pytest.raises(StoreUnavailable):
                    await store.key(key.id)
                assert time.monotonic() - since < 10
            since = time.monotonic()
            assert not await store.alive()
            assert time.monotonic() - since < 10
        finally:
            databases.sh("pkill -CONT postgres")
        since = time.monotonic()
        await until_alive(store)
        assert await store.key(key.id) == key
        assert time.monotonic() - since < 5


@pytest.mark.lab
async def test_partitions_are_made_ahead(postgresql: Place) -> None:
    """For this month and two more, by the service, which is no superuser; and once only by two workers."""
    await asyncio.to_thread(migrate, postgresql.settings)
    assert postgresql.sql("SELECT rolsuper FROM pg_roles WHERE rolname = 'boxwright'") == "f"
    other = Place("postgresql", postgresql.settings, postgresql.databases)
    partitions = "SELECT relid FROM pg_partition_tree('usage_log') WHERE isleaf ORDER BY 1"
    month = datetime.now(UTC).date().replace(day=1)
    wanted = ["usage_log_default"]
    for _ in range(3):
        wanted.append(f"usage_log_{month:%Y_%m}")
        month = (month + timedelta(days=31)).replace(day=1)
    async with postgresql.opened() as store, other.opened():
        for _ in range(200):
            found = await asyncio.to_thread(postgresql.sql, partitions)
            if len(found.splitlines()) == 4:
                break
        assert sorted(found.splitlines()) == sorted(wanted)
        await store.write_usage([a_row(at=datetime.now(UTC))])
    assert postgresql.sql("SELECT tableoid::regclass FROM usage_log") == f"usage_log_{datetime.now(UTC):%Y_%m}"


@pytest.mark.lab
async def test_a_month_that_comes_late_takes_its_rows(postgresql: Place) -> None:
    """Rows without a month are in the default partition; the month is made, and they are in it, and in the sums."""
    await asyncio.to_thread(migrate, postgresql.settings)
    at = datetime(2031, 3, 31, 23, 59, 59, 999999, tzinfo=UTC)
    where = "SELECT request_id, tableoid::regclass FROM usage_log ORDER BY 1"
    async with postgresql.opened() as store:
        await store.write_usage([a_row(1, at=at), a_row(2, at=at + timedelta(microseconds=1))])
        assert postgresql.sql(where) == "request-1|usage_log_default\nrequest-2|usage_log_default"
        postgresql.sql("SET ROLE boxwright; SELECT usage_log_month('2031-03-15')")
        assert postgresql.sql(where) == "request-1|usage_log_2031_03\nrequest-2|usage_log_default"
        await store.write_usage([a_row(1, at=at), a_row(3, at=at)])
        assert [sum.requests for sum in await store.usage(at - DAY, at + DAY, "month")] == [2, 1]


@pytest.mark.parametrize(
    ("now", "months", "since"),
    [
        ("2026-11-30T23:59:59+00:00", 13, "2025-11-01"),
        ("2026-11-01T00:00:00+00:00", 1, "2026-11-01"),
        ("2026-12-01T00:30:00+01:00", 1, "2026-11-01"),
        ("2026-01-15T00:00:00+00:00", 1, "2026-01-01"),
        ("2026-01-15T00:00:00+00:00", 2, "2025-12-01"),
        ("2026-12-15T00:00:00+00:00", 24, "2025-01-01"),
    ],
)
async def test_whole_months_are_kept(now: str, months: int, since: str) -> None:
    """This one, and those before it, in UTC."""
    found = kept_since(datetime.fromisoformat(now), months)
    assert found == datetime.fromisoformat(since).replace(tzinfo=UTC)
    assert kept_since(datetime.fromisoformat(now), 0) is None


async def test_usage_of_months_that_are_not_kept_goes(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """And nothing else; also what has no month of its own in PostgreSQL, and more than goes at a time in SQLite."""
    monkeypatch.setattr(sqlite_store, "FORGET_ROWS", 2)
    await asyncio.to_thread(migrate, place.settings)
    first = kept_since(datetime.now(UTC), 2)
    assert first is not None
    if place.kind == "postgresql":
        for day in (first - DAY, first, first - 400 * DAY):
            place.sql(f"SET ROLE boxwright; SELECT usage_log_month('{day:%Y-%m-%d}')")
    old = [a_row(number, at=first - timedelta(microseconds=1 + number)) for number in range(7)]
    old += [a_row(10, at=first - 400 * DAY), a_row(11, at=first - 800 * DAY)]
    kept = [a_row(20, at=first), a_row(21, at=datetime.now(UTC))]
    async with replace(place, settings=place.settings.model_copy(update={"usage_months": 0})).opened() as store:
        await store.write_usage([*old, *kept])
        await asyncio.sleep(0.6)
    assert len(place.sql("SELECT request_id FROM usage_log").splitlines()) == 11
    two = replace(place, settings=place.settings.model_copy(update={"usage_months": 2}))
    async with two.opened() as store:
        await until_async(lambda: place.sql("SELECT request_id FROM usage_log ORDER BY 1") == "request-20\nrequest-21")
        await store.write_usage([a_row(22, at=datetime.now(UTC))])
    assert len(place.sql("SELECT request_id FROM usage_log").splitlines()) == 3
    if place.kind == "postgresql":
        names = place.sql("SELECT relid FROM pg_partition_tree('usage_log') WHERE isleaf")
        assert f"usage_log_{first - DAY:%Y_%m}" not in names
        assert f"usage_log_{first:%Y_%m}" in names


@pytest.mark.lab
async def test_usage_that_is_being_read_goes_later(postgresql: Place) -> None:
    """Who reads the log keeps it for so long, and who writes does not wait behind that."""
    await asyncio.to_thread(migrate, postgresql.settings)
    first = kept_since(datetime.now(UTC), 1)
    assert first is not None
    postgresql.sql(f"SET ROLE boxwright; SELECT usage_log_month('{first - DAY:%Y-%m-%d}')")
    one = replace(postgresql, settings=postgresql.settings.model_copy(update={"usage_months": 1}))
    reader = await connect(postgresql.settings, 10)
    try:
        transaction = reader.transaction()
        await transaction.start()
        await reader.fetch("SELECT * FROM usage_log")
        async with one.opened() as store:
            await asyncio.sleep(1)
            await store.write_usage([a_row(1, at=datetime.now(UTC))])
            there = postgresql.sql("SELECT relid FROM pg_partition_tree('usage_log')")
            assert f"usage_log_{first - DAY:%Y_%m}" in there
    finally:
        await reader.close()
    async with one.opened():
        gone = f"SELECT to_regclass('usage_log_{first - DAY:%Y_%m}') IS NULL"
        await until_async(lambda: postgresql.sql(gone) == "t")


async def test_a_locked_file_keeps_old_usage_and_nothing_more(sqlite: Place) -> None:
    """The store is not taken for away because another program writes while usage would go."""
    await asyncio.to_thread(migrate, sqlite.settings)
    key, _ = a_key()
    async with sqlite.opened() as store:
        await store.put_key(key, an_entry())
    lock = sqlite3.connect(sqlite.file, isolation_level=None)
    lock.execute("BEGIN IMMEDIATE")
    async with sqlite.opened() as store:
        sqlite.changes.clear()
        await asyncio.sleep(2)
        assert None not in sqlite.changes
        assert await store.key(key.id) == key
    lock.execute("ROLLBACK")
    lock.close()


async def test_reprs_have_no_digest() -> None:
    """Neither of the secret nor of the one before."""
    key, sent = a_key(old_digest=b"o" * 32)
    shown = repr(key)
    assert "digest" not in shown
    assert repr(key.digest) not in shown
    assert "ooo" not in shown
    assert sent[12:] not in shown
    assert isinstance(key, Key)


@pytest.mark.lab
async def test_a_process_that_stood_still(postgresql: Place) -> None:
    """An answer that arrived meanwhile counts: the database is not taken for dead because we were."""
    await asyncio.to_thread(migrate, postgresql.settings)
    async with postgresql.opened() as store:
        # The logins are over, however long they took.
        await asyncio.gather(*(store.key("Aaaaaaa1") for _ in range(4)), return_exceptions=True)
        await until_alive(store)
        postgresql.changes.clear()
        for _ in range(3):
            asked = [asyncio.create_task(store.key("Aaaaaaa1")) for _ in range(4)]
            await asyncio.sleep(0)
            time.sleep(2.5)
            assert await asyncio.gather(*asked) == [None] * 4
        assert postgresql.changes == []


@pytest.mark.lab
async def test_closing_ends(postgresql: Place) -> None:
    """Also when the connections break at the same moment, or are being made."""
    await asyncio.to_thread(migrate, postgresql.settings)

    async def close(moment: int) -> None:
        store = PostgresStore(postgresql.settings)
        await store.start(postgresql.changes.append)
        if moment % 2:
            store._drop()
        for _ in range(moment):
            await asyncio.sleep(0)
        store._look.set()
        since = time.monotonic()
        await store.close()
        assert time.monotonic() - since < 5

    def all_moments() -> None:
        # In a loop of its own: asyncpg leaves the error of a connection that is broken off while it is made to nobody.
        for moment in range(12):
            asyncio.run(close(moment))

    await asyncio.to_thread(all_moments)
