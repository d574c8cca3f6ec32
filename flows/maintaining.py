"""Verbs of the one who keeps it running: look at everything, bring it up to date."""

# ruff: noqa: PLC0415

from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from flows import console
from flows.console import DryRun, Json, StreamName, acting


def doctor(json: Json = False) -> None:
    """What is there, does it fit, what would break and what to do; exit code 1 on an error. Example: deciduous doctor

    Writes one probe object to each bucket and removes it; changes nothing else."""
    from infra.doctor.examination import examine

    with console.errors.status("looking"):
        findings = [asdict(finding) for finding in examine()]
    console.show_json(findings) if json else console.show_findings(findings)
    if any(finding["health"] == "error" for finding in findings):
        raise typer.Exit(1)


def migrate(dry_run: DryRun = False) -> None:
    """Bring the catalog's tables and both buckets to what this code needs. Example: deciduous migrate --dry-run

    Every run brings the tables up to date; a bucket of yours is changed by this verb alone."""
    from infra import database, storage

    current, newest = database.revisions()
    due = "as it should be" if current == newest else f"{current or 'no tables'} -> {newest}"
    console.console.print(f"catalog: {due}")
    for bucket, command in storage.missing().items():
        console.console.print(f"bucket {bucket}: {command or 'as it should be'}", soft_wrap=True)
    if not dry_run:
        database.migrate()
        storage.prepare_buckets()
        console.console.print("done")


def access(
    stream: StreamName,
    group: Annotated[list[str], typer.Argument(help="Group whose adapters may be read; several are told in turn.")],
) -> None:
    """Print what lets a reader of groups into S3, and nowhere else. Example: deciduous access mail sales support

    `policy` is for any S3 that speaks IAM; `identity`, with keys drawn for it, is an entry of SeaweedFS's s3.json.
    Nothing is stored."""
    from infra import access, database
    from infra.settings import settings
    from tasks import queries

    database.migrate()
    queries.listing("streams", stream)  # a policy for a name with a mistake in it would let nobody in
    asked = (settings().artifact_bucket, stream, group)
    identity = access.group_identity(f"{stream}-{'-'.join(group)}", access.new_keys(), *asked)
    console.show_json({"policy": access.group_policy(*asked), "identity": identity})


def gc(
    stream: Annotated[str | None, typer.Argument(help="One stream; default all.")] = None,
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """Remove what nothing live names: blobs, uploads, runs in MLflow. Example: deciduous gc mail --dry-run"""
    with acting(quiet=json):
        from infra import storage
        from tasks import garbage, opening

        opening.open_home()
        names = opening.stream_names() if stream is None else [opening.stream_of(stream).name]
        results = [garbage.clean_up(name, dry_run) for name in names]
        if not dry_run and any(result["dead_blobs"] for result in results):
            storage.compact()
    console.show_json(results) if json else console.show_rows("streams", results)


def backup(folder: Annotated[Path, typer.Argument(help="New folder for the backup.")], json: Json = False) -> None:
    """Write down catalog, MLflow and the objects' versions; no record is in it. Example: deciduous backup b/monday"""
    with acting(quiet=json):
        from tasks import backup, opening

        opening.open_for_backup()
        result = backup.back_up(folder)
    console.show_json(result) if json else console.show_record(result)


def restore(
    folder: Annotated[Path, typer.Argument(help="Folder that `deciduous backup` wrote.")],
    replace: Annotated[bool, typer.Option("--replace", help="Also where the catalog holds streams.")] = False,
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """Bring a backup back; tickets since then stay in force. Example: deciduous restore b/monday --replace"""
    with acting(quiet=json):
        from tasks import opening, restoring

        opening.open_home()
        result = restoring.restore(folder, replace, dry_run)
    if json:
        console.show_json(result)
        return
    serving = {
        stream: "none" if version is None else f"version {version}" for stream, version in result["champions"].items()
    }
    console.show_record({**result, "champions": serving})  # numbers by name would be shown as counts
    if result["batches_rewritten_since"]:
        console.console.print(
            "a ticket rewrote rows that this backup names: such a stream neither learns nor closes the ticket; take a "
            "newer backup, or begin a catalog anew (docs/operations.md, Backup and restore)",
            soft_wrap=True,
        )


def metrics(
    out: Annotated[
        Path | None, typer.Option(help="Write a file for node_exporter's textfile collector; default print.")
    ] = None,
    port: Annotated[
        int | None, typer.Option(min=0, max=65535, help="Answer GET /metrics on loopback, in the foreground.")
    ] = None,
) -> None:
    """What monitoring asks for, in Prometheus' format. Example: deciduous metrics --port 9108"""
    from threading import Event

    from infra import database
    from tasks import metrics as measured

    database.migrate()
    if port is not None:
        console.console.print(f"http://127.0.0.1:{measured.serve(port)}/metrics")
        with suppress(KeyboardInterrupt):
            Event().wait()
    elif out is not None:
        measured.write_textfile(out)
    else:
        print(measured.exposition(), end="")


VERBS = (metrics, doctor, migrate, access, gc, backup, restore)
