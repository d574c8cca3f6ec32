"""Run the migrations over the connection that the caller opened, or over DECIDUOUS_DATABASE_URL."""

import os

from alembic import context
from sqlalchemy import Connection, create_engine

from registry.tables import Base


def run(connection: Connection | None, url: str | None = None) -> None:
    context.configure(
        connection=connection,
        url=url,
        target_metadata=Base.metadata,
        render_as_batch=True,  # SQLite cannot alter a column in place
        compare_type=True,
        literal_binds=url is not None,
        user_module_prefix="tables.",
    )
    with context.begin_transaction():
        context.run_migrations()


def database_url() -> str:
    home = os.environ.get("DECIDUOUS_HOME", ".deciduous")
    return os.environ.get("DECIDUOUS_DATABASE_URL") or f"sqlite:///{home}/catalog.db"


if context.is_offline_mode():
    run(None, database_url())
elif (opened := context.config.attributes.get("connection")) is not None:
    run(opened)
else:
    with create_engine(database_url()).connect() as own:
        run(own)
