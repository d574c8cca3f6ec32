"""Objects of 2 GiB and more: SQLite counts so far anyway."""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = "0004"
down_revision: str | None = "0003"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None

LARGEST = 2**31 - 1


def upgrade() -> None:
    if op.get_context().dialect.name == "postgresql":
        op.alter_column("object", "size", type_=sa.BigInteger())


def downgrade() -> None:
    """A larger size comes back as the largest that the column takes."""
    if op.get_context().dialect.name == "postgresql":
        op.alter_column("object", "size", type_=sa.Integer(), postgresql_using=f"least(size, {LARGEST})")
