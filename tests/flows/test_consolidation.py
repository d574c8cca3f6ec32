"""The budget of adapters: merged, retired and written down, and what a merged adapter still recognises."""

import re
from dataclasses import replace
from datetime import datetime, timedelta

import pytest
from botocore.client import BaseClient

from flows import actions
from flows.consolidate import consolidate
from flows.learn import learn
from infra import database, storage
from infra.errors import HeldError
from infra.settings import settings
from registry import adapters, artifacts, catalog, contents, decision_log, tables
from registry.errors import StateError, SuppressedRecordError
from registry.records import Adapter, AdapterState, DecisionKind, Verdict
from registry.sections import AdapterOptions, Consolidation, Gates, ShiftOptions
from tasks import blobs, consolidation, forms, queries, rebuilding, retirement, shift
from tasks.adapters import judge_adapter
from tasks.assembly import current_manifest
from tasks.entitlement import OPEN
from tasks.interrupted import interrupted_merges
from tasks.learning.compression import num_units
from tasks.likeness import propose_merges
from tasks.policies.compression import form_holds
from tasks.policies.merging import MAX_COHORT, Excess
from tasks.policies.promotion import merge_is_kept
from tasks.policies.retirement import Routing
from tasks.prediction_log import note_prediction
from tasks.rows import trainable
from tasks.serving import Answerer
from tasks.shards import load_rows
from tests.flows import adversary
from tests.flows.adversary import serve_all
from tests.flows.conftest import deliver, make_stream

pytestmark = pytest.mark.usefixtures("ready")
SURE = ShiftOptions(alpha=0.003, permutations=399, min_rows=20, new_classes="expand")
LOOKS = {"01": ["red", "blue"], "02": ["green", "gold"], "03": ["pink", "grey"]}


def learned(name, backbone, inbox, batches=("01", "02"), **changes):
    stream = make_stream(name, backbone, inbox, shift=SURE, **changes)
    for batch in batches:
        deliver(inbox, batch, LOOKS[batch], rows=80)
    learn(stream)
    return stream, serve_all(stream)


def states(stream) -> dict[str, str]:
    return {row["adapter_id"]: row["state"] for row in queries.listing("adapters", stream.name)}


def decisions(stream) -> list[dict]:
    return queries.listing("decisions", stream.name)


def numbers(stream, kind) -> list[dict]:
    with database.transaction() as session:
        return [d.numbers for d in decision_log.decisions(session, stream.name) if d.kind == kind]


def stored_of(stream) -> set[tuple[str, str]]:
    """(key, version) of all that lies in the artifact bucket for the stream, deletions too."""
    where = settings().artifact_bucket, blobs.stream_prefix(stream.name)
    return {(each.key, each.version_id) for each in artifacts.list_versions(storage.s3(), *where)}


def calls_of_s3(monkeypatch) -> set[str]:
    """Grows by the name of every call to S3."""
    made, send = set[str](), BaseClient._make_api_call
    monkeypatch.setattr(
        BaseClient, "_make_api_call", lambda self, name, *rest: made.add(name) or send(self, name, *rest)
    )
    return made


def test_a_dry_run_measures_a_merge_and_leaves_everything_as_it_was(backbone, inbox, monkeypatch):
    stream, born = learned("looksonly", backbone, inbox)
    with monkeypatch.context() as patch:
        patch.setattr("flows.consolidate.register_change", power_cut)
        before, told = stored_of(stream), decisions(stream)
        tried = consolidate(stream, tuple(born), dry_run=True)
        assert (sorted(states(stream)), stored_of(stream), decisions(stream)) == (born, before, told)
        assert (tried.accepted, tried.adapter_id) == (True, None), "as it would be"
        with pytest.raises(PowerCutError):
            consolidate(stream)
    left, before = states(stream), stored_of(stream)
    assert consolidate(stream, dry_run=True) is None, "no second pair is left, and the killed merge waits"
    assert (states(stream), stored_of(stream), queries.status(stream.name)[0]["champion"]) == (left, before, 2)
    consolidate(stream)
    (merge,) = numbers(stream, DecisionKind.MERGE)
    assert queries.status(stream.name)[0]["champion"] == 3
    figures = {"before": tried.accuracy_before, "after": tried.accuracy_after}
    assert {**merge["alternatives"], **figures} == merge["alternatives"], "what was kept was measured alike"


def test_over_budget_the_closest_merge_and_the_merged_one_still_knows_both_looks(backbone, inbox):
    stream, born = learned("budget", backbone, inbox, consolidation=Consolidation(max_adapters=1))
    outcome = consolidate(stream)
    assert outcome is not None
    assert outcome.accepted, outcome.reason
    assert [states(stream)[adapter_id] for adapter_id in born] == [AdapterState.RETIRED] * 2
    (merged,) = numbers(stream, DecisionKind.MERGE)
    assert (merged["parents"], merged["operator"], merged["cohort"]) == (born, "cat", 2)
    assert set(merged["alternatives"]) == {"before", "after", "exact_head"}

    deliver(inbox, "04", LOOKS["02"], rows=80)
    learn(stream)
    last = [d for d in decisions(stream) if d["kind"] in ("expand", "reuse", "refresh")][-1]
    assert (last["kind"], last["adapter_id"]) == (DecisionKind.REUSE, outcome.adapter_id)


class Backwards(datetime):
    """A clock that goes a day back whenever it is asked."""

    @classmethod
    def now(cls, tz=None):
        cls.days = getattr(cls, "days", 0) + 1
        return datetime.now(tz) - timedelta(days=cls.days)


def test_parents_of_a_merge_keep_their_order_under_a_clock_that_goes_backwards(backbone, inbox, monkeypatch):
    monkeypatch.setattr(tables, "datetime", Backwards)
    stream, born = learned("clock", backbone, inbox)
    with database.transaction() as session:
        first, second = (session.get(tables.AdapterRow, name).created_at for name in ("clock-a1", "clock-a2"))
    assert first > second
    assert born == ["clock-a1", "clock-a2"]
    outcome = consolidate(stream)
    assert (outcome.accepted, outcome.parent_ids) == (True, ("clock-a1", "clock-a2")), outcome.reason


def test_a_refused_pair_is_written_down_and_neither_it_nor_a_half_done_merge_is_stored(backbone, inbox, monkeypatch):
    gates = Gates(approval={"promotion": "never", "merge": "always", "erasure": "never"})
    stream, born = learned("refuses", backbone, inbox, consolidation=Consolidation(max_adapters=1), gates=gates)
    before = stored_of(stream)
    with monkeypatch.context() as patch:
        patch.setattr(consolidation, "merge_is_kept", power_cut)
        with pytest.raises(PowerCutError):
            consolidation.merge_adapters.fn(stream, tuple(born))
    assert interrupted_merges.fn(stream) == []
    assert (sorted(states(stream)), stored_of(stream)) == (born, before)
    excess = consolidation.measure_budget.fn(stream)
    ((pair, likeness),) = propose_merges.fn(stream, excess)
    assert (pair, likeness.shared_labels) == (tuple(born), 0)
    assert likeness.shift[0] != likeness.shift[1]
    assert 0 <= likeness.agreement <= 1

    outcome = consolidation.merge_adapters.fn(stream, pair)  # a person is asked, and has not answered
    assert not outcome.accepted, outcome.reason
    assert [states(stream)[adapter_id] for adapter_id in born] == [AdapterState.SERVING] * 2
    (kept,) = numbers(stream, DecisionKind.KEEP)
    assert (kept["parents"], kept["cohort"]) == (born, 2)
    assert (sorted(states(stream)), stored_of(stream)) == (born, before)
    assert propose_merges.fn(stream, excess) == []
    for change in ({"consolidation": Consolidation(operator="ot")}, {"gates": Gates(merge_drop=0.3)}):
        changed = stream.model_copy(update=change)
        assert [pair for pair, _ in propose_merges.fn(changed, excess)] == [pair], "other rules, another answer"


def chain(stream, count):
    """Trained adapters -a1 to -aN, each of two shards of its own; no weights, for none are read."""
    with database.transaction() as session:
        catalog.save_stream(session, stream, "digest")
        for number in range(1, count + 1):
            name = adapters.new_adapter_id(session, stream.name)
            shards = (9000 + 2 * number, 9001 + 2 * number)
            adapters.put_adapter(
                session, Adapter(name, stream.name, "default", AdapterState.SERVING, shards, (), shards)
            )


def merge_on_paper(session, merged_id, parent_ids):
    parents = adapters.get_adapters(session, parent_ids)
    merged = adapters.get_adapter(session, merged_id)
    shards = tuple(shard_id for parent in parents for shard_id in parent.shard_ids)
    adapters.put_adapter(session, replace(merged, parent_ids=tuple(parent_ids), shard_ids=shards, serves=shards))
    for parent_id in parent_ids:
        adapters.move_adapter(session, parent_id, AdapterState.RETIRED, f"superseded by {merged_id}")


def test_a_merge_by_hand_is_refused_where_a_proposal_would_be(backbone, inbox):
    stream = make_stream("toolarge", backbone, inbox)
    chain(stream, 5)
    with database.transaction() as session:
        for child, parents in (("toolarge-a3", ("toolarge-a1", "toolarge-a2")), ("toolarge-a4", ("toolarge-a3",))):
            deep = replace(adapters.get_adapter(session, child), parent_ids=parents)
            adapters.put_adapter(session, deep)
        wide = adapters.get_adapter(session, "toolarge-a1")
        adapters.put_adapter(session, replace(wide, serves=tuple(range(9100, 9100 + MAX_COHORT))))
    with pytest.raises(StateError, match=r"a4 and toolarge-a5 cannot be merged: it would be 3 merges deep, 2 is"):
        consolidation.merge_adapters.fn(stream, ("toolarge-a4", "toolarge-a5"))
    with pytest.raises(StateError, match=r"it would serve 52 shards, 50 is the most; merge others"):
        consolidation.merge_adapters.fn(stream, ("toolarge-a1", "toolarge-a2"))
    assert set(states(stream).values()) == {AdapterState.SERVING}


@pytest.mark.parametrize(
    ("merges", "moved", "asked", "heir", "free"),
    [
        ({"a4": ["a1", "a2"], "a5": ["a4", "a3"]}, {}, "a1", "a5", []),
        ({"a4": ["a1", "a2"]}, {"a4": AdapterState.RETIRED, "a1": AdapterState.SERVING}, "a4", "a1", ["a2"]),
        ({"a4": ["a1", "a2"], "a5": ["a1", "a3"]}, {"a4": AdapterState.RETIRED}, "a4", "a5", ["a2"]),
    ],
    ids=["part-of-a-merge-of-merges", "merge-of-a-parent-that-came-back", "merge-of-a-parent-that-was-merged-again"],
)
def test_nothing_is_reinstated_beside_what_has_taken_its_place(backbone, inbox, merges, moved, asked, heir, free):
    stream = make_stream(f"heirs-{len(merges)}-{asked}", backbone, inbox)
    of = {f"a{number}": f"{stream.name}-a{number}" for number in range(1, 6)}
    chain(stream, 5)
    with database.transaction() as session:
        for merged, parents in merges.items():
            merge_on_paper(session, of[merged], [of[parent] for parent in parents])
        for adapter, state in moved.items():
            adapters.move_adapter(session, of[adapter], state, "by hand")
    with pytest.raises(StateError, match=f"'{of[asked]}' cannot be reinstated: {of[heir]} has taken its place; retire"):
        retirement.check_reinstate(stream, of[asked])
    for adapter in free:
        retirement.check_reinstate(stream, of[adapter])
    retirement.retire_adapter.fn(of[heir], "by hand")
    retirement.check_reinstate(stream, of[asked])


def test_what_is_retired_or_erased_is_not_retired_again_also_not_in_a_dry_run(backbone, inbox):
    stream = make_stream("gone-twice", backbone, inbox)
    chain(stream, 2)
    with database.transaction() as session:
        adapters.move_adapter(session, "gone-twice-a1", AdapterState.RETIRED, "the season is over")
        adapters.move_adapter(session, "gone-twice-a2", AdapterState.ERASED, "too few of its rows remain")
    for adapter_id, told in {"a1": "retired already: the season is over", "a2": "erased already: too few"}.items():
        for dry_run in (True, False):
            with pytest.raises(StateError, match=told):
                actions.retire(f"gone-twice-{adapter_id}", "again", dry_run)


def test_a_merge_of_another_streams_adapters_or_of_one_adapter_is_refused_before_any_work(backbone, inbox):
    mine, theirs = make_stream("merges-mine", backbone, inbox), make_stream("merges-theirs", backbone, inbox)
    chain(mine, 2)
    chain(theirs, 2)
    for pair, told in {
        ("merges-theirs-a1", "merges-theirs-a2"): "a1 belongs to the stream 'merges-theirs'",
        ("merges-mine-a1", "merges-theirs-a2"): "a2 belongs to the stream 'merges-theirs'",
        ("merges-mine-a1", "merges-mine-a1"): "a1 is named twice",
    }.items():
        with pytest.raises(StateError, match=told):
            consolidation.merge_adapters.fn(mine, pair)
    assert states(mine) == {"merges-mine-a1": AdapterState.SERVING, "merges-mine-a2": AdapterState.SERVING}
    assert set(states(theirs).values()) == {AdapterState.SERVING}
    with database.transaction() as session:
        assert adapters.new_adapter_id(session, mine.name) == "merges-mine-a3", "no number was spent"


def test_a_merge_that_loses_is_refused_with_figures_and_both_parents_go_on(backbone, inbox, monkeypatch):
    """Under a gate that asks for more than an accuracy can gain, every merge loses."""
    stream, born = learned("loses", backbone, inbox, consolidation=Consolidation(max_adapters=None))
    monkeypatch.setattr(consolidation, "merge_is_kept", lambda before, after, _: merge_is_kept(before, after, -2.0))
    asked = calls_of_s3(monkeypatch)
    outcome = consolidation.merge_adapters.fn(stream, tuple(reversed(born)))
    assert not outcome.accepted
    assert propose_merges.fn(stream, Excess("default", tuple(born), "")) == [], "whichever of the two was named first"
    assert "GetObject" in asked
    assert not {"PutObject", "DeleteObject", "DeleteObjects"} & asked, "the role `learn` may not purge"
    assert [states(stream)[adapter_id] for adapter_id in born] == [AdapterState.SERVING] * 2
    (kept,) = numbers(stream, DecisionKind.KEEP)
    assert kept["alternatives"]["before"] == outcome.accuracy_before
    assert kept["alternatives"]["after"] == outcome.accuracy_after
    (told,) = [d["reason"] for d in decisions(stream) if d["kind"] == DecisionKind.KEEP]
    assert re.match(rf"{born[0]}: \d\.\d+ -> \d\.\d+ \(\d+ rows\), {born[1]}: .*largest loss", told)
    assert queries.status(stream.name)[0]["champion"] == 2, "no version came of it"


def test_the_smallest_nested_rank_that_holds_is_stored_and_a_refused_one_gives_way(backbone, inbox, monkeypatch):
    asked = []

    def first_loses(accuracy, *rest):
        asked.append(accuracy)
        return form_holds(accuracy if len(asked) > 1 else accuracy - 1, *rest)

    monkeypatch.setattr(forms, "form_holds", first_loses)
    options = AdapterOptions(rank=4, last_layers=2, epochs=2, ranks="nested", precision="int8")
    stream = make_stream("nested", backbone, inbox, shift=SURE, adapter=options, gates=Gates(form_drop=0.5))
    deliver(inbox, "01", LOOKS["01"], rows=80)
    learn(stream)
    with database.transaction() as session:
        (adapter,) = adapters.adapters(session, stream.name)
    form = adapter.recipe["form"]
    assert (len(asked), form["rank"], form["precision"]) == (2, 2, "int8"), "of the ranks 1, 2 and 4"
    assert form["bytes"] < form["bytes_whole"]
    assert form["reason"].startswith("holds: ")
    assert num_units(forms.load_weights(adapter)) == 2


class PowerCutError(Exception):
    """Ends a merge where it stands, as a killed process would."""


def power_cut(*_):
    raise PowerCutError


def test_an_adapter_that_nobody_asks_for_retires_unless_callers_do(backbone, inbox, tmp_path_factory, monkeypatch):
    stream, born = learned(
        "harvests", backbone, inbox, consolidation=Consolidation(max_adapters=None, window=2, retire_share=0.9)
    )
    for name in ("04", "05"):
        deliver(inbox, name, LOOKS["02"], rows=80)
    learn(stream)
    old = born[0]
    with database.transaction() as session:
        adapters.move_adapter(session, old, AdapterState.SERVING, "for this test")
    log = settings().home / "predictions" / "harvests.jsonl"
    answerer = Answerer(current_manifest(stream))
    texts = [row["words"].encode() for row in deliver(tmp_path_factory.mktemp("asked"), "01", LOOKS["01"], rows=80)]
    visits = answerer.answer(texts, []).visits
    texts = [text for text, visited in zip(texts, visits, strict=True) if old in visited]
    assert texts
    for asked in ([], ["*"]):  # as callers of a stream of one group do, and owners
        note_prediction(stream.name, 1, OPEN, answerer.answer(texts, asked))
        assert retirement.retire_unused.fn(stream) == []
        log.unlink()
    measured: list[str] = []
    with monkeypatch.context() as patched:
        patched.setattr(retirement, "may_go", lambda _, name: measured.append(name) or Verdict(False, "it would lose"))
        for _ in range(3):  # what stays is not measured after every batch
            assert retirement.retire_unused.fn(stream) == []
        assert measured == [old]
        for name in ("06", "07"):
            deliver(inbox, name, LOOKS["02"], rows=80)
        learn(stream)
        assert measured == [old, old], "a window later it is asked again"
    widened = stream.consolidation.model_copy(update={"window": 3})  # other rules are asked at once
    stream = stream.model_copy(update={"consolidation": widened})
    assert retirement.retire_unused.fn(stream) == [old]
    assert states(stream)[old] == AdapterState.RETIRED
    assert "held-out rows of the last 3 batches" in decisions(stream)[-1]["reason"]
    assert decisions(stream)[-1]["kind"] == DecisionKind.RETIRE
    retirement.reinstate_adapter.fn(stream, old, "the season begins")
    assert states(stream)[old] in (AdapterState.SERVING, AdapterState.CANDIDATE)


def test_use_is_measured_where_a_ticket_left_a_shard_held_out_rows_alone(backbone, inbox):
    stream = make_stream("untaught", backbone, inbox)
    deliver(inbox, "01", LOOKS["01"])
    adversary.learn(stream)
    born = adversary.serve_all(stream)
    with database.transaction() as session:
        (shard,) = contents.done_shards(session, stream.name)
    assert shard.held_out
    rebuilding.drop_rows(stream, shard, {("record", row.record) for row in trainable(load_rows(shard))}, [])
    assert [(use.adapter_id, use.held_out_rows) for use in retirement.measure_routing(stream)] == [(born[0], 0)]
    with pytest.raises(SuppressedRecordError, match="finish the open tickets"):  # which would let the adapter go
        shift.measure_shift.fn(stream, shard)


def test_what_a_person_retires_and_brings_back_is_written_down_and_left_in_peace_for_a_window(
    backbone, inbox, monkeypatch
):
    stream, back = make_stream("broughtback", backbone, inbox), "broughtback-a1"
    chain(stream, 1)
    retirement.retire_adapter.fn(back, "the season is over")
    monkeypatch.setattr(contents, "shards", lambda *_: [None])
    monkeypatch.setattr(retirement.judge_adapter, "fn", lambda *_: Verdict(True, "it earns its place"))
    retirement.reinstate_adapter.fn(stream, back, "the season begins")
    told = [(d["kind"], d["adapter_id"], d["reason"]) for d in decisions(stream)]
    assert told == [("retire", back, "the season is over"), ("keep", back, "reinstated: the season begins")]

    monkeypatch.setattr(retirement, "measure_routing", lambda _: [Routing(back, 9, 0, 0, 0, age=99)])
    monkeypatch.setattr(retirement, "may_go", lambda *_: Verdict(True, "nothing is lost"))
    assert retirement.retire_unused.fn(stream) == [], "what it was brought back for has yet to come"
    widened = stream.model_copy(update={"consolidation": Consolidation(window=30)})
    assert retirement.retire_unused.fn(widened) == [back], "other rules are asked at once"


def test_nothing_is_retired_or_brought_back_under_a_run_that_would_judge_it_again(backbone, inbox, monkeypatch):
    stream = make_stream("underway", backbone, inbox)

    def meanwhile(stream, shard, adapter_id):
        for act in (actions.retire, actions.reinstate):
            with pytest.raises(HeldError, match="stream underway is being worked on by"):
                act(adapter_id, "by hand", False)
        return judge_adapter(stream, shard, adapter_id)

    deliver(inbox, "01", LOOKS["01"], rows=40)
    monkeypatch.setattr("flows.learn.judge_adapter", meanwhile)
    learn(stream)
    actions.retire("underway-a1", "by hand", False)
    assert states(stream) == {"underway-a1": AdapterState.RETIRED}
