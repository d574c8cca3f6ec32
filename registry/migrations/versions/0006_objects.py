"""Each object of a source as what it is, also one whose content came before under another name."""

from collections.abc import Sequence

from alembic import op

revision: str = "0006"
down_revision: str | None = "0005"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None

# the key has no name of its own: PostgreSQL and SQLite are told the same one
NAMES = {"pk": "%(table_name)s_pkey"}


def upgrade() -> None:
    _rekey("stream", "digest", "tag")


def downgrade() -> None:
    """Of the objects of one content one is left; the others are read again by the next run."""
    op.execute(
        "delete from delivery where exists (select 1 from delivery as other where other.stream = delivery.stream "
        "and other.digest = delivery.digest and other.tag > delivery.tag)"
    )
    _rekey("stream", "digest")


def _rekey(*columns: str) -> None:
    with op.batch_alter_table("delivery", naming_convention=NAMES) as batch_op:
        batch_op.drop_constraint("delivery_pkey", type_="primary")
        batch_op.create_primary_key("delivery_pkey", list(columns))
