"""How much room the volume of backups had left after each: whoever makes them mounts it, the exporter does not."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    """Add the columns, empty for backups of before and those in a bucket."""
    for name in ("volume_free_bytes", "volume_bytes"):
        op.add_column("backups", sa.Column(name, sa.BigInteger), schema="millrace")
