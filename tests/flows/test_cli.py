import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import pytest
import typer
from prefect import get_client
from pydantic import BaseModel
from transformers import ViTConfig, ViTModel
from typer.testing import CliRunner

from flows import cli, deployments
from flows.learn import learn
from infra import access, database, orchestration, seaweed
from infra.environment import mlflow_environment
from infra.ports import free_ports
from infra.settings import Settings, settings
from infra.workers import worker_environment
from registry import catalog
from registry.errors import SourceError, StateError
from registry.stream import Stream, load_stream
from tasks import opening, restoring
from tasks.prediction import Job, list_unanswered, read_inputs
from tests.flows.conftest import deliver, make_stream
from tests.flows.server import using

ROOT = Path(__file__).parents[2]
VERBS = [command.callback.__name__ for command in cli.app.registered_commands]


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help_with_an_example(verb):
    shown = CliRunner().invoke(cli.app, [verb, "--help"], env={"COLUMNS": "200"})
    assert shown.exit_code == 0
    assert "Example: deciduous" in shown.output or "eval" in shown.output


def test_rollback_waits_for_no_library_that_it_does_not_need():
    """It needs SQL and MLflow's calls: neither Prefect, nor torch, nor MLflow's client, nor what speaks to an S3."""
    database.migrate()  # or it would be due now
    script = "import sys; from flows import cli, steering; steering._alias_moves(); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert {"tasks.alias_moves", "sqlalchemy"} <= set(done.stdout.split())
    slow = {
        "prefect",
        "torch",
        "mlflow",
        "alembic",
        "transformers",
        "pyarrow",
        "boto3",
        "botocore",
        "yaml",
        "cryptography",
    }
    assert not slow & set(done.stdout.split())


@pytest.mark.parametrize("verb", VERBS)
def test_every_example_can_be_typed(verb):
    """Its words are parsed as the verb's own; nothing is carried out."""
    command = typer.main.get_command(cli.app).commands[verb]
    found = re.search(r"Example: deciduous \S+(.*)", command.help)
    if found is not None:
        command.make_context(verb, shlex.split(found[1]))


PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
VALUES = {"VERSION": "7"}
"""What stands for a number."""


def commands_of(page: Path) -> list[str]:
    """What follows `deciduous` in the page's code: in a line of a block up to a comment, and between backticks."""
    text = page.read_text()
    blocks = re.findall(r"^    .*?\bdeciduous (\S.*?)(?:  |\s#|\)|$)", text, re.MULTILINE)
    return blocks + re.findall(r"`(?:[A-Z_]+=\S+ )?deciduous ([^`]+)`", text)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_of_the_pages_can_be_typed(page):
    """A verb alone may stand for all that follows it."""
    for typed in commands_of(page):
        command, words = typer.main.get_command(cli.app), shlex.split(re.sub(r"[\[\]]", "", typed))
        while hasattr(command, "commands"):
            assert words[0] in command.commands, f"{page.name}: deciduous {typed}"
            command = command.commands[words.pop(0)]
        if words:
            command.make_context(typed, [VALUES.get(word, word) for word in words])


def test_the_pages_hold_commands():
    assert len(commands_of(ROOT / "docs" / "alarms.md")) > 15
    assert "run mail.yaml" in commands_of(ROOT / "README.md")


def test_every_verb_and_every_setting_has_its_place_in_a_page():
    text = "\n".join(page.read_text() for page in PAGES)
    assert {verb for verb in VERBS if f"deciduous {verb}" not in text} == set()
    known = {f"DECIDUOUS_{name.upper()}" for name in Settings.model_fields} | {"DECIDUOUS_SECRETS"}
    assert set(re.findall(r"DECIDUOUS_[A-Z0-9_]+", text)) == known


def fields_of(section: type[BaseModel]) -> Iterator[str]:
    for name, field in section.model_fields.items():
        yield name
        for kind in (field.annotation, *get_args(field.annotation)):
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                yield from fields_of(kind)


def test_every_field_of_a_stream_file_has_its_place_in_the_page():
    quoted = " ".join(re.findall(r"`([^`]+)`", (ROOT / "docs" / "streams.md").read_text()))
    assert {name for name in fields_of(Stream) if not re.search(rf"\b{name}\b", quoted)} == set()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_what_a_page_names_is_there(page):
    """Files, headings that links lead to, and tests; a decision goes by its number."""
    text = page.read_text()
    for link in re.findall(r"\]\((?!http)([^)]+)\)", text):
        file, _, heading = link.partition("#")
        target = page.parent / file if file else page
        assert target.exists(), link
        titles = re.findall(r"^#+ (.*)", target.read_text(), re.MULTILINE) if heading else []
        anchors = {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}
        assert not heading or heading in anchors, link
    rooms = "docs|tests|flows|tasks|registry|kernels|infra|benchmarks|docker"
    for path in re.findall(rf"(?<![\w./-])(?:{rooms})/[\w./-]*\w", text):
        assert list(ROOT.glob(f"{path}*")), path
    written = "\n".join(file.read_text() for file in (ROOT / "tests").rglob("test_*.py"))
    for name in re.findall(r"`[^`\s]*::…?(\w+)…?`", text):
        assert re.search(rf"def \w*{name}", written), name
    for file in re.findall(r"\btest_\w+\.py", text):
        assert list((ROOT / "tests").rglob(file)), file


def test_the_verbs_are_those_of_the_design():
    wanted = "init run status ls describe predict erase verify promote rollback merge retire up down demo"
    assert set(wanted.split()) <= set(VERBS)


@pytest.mark.usefixtures("ready")
def test_access_prints_the_policy_and_an_identity_of_the_groups(backbone, inbox):
    known("policed", backbone, inbox)
    shown = CliRunner().invoke(cli.app, ["access", "policed", "sales", "a b"])
    assert shown.exit_code == 0
    told, groups = json.loads(shown.output), ["sales", "a b"]
    assert told["policy"] == access.group_policy(settings().artifact_bucket, "policed", groups)
    keys = told["identity"]["credentials"][0]
    expected = access.group_identity("policed-sales-a b", keys, settings().artifact_bucket, "policed", groups)
    assert told["identity"] == expected


def test_a_shell_reads_back_what_env_prints(capsys, monkeypatch, set_variable, tmp_path):
    password = "it's $(touch hit) `true` \\"
    for name, value in {"MLFLOW_TRACKING_URI": "http://127.0.0.1:9", "MLFLOW_USERNAME": "ann"}.items():
        set_variable(name, value)
    set_variable("MLFLOW_PASSWORD", password)
    monkeypatch.setattr(seaweed, "is_kept", lambda _: False)
    _, out, errors = call(capsys, monkeypatch, "env")
    assert "run `deciduous up` before" in errors
    script = f'{out}\nprintf %s "$MLFLOW_TRACKING_PASSWORD"'
    done = subprocess.run(["sh", "-c", script], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert (done.stdout, list(tmp_path.iterdir())) == (password, [])


def call(capsys, monkeypatch, *arguments: str) -> tuple[int, str, str]:
    """Run the command line in this process: exit code, output, errors."""
    monkeypatch.setattr(sys, "argv", ["deciduous", *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    shown = capsys.readouterr()
    return int(ended.value.code or 0), shown.out, " ".join(shown.err.split())


@pytest.mark.parametrize("verb", ["deploy", "run"])
def test_a_prefect_server_that_does_not_answer_is_one_clear_error(capsys, monkeypatch, tmp_path, verb):
    (tmp_path / "s.yaml").write_text(json.dumps(make_stream("cut-off", tmp_path, tmp_path).model_dump(mode="json")))
    monkeypatch.setattr(opening, "open_home", lambda: None)
    with using(f"http://127.0.0.1:{free_ports(1)[0]}/api") as api:
        code, _, errors = call(capsys, monkeypatch, verb, str(tmp_path / "s.yaml"))
    assert (code, f"Prefect at {api} does not answer" in errors) == (1, True), errors


def test_a_kind_of_pool_that_is_none_is_refused_with_the_kinds(tmp_path):
    (tmp_path / "s.yaml").touch()
    asked = CliRunner().invoke(cli.app, ["deploy", str(tmp_path / "s.yaml"), "--pool-type", "nomad"])
    assert (asked.exit_code, "'kubernetes'" in asked.output) == (2, True)


@pytest.mark.usefixtures("ready")
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"backbone": "package:no_such_package"}, "'no_such_package' is not installed"),
        ({"backbone": "package:no_such_package.models"}, "'no_such_package.models' is not installed"),
        ({"backbone": "/nowhere/model"}, "'/nowhere/model' is not there: put it, or a link to it, where"),
        ({"backbone": "~no-such-user/model"}, "'~no-such-user/model' is no folder"),
        ({"source": "~no-such-user/inbox"}, "matches no .parquet, .jsonl, .csv object"),
        ({"source": "/nowhere/*.parquet"}, "matches no .parquet, .jsonl, .csv object"),
        ({"source": "s3://no-such-bucket/x/*.csv"}, "bucket 'no-such-bucket' cannot be listed"),
        ({"columns": {"id": "key", "input": "words", "label": "tropic"}}, "no column for label: tropic; it has key"),
    ],
)
def test_bad_input_is_one_clear_error(capsys, monkeypatch, backbone, inbox, changes, message):
    stream = make_stream("clear-errors", backbone, inbox)
    deliver(inbox, "01", ["red", "blue"])
    (inbox / "s.yaml").write_text(json.dumps({**stream.model_dump(mode="json"), **changes}))
    code, out, errors = call(capsys, monkeypatch, "run", str(inbox / "s.yaml"), "--json")
    assert (code, out) == (1, "")
    assert message in errors


@pytest.mark.usefixtures("ready")
def test_a_dry_run_of_a_limited_run_names_the_objects_that_it_would_take_in(capsys, monkeypatch, backbone, inbox):
    stream = make_stream("limited", backbone, inbox)
    for name in ("01", "02", "03"):
        deliver(inbox, name, ["red", "blue"])
    (inbox / "s.yaml").write_text(stream.model_dump_json())
    _, out, _ = call(capsys, monkeypatch, "run", str(inbox / "s.yaml"), "--limit", "2", "--dry-run", "--json")
    assert [Path(uri).name for uri in json.loads(out)["new_objects"]] == ["01.jsonl", "02.jsonl"]


@pytest.mark.usefixtures("ready")
def test_what_was_learned_can_be_listed_and_described(capsys, monkeypatch, backbone, inbox):
    stream = make_stream("listed", backbone, inbox)
    deliver(inbox, "01", ["red", "blue"])
    learn(stream)
    code, out, _ = call(capsys, monkeypatch, "ls", "adapters", "--stream", "listed", "--json")
    adapter = json.loads(out)[0]
    assert (code, adapter["adapter_id"]) == (0, "listed-a1")
    _, out, _ = call(capsys, monkeypatch, "describe", "listed-a1", "--json")
    assert json.loads(out)["trained_on"] == ["01 (default, 40 rows)"]
    code, _, errors = call(capsys, monkeypatch, "describe", "listed-a9")
    assert code == 1
    assert "'listed-a9'" in errors
    _, out, _ = call(capsys, monkeypatch, "erase", "listed", "--subject", "person-1", "--dry-run", "--json")
    assert json.loads(out)["records"] == 4
    _, out, _ = call(capsys, monkeypatch, "predict", "listed", str(inbox / "01.jsonl"), "--json")
    assert len(json.loads(out)) == 40
    told = str(inbox / "told.parquet")
    _, out, _ = call(capsys, monkeypatch, "predict", "listed", str(inbox / "01.jsonl"), "--out", told, "--json")
    assert json.loads(out) == {"answers": 40, "out": told}


@pytest.mark.usefixtures("ready")
def test_a_retired_adapter_can_be_reinstated(capsys, monkeypatch, backbone, inbox):
    stream = make_stream("seasons", backbone, inbox)
    deliver(inbox, "01", ["red", "blue"])
    learn(stream)
    for words in ((), ("--dry-run",)):
        code, _, errors = call(capsys, monkeypatch, "reinstate", "seasons-a1", *words)
        assert code == 1
        assert "cannot be reinstated" in errors
    call(capsys, monkeypatch, "retire", "seasons-a1", "--reason", "season is over")
    _, out, _ = call(capsys, monkeypatch, "ls", "adapters", "--stream", "seasons", "--json")
    assert json.loads(out)[0]["state"] == "retired"
    assert call(capsys, monkeypatch, "reinstate", "seasons-a1")[0] == 0
    _, out, _ = call(capsys, monkeypatch, "ls", "adapters", "--stream", "seasons", "--json")
    assert json.loads(out)[0]["state"] in {"serving", "candidate"}


@pytest.mark.usefixtures("ready")
def test_a_fresh_process_loads_the_champion_and_answers_raw_text(backbone, inbox):
    stream = make_stream("fresh", backbone, inbox)
    rows = deliver(inbox, "01", ["red", "blue"], rows=80)
    learn(stream)
    code = (
        "import mlflow, json, sys; model = mlflow.pyfunc.load_model('models:/fresh@champion');"
        "print(json.dumps(model.predict(json.loads(sys.argv[1]))['label'].tolist()))"
    )
    environment = {**os.environ, **mlflow_environment(), "DECIDUOUS_HOME": str(settings().home)}
    texts = json.dumps([row["words"] for row in rows])
    done = subprocess.run(
        [sys.executable, "-c", code, texts], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    answers = json.loads(done.stdout.splitlines()[-1])
    right = sum(answer == row["topic"] for answer, row in zip(answers, rows, strict=True))
    assert right / len(rows) > 0.9


@pytest.mark.usefixtures("ready")
def test_a_json_log_is_an_object_a_line_with_the_ids_of_run_and_batch(backbone, inbox):
    stream = make_stream("jsonlog", backbone, inbox)
    deliver(inbox, "01", ["red", "blue"])
    (inbox / "s.yaml").write_text(json.dumps(stream.model_dump(mode="json")))
    with get_client(sync_client=True) as client:
        client.api_healthcheck()
        api = str(client.api_url)
    environment = {**worker_environment(), "DECIDUOUS_LOG_FORMAT": "json", "PREFECT_API_URL": api}
    for name in ("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "PREFECT_LOGGING_HANDLERS_CONSOLE_FORMATTER"):
        environment.pop(name, None)  # of this process, which logs as text
    command = [sys.executable, "-c", "from flows.cli import main; main()", "run", str(inbox / "s.yaml")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    lines = [json.loads(line) for line in done.stderr.splitlines()]
    with database.transaction() as session:
        (batch,) = catalog.batches(session, stream.name)
    said = [line for line in lines if "deciduous_said" in line]
    assert any("registered" in line["msg"] for line in said)
    assert all(line["flow_run_id"] for line in lines if line["name"] == "prefect.flow_runs")
    assert all(line["flow_run_id"] and line["task_run_id"] for line in lines if line["name"] == "prefect.task_runs")
    assert {line["stream"] for line in said} == {stream.name}
    assert batch.batch_id in {line.get("batch") for line in lines}


def known(name: str, backbone, inbox):
    """A stream of the catalog that has learned nothing."""
    stream = make_stream(name, backbone, inbox)
    with database.transaction() as session:
        catalog.save_stream(session, stream, "digest")
    return stream


@pytest.mark.usefixtures("ready")
@pytest.mark.parametrize("task", ["text-classification", "image-classification"])
def test_a_task_that_the_backbone_does_not_fit_spoils_nothing(capsys, monkeypatch, backbone, inbox, task):
    """Neither the catalog nor the name: the corrected file runs."""
    config = ViTConfig(image_size=16, patch_size=8, hidden_size=32, num_hidden_layers=2, num_attention_heads=2)
    ViTModel(config, add_pooling_layer=False).save_pretrained(inbox / "vit")
    made = make_stream(f"unfit-{task[:5].rstrip('-')}", backbone, inbox)
    embeds, shown = ("images", inbox / "vit") if task.startswith("text") else ("texts", backbone)
    fields = {**made.model_dump(mode="json"), "task": task, "backbone": str(shown)}
    deliver(inbox, "01", ["red", "blue"])
    (inbox / "s.yaml").write_text(json.dumps(fields))
    code, _, errors = call(capsys, monkeypatch, "run", str(inbox / "s.yaml"))
    assert (code, f"is of task {task}" in errors, f"embeds {embeds}: correct" in errors) == (1, True, True)
    with database.transaction() as session:
        assert made.name not in catalog.stream_names(session)
    (inbox / "s.yaml").write_text(made.model_dump_json())
    assert call(capsys, monkeypatch, "run", str(inbox / "s.yaml"))[0] == 0


@pytest.mark.usefixtures("ready")
@pytest.mark.parametrize(
    "words",
    [
        ("ls", "batches", "--stream", "nosuch"),
        ("ls", "streams", "--stream", "nosuch"),
        ("gc", "nosuch"),
        ("access", "nosuch", "sales"),
        ("promote", "nosuch", "1"),
        ("rollback", "nosuch"),
        ("rollback", "nosuch", "--to", "1"),
        ("requests", "nosuch"),
        ("ticket", "overdue", "--stream", "nosuch"),
        ("erase", "nosuch", "--subject", "ann", "--dry-run"),
        ("erase", "nosuch", "--subject", "ann"),
    ],
    ids=" ".join,
)
def test_a_stream_that_is_not_known_is_an_error(capsys, monkeypatch, words):
    code, _, errors = call(capsys, monkeypatch, *words)
    assert (code, "no stream 'nosuch' in the catalog" in errors) == (1, True)


@pytest.mark.usefixtures("ready")
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ("worker", "nosuch"),
            "no work pool 'nosuch' on the Prefect server; known: cpu, gpu, mine; `deciduous deploy`",
        ),
        (("undeploy", "nosuch", "--dry-run"), "no stream 'nosuch' in the catalog"),
    ],
)
def test_a_name_that_no_server_knows_is_an_error(capsys, monkeypatch, words, message):
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api")
    monkeypatch.setattr(orchestration, "open_api", lambda: None)
    monkeypatch.setattr(orchestration, "pool_names", lambda _: {"cpu", "mine"})
    monkeypatch.setattr(deployments, "undeploy", lambda *_: [])
    monkeypatch.setattr(os, "execve", lambda *_: None)
    code, _, errors = call(capsys, monkeypatch, *words)
    assert (code, message in errors) == (1, True), errors


@pytest.mark.parametrize("limit", ["-1", "0"])
def test_a_worker_of_no_runs_is_refused_before_it_starts(capsys, monkeypatch, limit):
    code, _, errors = call(capsys, monkeypatch, "worker", "cpu", "--limit", limit)
    assert (code, "Invalid value for '--limit'" in errors) == (2, True)


@pytest.mark.usefixtures("ready")
@pytest.mark.parametrize(
    "words", [("status", ""), ("ls", "batches", "--stream", ""), ("gc", ""), ("requests", "")], ids=" ".join
)
def test_an_empty_name_is_no_word_for_all_streams(capsys, monkeypatch, words):
    """As of a shell's variable that is not set."""
    code, _, errors = call(capsys, monkeypatch, *words)
    assert (code, "no stream '' in the catalog" in errors) == (1, True)


@pytest.mark.usefixtures("ready")
@pytest.mark.parametrize("id_", ["mail/²", "mail/99999999999999999999", "mail/", "nosuch"])
def test_an_id_of_nothing_is_an_error(capsys, monkeypatch, id_):
    code, _, errors = call(capsys, monkeypatch, "describe", id_)
    assert (code, f"'{id_}' in the catalog" in errors) == (1, True)


@pytest.mark.usefixtures("ready")
@pytest.mark.parametrize("words", [("promote", "unmoved", "999"), ("rollback", "unmoved", "--to", "999")])
def test_a_dry_run_refuses_what_the_real_one_refuses(capsys, monkeypatch, backbone, inbox, words):
    known("unmoved", backbone, inbox)
    real = call(capsys, monkeypatch, *words)
    assert (real[0], "'unmoved/999'" in real[2]) == (1, True)
    assert call(capsys, monkeypatch, *words, "--dry-run") == real


def test_a_home_that_is_a_file_and_a_wrong_setting_are_one_line(capsys, monkeypatch, set_variable, tmp_path):
    (tmp_path / "file").write_text("")
    set_variable("HOME", "")  # set back afterwards
    code, _, errors = call(capsys, monkeypatch, "--home", str(tmp_path / "file"), "status")
    assert (code, "file cannot be made: " in errors) == (1, True)
    set_variable("THREADS", "abc")
    code, _, errors = call(capsys, monkeypatch, "status")
    assert (code, errors.startswith("error: settings to correct: DECIDUOUS_THREADS: ")) == (1, True)


@pytest.mark.parametrize(
    "words",
    [("describe",), ("metrics", "--port", "99999"), ("metrics", "--port", "-1"), ("run", "s.yaml", "--limit", "-1")],
)
def test_words_that_no_verb_takes_are_refused(capsys, monkeypatch, words):
    code, _, errors = call(capsys, monkeypatch, *words)
    assert (code, "Traceback" in errors) == (2, False)


def test_an_empty_home_is_refused(capsys, monkeypatch):
    code, _, errors = call(capsys, monkeypatch, "--home", "", "status")
    assert (code, "names no folder" in errors) == (2, True)


def test_a_file_of_another_user_in_the_home_is_one_line(capsys, monkeypatch):
    def refuse():
        raise PermissionError(13, "Permission denied", "/srv/home/stack.json")

    monkeypatch.setattr("infra.stack.down", refuse)
    code, _, errors = call(capsys, monkeypatch, "down")
    assert (code, errors.startswith("error: /srv/home/stack.json: Permission denied; run as the user")) == (1, True)


def test_a_restoration_tells_versions_that_serve_and_no_counts(capsys, monkeypatch):
    monkeypatch.setattr(opening, "open_home", lambda: None)
    report = {"champions": {"mail": 5, "memos": None}, "batches_rewritten_since": {}}
    monkeypatch.setattr(restoring, "restore", lambda *_: report)
    out = call(capsys, monkeypatch, "restore", "monday")[1]
    assert re.sub(r"\s+", " ", out).strip() == "champions mail: version 5 memos: none batches rewritten since -"
    assert json.loads(call(capsys, monkeypatch, "restore", "monday", "--json")[1]) == report


def test_a_restoration_that_cannot_go_on_says_what_to_do(capsys, monkeypatch):
    monkeypatch.setattr(opening, "open_home", lambda: None)
    report = {"champions": {"mail": None}, "batches_rewritten_since": {"mail": ["jan"]}}
    monkeypatch.setattr(restoring, "restore", lambda *_: report)
    assert "take a newer backup, or begin a catalog anew" in call(capsys, monkeypatch, "restore", "monday")[1]


EDITED = {"task": "causal-lm", "label": "null"}


def test_init_makes_a_valid_name_of_the_files(capsys, monkeypatch, tmp_path):
    assert call(capsys, monkeypatch, "init", str(tmp_path / "My Mail.yaml"))[0] == 0
    assert load_stream(tmp_path / "My Mail.yaml").name == "my-mail"
    text = (tmp_path / "My Mail.yaml").read_text()
    documents = re.sub(
        r"^(task|  label): \S+", lambda line: f"{line[1]}: {EDITED[line[1].strip()]}", text, flags=re.MULTILINE
    )
    (tmp_path / "documents.yaml").write_text(documents)
    assert load_stream(tmp_path / "documents.yaml").adapter.method == "lora"
    assert call(capsys, monkeypatch, "init", str(tmp_path / "2026.yaml"))[0] == 0
    assert load_stream(tmp_path / "2026.yaml").name == "stream-2026"
    code, _, errors = call(capsys, monkeypatch, "init", str(tmp_path / "nowhere" / "x.yaml"))
    assert (code, "make its folder" in errors) == (1, True)


@pytest.mark.usefixtures("ready")
@pytest.mark.parametrize("out", ["", " ", "s3://", "s3:///told"])
def test_answers_go_nowhere_unless_a_place_is_named(out):
    with pytest.raises(StateError, match="names no place for answers"):
        list_unanswered.fn(Job("mail", 1, (), ""), "/nowhere/*.csv", out)


@pytest.mark.parametrize("out", ["S3://inbox/told", "gs://inbox/told", "file:///told", "S3://inbox/told.parquet"])
def test_answers_go_to_no_folder_that_is_called_like_an_address(out):
    with pytest.raises(SourceError, match="neither an s3:// address nor a path"):
        list_unanswered.fn(Job("mail", 1, (), ""), "/nowhere/*.csv", out)
    with pytest.raises(SourceError, match="neither an s3:// address nor a path"):
        read_inputs.fn("mail", "/nowhere/ask.csv", out)


def test_a_folder_without_a_certificate_is_no_valid_chain(capsys, monkeypatch, tmp_path):
    code, out, errors = call(capsys, monkeypatch, "verify", str(tmp_path))
    assert (code, out, "holds no certificate" in errors) == (1, "", True)
    (tmp_path / "folder.json").mkdir()
    code, _, errors = call(capsys, monkeypatch, "verify", str(tmp_path))
    assert (code, "folder.json: Is a directory" in errors) == (1, True)
