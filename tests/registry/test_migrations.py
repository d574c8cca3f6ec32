"""Every migration goes up and down with data in the tables; here on SQLite, in test_production on PostgreSQL."""

from alembic import command
from alembic.script import ScriptDirectory
from sqlalchemy import MetaData, insert, inspect, select, text

from infra import database
from registry.tables import Base, now

AT = now()
TICKET = {
    "state": "received",
    "epoch": 1,
    "records": 2,
    "received_at": AT,
    "due_at": AT,
    "opened_by": "ann",
    "note": "",
}
ADAPTER = {"group_label": "g", "recipe": {"seed": 7}, "accuracy": 0.5, "reason": "why", "created_at": AT}
FIRST = {
    "stream": [
        {"name": "mail", "config": {"a": ["ü"]}, "recipe_digest": "r", "epoch": 1, "adapters_born": 1, "created_at": AT}
    ],
    "batch": [
        {"batch_id": "b1", "stream": "mail", "name": "one", "ordinal": 0, "uri": "u", "state": "done", "rows": 3}
        | {"quarantined": 1, "suppressed": 0, "epoch": 0, "reason": "", "received_at": AT}
    ],
    "delivery": [{"stream": "mail", "digest": "d", "tag": "t", "batch_id": "b1"}],
    "quarantine": [{"batch_id": "b1", "reason": "missing id", "rows": 1}],
    "shard": [{"shard_id": 5, "batch_id": "b1", "group_label": "g", "rows": 3, "held_out": 1, "labelled": 3}],
    # two records of one subject, keys as large as 63 bits allow
    "record": [{"key": 2**63 - 1 - n, "subject": 2**62 + n // 2, "shard_id": 5, "slice": 0} for n in range(3)],
    "adapter": [{"adapter_id": "mail-a1", "stream": "mail", "state": "serving", "changed_at": AT} | ADAPTER],
    "edge": [{"child": "adapter:mail-a1", "parent": "shard:5", "kind": "trained_on", "ordinal": 0}],
    "object": [{"owner": "adapter:mail-a1", "kind": "weights", "key": "k", "sha256": "s", "size": 9}],
    "decision": [
        {"decision_id": 1, "stream": "mail", "batch_id": "b1", "shard_id": 5, "kind": "expand", "adapter_id": "mail-a1"}
        | {"reason": "why", "numbers": {"p_value": 0.01}, "decided_at": AT}
    ],
    "accuracy": [{"stream": "mail", "version": 1, "batch_id": "b1", "accuracy": 0.5, "exact_head": 0.25, "rows": 1}],
    "model_version": [
        {"stream": "mail", "version": 1, "run_id": "r", "manifest_key": "k", "manifest_sha256": "s", "epoch": 0}
        | {"state": "ready", "accuracy": None, "reason": "why", "cause": "batch:b1", "created_at": AT}
    ],
    "alias_event": [
        {"event_id": 1, "stream": "mail", "alias": "champion", "version": 1, "previous": None}
        | {"by": "ann", "reason": "why", "at": AT}
    ],
    "ticket": [{"ticket_id": "t1", "stream": "mail", "closed_at": None, "certificate_key": "c"} | TICKET],
    "suppression": [{"ticket_id": "t1", "kind": "subject", "keyed_hash": "h", "stream": "mail", "epoch": 1}],
    "ticket_step": [{"ticket_id": "t1", "step": "resolve", "detail": {"n": 1}, "seconds": 0.5, "finished_at": AT}],
    "certificate": [{"ordinal": 1, "ticket_id": "t1", "sha256": "s", "previous": "0" * 64, "key": "c"}],
}


def move(engine, verb, revision):
    config = database.alembic_config()
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        verb(config, revision)


def rows_of(connection, names):
    tables = MetaData()
    tables.reflect(connection, only=names)
    found = {name: connection.execute(select(tables.tables[name])).mappings().all() for name in names}
    return {name: sorted(repr(sorted(row.items())) for row in rows) for name, rows in found.items()}


def check_up_and_down(url):
    """Up to the newest with data, down to the first with the data as it was, up again, down to nothing."""
    engine = database.open_engine(url, foreign_keys=False, pooled=False)
    revisions = [script.revision for script in ScriptDirectory.from_config(database.alembic_config()).walk_revisions()]
    move(engine, command.upgrade, "0001")
    with engine.begin() as connection:
        tables = MetaData()
        tables.reflect(connection)
        assert set(FIRST) == set(tables.tables) - {"alembic_version"}
        for name, rows in FIRST.items():
            connection.execute(insert(tables.tables[name]), rows)
        before = rows_of(connection, FIRST)
    for _ in range(2):
        for revision in reversed(revisions):
            move(engine, command.upgrade, revision)
        with engine.begin() as connection:
            assert {name: len(rows) for name, rows in rows_of(connection, FIRST).items()} == {
                name: len(rows) for name, rows in FIRST.items()
            }
            assert connection.execute(select(Base.metadata.tables["record"].c.key)).scalars().all() != []
            if engine.dialect.name == "sqlite":
                assert connection.exec_driver_sql("pragma foreign_key_check").all() == []
        for revision in revisions[1:]:
            move(engine, command.downgrade, revision)
        with engine.begin() as connection:
            assert rows_of(connection, FIRST) == before
    move(engine, command.downgrade, "base")
    with engine.begin() as connection:
        assert inspect(connection).get_table_names() == ["alembic_version"]
        assert connection.execute(text("select count(*) from alembic_version")).scalar_one() == 0


def test_newest_revision_is_known_without_alembic():
    assert database.newest_revision() == ScriptDirectory.from_config(database.alembic_config()).get_current_head()


def test_migrations_go_up_and_down_with_data(tmp_path):
    check_up_and_down(f"sqlite:///{tmp_path}/catalog.db")
