"""Answers from files, from S3, from the registered model and while the champion moves."""

import gc
import hashlib
import json
import os
import signal
import threading
import weakref
from base64 import b64encode, encodebytes
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from io import BytesIO
from queue import SimpleQueue
from threading import Event

import mlflow
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from flows import steering
from flows.learn import learn
from flows.predict import predict, predict_batch
from infra import database, storage, tracking
from infra.settings import settings
from registry import adapters, aliases, versions
from registry.errors import MissingObjectError, SourceError, StateError
from registry.records import AdapterState, VersionState
from registry.sections import TaskType
from registry.versions import CHAMPION
from tasks import blob_cache, consolidation, evaluation, prediction, prefix_cache, retirement, serving
from tasks.alias_moves import move_alias
from tasks.answering import Line, Watch, registered_as
from tasks.assembly import current_manifest, load_model
from tasks.entitlement import Entitlements
from tasks.learning.composition import compose
from tasks.manifests import load_manifest
from tasks.pyfunc_model import StreamModel, named_groups
from tasks.serving import Answerer
from tests.flows.adversary import champion_of, in_the_middle_of, serve_all
from tests.flows.conftest import deliver, make_stream

pytestmark = pytest.mark.usefixtures("ready")
NAME = "answers"
TEXTS = [b"a b c a b c a b", b"d e f d e f", b"s t u s t u s t u s t u", b"a c b"]


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture(scope="module")
def stream(backbone, tmp_path_factory, ready):  # noqa: ARG001  the home comes first
    """Two versions, the second with an adapter of its own; two groups."""
    inbox = tmp_path_factory.mktemp("answers")
    made = make_stream(NAME, backbone, inbox)
    made = made.model_copy(update={"columns": made.columns.model_copy(update={"group": "team"})})
    for name, topics in (("01", ["red", "blue"]), ("02", ["green", "gold"])):
        rows = [{**row, "team": "ab"[n // 2 % 2]} for n, row in enumerate(deliver(inbox, name, topics, rows=120))]
        (inbox / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    learn(made)
    return made


def put(s3, key, texts):
    sink = BytesIO()
    pq.write_table(pa.table({"key": [f"{key}-{n}" for n in range(len(texts))], "words": texts}), sink)
    s3.put_object(Bucket=settings().inbox_bucket, Key=key, Body=sink.getvalue())


def read(s3, uri):
    bucket, key = uri.removeprefix("s3://").split("/", 1)
    return pq.read_table(BytesIO(s3.get_object(Bucket=bucket, Key=key)["Body"].read()))


def log_lines():
    return [json.loads(line) for line in (settings().home / "predictions" / f"{NAME}.jsonl").read_text().splitlines()]


def test_batch_scoring_reads_s3_writes_parquet_and_goes_on_where_it_stopped(stream, s3):
    texts = [text.decode() for text in TEXTS]
    for n in range(3):
        put(s3, f"ask/{n}.parquet", texts)
    question = (
        stream.name,
        f"s3://{settings().inbox_bucket}/ask/*.parquet",
        f"s3://{settings().inbox_bucket}/told",
        ["a"],
    )
    written = predict_batch(*question)
    assert len(written) == 3
    table = read(s3, written[0])
    assert table.column_names == ["row", "label", "score", "adapter", "adapters", "version"]
    assert table["row"].to_pylist() == [f"ask/0.parquet-{n}" for n in range(4)]
    assert table.schema.metadata[b"groups"] == b"a"
    assert predict_batch(*question) == []
    bucket, key = written[1].removeprefix("s3://").split("/", 1)
    s3.delete_object(Bucket=bucket, Key=key)
    assert predict_batch(*question) == [written[1]]
    assert len(predict_batch(*question[:3], ["b"])) == 3  # another caller asks another question


def test_answers_are_not_written_over_what_is_asked_nor_asked_themselves(stream, s3, tmp_path):
    asked = tmp_path / "1.jsonl"
    asked.write_text(json.dumps({"words": "a b c"}) + "\n")
    with pytest.raises(StateError, match="choose another place for the answers"):
        predict(stream.name, str(asked), ["a"], str(tmp_path / "." / "1.jsonl"))
    assert json.loads(asked.read_text()) == {"words": "a b c"}
    assert len(predict_batch(stream.name, f"{tmp_path}/*.jsonl", str(tmp_path), ["a"])) == 1
    with pytest.raises(StateError, match=r"1-\w+\.parquet is asked and lies where answers go"):
        predict_batch(stream.name, str(tmp_path), str(tmp_path), ["a"])
    put(s3, "among/1.parquet", ["a b c"])
    job, place = prediction.open_job.fn(stream.name, ["a"]), f"s3://{settings().inbox_bucket}/among"
    with pytest.raises(StateError, match=r"among/1\.parquet is asked and lies where"):
        prediction.list_unanswered.fn(job, place, f"{place}/")
    assert len(prediction.list_unanswered.fn(job, place, f"{place}-told")) == 1


def test_a_bad_object_is_refused_by_itself_and_the_others_are_answered(stream, tmp_path):
    for name, words in (("1", " "), ("2", "a b c"), ("3", None), ("4", "d e f")):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps({"key": name, "words": words}) + "\n")
    out = tmp_path / "told"
    for _ in range(2):
        with pytest.raises(SourceError, match=r"(?s)^2 object.*1\.jsonl has 1 rows.*3\.jsonl has 1 rows"):
            predict_batch(stream.name, str(tmp_path), str(out), ["a"])
        assert sorted(file.name.split("-")[0] for file in out.iterdir()) == ["2", "4"]


@pytest.mark.parametrize("several", ["{folder}", "{folder}/", "{folder}/*.jsonl", "s3://inbox", "s3://inbox/*.jsonl"])
def test_who_asks_several_objects_for_printed_answers_is_told_of_a_folder_for_them(stream, tmp_path, several):
    asked = several.format(folder=tmp_path).replace("s3://inbox", f"s3://{settings().inbox_bucket}")
    with pytest.raises(SourceError, match="a folder or a pattern: with `--out FOLDER` each"):
        prediction.read_inputs.fn(stream.name, asked)


def test_an_object_whose_name_holds_what_a_pattern_does_is_answered(stream, tmp_path):
    (tmp_path / "why?.jsonl").write_text('{"words": "a b"}\n')
    assert prediction.read_inputs.fn(stream.name, str(tmp_path / "why?.jsonl")) == [{"words": "a b"}]


def test_no_champion_points_at_the_deletion_that_may_have_withdrawn_it(stream, monkeypatch):
    monkeypatch.setattr(versions, "alias_of", lambda *_: None)
    with pytest.raises(StateError, match=r"no champion: `deciduous status .* shows a deletion that withdrew it"):
        prediction.open_job.fn(stream.name, [])


def test_a_file_is_answered_and_written_whole(stream, tmp_path):
    (tmp_path / "in.jsonl").write_text(
        "".join(json.dumps({"key": str(n), "words": t.decode()}) + "\n" for n, t in enumerate(TEXTS))
    )
    out = tmp_path / "out.parquet"
    answers = predict(stream.name, str(tmp_path / "in.jsonl"), ["a", "b"], str(out))
    assert [answer["label"] for answer in answers] == pq.read_table(out)["label"].to_pylist()
    tracking.prepare_tracking()
    served = mlflow.pyfunc.load_model(f"models:/{stream.name}/{answers[0]['version']}")
    scores = served.predict([text.decode() for text in TEXTS], params={"groups": "a,b"})["score"].tolist()
    assert [answer["score"] for answer in answers] == pq.read_table(out)["score"].to_pylist() == scores
    assert log_lines()[-1]["rows"] == 4
    assert set(log_lines()[-1]) == {"at", "version", "entitlements", "groups", "rows", "adapters"}


def test_a_row_without_an_id_has_none_in_the_file_of_answers(stream, tmp_path):
    (tmp_path / "in.jsonl").write_text('{"key": 7, "words": "a b"}\n{"key": null, "words": "d e"}\n{"words": "f"}\n')
    predict(stream.name, str(tmp_path / "in.jsonl"), ["a"], str(tmp_path / "out.parquet"))
    assert pq.read_table(tmp_path / "out.parquet")["row"].to_pylist() == ["7", None, "2"]


def test_an_id_that_its_writer_called_binary_is_told_as_text(stream, tmp_path):
    pq.write_table(pa.table({"key": [b"caf\xc3\xa9", b"\xff1"], "words": ["a b", "d e"]}), tmp_path / "in.parquet")
    answers = predict(stream.name, str(tmp_path / "in.parquet"), ["a"], str(tmp_path / "out" / "told.parquet"))
    told = ["café", "\\xff1"]
    assert [answer["row"] for answer in answers] == told
    assert pq.read_table(tmp_path / "out" / "told.parquet")["row"].to_pylist() == told


def test_a_bucket_that_takes_no_answers_is_named(stream, tmp_path):
    (tmp_path / "in.jsonl").write_text('{"key": "1", "words": "a b"}\n')
    for ask, out in ((predict_batch, "s3://no bucket/told"), (predict, "s3://no bucket/told.parquet")):
        places = {"uri": str(tmp_path / "in.jsonl"), "groups": ["a"], "out": out}
        with pytest.raises(StateError, match="bucket 'no bucket' takes no answers"):
            ask(stream.name, **places)


def test_the_log_names_the_groups_that_could_take_part_and_nothing_that_a_caller_wrote(stream, tmp_path):
    (tmp_path / "in.jsonl").write_text(json.dumps({"key": "1", "words": "a b"}) + "\n")
    for asked, answered in ((["*"], ["a", "b"]), (["b", "ann@example.org"], ["b"])):
        predict(stream.name, str(tmp_path / "in.jsonl"), asked)
        assert log_lines()[-1]["groups"] == answered


def test_grants_decide_over_what_is_asked(stream, tmp_path, set_variable):
    grants = tmp_path / "grants.yaml"
    grants.write_text(f"{NAME}:\n  ann: [a]\n")
    set_variable("ENTITLEMENTS", grants)
    (tmp_path / "in.jsonl").write_text(json.dumps({"key": "1", "words": "a b"}) + "\n")
    predict(stream.name, str(tmp_path / "in.jsonl"), ["a", "b"], None, "ann")
    assert log_lines()[-1]["groups"] == ["a"]
    assert len(log_lines()[-1]["entitlements"]) == 16
    with pytest.raises(StateError, match="holds none"):
        predict(stream.name, str(tmp_path / "in.jsonl"), ["a"], None, "bob")


def test_a_deployed_run_answers_for_a_name_and_refuses_a_secret(stream, tmp_path, set_variable, monkeypatch):
    grants, secret = tmp_path / "grants.yaml", "shown-in-a-form"
    grants.write_text(f"{NAME}:\n  ann: [a]\n  sha256:{hashlib.sha256(secret.encode()).hexdigest()}: [a]\n")
    set_variable("ENTITLEMENTS", grants)
    (tmp_path / "in.jsonl").write_text(json.dumps({"key": "1", "words": "a b"}) + "\n")
    question = stream.name, str(tmp_path / "in.jsonl"), [], None
    assert len(predict(*question, secret)) == 1
    monkeypatch.setenv("PREFECT__RUNTIME__DEPLOYMENT__ID", "as-a-worker-has-it")
    assert len(predict(*question, "ann")) == 1
    with pytest.raises(StateError, match="is known by a secret"):
        predict(*question, secret)


def test_every_answer_comes_from_one_version_while_the_champion_moves(stream, set_variable):
    """Callers ask on and on; no move waits for them, nor they for it."""
    set_variable("FOLLOW", "champion")
    set_variable("SERVING_SECONDS", 0)
    expected = {n: Answerer(load_manifest(stream.name, n)).answer(TEXTS, ["a", "b"]).scores_NC for n in (1, 2)}
    assert not torch.equal(expected[1], expected[2])
    line, answered, moved, done = Line(Watch(stream.name, None)), SimpleQueue(), [], Event()

    def ask_on():
        crossed = 0
        while not done.is_set():
            before = len(moved)
            answer = line.ask(TEXTS, ["a", "b"])
            assert torch.equal(answer.prediction.scores_NC, expected[answer.version])
            crossed += before != len(moved)
            answered.put(answer.version)
        return crossed

    with ThreadPoolExecutor(8) as callers:
        asking = [callers.submit(ask_on) for _ in range(8)]
        try:
            for version in (1, 2, 1, 2):
                move_alias(stream.name, CHAMPION, version, "a test", "to and fro")
                moved.append(version)
                while answered.get(timeout=120) != version:
                    pass
        finally:
            done.set()
        assert sum(each.result() for each in asking) > 0  # asked before a move, answered after it


def test_a_rollback_asks_no_s3_on_a_machine_that_knew_both_champions(stream, monkeypatch, capsys):
    for version in (1, 2):
        move_alias(stream.name, CHAMPION, version, "a test", "to begin with")
    monkeypatch.setattr(storage, "s3", None)  # whoever calls it fails
    steering.rollback(stream.name)
    assert "version 1 again" in " ".join(capsys.readouterr().out.split())
    blob_cache.retain([], blob_cache.MANIFEST)
    with pytest.raises(TypeError):
        steering.rollback(stream.name)


def test_of_two_moves_at_once_mlflow_is_told_the_last(stream, monkeypatch):
    """The second comes when the first has read what it is about to tell MLflow."""
    move_alias(stream.name, CHAMPION, 1, "a test", "to begin with")
    in_the_middle_of(monkeypatch, aliases, "move_alias", lambda: move_alias(stream.name, CHAMPION, 1, "ann", "back"))
    move_alias(stream.name, CHAMPION, 2, "a test", "forth")
    assert champion_of(stream) == 1
    assert aliases.find_alias(tracking.prepare_tracking(), stream.name, CHAMPION) == 1


@contextmanager
def lost(s3, blob):
    """Inside the block the blob is neither in the bucket nor on the local disk."""
    place = {"Bucket": settings().artifact_bucket, "Key": blob["key"]}
    data = s3.get_object(**place)["Body"].read()
    s3.delete_object(**place)
    blob_cache.forget([blob["key"]])
    try:
        yield
    finally:
        s3.put_object(**place, Body=data)


@contextmanager
def quarantined(stream, version):
    with database.transaction() as session:
        versions.set_state(session, stream.name, version, VersionState.QUARANTINED)
    try:
        yield
    finally:
        with database.transaction() as session:
            versions.set_state(session, stream.name, version, VersionState.READY)


def test_where_a_new_champion_cannot_be_loaded_the_old_one_answers_unless_it_was_withdrawn(stream, set_variable, s3):
    set_variable("FOLLOW", "champion")
    set_variable("SERVING_SECONDS", 0)
    line = Line(Watch(stream.name, None))
    move_alias(stream.name, CHAMPION, 1, "a test", "to begin with")
    assert line.ask(TEXTS, ["a"]).version == 1
    with lost(s3, load_manifest(stream.name, 2)["shards"][-1]["statistics"]):
        move_alias(stream.name, CHAMPION, 2, "a test", "it cannot be loaded")
        for _ in range(2):
            assert line.ask(TEXTS, ["a"]).version == 1
        with quarantined(stream, 1):
            for _ in range(2):
                with pytest.raises(MissingObjectError):
                    line.ask(TEXTS, ["a"])
        with pytest.raises(MissingObjectError):
            line.ask(TEXTS, ["a"])  # it was let go of, not kept in secret
    assert line.ask(TEXTS, ["a"]).version == 2


def test_a_request_that_cannot_be_answered_leaves_the_others_alone(stream):
    line = Line(Watch(stream.name, 2))
    with ThreadPoolExecutor(4) as callers:
        bad, broken, good = (callers.submit(line.ask, *each) for each in
                             ((TEXTS, ["c"]), ([b"\xff\xfe"], ["a"]), (TEXTS, ["a"])))  # fmt: skip
        assert good.result().version == 2
        for each in (bad, broken):
            with pytest.raises(StateError):
                each.result()


def test_a_large_request_is_answered_in_chunks_as_small_ones_are(stream, monkeypatch):
    answerer, encoded = Answerer(load_manifest(stream.name, 2)), []
    asked = [
        serving.Request(TEXTS, ["a"]),
        serving.Request([*TEXTS, b"\xff"], ["a"]),
        serving.Request(TEXTS[:2], ["b"]),
    ]
    expected = answerer.answer_each(asked)[::2]

    def encode_inputs(stream, inputs):
        encoded.append(len(inputs))
        return prefix_cache.encode_inputs(stream, inputs)

    monkeypatch.setattr(serving, "CHUNK", 3)
    monkeypatch.setattr(serving, "encode_inputs", encode_inputs)
    found = answerer.answer_each(asked)
    refused = found.pop(1)
    assert isinstance(refused, StateError)
    assert str(refused) == "row 4 cannot be answered: input is no valid Unicode; remove or correct it"
    assert max(encoded) <= 3
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one.scores_NC, other.scores_NC)
        assert (one.labels, one.adapter_ids, one.visits) == (other.labels, other.adapter_ids, other.visits)


def test_a_version_that_a_deletion_takes_out_of_service_stops_answering_in_time(stream):
    clock = Clock()
    line = Line(Watch(stream.name, 1, clock))
    assert line.ask(TEXTS, ["a"]).version == 1
    with quarantined(stream, 1):
        clock.now = 60.0
        for _ in range(2):
            with pytest.raises(StateError, match="taken out of service"):
                line.ask(TEXTS, ["a"])


def test_a_job_does_not_go_on_with_a_version_that_a_deletion_takes_out_of_service(stream, monkeypatch):
    job = prediction.open_job.fn(stream.name, ["a"])
    monkeypatch.setattr(prediction, "CHUNK", 2)
    rows = [{"words": text.decode()} for text in TEXTS]
    assert len(prediction.answer_rows.fn(job, rows)) == 4
    with quarantined(stream, job.version), pytest.raises(StateError, match="run again"):
        prediction.answer_rows.fn(job, rows)
    asked, answer = [], Answerer.answer
    with ExitStack() as ticket, monkeypatch.context() as patch:

        def withdrawn_meanwhile(*args):
            asked.append(args)
            ticket.enter_context(quarantined(stream, job.version))
            return answer(*args)

        patch.setattr(Answerer, "answer", withdrawn_meanwhile)
        with pytest.raises(StateError, match=f"version {job.version} of '{NAME}' is quarantined"):
            prediction.answer_rows.fn(job, rows)
    assert len(asked) == 1  # the first of two chunks


def test_the_registered_model_answers_with_labels_scores_adapters_and_version(stream):
    tracking.prepare_tracking()
    model = mlflow.pyfunc.load_model(f"models:/{stream.name}/2")
    answers = model.predict([text.decode() for text in TEXTS], params={"groups": "a,b"})
    expected = Answerer(load_manifest(stream.name, 2)).answer(TEXTS, ["a", "b"])
    assert answers["label"].tolist() == expected.labels
    assert answers["adapters"].tolist() == [",".join(visited) for visited in expected.visits]
    assert set(answers["version"]) == {2}
    assert model.metadata.signature.params is not None
    assert model.input_example is not None


def test_the_registered_model_keeps_answers_beside_their_rows_and_refuses_what_is_no_text(stream):
    tracking.prepare_tracking()
    model = mlflow.pyfunc.load_model(f"models:/{stream.name}/2")
    asked = {"groups": "a, b"}
    texts = pd.DataFrame({"words": [text.decode() for text in TEXTS]}, index=[7, 3, 5, 1])
    answers = model.predict(texts, params=asked)
    assert answers.index.tolist() == [7, 3, 5, 1]
    assert log_lines()[-1]["groups"] == ["a", "b"]
    for odd, fault in ((None, "missing"), (float("nan"), "missing"), (" ", "empty"), (["a"], "list, not text")):
        with pytest.raises(StateError, match=f"row 1 cannot be answered: input is {fault}"):
            model.predict(pd.DataFrame({"words": ["a b", odd]}), params=asked)
    with pytest.raises(StateError, match=r"the first column is 'key', .* give 'words' alone"):
        model.predict(pd.DataFrame({"key": ["1"], "words": ["a b"]}), params=asked)


def test_a_model_that_the_catalog_does_not_know_is_not_answered_for_by_its_champion(stream, tmp_path, set_variable):
    """As in a process that another home, or none, was named to: its stream of that name is another."""
    with pytest.raises(
        StateError, match=r"knows no version of stream 'answers' with this manifest: set DECIDUOUS_HOME"
    ):
        registered_as(stream.name, "f" * 64)
    set_variable("DATABASE_URL", f"sqlite:///{tmp_path}/none/catalog.db")
    with pytest.raises(StateError, match=r"none/catalog\.db knows no version of stream 'answers'"):
        registered_as(stream.name, "f" * 64)
    assert not (tmp_path / "none").exists()  # nor is a home left where the process stands


def test_of_versions_that_are_one_model_the_champion_is_named(stream, monkeypatch):
    """As where a change leads back to the model before: answers say what those of `deciduous predict` do."""
    monkeypatch.setattr(versions, "find_by_manifest", lambda *_: [3, 2])
    for champion, named in ((1, 3), (2, 2)):
        move_alias(stream.name, CHAMPION, champion, "a test", "to and fro")
        assert registered_as(stream.name, "-") == named


def test_a_group_whose_name_holds_a_comma_is_asked_for_in_quotes():
    assert named_groups(' a, "Acme, Inc.",b ,') == ["a", "Acme, Inc.", "b"]
    assert named_groups('a,\n5" pipes\n') == ["a", '5" pipes']
    assert named_groups("") == []


def test_a_model_that_was_loaded_before_a_fork_answers_in_the_child(stream):
    """As under `gunicorn --preload`: threads do not cross a fork, and connections must not."""
    tracking.prepare_tracking()
    model = mlflow.pyfunc.load_model(f"models:/{stream.name}/2")
    asked, options = [text.decode() for text in TEXTS], {"groups": "a,b"}
    expected, client = model.predict(asked, params=options), storage.s3()
    with database.transaction():
        before = database.engine().pool
    if (child := os.fork()) == 0:
        signal.alarm(30)  # ends a child that hangs
        answers = model.predict(asked, params=options)
        own = storage.s3() is not client and database.engine().pool is not before
        os._exit(0 if answers.equals(expected) and own else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_a_line_that_nobody_holds_leaves_neither_thread_nor_model(stream):
    """As in a service that loads each champion anew."""
    before = {*threading.enumerate()}
    line = Line(Watch(stream.name, 2))
    assert line.ask(TEXTS, ["a"]).version == 2
    (thread,) = {*threading.enumerate()} - before
    model = weakref.ref(line._watch)
    del line
    thread.join(10)
    gc.collect()
    assert (thread.is_alive(), model()) == (False, None)


def test_an_image_is_given_as_its_bytes_or_as_base64_also_in_lines():
    model, image = StreamModel(), bytes(range(256))
    model.task = TaskType.IMAGE
    for given in (image, b64encode(image), b64encode(image).decode(), encodebytes(image).decode()):
        assert model._raw(0, given) == image
    pixels = np.zeros((8, 8, 3), np.uint8)
    of_type = [(odd, f"is {type(odd).__name__}, not image bytes") for odd in ("cat.png", pixels, pixels.tolist(), [])]
    for odd, fault in (*of_type, ("", "is missing"), (None, "is missing")):
        with pytest.raises(StateError, match=f"row 2 cannot be answered: input {fault}"):
            model._raw(2, odd)


def test_a_text_is_given_as_its_bytes_too_and_refused_for_what_a_text_is():
    model = StreamModel()
    model.task = TaskType.TEXT
    assert model._raw(0, "é".encode()) == "é".encode()
    for odd, fault in ((b"", "empty"), (b" ", "empty"), (b"\xff", "no valid Unicode"), (b"a" * 1_000_001, "over-long")):
        with pytest.raises(StateError, match=f"row 2 cannot be answered: input is {fault}"):
            model._raw(2, odd)


def test_a_revocation_reaches_a_warm_model_within_a_minute(stream, tmp_path, set_variable):
    tracking.prepare_tracking()
    clock, grants, asked = Clock(), tmp_path / "grants.yaml", {"caller": "ann"}
    grants.write_text(f"{NAME}:\n  ann: [a, b]\n")
    set_variable("ENTITLEMENTS", grants)
    model = mlflow.pyfunc.load_model(f"models:/{stream.name}/2")
    model.unwrap_python_model().entitlements = Entitlements(clock)
    texts = [text.decode() for text in TEXTS]
    before = model.predict(texts, params=asked)
    grants.write_text(f"{NAME}:\n  ann: [b]\n")
    clock.now = 60.0
    after = model.predict(texts, params=asked)
    expected = Answerer(load_manifest(stream.name, 2)).answer(TEXTS, ["b"])
    assert after["score"].tolist() == expected.scores_NC.max(1).values.double().tolist() != before["score"].tolist()
    assert log_lines()[-1]["groups"] == ["b"]
    grants.write_text("{}")
    clock.now = 120.0
    with pytest.raises(StateError, match="holds none"):
        model.predict(texts, params=asked)


def test_merging_across_groups_is_refused_unless_named_and_needs_callers_of_both(stream, monkeypatch):
    by_group = {}
    for adapter_id in serve_all(stream):
        with database.transaction() as session:
            by_group.setdefault(adapters.get_adapter(session, adapter_id).group, adapter_id)
    pair = (by_group["a"], by_group["b"])
    with pytest.raises(StateError, match="belong to the groups a, b; name them together in merge_across"):
        consolidation.merge_adapters.fn(stream, pair)
    named = stream.model_copy(update={"merge_across": (("a", "b"),)})
    outcome = consolidation.merge_adapters.fn(named, pair)
    assert outcome.accepted, outcome.reason
    with database.transaction() as session:
        adapters.move_adapter(session, outcome.adapter_id, AdapterState.SERVING, "for this test")
    model = load_model(current_manifest(named))
    usable = {
        groups: outcome.adapter_id in [entry.adapter_id for entry in compose(model, groups).adapters]
        for groups in (("a",), ("b",), ("a", "b"))
    }
    assert usable == {("a",): False, ("b",): False, ("a", "b"): True}
    assert_it_is_judged_as_callers_of_both_see_it(named, outcome.adapter_id, monkeypatch)


def assert_it_is_judged_as_callers_of_both_see_it(stream, merged, monkeypatch):
    composed, took_part = evaluation.compose, []

    def spy(*args):
        took_part.append(merged in [entry.adapter_id for entry in composed(*args).adapters])
        return composed(*args)

    monkeypatch.setattr(evaluation, "compose", spy)
    retirement.may_go(stream, merged)
    assert took_part == [True, True, False, False], "for each group with it, then without"
    took_part.clear()
    retirement.retire_adapter.fn(merged, "by hand")
    retirement.reinstate_adapter.fn(stream, merged, "by hand")
    assert took_part == [True, True]
