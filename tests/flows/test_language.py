"""A stream of documents from its batches to answers, and a document's way out of it."""

import json
from pathlib import Path

import mlflow
import pyarrow.parquet as pq
import pytest
import torch
from peft import PeftModel, get_peft_model_state_dict
from transformers import AutoModelForCausalLM

import tasks.serving
from flows.forget import forget
from flows.learn import learn
from flows.predict import predict
from infra import database, tracking
from registry import adapters, contents
from registry.errors import StateError, StreamFileError
from registry.records import AdapterState, DecisionKind, TicketState
from registry.sections import AdapterOptions, Columns, Completion
from registry.stream import Stream, load_stream
from tasks import blobs, queries, tickets
from tasks.assembly import current_manifest, load_model
from tasks.certificates import verify
from tasks.consolidation import refuse_across
from tasks.evaluation import score_shards
from tasks.exporting import export_adapter
from tasks.learning.language.serving import Entitled
from tasks.manifests import load_manifest
from tasks.opening import certificate_path
from tasks.serving import Answerer
from tasks.shards import load_rows
from tests.flows.conftest import deliver, make_stream
from tests.tiny_language import save_tiny_llama

pytestmark = pytest.mark.usefixtures("ready")


@pytest.fixture(scope="session")
def llama(tmp_path_factory) -> Path:
    return save_tiny_llama(tmp_path_factory.mktemp("tiny-llama"))


def make_documents(name: str, llama: Path, inbox: Path) -> Stream:
    return make_stream(
        name,
        llama,
        inbox,
        task="causal-lm",
        columns=Columns(id="key", subject="who", input="words", group="team"),
        max_tokens=64,
        adapter=AdapterOptions(rank=4, last_layers=2, epochs=3, learning_rate=2e-2),
        completion=Completion(new_tokens=4),
    )


def deliver_documents(inbox: Path, name: str, topic: str, team: str, first: int = 0) -> list[dict]:
    rows = [{**row, "team": team} for row in deliver(inbox, name, [topic], rows=48, first=first)]
    (inbox / f"{name}.jsonl").write_text(
        "".join(json.dumps({k: v for k, v in row.items() if k != "topic"}) + "\n" for row in rows)
    )
    return rows


@pytest.fixture(scope="module")
def stream(llama, tmp_path_factory, ready):  # noqa: ARG001  the home comes first
    """Two teams, three batches; the third is like the first."""
    inbox = tmp_path_factory.mktemp("memos")
    made = make_documents("memos", llama, inbox)
    for name, topic, team in (("01", "red", "a"), ("02", "green", "b"), ("03", "red", "a")):
        deliver_documents(inbox, name, topic, team)
    assert len(learn(made)) == 3
    return made


def serving(stream) -> list[str]:
    with database.transaction() as session:
        return [a.adapter_id for a in adapters.adapters(session, stream.name, [AdapterState.SERVING])]


def test_batches_of_documents_expand_and_reuse_and_adapters_earn_their_place_by_perplexity(stream):
    kinds = [row["kind"] for row in queries.listing("decisions", stream.name)]
    assert kinds == [DecisionKind.EXPAND, DecisionKind.EXPAND, DecisionKind.REUSE]
    assert serving(stream) == ["memos-a1", "memos-a2"]
    with database.transaction() as session:
        shards = contents.done_shards(session, stream.name)
        reason = adapters.get_adapter(session, "memos-a1").reason
    assert "perplexity" in reason
    scores = score_shards(stream, load_model(current_manifest(stream)), shards)
    for score in scores.values():
        model, backbone = score.perplexities
        assert model < backbone / 1.5
        assert score.tokens > score.rows > 0


def test_answers_come_from_the_adapter_that_the_caller_may_use(stream, tmp_path):
    (tmp_path / "in.jsonl").write_text(
        "".join(json.dumps({"key": k, "words": k}) + "\n" for k in ("a b c a", "s t u s"))
    )
    out = tmp_path / "out.parquet"
    answers = predict(stream.name, str(tmp_path / "in.jsonl"), ["a", "b"], str(out))
    assert [answer["adapter"] for answer in answers] == ["memos-a1", "memos-a2"]
    assert set(answers[0]["completion"].split()) <= set("abc")
    assert set(answers[1]["completion"].split()) <= set("stu")
    assert pq.read_table(out)["completion"].to_pylist() == [answer["completion"] for answer in answers]
    only_b = predict(stream.name, str(tmp_path / "in.jsonl"), ["b"])
    assert {answer["adapter"] for answer in only_b} == {"memos-a2"}
    with pytest.raises(StateError, match="serves none"):
        predict(stream.name, str(tmp_path / "in.jsonl"), ["c"])


def test_compositions_of_the_last_sets_of_groups_alone_are_kept(stream, monkeypatch):
    made = []

    def compose(backbone, model, groups):
        made.append(groups)
        return Entitled(backbone, model, groups)

    monkeypatch.setattr(tasks.serving, "COMPOSED", 1)
    monkeypatch.setattr(tasks.serving, "Entitled", compose)
    answerer = Answerer(load_manifest(stream.name, queries.status(stream.name)[0]["champion"]))
    for group in ("a", "a", "b", "a"):
        answerer.answer([b"a b c a"], [group])
    assert made == [("a",), ("b",), ("a",)]


def test_the_registered_model_completes_prompts(stream):
    tracking.prepare_tracking()
    champion = queries.status(stream.name)[0]["champion"]
    loaded = mlflow.pyfunc.load_model(f"models:/{stream.name}/{champion}")
    answers = loaded.predict(["a b c a", "s t u s"], params={"groups": "a,b"})
    assert list(answers.columns) == ["completion", "score", "adapter", "adapters", "version"]
    assert answers["adapter"].tolist() == ["memos-a1", "memos-a2"]
    assert set(answers["version"]) == {champion}
    assert loaded.input_example == ["a raw text"]


def test_the_card_of_a_version_names_what_a_language_model_has_and_how_its_groups_are_asked(stream):
    card = tracking.prepare_tracking().get_model_version(stream.name, "2").description
    assert "the frozen backbone alone 0." in card
    assert "| held-out accuracy | frozen backbone |" in card
    assert "exact head" not in card
    assert '.predict([...], params={"groups": "GROUP,..."})`' in card


@pytest.mark.usefixtures("stream")
def test_an_adapter_is_exported_for_other_servers(llama, tmp_path):
    written = export_adapter("memos-a1", tmp_path / "out")
    assert [path.name for path in written] == ["adapter_config.json", "adapter_model.safetensors"]
    alone = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(llama), tmp_path / "out")
    stored = blobs.load_tensors("adapter:memos-a1", "weights")
    theirs = get_peft_model_state_dict(alone)
    assert all(torch.equal(theirs[name], tensor) for name, tensor in stored.items())
    assert set(theirs) == set(stored)
    with pytest.raises(StateError, match="not empty"):
        export_adapter("memos-a1", tmp_path / "out")


def test_merging_language_adapters_is_refused(stream):
    with pytest.raises(StateError, match="not merged"):
        refuse_across(stream, [])


def test_a_forgotten_document_leaves_what_a_model_that_never_saw_it_would_be(llama, tmp_path):
    inbox = tmp_path
    made = make_documents("leaflets", llama, inbox)
    rows = deliver_documents(inbox, "01", "red", "a")
    deliver_documents(inbox, "02", "green", "b")
    learn(made)
    untouched = {name: blobs.get("adapter:leaflets-a2", name).sha256 for name in ("weights", "descriptor")}
    before = blobs.get("adapter:leaflets-a1", "weights").sha256

    targets = tickets.resolve_targets(made.name, [], [rows[3]["key"]])
    ticket = forget(tickets.open_ticket(made.name, targets, "test").ticket_id)
    assert ticket.state == TicketState.COMPLETE
    certificate = verify(Path(certificate_path(ticket.ticket_id)).read_bytes())
    assert certificate["guarantee"] == "E0"
    assert sum(node.startswith("adapter:") for node in certificate["comparison"]) == 1
    assert {name: blobs.get("adapter:leaflets-a2", name).sha256 for name in untouched} == untouched
    after = blobs.get("adapter:leaflets-a1", "weights").sha256
    assert after != before

    with database.transaction() as session:
        [shard] = [s for s in contents.done_shards(session, made.name) if s.group == "a"]
    assert shard.rows == 47
    assert rows[3]["words"].encode() not in {row.input for row in load_rows(shard)}
    champion = load_manifest(made.name, queries.status(made.name)[0]["champion"])
    assert after in {adapter["weights"]["sha256"] for adapter in champion["adapters"]}


@pytest.mark.services
def test_documents_suppressed_for_now_are_labelled_a_until_the_adapter_is_trained_again(llama, tmp_path):
    made = make_documents("handouts", llama, tmp_path)
    rows = deliver_documents(tmp_path, "01", "red", "a")
    deliver_documents(tmp_path, "02", "green", "b")
    learn(made)
    weights = {blobs.get("adapter:handouts-a1", "weights").sha256}
    targets = tickets.resolve_targets(made.name, [], [row["key"] for row in rows[:6]])
    ticket_id = tickets.open_ticket(made.name, targets, "test", approximate=True).ticket_id
    assert forget(ticket_id).state == TicketState.EXCEPTION
    interim = verify(Path(certificate_path(ticket_id)).read_bytes())
    assert (interim["guarantee"], set(interim["rebuilt"]["suppressed"])) == ("A", {"handouts-a1"})
    [report] = interim["rebuilt"]["suppressed"].values()
    assert report["perplexity_of_records"]["after"] > 1.5 * report["perplexity_of_records"]["before"]
    assert set(report["perplexity_of_records"]) == {"before", "after", "int8", "int4", "int1"}
    weights.add(blobs.get("adapter:handouts-a1", "weights").sha256)

    tickets.reopen_ticket(ticket_id, "ann", "there is time")
    assert forget(ticket_id).state == TicketState.COMPLETE
    assert verify(Path(certificate_path(ticket_id)).read_bytes())["guarantee"] == "E0"
    weights.add(blobs.get("adapter:handouts-a1", "weights").sha256)
    assert len(weights) == 3


def test_a_stream_file_of_documents_needs_no_label_and_takes_no_other_adapter(tmp_path):
    file = tmp_path / "memos.yaml"
    file.write_text("name: memos\ntask: causal-lm\nbackbone: x\nsource: y\n")
    made = load_stream(file)
    assert (made.columns.label, made.adapter.method, made.answers) == (None, "lora", "completion")
    for wrong in ("columns: {label: topic}", "adapter: {method: bottleneck}"):
        file.write_text(f"name: memos\ntask: causal-lm\nbackbone: x\nsource: y\n{wrong}\n")
        with pytest.raises(StreamFileError):
            load_stream(file)
