"""Who took a stream last: a lock that falls with a connection is not noticed by its holder."""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = "0005"
down_revision: str | None = "0004"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None


def upgrade() -> None:
    op.add_column("stream", sa.Column("holder", sa.String(), nullable=False, server_default=""))


def downgrade() -> None:
    op.drop_column("stream", "holder")
