"""Aliases in the tables of an MLflow that runs inside this process: SQLite or PostgreSQL, no server.

What MLflow's client would write, without the seconds that importing it takes; a test holds the two against each other.
"""

from contextlib import AbstractContextManager
from dataclasses import dataclass

from sqlalchemy import Connection, Row, inspect, make_url, text

from infra import database
from infra.errors import RefusedError

WORKSPACE = "default"
NOT_FOUND = "RESOURCE_DOES_NOT_EXIST"
THIS_ALIAS = "workspace = :workspace and name = :name and alias = :alias"
THIS_VERSION = "workspace = :workspace and name = :name and version = :version"
IS_THERE = text(f"select 1 from model_versions where {THIS_VERSION} and current_stage <> 'Deleted_Internal'")


def has_tables(url: str) -> bool:
    """Whether the tables are there, as this code knows them: MLflow makes and migrates them when its client opens."""
    if make_url(url).get_backend_name() not in ("sqlite", "postgresql"):
        return False
    with _connected(url) as connection:
        tables = inspect(connection)
        known = tables.has_table("registered_model_aliases") and tables.has_table("model_version_tags")
        return known and any(c["name"] == "workspace" for c in tables.get_columns("registered_model_aliases"))


@dataclass(frozen=True)
class StoredAliases:
    """Aliases in the database at a SQLAlchemy address; each call is a transaction.

    Raises UnreachableError where it does not answer or is locked for too long, UnwritableError where its disk refuses.
    """

    url: str

    def get_model_version_by_alias(self, name: str, alias: str) -> Row[tuple[int]]:
        asked = text(f"select version from registered_model_aliases where {THIS_ALIAS}")
        with _connected(self.url) as connection:
            found = connection.execute(asked, {"workspace": WORKSPACE, "name": name, "alias": alias}).one_or_none()
        if found is None:
            raise RefusedError("MLflow", NOT_FOUND, f"no alias {name}@{alias}")
        return found

    def set_registered_model_alias(self, name: str, alias: str, version: str) -> None:
        self._write(
            "insert into registered_model_aliases (workspace, name, alias, version) "
            "values (:workspace, :name, :alias, :version) "
            "on conflict (workspace, name, alias) do update set version = excluded.version",
            name,
            version,
            alias=alias,
        )

    def delete_registered_model_alias(self, name: str, alias: str) -> None:
        gone = text(f"delete from registered_model_aliases where {THIS_ALIAS}")
        with _connected(self.url) as connection:
            connection.execute(gone, {"workspace": WORKSPACE, "name": name, "alias": alias})

    def set_model_version_tag(self, name: str, version: str, key: str, value: str) -> None:
        self._write(
            "insert into model_version_tags (workspace, name, version, key, value) "
            "values (:workspace, :name, :version, :key, :value) "
            "on conflict (workspace, key, name, version) do update set value = excluded.value",
            name,
            version,
            key=key,
            value=value,
        )

    def delete_model_version_tag(self, name: str, version: str, key: str) -> None:
        self._write(f"delete from model_version_tags where {THIS_VERSION} and key = :key", name, version, key=key)

    def _write(self, statement: str, name: str, version: str, **values: str) -> None:
        """Carry out what concerns a version. Raises RefusedError where there is no such version."""
        of_version = {"workspace": WORKSPACE, "name": name, "version": int(version)}
        with _connected(self.url) as connection:
            if connection.execute(IS_THERE, of_version).one_or_none() is None:
                raise RefusedError("MLflow", NOT_FOUND, f"no version {version} of model {name}")
            connection.execute(text(statement), {**of_version, **values})


def _connected(url: str) -> AbstractContextManager[Connection]:
    return database.open_engine(url, pooled=False).begin()
