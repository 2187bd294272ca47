"""Which collections of documents a key may read. A key that was there before may read none."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0003"
down_revision = "0002"

JSON = postgresql.JSONB().with_variant(sa.Text(), "sqlite")


def upgrade() -> None:
    """Forward."""
    op.add_column("api_key", sa.Column("collections", JSON, nullable=False, server_default="[]"))


def downgrade() -> None:
    """Back; which collections it was is lost."""
    op.drop_column("api_key", "collections")
