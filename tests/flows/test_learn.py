import json

import pytest
import torch

from flows import actions
from flows.forget import forget
from flows.learn import learn
from infra import database, storage
from infra.settings import settings
from registry import artifacts, catalog, contents, ownership, versions
from registry.errors import OvertakenError, SourceError, StateError
from registry.records import DecisionKind, TicketState
from registry.sections import AdapterOptions, Gates, ShiftOptions
from tasks import batches, queries
from tasks import tickets as opening
from tasks.assembly import current_manifest, load_model
from tasks.batches import open_stream
from tasks.blobs import stream_prefix
from tasks.evaluation import answer
from tasks.learning.composition import compose
from tasks.manifests import seen_by
from tasks.registration import register_batch
from tasks.shards import load_rows
from tests.flows.adversary import serve_all
from tests.flows.conftest import deliver, make_stream

pytestmark = pytest.mark.usefixtures("ready")


def kinds(stream: str) -> list[str]:
    return [row["kind"] for row in queries.listing("decisions", stream)]


def test_a_stream_expands_reuses_and_continues_where_it_stopped(backbone, inbox):
    stream = make_stream("letters", backbone, inbox)
    deliver(inbox, "01", ["red", "blue"])
    deliver(inbox, "02", ["red", "blue"])
    assert len(learn(stream)) == 2
    assert kinds("letters") == [DecisionKind.EXPAND, DecisionKind.REUSE]

    deliver(inbox, "03", ["green", "gold"])
    assert len(learn(stream)) == 1
    assert learn(stream) == []
    assert kinds("letters")[-1] == DecisionKind.EXPAND
    status = queries.status("letters")[0]
    assert (status["batches"], status["champion"], status["versions"]) == (3, 3, 3)


def test_a_run_that_lost_its_stream_to_another_enters_no_more(backbone, inbox, monkeypatch):
    """The other is only noted here; on PostgreSQL it is a process: tests/infra/test_production.py."""
    stream = make_stream("lost-its-lock", backbone, inbox)
    deliver(inbox, "01", ["red", "blue"])

    def overtaken(*given):
        with database.transaction() as session:
            catalog.take_stream(session, stream.name, "deciduous 7 on elsewhere")
        return register_batch(*given)

    with monkeypatch.context() as patched:
        patched.setattr("flows.learn.register_batch", overtaken)
        with pytest.raises(OvertakenError, match=r"deciduous 7 on elsewhere has begun .* run the command again"):
            learn(stream)
    assert queries.status("lost-its-lock")[0]["versions"] == 0
    assert len(learn(stream)) == 1


def test_more_layers_than_the_backbone_has_are_refused_before_anything_is_taken_in(backbone, inbox):
    """Afterwards the stream file could not be corrected, and no ticket of the stream be carried out."""
    deliver(inbox, "01", ["red", "blue"])
    with pytest.raises(StateError, match=r"last_layers 5, .* has 4 blocks: name 1 to 4"):
        open_stream.fn(make_stream("too-deep", backbone, inbox, adapter=AdapterOptions(last_layers=5)))
    with database.transaction() as session:
        assert "too-deep" not in catalog.stream_names(session)


def test_texts_longer_than_the_backbone_has_places_for_are_refused_before_anything_is_taken_in(backbone, inbox):
    """A batch with one such text could never be finished, and max_tokens not be corrected."""
    deliver(inbox, "01", ["red", "blue"])
    with pytest.raises(StateError, match=r"max_tokens 33, .* has places for 32: name at most 32"):
        open_stream.fn(make_stream("too-long", backbone, inbox, max_tokens=33))
    open_stream.fn(make_stream("too-long", backbone, inbox, max_tokens=32))
    with pytest.raises(StateError, match="max_tokens 33"):
        open_stream.fn(make_stream("too-long", backbone, inbox, max_tokens=33))


def test_a_new_stream_reads_from_no_folder_of_the_home(backbone, home):
    """Its files would be hits of every ticket's sweep; an entered stream goes on, so that it can be corrected."""
    source = str(home / "inbox" / "*.jsonl")
    with pytest.raises(SourceError, match=r"inbox/\*\.jsonl' lies in the home"):
        open_stream.fn(make_stream("at-home", backbone, home, source=source))
    with database.transaction() as session:
        assert "at-home" not in catalog.stream_names(session)
        catalog.save_stream(session, make_stream("at-home", backbone, home, source=source), "before")
    open_stream.fn(make_stream("at-home", backbone, home, source=source))


def test_new_classes_alone_join_an_adapter_unless_the_stream_asks_for_one(backbone, inbox):
    shift = ShiftOptions(permutations=199, min_rows=20, new_classes="reuse")
    stream = make_stream("newcomers", backbone, inbox, shift=shift)
    deliver(inbox, "01", ["red", "blue", "pink"])
    deliver(inbox, "02", ["green", "gold", "grey"])
    learn(stream)
    assert kinds("newcomers") == [DecisionKind.EXPAND, DecisionKind.REUSE]
    assert "there are classes new to it" in queries.listing("decisions", "newcomers")[-1]["reason"]


def test_labels_that_are_like_the_known_ones_do_not_keep_the_champion_from_being_succeeded(
    backbone, inbox, monkeypatch
):
    monkeypatch.setattr("tests.flows.conftest.TOPICS", {"red": "abc", "blue": "def", "wine": "aaabc", "navy": "dddef"})
    stream = make_stream("shades", backbone, inbox, gates=Gates())
    deliver(inbox, "01", ["red", "blue"], rows=200)
    deliver(inbox, "02", ["wine", "navy"], rows=200)
    learn(stream)
    with database.transaction() as session:
        before, after = (next(iter(versions.accuracies(session, "shades", number).values()))[0] for number in (1, 2))
    assert after < before - stream.gates.accuracy_drop, "new labels take rows"
    moved = queries.listing("aliases", "shades")[-2:]
    assert ("champion", 2) in [(each["alias"], each["version"]) for each in moved]
    assert "lost to new labels that answer" in moved[0]["reason"]
    deliver(inbox, "03", ["red", "blue"], rows=200)
    learn(stream)
    last = queries.listing("decisions", "shades")[-1]
    assert (last["kind"], last["adapter_id"]) == (DecisionKind.REUSE, "shades-a1"), "its own rows are lost to them too"


def test_the_same_content_under_another_name_is_taken_in_once(backbone, inbox):
    stream = make_stream("taken-once", backbone, inbox)
    deliver(inbox, "a", ["red", "blue"])
    learn(stream)
    (inbox / "b.jsonl").write_bytes((inbox / "a.jsonl").read_bytes())
    assert learn(stream) == []
    assert queries.status("taken-once")[0]["batches"] == 1
    assert batches.discover.fn(stream) == [], "nor is it read again"


def test_a_limited_run_does_not_stop_at_what_is_nothing_new(backbone, inbox):
    stream = make_stream("passed-by", backbone, inbox)
    deliver(inbox, "02", ["red", "blue"])
    learn(stream)
    (inbox / "00.jsonl").write_bytes((inbox / "02.jsonl").read_bytes())
    (inbox / "01.jsonl").write_bytes(b"{cut")
    deliver(inbox, "03", ["red", "blue"], first=100)
    deliver(inbox, "04", ["red", "blue"], first=200)
    with pytest.raises(SourceError, match=r"^1 object\(s\) .*\n.*01\.jsonl"):
        learn(stream, limit=1)
    assert [batch["name"] for batch in queries.listing("batches", "passed-by")] == ["02", "03"]


def test_bad_rows_are_quarantined_with_their_reason(backbone, inbox):
    stream = make_stream("dirty", backbone, inbox)
    good = deliver(inbox, "x", ["red", "blue"])
    bad = [
        good[0],
        {**good[1], "key": "new", "words": " "},
        {**good[2], "key": None},
        {**good[3], "key": "n", "topic": ""},
    ]
    (inbox / "x.jsonl").write_text("".join(json.dumps(row) + "\n" for row in good + bad))
    learn(stream)
    batch = queries.listing("batches", "dirty")[0]
    found = queries.describe(batch["batch_id"])["quarantine"]
    assert found == {"duplicate id in this batch": 1, "input is empty": 1, "missing id": 1, "missing label": 1}
    assert batch["rows"] == 40


def test_an_object_that_cannot_be_read_fails_alone_and_is_tried_again(backbone, inbox):
    stream = make_stream("cut", backbone, inbox)
    deliver(inbox, "good", ["red", "blue"])
    (inbox / "bad.parquet").write_bytes(b"PAR1 and then nothing")
    stream = stream.model_copy(update={"source": str(inbox)})
    with pytest.raises(SourceError, match=r"bad\.parquet cannot be read"):
        learn(stream)
    assert queries.status("cut")[0]["batches"] == 1
    (inbox / "bad.parquet").unlink()
    deliver(inbox, "more", ["red", "blue"], first=100)
    assert len(learn(stream)) == 1


def test_a_small_shifted_batch_is_held_and_changes_no_model(backbone, inbox, monkeypatch):
    said: list[str] = []
    monkeypatch.setattr(batches, "say", lambda message, **_: said.append(message))
    stream = make_stream("small", backbone, inbox)
    deliver(inbox, "01", ["red", "blue"], rows=100)
    deliver(inbox, "02", ["gold"], rows=18)
    learn(stream)
    assert kinds("small") == [DecisionKind.EXPAND, DecisionKind.HOLD]
    status = queries.status("small")[0]
    assert (status["versions"], status["held"]) == (1, ["02"])
    held = queries.listing("batches", "small")[1]["batch_id"]
    assert f"is held until `deciduous rejudge {held}` or `discard`: " in said[-1]


def test_a_held_batch_is_judged_again_by_another_rule(backbone, inbox):
    stream = make_stream("second-look", backbone, inbox)
    deliver(inbox, "01", ["red", "blue"], rows=100)
    deliver(inbox, "02", ["gold"], rows=18)
    learn(stream)
    held = queries.listing("batches", "second-look")[1]["batch_id"]
    bolder = stream.model_copy(update={"shift": stream.shift.model_copy(update={"min_rows": 10})})
    assert learn(bolder) == []
    actions.rejudge(held)
    assert learn(bolder) == [held]
    assert kinds("second-look") == [DecisionKind.EXPAND, DecisionKind.EXPAND]
    with pytest.raises(StateError, match="only a held batch"):
        actions.discard(held)


def test_records_of_a_discarded_batch_leave_no_trace_and_may_come_again(backbone, inbox):
    stream = make_stream("late-labels", backbone, inbox)
    deliver(inbox, "01", ["red", "blue"], rows=100)
    rows = deliver(inbox, "02", ["red", "blue"], rows=30)
    (inbox / "02.jsonl").write_text("".join(json.dumps({**row, "topic": None}) + "\n" for row in rows))
    learn(stream)
    held = queries.listing("batches", "late-labels")[1]
    assert held["state"] == "held"
    with database.transaction() as session:
        (shard,) = catalog.get_batch(session, held["batch_id"]).shards
        gone = {stored.key for stored in ownership.objects_of(session, [shard.node])}
    actions.discard(held["batch_id"])
    left = artifacts.list_versions(storage.s3(), settings().artifact_bucket, stream_prefix("late-labels"))
    assert gone
    assert not gone & {version.key for version in left}
    assert learn(stream) == []
    (inbox / "03.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert len(learn(stream)) == 1
    batches = queries.listing("batches", "late-labels")[1:]
    assert [(b["state"], b["rows"], b["delivered"]) for b in batches] == [("discarded", 0, 30), ("done", 30, 30)]


def learned_by_two_groups(name, backbone, inbox):
    stream = make_stream(name, backbone, inbox)
    stream = stream.model_copy(update={"columns": stream.columns.model_copy(update={"group": "team"})})
    rows = [{**row, "team": "ab"[n // 2 % 2]} for n, row in enumerate(deliver(inbox, "01", ["red", "blue"], rows=120))]
    (inbox / "01.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    learn(stream)
    return stream


def test_each_group_is_decided_for_itself(backbone, inbox):
    learned_by_two_groups("groups", backbone, inbox)
    assert kinds("groups") == [DecisionKind.EXPAND, DecisionKind.EXPAND]
    assert sorted(row["group"] for row in queries.listing("adapters", "groups")) == ["a", "b"]


def test_a_group_is_answered_from_its_own_part_of_a_version_to_the_bit(backbone, inbox):
    stream = learned_by_two_groups("parts", backbone, inbox)
    serve_all(stream)
    manifest = current_manifest(stream)
    with database.transaction() as session:
        shards = contents.done_shards(session, stream.name)
    for shard in shards:
        whole, part = (compose(load_model(m), [shard.group]) for m in (manifest, seen_by(manifest, [shard.group])))
        assert len(part.adapters) == 1
        found = [answer(stream, composed, load_rows(shard)).scores_NC for composed in (whole, part)]
        assert torch.equal(*found)


def test_a_delivery_of_one_row_is_held_and_does_not_hold_up_the_stream(backbone, inbox):
    stream = make_stream("drops", backbone, inbox)
    deliver(inbox, "01", ["red", "blue"], rows=100)
    for n in range(3):  # held out or not
        deliver(inbox, f"02-{n}", ["red"], rows=1)
    deliver(inbox, "03", ["red", "blue"], rows=40)
    assert len(learn(stream)) == 5
    assert kinds("drops") == [DecisionKind.EXPAND, *[DecisionKind.HOLD] * 3, DecisionKind.REUSE]
    assert queries.status("drops")[0]["held"] == ["02-0", "02-1", "02-2"]


def test_a_held_group_waits_by_itself_while_the_rest_of_its_batch_serves(backbone, inbox):
    stream = make_stream("tenants", backbone, inbox)
    stream = stream.model_copy(update={"columns": stream.columns.model_copy(update={"group": "team"})})
    rows = [
        {**r, "team": "small" if n < 30 else "large"} for n, r in enumerate(deliver(inbox, "01", ["red", "blue"], 130))
    ]
    (inbox / "01.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    cautious = stream.model_copy(update={"shift": stream.shift.model_copy(update={"min_rows": 60})})
    learn(cautious)
    status = queries.status("tenants")[0]
    assert (status["held"], status["champion"]) == (["01-held"], 1)
    with database.transaction() as session:
        assert [shard.group for shard in contents.done_shards(session, "tenants")] == ["large"]
    (version,) = queries.listing("versions", "tenants")
    assert "hold: " in version["reason"]
    actions.rejudge("01-held")
    assert len(learn(stream.model_copy(update={"shift": stream.shift.model_copy(update={"min_rows": 10})}))) == 1
    assert [row["group"] for row in queries.listing("adapters", "tenants")] == ["large", "small"]
    assert [row["rows"] for row in queries.listing("batches", "tenants")] == [100, 30]
    ticket_id = opening.open_ticket("tenants", opening.resolve_targets("tenants", [], ["01-3"]), "test").ticket_id
    assert forget(ticket_id).state == TicketState.COMPLETE


def test_objects_of_one_name_in_two_folders_are_two_batches(backbone, tmp_path):
    for month, topics in (("may", ["red", "blue"]), ("june", ["green", "gold"])):
        (tmp_path / month).mkdir()
        deliver(tmp_path / month, "01", topics, first=0 if month == "may" else 100)
        learn(make_stream("twins", backbone, tmp_path / month))
    assert [row["name"] for row in queries.listing("batches", "twins")] == ["01", "01"]
    assert queries.status("twins")[0]["versions"] == 2
