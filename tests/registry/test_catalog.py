import json

import pytest
from sqlalchemy import create_engine, event

from registry import catalog, contents, decision_log, dump, holding, ownership
from registry.errors import StateError, UnknownIdError
from registry.records import BatchState, Decision, DecisionKind, StoredObject
from registry.sections import CacheOptions
from registry.tables import BatchRow
from tests.registry.conftest import STREAM, add_batch


def test_batches_are_numbered_in_the_order_they_came(session):
    assert [add_batch(session, name).ordinal for name in ("a", "b", "c")] == [0, 1, 2]
    assert [catalog.batch_of(session, "mail", f"sha-{name}") for name in "abcd"] == ["a", "b", "c", None]
    assert catalog.quarantine_counts(session, "a") == {"missing id": 2}


def test_a_batch_is_found_by_its_name_where_one_batch_alone_has_it(session):
    add_batch(session, "a")
    add_batch(session, "b")
    assert catalog.batch_id_of(session, "b") == "b"
    first = session.get(BatchRow, "a")
    first.name = "november"
    assert catalog.batch_id_of(session, "november") == "a"
    session.get(BatchRow, "b").name = "november"
    with pytest.raises(StateError, match=r"2 batches are named 'november'.*a \(mail\), b \(mail\)"):
        catalog.batch_id_of(session, "november")
    with pytest.raises(UnknownIdError, match="no batch 'march'"):
        catalog.batch_id_of(session, "march")


def test_only_finished_batches_serve(session):
    add_batch(session, "a")
    add_batch(session, "b")
    catalog.set_batch_state(session, "b", BatchState.DONE)
    assert [shard.batch_name for shard in contents.done_shards(session, "mail")] == ["b"]


def test_the_held_groups_of_a_batch_become_a_held_batch_of_their_own(session):
    batch = add_batch(session, "a", rows=20, groups=("one", "two", "three"))
    for shard in batch.shards:
        decision_log.add_decision(session, batch, shard, Decision(DecisionKind.HOLD, None, "why"), {})
    rest = holding.set_aside(session, "a", [shard.shard_id for shard in batch.shards[1:]], "too few rows")
    catalog.set_batch_state(session, "a", BatchState.DONE)
    assert (rest.name, rest.state, rest.uri, rest.ordinal) == ("a-held", BatchState.HELD, batch.uri, 1)
    assert [[s.group for s in b.shards] for b in catalog.batches(session, "mail")] == [["one"], ["two", "three"]]
    assert [shard.group for shard in contents.done_shards(session, "mail")] == ["one"]
    assert [row.batch_id for row in decision_log.decisions(session, "mail")] == ["a", rest.batch_id, rest.batch_id]
    holding.reopen_batch(session, rest.batch_id)
    assert [row.batch_id for row in decision_log.decisions(session, "mail")] == ["a"]
    for name, batch_id, told in (
        (rest.name, rest.batch_id, "read; .*run` decides"),
        ("a", "a", "done; .*`deciduous erase"),
    ):
        with pytest.raises(StateError, match=rf"batch {name} \({batch_id}\) is {told}"):
            holding.discard_batch(session, batch_id)


def test_a_stream_refuses_another_backbone_and_another_recipe(session):
    for stream, digest in ((STREAM.model_copy(update={"max_tokens": 128}), "other"), (STREAM, "digest")):
        catalog.save_stream(session, stream, digest)  # nothing was made yet
        assert catalog.backbone_digest(session, "mail") == digest
    add_batch(session, "a")
    with pytest.raises(StateError, match="restore that backbone"):
        catalog.save_stream(session, STREAM, "other")
    adapter = STREAM.adapter.model_copy(update={"precision": "int8"})
    for changes, told in (
        ({"max_tokens": 128}, "max_tokens: 64 -> 128"),
        ({"adapter": adapter}, "adapter.precision: fp32 -> int8"),
        ({"cache": CacheOptions(dtype="int8")}, "cache.dtype: float32 -> int8"),
    ):
        with pytest.raises(StateError, match=rf"\({told}\).*new name"):
            catalog.save_stream(session, STREAM.model_copy(update=changes), "digest")
    catalog.save_stream(session, STREAM.model_copy(update={"schedule": "0 * * * *"}), "digest")
    assert catalog.get_stream(session, "mail").schedule == "0 * * * *"


def test_a_stream_that_has_batches_refuses_other_columns_for_whose_a_record_is(session):
    """Else a ticket finds nobody in the earlier batches and their objects, and is certified as complete."""
    named = STREAM.columns.model_copy(update={"subject": "who"})
    renamed = STREAM.columns.model_copy(update={"id": "key"})
    catalog.save_stream(session, STREAM.model_copy(update={"columns": named}), "digest")  # nothing was read yet
    catalog.save_stream(session, STREAM, "digest")
    add_batch(session, "a")
    for columns, told in ((named, "columns.subject: id -> who"), (renamed, "columns.id: id -> key, columns.subject:")):
        with pytest.raises(StateError, match=rf"\({told}.*new name"):
            catalog.save_stream(session, STREAM.model_copy(update={"columns": columns}), "digest")
    other = STREAM.columns.model_copy(update={"subject": "id", "input": "body", "group": "team"})
    catalog.save_stream(session, STREAM.model_copy(update={"columns": other}), "digest")
    assert catalog.get_stream(session, "mail").columns == other


def test_a_mixture_is_born_once_however_often_it_grows(session):
    for name, adapter_id in (("a", "mail-a1"), ("b", "mail-a2"), ("c", "mail-a1"), ("d", "mail-a2"), ("e", "mail-a3")):
        batch = add_batch(session, name)
        grown = Decision(DecisionKind.EXPAND, adapter_id, "why")
        decision_log.add_decision(session, batch, batch.shards[0], grown, {})
    session.flush()
    assert decision_log.expansions(session, "mail") == [0, 1, 4]


def test_an_unknown_stream_names_the_known_ones(session):
    with pytest.raises(UnknownIdError, match=r"no stream 'male'.*known: mail"):
        catalog.get_stream(session, "male")


def test_a_blob_is_owned_until_its_last_owner_lets_go(session):
    for owner in ("adapter:a", "adapter:b"):
        ownership.put_object(session, StoredObject("k", "sha", 1, "weights", owner))
    ownership.drop_object(session, "adapter:a", "weights")
    assert ownership.owned_keys(session, ["k"]) == {"k"}
    ownership.drop_objects(session, "adapter:b")
    assert ownership.owned_keys(session, ["k"]) == set()


def test_a_dump_is_read_back_piece_by_piece_for_a_table_may_be_larger_than_memory():
    taken, inserted = [], []
    rows = (json.dumps(["subject", {"subject_id": n, "key": n}]) for n in range(3 * dump.CHUNK))
    lines = (taken.append(line) or line for line in ['["alembic_version", {"version_num": "1"}]', *rows])
    engine = create_engine("sqlite://")
    with engine.begin() as connection:
        connection.exec_driver_sql("create table alembic_version as select '1' version_num")
        connection.exec_driver_sql("create table subject (subject_id integer, key integer)")
        event.listen(engine, "before_cursor_execute", lambda *call: call[5] and inserted.append(len(taken)))
        assert dump.load_rows(connection, lines) == 3 * dump.CHUNK
    assert inserted == [dump.CHUNK + 1, 2 * dump.CHUNK + 1, 3 * dump.CHUNK + 1]
    engine.dispose()
