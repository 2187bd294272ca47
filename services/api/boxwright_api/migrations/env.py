"""What Alembic runs; `store.migrate` hands it the connection."""

from __future__ import annotations

from typing import Any

from alembic import context
from sqlalchemy import Connection

from boxwright_api.store.tables import metadata


def _ours(name: str | None, kind: str, parents: Any) -> bool:
    """Whether a table is compared with the metadata: the partitions of the usage log come and go."""
    return kind != "table" or name is None or not name.startswith("usage_log_")


def _run(connection: Connection) -> None:
    # SQLite can do DDL in a transaction, which Alembic does not know. With it, an interrupted migration has done
    # nothing.
    context.configure(
        connection=connection, target_metadata=metadata, transactional_ddl=True, include_name=_ours, compare_type=True
    )
    with context.begin_transaction():
        context.run_migrations()


_run(context.config.attributes["connection"])
