"""A database for one test, in either kind, as the service and as somebody with plain SQL see it."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from boxwright_api.contracts import Store
from boxwright_api.keys import KeyRing, Peppers, join, make_id, make_secret
from boxwright_api.records import AuditEntry, Key, UsageRow
from boxwright_api.settings import Settings
from boxwright_api.store import open_store
from databases import Databases
from waiting import until_async

NOW = datetime(2026, 11, 30, 12, 34, 56, 789012, tzinfo=UTC)
PEPPERS = f"1:{'a1' * 32};2:{'b2' * 32}"
ADMIN_SECRET = "an-admin-secret-of-some-length"
MODELS: Any = [
    {"name": "small", "upstream": "http://127.0.0.1:1"},
    {"name": "large", "upstream": "http://127.0.0.1:1"},
]


@dataclass
class Place:
    """The database. `changes` is what the store told since `opened`, and `rings` are told the same."""

    kind: str
    settings: Settings
    databases: Databases | None = None
    changes: list[str | None] = field(default_factory=list)
    rings: list[KeyRing] = field(default_factory=list)

    def sql(self, text: str) -> str:
        """What the statement gives, one line for each row, by a program that is not ours. Raises RuntimeError."""
        if self.databases is None:
            with contextlib.closing(sqlite3.connect(self.file, timeout=30)) as connection, connection:
                try:
                    return "\n".join("|".join(map(str, row)) for row in connection.execute(text))
                except sqlite3.Error as error:
                    raise RuntimeError(str(error)) from None
        name = self.settings.database.rsplit("/", 1)[1]
        code, out, err = self.databases.machine._exec(
            ["runuser", "-u", "postgres", "--", "psql", "-XqAt", "-v", "ON_ERROR_STOP=1", name, "-c", text]
        )
        if code:
            raise RuntimeError(err)
        return str(out).strip()

    def dump(self) -> bytes:
        """All that the database keeps."""
        if self.databases is None:
            return b"".join(file.read_bytes() for file in self.file.parent.glob(f"{self.file.name}*"))
        name = self.settings.database.rsplit("/", 1)[1]
        return self.databases.sh(f"runuser -u postgres -- pg_dump --inserts {name}").encode()

    @property
    def file(self) -> Path:
        """SQLite's file."""
        return Path(self.settings.database.removeprefix("sqlite:///"))

    @contextlib.asynccontextmanager
    async def opened(self) -> AsyncIterator[Store]:
        """A store that runs."""
        store = open_store(self.settings)

        def changed(id: str | None) -> None:
            self.changes.append(id)
            for ring in self.rings:
                ring.forget(id)

        await store.start(changed)
        try:
            yield store
        finally:
            await store.close()


def settings(database: str, **more: Any) -> Settings:
    """Settings of a service with this database."""
    return Settings(database=database, peppers=PEPPERS, admin_secret=ADMIN_SECRET, models=MODELS, **more)


def a_key(**more: Any) -> tuple[Key, str]:
    """A key and what its owner sends."""
    secret, id = make_secret(), make_id()
    peppers = Peppers(PEPPERS)
    values = {"id": id, "owner": "someone", "digest": peppers.digest(secret), "pepper": 2, "created_at": NOW} | more
    return Key(**values), join(values["id"], secret)


def an_entry(**more: Any) -> AuditEntry:
    """An entry of the audit log."""
    return AuditEntry(**{"at": NOW, "actor": "tester", "action": "test", "target": "thing"} | more)


def a_row(number: int = 0, **more: Any) -> UsageRow:
    """A row of the usage log."""
    values: dict[str, Any] = {
        "request_id": f"request-{number}",
        "at": NOW + timedelta(microseconds=number),
        "key_id": "Aaaaaaa1",
        "route": "/v1/chat/completions",
        "model": "small",
        "status": 200,
        "outcome": "ok",
        "tokens_in": 3,
        "tokens_out": 5,
        "total_ms": 1.5,
    }
    return UsageRow(**values | more)


async def until_sql(place: Place, query: str, wanted: Callable[[str], bool]) -> None:
    """Waits until plain SQL shows it."""

    async def shown() -> bool:
        return wanted(await asyncio.to_thread(place.sql, query))

    await until_async(shown)


async def until_alive(store: Store) -> None:
    """Waits until the database answers."""
    await until_async(store.alive)
