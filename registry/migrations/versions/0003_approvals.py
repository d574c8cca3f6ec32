"""Requests for a person's word, and the answers."""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

from registry import tables

revision: str = "0003"
down_revision: str | None = "0002"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None


def upgrade() -> None:
    op.create_table(
        "approval",
        sa.Column("request_id", sa.String(), nullable=False),
        sa.Column("stream", sa.String(length=63), nullable=False),
        sa.Column("gate", sa.String(), nullable=False),
        sa.Column("what", sa.String(), nullable=False),
        sa.Column("reason", sa.String(), nullable=False),
        sa.Column("asked_at", tables.UtcDateTime(timezone=True), nullable=False),
        sa.Column("due_at", tables.UtcDateTime(timezone=True), nullable=False),
        sa.Column("approved", sa.Boolean(), nullable=True),
        sa.Column("approver", sa.String(), nullable=False),
        sa.Column("note", sa.String(), nullable=False),
        sa.Column("answered_at", tables.UtcDateTime(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(["stream"], ["stream.name"]),
        sa.PrimaryKeyConstraint("request_id"),
    )
    op.create_index("ix_approval_stream", "approval", ["stream"])


def downgrade() -> None:
    op.drop_table("approval")
