"""`composition: mix`: a group's mixture from its batches to answers, and a person's way out of it."""

import json
from pathlib import Path

import mlflow
import pytest

from flows import actions
from flows.consolidate import consolidate
from flows.forget import forget
from flows.learn import learn
from flows.predict import predict
from infra import database, tracking
from registry import contents
from registry.errors import StateError
from registry.records import DecisionKind, EdgeKind, TicketState
from registry.sections import AdapterOptions, MixOptions, ShiftOptions
from registry.tables import EdgeRow
from tasks import blobs, queries, tickets
from tasks.certificates import render_markdown, verify
from tasks.forgetting import make_plan
from tasks.manifests import load_manifest
from tasks.opening import certificate_path
from tasks.promotion import promote_version
from tasks.registration import register_change
from tests.flows import adversary
from tests.flows.conftest import deliver, make_stream
from tests.flows.test_deletion_exact import assert_as_if_never_there, assert_nothing_tainted_serves, write

pytestmark = pytest.mark.usefixtures("ready")

A1, A2 = "mixed-a1", "mixed-a2"


def make_mix(name: str, backbone: Path, inbox: Path):
    stream = make_stream(
        name,
        backbone,
        inbox,
        composition="mix",
        mix=MixOptions(watched=2),
        adapter=AdapterOptions(rank=4, last_layers=3, epochs=4, learning_rate=0.05, optimizer="sgd"),
        shift=ShiftOptions(permutations=199, min_rows=20),
    )
    return stream.model_copy(update={"columns": stream.columns.model_copy(update={"group": "team"})})


def deliver_three(inbox: Path) -> dict[str, list[dict]]:
    """Team a meets red and blue twice, then what it never saw; team b has a part of the first batch."""
    rows = {
        name: [{**row, "team": "a", "who": f"ann-{n % 24}"} for n, row in enumerate(deliver(inbox, name, topics, 96))]
        for name, topics in (("01", ["red", "blue"]), ("02", ["red", "blue"]), ("03", ["pink", "grey"]))
    }
    others = deliver(inbox, "b", ["green", "gold"], 96)
    (inbox / "b.jsonl").unlink()
    rows["01"] += [{**row, "team": "b", "who": f"bob-{n % 24}"} for n, row in enumerate(others)]
    for name, records in rows.items():
        write(inbox, name, records)
    return rows


def edges_to(adapter_id: str, kind: EdgeKind) -> list[str]:
    with database.transaction() as session:
        rows = session.query(EdgeRow).filter_by(child=f"adapter:{adapter_id}", kind=kind).order_by(EdgeRow.ordinal)
        return [row.parent for row in rows]


def shards_of(stream) -> dict[tuple[str, str], int]:
    with database.transaction() as session:
        return {(s.batch_name, s.group): s.shard_id for s in contents.done_shards(session, stream.name)}


def test_a_mixture_from_its_batches_to_answers_and_a_persons_way_out(backbone, inbox, set_variable, tmp_path_factory):
    set_variable("HASH_KEY", "the same in both homes")
    stream, rows = make_mix("mixed", backbone, inbox), deliver_three(inbox)
    assert len(learn(stream)) == 3
    assert_each_layer_was_decided(stream)
    assert_its_parts_are_not_merged_or_retired(stream)
    assert_it_answers_who_holds_its_group(stream, rows["01"][90:102], inbox)
    assert_a_ticket_costs_the_cascade_and_is_exact(stream, rows)
    gone = [row for records in rows.values() for row in records if row["who"] == "ann-3"]
    assert_as_if_never_there(
        stream, inbox, gone, set_variable, tmp_path_factory.mktemp("fresh-home"), again=adversary.learn
    )


def assert_each_layer_was_decided(stream) -> None:
    """Each group has one mixture; a's second batch joins it, the third grows it, and the lineage says what rests on
    what."""
    decided = queries.listing("decisions", stream.name)
    assert [(d["kind"], d["adapter_id"]) for d in decided] == [
        (DecisionKind.EXPAND, A1), (DecisionKind.EXPAND, A2), (DecisionKind.REUSE, A1), (DecisionKind.EXPAND, A1)
    ]  # fmt: skip
    assert "first adapters in layers 1, 2, 3" in decided[0]["reason"]
    assert "every layer of mixed-a1 knows the batch" in decided[2]["reason"]
    assert "layer 3 grew: z" in decided[3]["reason"]
    weights = blobs.load_tensors(f"adapter:{A1}", "weights")
    assert len(weights["blocks.1.router.bias"]) == 1
    assert len(weights["blocks.3.router.bias"]) == 2
    first, joined, grown = (f"shard:{shards_of(stream)[name, 'a']}" for name in ("01", "02", "03"))
    assert edges_to(A1, EdgeKind.TRAINED_ON) == [first, grown]
    assert edges_to(A1, EdgeKind.WARM_START) == edges_to(A1, EdgeKind.ROUTER_FIT) == [grown]
    assert edges_to(A1, EdgeKind.SERVES) == [first, joined, grown]


def assert_its_parts_are_not_merged_or_retired(stream) -> None:
    with pytest.raises(StateError, match="answers as a whole"):
        consolidate(stream)
    with pytest.raises(StateError, match="mixture of group 'a' and is not retired"):
        actions.retire(A1, "by hand", dry_run=False)


def assert_it_answers_who_holds_its_group(stream, rows: list[dict], inbox: Path) -> None:
    """From a file, and as the registered model; six rows of team a and six of team b."""
    assert adversary.serve_all(stream) == [A1, A2]
    promote_version.fn(stream, register_change.fn(stream, "test:serve", "for this test", None))
    (inbox / "asked").mkdir()
    asked = inbox / "asked" / "in.jsonl"
    asked.write_text("".join(json.dumps({"key": row["key"], "words": row["words"]}) + "\n" for row in rows))
    answers = predict(stream.name, str(asked), ["a", "b"])
    assert {answer["adapter"] for answer in answers} <= {A1, A2}
    alone = {group: predict(stream.name, str(asked), [group]) for group in "ab"}
    assert {group: {answer["adapter"] for answer in found} for group, found in alone.items()} == {"a": {A1}, "b": {A2}}
    assert {answer["label"] for answer in alone["a"]} <= {"red", "blue", "pink", "grey"}
    assert {answer["label"] for answer in alone["b"]} <= {"green", "gold"}
    tracking.prepare_tracking()
    loaded = mlflow.pyfunc.load_model(f"models:/{stream.name}/{queries.status(stream.name)[0]['champion']}")
    served = loaded.predict([row["words"] for row in rows], params={"groups": "a,b"})
    assert served["label"].tolist() == [answer["label"] for answer in answers]
    assert served["score"].tolist() == pytest.approx([answer["score"] for answer in answers], abs=1e-4)


def assert_a_ticket_costs_the_cascade_and_is_exact(stream, rows: dict[str, list[dict]]) -> None:
    """Priced by what comes after the first touched shard, out of service at once, and the other group as it was."""
    untouched = {kind: blobs.get(f"adapter:{A2}", kind).sha256 for kind in ("weights", "looks", "descriptor")}
    before = blobs.get(f"adapter:{A1}", "weights").sha256
    targets = tickets.resolve_targets(stream.name, ["ann-3"], [])
    plan, _ = make_plan(stream.name, targets)
    assert [(repair.adapter_id, repair.action) for repair in plan.repairs] == [(A1, "retrain")]
    assert plan.rows_to_train == 2 * (96 - 4)
    late = [row for row in rows["03"] if row["who"] != "ann-3"][:1]
    assert make_plan(stream.name, tickets.resolve_targets(stream.name, [], [late[0]["key"]]))[0].rows_to_train == 95
    ticket_id = tickets.open_ticket(stream.name, targets, "test").ticket_id
    assert_nothing_tainted_serves(stream)
    assert forget(ticket_id).state == TicketState.COMPLETE
    certificate = verify(Path(certificate_path(ticket_id)).read_bytes())
    assert (certificate["guarantee"], certificate["records"]) == ("E0", 12)
    assert certificate["comparison"][f"adapter:{A1}"]["artifacts"] == 6  # weights, two kinds of looks, statistics
    again = [shards_of(stream)[name, "a"] for name in ("01", "03")]
    assert f"trained again on {again} in that order, and every statistic" in render_markdown(certificate)
    assert blobs.get(f"adapter:{A1}", "weights").sha256 != before
    assert {kind: blobs.get(f"adapter:{A2}", kind).sha256 for kind in untouched} == untouched
    champion = load_manifest(stream.name, queries.status(stream.name)[0]["champion"])
    assert [adapter["adapter_id"] for adapter in champion["adapters"]] == [A1, A2]
