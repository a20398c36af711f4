"""Alerts of which nobody is told for a while: written by `millrace alerts silence`, heeded by the exporter."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    """Make the table; the exporter's role may read it."""
    op.create_table(
        "alert_silences",
        sa.Column("id", sa.BigInteger, sa.Identity(always=True), primary_key=True),
        sa.Column("alert", sa.Text, nullable=False),
        sa.Column("labels", JSONB, nullable=False),
        sa.Column("comment", sa.Text, nullable=False),
        sa.Column("created_by", sa.Text, nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False, server_default=sa.func.now()),
        sa.Column("ends_at", sa.DateTime(timezone=True), nullable=False, index=True),
        schema="millrace",
    )
    op.execute("GRANT SELECT ON millrace.alert_silences TO exporter")
