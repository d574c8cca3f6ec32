"""Transactions commit or roll back whole, writers wait for each other, deleted rows leave the file."""

import subprocess
import sys
import threading

import pytest
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError

from infra import database
from infra.disk_sweep import sweep_files
from infra.doctor.examination import examine
from infra.errors import DamagedError, SettingsError, UnreachableError


@pytest.fixture
def catalog(tmp_path, set_variable):
    """An empty database file with two tables."""
    path = tmp_path / "deep" / "catalog.db"
    set_variable("DATABASE_URL", f"sqlite:///{path}")
    with database.transaction() as session:
        session.execute(text("create table parent (id integer primary key, name text)"))
        session.execute(text("create table child (parent integer references parent(id))"))
    yield path
    database.engine().dispose()


def count(table="parent"):
    with database.transaction() as session:
        return session.execute(text(f"select count(*) from {table}")).scalar_one()


def break_off():
    with database.transaction() as session:
        session.execute(text("create table other (id integer)"))
        session.execute(text("insert into parent values (1, 'taken')"))


def test_transaction_commits_or_rolls_back_even_tables(catalog):
    assert catalog.exists()
    with database.transaction() as session:
        session.execute(text("insert into parent values (1, 'a')"))
    with pytest.raises(IntegrityError):
        break_off()
    assert count() == 1
    assert count("sqlite_master where name = 'other'") == 0


def test_foreign_keys_hold(catalog):
    assert catalog.exists()
    with pytest.raises(IntegrityError), database.transaction() as session:
        session.execute(text("insert into child values (7)"))


def test_readers_that_turn_writers_wait_instead_of_failing(catalog):
    assert catalog.exists()

    def add_rows():
        for _ in range(20):
            with database.transaction() as session:
                most = session.execute(text("select coalesce(max(id), 0) from parent")).scalar_one()
                session.execute(text("insert into parent values (:id, 'x')"), {"id": most + 1})

    threads = [threading.Thread(target=add_rows) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert count() == 80


def test_deleted_rows_leave_the_file_and_its_log(catalog):
    with database.transaction() as session:
        session.execute(text("insert into parent values (1, 'sUbJeCt-marker')"))
    with database.transaction() as session:
        session.execute(text("delete from parent"))
    marker = [b"sUbJeCt-marker"]
    assert sweep_files([catalog.parent], marker) != []  # the negative control: the write-ahead log keeps it
    database.compact()
    assert sweep_files([catalog.parent], marker) == []
    assert count() == 0


def test_migrate_works_twice_and_from_many_processes(tmp_path):
    url = f"sqlite:///{tmp_path}/new.db"
    script = "from infra import database; database.migrate()"
    environment = {"DECIDUOUS_DATABASE_URL": url, "PYTHONPATH": str(database.MIGRATIONS.parent.parent)}
    racing = [subprocess.Popen([sys.executable, "-W", "error", "-c", script], env=environment) for _ in range(3)]
    assert [process.wait() for process in racing] == [0, 0, 0]


def test_who_asks_for_the_revision_of_a_catalog_that_is_not_there_makes_none(tmp_path, set_variable):
    set_variable("HOME", tmp_path / "home")
    assert database.revisions()[0] is None
    assert not (tmp_path / "home").exists()


def test_alembic_command_line_agrees_with_the_tables(tmp_path):
    root = database.MIGRATIONS.parent.parent
    environment = {"DECIDUOUS_DATABASE_URL": f"sqlite:///{tmp_path}/new.db"}
    for verb in (["upgrade", "head"], ["check"]):
        done = subprocess.run(
            [sys.executable, "-m", "alembic", *verb],
            cwd=root,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr


def test_pool_of_postgresql_is_as_large_as_asked_for(set_variable):
    set_variable("DATABASE_URL", "postgresql+psycopg://u@127.0.0.1:9/d")
    assert database.engine().pool.size() == 5
    set_variable("DATABASE_POOL", 3)
    assert (database.engine().pool.size(), database.engine().pool._max_overflow) == (3, 3)


def test_database_that_is_down_names_itself_and_hides_the_password(set_variable):
    set_variable("DATABASE_URL", "postgresql+psycopg://u:s3cret@127.0.0.1:9/d?connect_timeout=2")
    with pytest.raises(UnreachableError, match="DECIDUOUS_DATABASE_URL") as caught:
        database.migrate()
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize(
    "url", ["foo://x", "no address", "postgresql://u@h/d", "mysql://u@h/d", "postgresql+psycopg://u:s3cret@h:port/d"]
)
def test_an_address_of_no_database_names_the_forms_there_are(set_variable, url):
    set_variable("DATABASE_URL", url)
    with pytest.raises(SettingsError, match=r"of no known form .*postgresql.*sqlite:///FILE") as caught:
        database.migrate()
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize("start", [0, 4096])
def test_a_damaged_file_is_told_with_what_to_do(catalog, start):
    database.compact()
    database.engine().dispose()
    content = bytearray(catalog.read_bytes())
    content[start : start + 4096] = b"\xff" * 4096
    catalog.write_bytes(content)
    with pytest.raises(DamagedError, match=rf"{catalog} is damaged: .*move it away.*restore"):
        count()
    assert "is damaged" in "".join(finding.found for finding in examine() if finding.part == "catalog")
