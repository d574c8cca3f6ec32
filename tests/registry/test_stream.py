import json
import re

import pytest
from pydantic import ValidationError

from flows.cli import STREAM_FILE
from registry.errors import StreamFileError
from registry.stream import Stream, load_stream


def test_the_file_that_init_writes_is_a_stream(tmp_path):
    (tmp_path / "mail.yaml").write_text(STREAM_FILE.format(name="mail"))
    assert load_stream(tmp_path / "mail.yaml").name == "mail"


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("name: [", "not YAML"),
        ("- a", "holds no fields"),
        ("name: Mail\nbackbone: b\nsource: s", "name: String should match"),
        ("name: mail\nbackbone: b\nsource: s\nshift: {alpha: 2}", "shift.alpha: Input should be less than 1"),
        ("name: mail\nbackbone: b\nsource: s\nbackbon: x", "backbon: Extra inputs"),
        ("name: mail\nbackbone: b\nsource: s\nadapter: {prune: snip, precision: 1bit}", "larger than 1bit alone"),
        ("name: mail\nbackbone: b\nsource: s\ndeletion: {approval: true}", "approval: .erasure: always"),
        ("name: mail\nbackbone: b\nsource: ''", "source: String should have at least 1 character"),
        ("name: mail\nbackbone: b\nsource: s\ncolumns: 5", "columns: Input should be a valid dictionary"),
        ("name: mail\nbackbone: b\nsource: s\nadapter: 5", "adapter: Input should be a valid dictionary"),
        ("name: mail\nbackbone: b\nsource: s\ncomposition: mix\nadapter: 5", "a section holds fields.*not 5"),
        ("name: mail\nbackbone: b\nsource: s\ntask: causal-lm\ncolumns: 5", "a section holds fields.*not 5"),
        ("name: mail\nbackbone: b\nsource: s\nsource: t", r"s.yaml has 'source' again in line 4; keep one"),
        ("name: mail\nbackbone: b\nsource: s\nshift: {alpha: 0.1, alpha: 0.2}", "'alpha' again in line 4"),
        ("name: mail\nbackbone: b\nsource: s\nadapter: {rank: yes}", "adapter.rank: .*true or false in YAML.*got True"),
        ("name: no\nbackbone: b\nsource: s", "name: .*true or false in YAML.*the word in quotes"),
        ("name: mail\nbackbone: b\nsource: s\nadapter: {learning_rate: .inf}", "learning_rate: .*more than 1,000,000"),
        ("name: mail\nbackbone: b\nsource: s\ncompletion: {far: inf}", "far: .*more than 1,000,000 .got 'inf'"),
        ("name: mail\nbackbone: b\nsource: s\nconsolidation: {window: 10000000}", "window: .*more than 1,000,000"),
        ("name: mail\nbackbone: b\nsource: s\nshift: {alpha: 0.0009}", "no batch could ever expand; raise"),
        ("? [name]\n: mail", "not YAML"),
    ],
)
def test_a_wrong_field_is_named(tmp_path, text, match):
    (tmp_path / "s.yaml").write_text(text)
    with pytest.raises(StreamFileError, match=match):
        load_stream(tmp_path / "s.yaml")


def test_a_missing_file_names_the_remedy(tmp_path):
    with pytest.raises(StreamFileError, match="deciduous init"):
        load_stream(tmp_path / "none.yaml")


def test_a_folder_is_no_stream_file(tmp_path):
    with pytest.raises(StreamFileError, match="cannot be read: Is a directory; name the YAML file"):
        load_stream(tmp_path)


def test_the_same_field_may_stand_in_two_sections(tmp_path):
    (tmp_path / "s.yaml").write_text(
        "name: a\nbackbone: b\nsource: s\nscoring: &s {source: t, out: o}\ncolumns: {id: name}"
    )
    assert load_stream(tmp_path / "s.yaml").scoring.source == "t"


def test_a_cron_expression_has_five_fields():
    with pytest.raises(ValidationError, match="five fields"):
        Stream(name="mail", backbone="b", source="s", schedule="hourly")


@pytest.mark.parametrize("cron", ["0 0 30 2 *", "0 0 31 4,JUN,09 ?", "0 0 30-31,31 feb *"])
def test_a_schedule_that_never_fires_is_refused_in_a_file_and_read_where_it_is_stored(tmp_path, cron):
    (tmp_path / "s.yaml").write_text(f"name: mail\nbackbone: b\nsource: s\nschedule: {cron!r}")
    with pytest.raises(StreamFileError, match=f"schedule: .*it never fires: .* {re.escape(repr(cron))}"):
        load_stream(tmp_path / "s.yaml")
    assert Stream(name="mail", backbone="b", source="s", schedule=cron).schedule == cron


@pytest.mark.parametrize(
    "cron", ["0 0 29 2 *", "0 0 30 2 1", "0 0 30 2,3 *", "0 0 31 4-6 *", "0 0 31 */2 *", "0 0 1,31 2 *", "0 0 L 2 *"]
)
def test_a_rare_schedule_is_taken(tmp_path, cron):
    (tmp_path / "s.yaml").write_text(f"name: mail\nbackbone: b\nsource: s\nschedule: {cron!r}")
    assert load_stream(tmp_path / "s.yaml").schedule == cron


@pytest.mark.parametrize(
    "fields",
    [
        {"shift": {"alpha": 0.005, "permutations": 199}},
        {"shift": {"alpha": 0.001, "permutations": 99}, "composition": "mix"},
        {"mix": {"two_sided": True, "threshold": 1_000_000}, "composition": "mix"},
    ],
)
def test_a_file_may_ask_for_the_least_and_the_most(tmp_path, fields):
    (tmp_path / "s.yaml").write_text(json.dumps({"name": "mail", "backbone": "b", "source": "s", **fields}))
    load_stream(tmp_path / "s.yaml")


def test_what_no_file_may_ask_for_any_more_is_read_where_it_is_stored():
    stored = {"adapter": {"last_layers": 10**9}, "shift": {"alpha": 0.001, "permutations": 99}}
    assert Stream(name="mail", backbone="b", source="s", **stored).shift.permutations == 99


def test_gates_and_schedule_shape_no_artifact():
    stream = Stream(name="mail", backbone="b", source="s")
    assert stream.model_copy(update={"schedule": "0 * * * *"}).recipe_digest == stream.recipe_digest
    assert stream.model_copy(update={"max_tokens": 128}).recipe_digest != stream.recipe_digest


def test_a_choice_that_is_newer_than_a_stream_leaves_its_digest_alone():
    stream = Stream(name="mail", backbone="b", source="s")
    assert stream.recipe_digest == "bb0040123758d1a0e89bc8d2fc630c3d7947f2c62c213928bb84e927c87b8dd2"
    sgd = stream.model_copy(update={"adapter": stream.adapter.model_copy(update={"optimizer": "sgd"})})
    assert sgd.recipe_digest != stream.recipe_digest


def test_a_stored_stream_that_asked_nobody_before_an_erasure_still_opens():
    stored = {**Stream(name="mail", backbone="b", source="s").model_dump(mode="json")}
    stored["deletion"] = {**stored["deletion"], "approval": False}
    assert Stream.model_validate(stored).deletion.due_days == 30


MIX = "name: mail\nbackbone: b\nsource: s\ncomposition: mix\n"


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("task: causal-lm", "task does not go with composition: mix"),
        ("adapter: {optimizer: adamw}", "adapter.optimizer does not go with .*sgd, as published"),
        ("adapter: {precision: int8}", "precision, ranks and prune does not go with .*as it was trained"),
        ("tasks: {processes: 2}", "tasks.processes does not go with .*one process"),
        ("merge_across: [[a, b]]", "merge_across does not go with .*across groups"),
        ("consolidation: {max_adapters: 4}", "consolidation does not go with .*answers as a whole"),
        ("mix: {threshold: 0}", "mix.threshold: Input should be greater than 0"),
    ],
)
def test_what_makes_no_sense_for_a_mixture_is_refused_by_name(tmp_path, text, match):
    (tmp_path / "s.yaml").write_text(MIX + text)
    with pytest.raises(StreamFileError, match=match):
        load_stream(tmp_path / "s.yaml")


def test_a_mixture_trains_by_sgd_and_its_options_shape_the_artifacts(tmp_path):
    (tmp_path / "s.yaml").write_text(MIX + "adapter: {rank: 4}")
    stream = load_stream(tmp_path / "s.yaml")
    assert (stream.adapter.optimizer, stream.adapter.rank, stream.consolidates) == ("sgd", 4, False)
    assert Stream.model_validate(stream.model_dump(mode="json")) == stream
    for options in ({"threshold": 2}, {"two_sided": True}, {"watched": 1}):
        assert Stream(**{**stream.model_dump(), "mix": options}).recipe_digest != stream.recipe_digest
    with pytest.raises(ValidationError, match="options of `composition: mix`"):
        Stream(name="mail", backbone="b", source="s", mix={"threshold": 2})
