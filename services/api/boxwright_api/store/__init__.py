"""The database: keys, usage and the audit log, in PostgreSQL or SQLite with the same contract (`contracts.Store`)."""

from __future__ import annotations

from boxwright_api.contracts import Store
from boxwright_api.settings import Settings


def open_store(settings: Settings) -> Store:
    """The store that the settings name; `Store.start` connects it."""
    # Only what is used takes memory: each worker has it once.
    if settings.database.startswith("sqlite"):
        from boxwright_api.store.sqlite import SqliteStore

        return SqliteStore(settings)
    from boxwright_api.store.postgres import PostgresStore

    return PostgresStore(settings)
