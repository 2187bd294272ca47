"""The usage log, in monthly partitions where the database has them."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"

TIME = sa.DateTime(timezone=True).with_variant(sa.BigInteger(), "sqlite")

# Rows always have a place: what no month takes is in the default partition. The service makes the months ahead, as the
# owner of the table. A month that comes late takes its rows out of the default partition; the lock keeps writers
# away for that moment, since PostgreSQL refuses a partition whose rows are elsewhere.
POSTGRESQL = (
    "CREATE TABLE usage_log_default PARTITION OF usage_log DEFAULT",
    """
    CREATE FUNCTION usage_log_month(day date) RETURNS void LANGUAGE plpgsql AS $$
    DECLARE
        begins timestamptz := date_trunc('month', day::timestamp) AT TIME ZONE 'UTC';
        ends timestamptz := (date_trunc('month', day::timestamp) + interval '1 month') AT TIME ZONE 'UTC';
        name text := 'usage_log_' || to_char(day, 'YYYY_MM');
    BEGIN
        IF to_regclass(name) IS NOT NULL THEN
            RETURN;
        END IF;
        LOCK TABLE usage_log IN SHARE ROW EXCLUSIVE MODE;
        IF to_regclass(name) IS NOT NULL THEN
            RETURN;
        END IF;
        EXECUTE format('CREATE TABLE %I (LIKE usage_log INCLUDING ALL)', name);
        EXECUTE format(
            'WITH moved AS (DELETE FROM usage_log_default WHERE at >= %L AND at < %L RETURNING *) '
            'INSERT INTO %I SELECT * FROM moved', begins, ends, name);
        EXECUTE format('ALTER TABLE usage_log ATTACH PARTITION %I FOR VALUES FROM (%L) TO (%L)', name, begins, ends);
    END $$
    """,
)


def upgrade() -> None:
    """Forward."""
    op.create_table(
        "usage_log",
        sa.Column("request_id", sa.Text, primary_key=True),
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
        postgresql_partition_by="RANGE (at)",
    )
    op.create_index("usage_log_at", "usage_log", ["at"])
    if op.get_bind().dialect.name == "postgresql":
        for statement in POSTGRESQL:
            op.get_bind().exec_driver_sql(statement)


def downgrade() -> None:
    """Back."""
    op.drop_table("usage_log")
    if op.get_bind().dialect.name == "postgresql":
        op.execute(sa.text("DROP FUNCTION usage_log_month(date)"))
