"""Small numbers for subjects, events and joint work of tickets, condemned blobs, several certificates a ticket."""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

from registry import tables

revision: str = "0002"
down_revision: str | None = "0001"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None

KEY = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
# the constraint has no name of its own: PostgreSQL and SQLite are told the same one
NAMES = {"uq": "%(table_name)s_%(column_0_name)s_key"}


def upgrade() -> None:
    op.create_table(
        "subject",
        sa.Column("subject_id", sa.Integer(), nullable=False),
        sa.Column("key", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("subject_id"),
        sa.UniqueConstraint("key"),
    )
    op.execute("insert into subject (key) select distinct subject from record")
    _replace_record(
        [sa.Column("subject_id", sa.Integer(), nullable=False)],
        "subject_id",
        "select key, (select subject_id from subject where subject.key = record.subject), shard_id from record",
    )
    op.create_index("ix_record_subject_id", "record", ["subject_id"])

    op.add_column("ticket", sa.Column("lead", sa.String(), nullable=True))
    op.create_table(
        "ticket_event",
        sa.Column("event_id", sa.Integer(), nullable=False),
        sa.Column("ticket_id", sa.String(), nullable=False),
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("by", sa.String(), nullable=False),
        sa.Column("note", sa.String(), nullable=False),
        sa.Column("at", tables.UtcDateTime(timezone=True), nullable=False),
        sa.Column("previous", sa.String(), nullable=False),
        sa.Column("sha256", sa.String(), nullable=False),
        sa.ForeignKeyConstraint(["ticket_id"], ["ticket.ticket_id"]),
        sa.PrimaryKeyConstraint("event_id"),
    )
    op.create_index("ix_ticket_event_ticket_id", "ticket_event", ["ticket_id"])
    op.create_table(
        "condemned",
        sa.Column("stream", sa.String(length=63), nullable=False),
        sa.Column("sha256", sa.String(), nullable=False),
        sa.Column("ticket_id", sa.String(), nullable=False),
        sa.ForeignKeyConstraint(["stream"], ["stream.name"]),
        sa.ForeignKeyConstraint(["ticket_id"], ["ticket.ticket_id"]),
        sa.PrimaryKeyConstraint("stream", "sha256"),
    )
    with op.batch_alter_table("certificate", naming_convention=NAMES) as batch_op:
        batch_op.drop_constraint("certificate_ticket_id_key", type_="unique")
        batch_op.create_index("ix_certificate_ticket_id", ["ticket_id"])


def downgrade() -> None:
    """The log keeps the newest certificate of each ticket; slices, which nothing used, come back as 0."""
    op.execute("delete from certificate where ordinal not in (select max(ordinal) from certificate group by ticket_id)")
    with op.batch_alter_table("certificate", naming_convention=NAMES) as batch_op:
        batch_op.drop_index("ix_certificate_ticket_id")
        batch_op.create_unique_constraint("certificate_ticket_id_key", ["ticket_id"])
    op.drop_table("condemned")
    op.drop_table("ticket_event")
    with op.batch_alter_table("ticket") as batch_op:
        batch_op.drop_column("lead")
    op.drop_index("ix_record_subject_id", "record")
    _replace_record(
        [sa.Column("subject", sa.BigInteger(), nullable=False), sa.Column("slice", sa.Integer(), nullable=False)],
        "subject, slice",
        "select record.key, subject.key, 0, shard_id from record join subject using (subject_id)",
    )
    op.drop_table("subject")
    op.create_index("ix_record_subject", "record", ["subject"])


def _replace_record(columns: list[sa.Column[int]], named: str, rows: str) -> None:
    """Write the table anew: 1e8 rows are copied faster than altered, and lie in the order of their keys afterwards."""
    keys = [sa.ForeignKeyConstraint(["shard_id"], ["shard.shard_id"])]
    if named == "subject_id":
        keys.append(sa.ForeignKeyConstraint(["subject_id"], ["subject.subject_id"]))
    op.create_table(
        "record_new",
        sa.Column("key", KEY, autoincrement=False, nullable=False),
        *columns,
        sa.Column("shard_id", sa.Integer(), nullable=False),
        *keys,
        sa.PrimaryKeyConstraint("key"),
    )
    op.execute(f"insert into record_new (key, {named}, shard_id) {rows} order by 1")
    op.drop_table("record")
    op.rename_table("record_new", "record")
    if op.get_context().dialect.name == "postgresql":
        op.execute("alter index record_new_pkey rename to record_pkey")
