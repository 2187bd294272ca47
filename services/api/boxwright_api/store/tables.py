"""The tables as SQLAlchemy sees them. Alembic compares a migrated database with this; nothing else uses it.

SQLite has no time type: times are microseconds since 1970 UTC there, which compare exactly and lose nothing.
"""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql

TIME = sa.DateTime(timezone=True).with_variant(sa.BigInteger(), "sqlite")
JSON = postgresql.JSONB().with_variant(sa.Text(), "sqlite")
NUMBER = sa.BigInteger().with_variant(sa.Integer(), "sqlite")

metadata = sa.MetaData()

api_key = sa.Table(
    "api_key",
    metadata,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("owner", sa.Text, nullable=False),
    sa.Column("digest", sa.LargeBinary, nullable=False),
    sa.Column("pepper", sa.Integer, nullable=False),
    sa.Column("created_at", TIME, nullable=False),
    sa.Column("old_digest", sa.LargeBinary),
    sa.Column("old_pepper", sa.Integer),
    sa.Column("old_until", TIME),
    sa.Column("expires_at", TIME),
    sa.Column("revoked_at", TIME),
    sa.Column("models", JSON),
    sa.Column("collections", JSON, nullable=False, server_default="[]"),
    sa.Column("requests_per_minute", sa.BigInteger),
    sa.Column("tokens_per_minute", sa.BigInteger),
    sa.Column("parallel", sa.BigInteger),
    sa.Column("tokens_per_day", sa.BigInteger),
    sa.Column("tokens_per_month", sa.BigInteger),
    sa.Column("version", sa.BigInteger, nullable=False, server_default="1"),
)

audit_log = sa.Table(
    "audit_log",
    metadata,
    sa.Column("id", NUMBER, primary_key=True, autoincrement=True),
    sa.Column("at", TIME, nullable=False),
    sa.Column("actor", sa.Text, nullable=False),
    sa.Column("action", sa.Text, nullable=False),
    sa.Column("target", sa.Text, nullable=False),
    sa.Column("details", JSON, nullable=False),
    sa.Index("audit_log_at", "at"),
    sqlite_autoincrement=True,
)

usage_log = sa.Table(
    "usage_log",
    metadata,
    sa.Column("request_id", sa.Text, primary_key=True),
    # Part of the primary key, since it is what the table is partitioned by in PostgreSQL.
    sa.Column("at", TIME, primary_key=True),
    sa.Column("key_id", sa.Text),
    sa.Column("route", sa.Text, nullable=False),
    sa.Column("model", sa.Text),
    sa.Column("status", sa.Integer, nullable=False),
    sa.Column("outcome", sa.Text, nullable=False),
    sa.Column("code", sa.Text),
    sa.Column("tokens_in", sa.BigInteger, nullable=False),
    sa.Column("tokens_out", sa.BigInteger, nullable=False),
    sa.Column("estimated", sa.Boolean, nullable=False),
    sa.Column("queue_ms", sa.Double, nullable=False),
    sa.Column("first_ms", sa.Double),
    sa.Column("total_ms", sa.Double, nullable=False),
    sa.Index("usage_log_at", "at"),
)
