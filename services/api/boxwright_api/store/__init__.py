"""The database: keys, usage and the audit log, in PostgreSQL or SQLite with the same contract (`contracts.Store`)."""

from __future__ import annotations

from boxwright_api.contracts import Store
from boxwright_api.settings import Settings
from boxwright_api.store.postgres import PostgresStore
from boxwright_api.store.sqlite import SqliteStore


def open_store(settings: Settings) -> Store:
    """The store that the settings name; `Store.start` connects it."""
    return SqliteStore(settings) if settings.database.startswith("sqlite") else PostgresStore(settings)
