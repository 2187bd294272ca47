"""Keys, and the audit log that is only ever appended to."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0001"
down_revision = None

TIME = sa.DateTime(timezone=True).with_variant(sa.BigInteger(), "sqlite")
JSON = postgresql.JSONB().with_variant(sa.Text(), "sqlite")
NUMBER = sa.BigInteger().with_variant(sa.Integer(), "sqlite")

# Whoever changes a key, also by plain SQL, tells every worker: NOTIFY is sent at the commit.
POSTGRESQL = (
    """
    CREATE FUNCTION api_key_changed() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        IF TG_OP = 'TRUNCATE' THEN
            PERFORM pg_notify('boxwright_key', '');
            RETURN NULL;
        END IF;
        IF TG_OP <> 'INSERT' THEN
            PERFORM pg_notify('boxwright_key', OLD.id);
        END IF;
        IF TG_OP <> 'DELETE' THEN
            PERFORM pg_notify('boxwright_key', NEW.id);
        END IF;
        RETURN NULL;
    END $$
    """,
    """
    CREATE TRIGGER api_key_changed AFTER INSERT OR UPDATE OR DELETE ON api_key
    FOR EACH ROW EXECUTE FUNCTION api_key_changed()
    """,
    """
    CREATE TRIGGER api_key_emptied AFTER TRUNCATE ON api_key
    FOR EACH STATEMENT EXECUTE FUNCTION api_key_changed()
    """,
    """
    CREATE FUNCTION audit_log_kept() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        RAISE EXCEPTION 'audit_log is only appended to';
    END $$
    """,
    """
    CREATE TRIGGER audit_log_kept BEFORE UPDATE OR DELETE OR TRUNCATE ON audit_log
    FOR EACH STATEMENT EXECUTE FUNCTION audit_log_kept()
    """,
    "ALTER TABLE audit_log ENABLE ALWAYS TRIGGER audit_log_kept",
)

# INSERT OR REPLACE deletes without the trigger for DELETE (unless recursive_triggers is on), hence the third.
SQLITE = (
    """
    CREATE TRIGGER audit_log_kept_update BEFORE UPDATE ON audit_log
    BEGIN SELECT RAISE(ABORT, 'audit_log is only appended to'); END
    """,
    """
    CREATE TRIGGER audit_log_kept_delete BEFORE DELETE ON audit_log
    BEGIN SELECT RAISE(ABORT, 'audit_log is only appended to'); END
    """,
    """
    CREATE TRIGGER audit_log_kept_replace BEFORE INSERT ON audit_log
    WHEN EXISTS (SELECT 1 FROM audit_log WHERE id = NEW.id)
    BEGIN SELECT RAISE(ABORT, 'audit_log is only appended to'); END
    """,
)


def upgrade() -> None:
    """Forward."""
    op.create_table(
        "api_key",
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
        *(
            sa.Column(name, sa.BigInteger, sa.CheckConstraint(f"{name} >= 1", name=f"api_key_{name}"))
            for name in (
                "requests_per_minute",
                "tokens_per_minute",
                "parallel",
                "tokens_per_day",
                "tokens_per_month",
            )
        ),
        sa.Column("version", sa.BigInteger, nullable=False, server_default="1"),
        sa.CheckConstraint("length(digest) = 32", name="api_key_digest"),
        sa.CheckConstraint("length(id) = 8", name="api_key_id"),
    )
    op.create_table(
        "audit_log",
        sa.Column("id", NUMBER, primary_key=True, autoincrement=True),
        sa.Column("at", TIME, nullable=False),
        sa.Column("actor", sa.Text, nullable=False),
        sa.Column("action", sa.Text, nullable=False),
        sa.Column("target", sa.Text, nullable=False),
        sa.Column("details", JSON, nullable=False),
        sqlite_autoincrement=True,
    )
    op.create_index("audit_log_at", "audit_log", ["at"])
    for statement in POSTGRESQL if op.get_bind().dialect.name == "postgresql" else SQLITE:
        op.get_bind().exec_driver_sql(statement)


def downgrade() -> None:
    """Back."""
    op.drop_table("audit_log")
    op.drop_table("api_key")
    if op.get_bind().dialect.name == "postgresql":
        op.execute(sa.text("DROP FUNCTION audit_log_kept()"))
        op.execute(sa.text("DROP FUNCTION api_key_changed()"))
