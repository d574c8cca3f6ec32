"""What runs on a Prefect server for a stream: schedules, triggers, work pools. The only file that knows cron."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from prefect import Flow

from flows.approve import approve
from flows.catch_up import catch_up
from flows.consolidate import consolidate
from flows.forget import forget
from flows.learn import learn
from flows.predict import predict, predict_batch
from flows.train import train
from infra.workers import CPU, PoolType
from registry.errors import StateError
from registry.stream import Stream
from tasks import deploying, exclusion
from tasks.deploying import Change, Wanted
from tasks.entitlement import Entitlements
from tasks.triggers import automations_of, prefix_of

WEEKLY = "0 3 * * 0"
WHY = {
    learn: "Takes in every new batch: measures its shift, reuses or adds an adapter, moves the champion.",
    train: "Trains one adapter; started by `learn`, resumed from the last slice's checkpoint when its worker dies.",
    consolidate: "Merges adapters that have grown alike, where accuracy holds.",
    forget: "Works one deletion ticket to its certificate; started by the event `deletion.ticket.opened`.",
    predict: "Answers for a file of inputs with the champion, as a caller with these groups.",
    predict_batch: "Answers every object of a source that has no answers yet, into one Parquet file each.",
    catch_up: "Starts what was missed: tickets without a run, requests past their time.",
    approve: "Asks a person at a gate: a suspended run with a form; the name is recorded.",
}


def deployments_of(stream: Stream) -> list[Wanted]:
    """Every deployment of a stream; the stream file is the default parameter, and the form in the UI.

    Raises StateError for what a worker elsewhere would not find, or what Prefect must not be shown."""
    _require_reachable(stream)
    if stream.scoring is not None:
        Entitlements().refuse_secret(stream.name, stream.scoring.caller)
    whole = {"stream": stream.model_dump(mode="json")}
    named = {"stream": stream.name}
    return [
        _wanted(stream, learn, CPU, whole, cron=stream.schedule, concurrency=1),
        _wanted(stream, train, stream.tasks.pool or CPU, whole),
        _wanted(stream, consolidate, CPU, whole, cron=WEEKLY),
        _wanted(stream, forget, CPU, {}),
        _wanted(stream, predict, CPU, {**named, "groups": []}),
        _wanted(stream, predict_batch, CPU, {**named, **_asked(stream)}, cron=_scoring_cron(stream), concurrency=1),
        _wanted(stream, catch_up, CPU, named),
        _wanted(stream, approve, CPU, {}),
    ]


def deploy(stream: Stream, kind: PoolType = PoolType.PROCESS, dry_run: bool = False) -> list[Change]:
    """Create or update pools, deployments and automations; a second call changes nothing."""
    wanted = deployments_of(stream)
    with exclusion.deploying():
        changes = [
            *deploying.apply_pools(list(dict.fromkeys(each.pool for each in wanted)), kind, dry_run),
            *deploying.apply_deployments(wanted, dry_run),
        ]
        ids = {each.flow.name: deploying.deployment_id(each.full_name) for each in wanted}
        return [*changes, *deploying.apply_automations(automations_of(stream, ids), dry_run)]


def undeploy(stream: str, dry_run: bool = False) -> list[Change]:
    with exclusion.deploying():
        return list(deploying.remove(tag_of(stream), prefix_of(stream), dry_run))


def export(stream: Stream, file: Path, dry_run: bool = False) -> None:
    """Write the deployments as a prefect.yaml. Event triggers are automations: `deciduous deploy` makes those."""
    text = deploying.prefect_yaml(deployments_of(stream))
    if dry_run:
        return
    try:
        file.write_text(text, encoding="utf-8")
    except OSError as error:
        raise StateError(f"cannot write {file}: {error.strerror}; make its folder, or name another file") from None


def tag_of(stream: str) -> str:
    return f"stream:{stream}"


def _asked(stream: Stream) -> dict[str, Any]:
    """Parameters of `predict-batch`: what the stream file says; without it whoever starts a run does."""
    if stream.scoring is None:
        return {"groups": []}
    asked = stream.scoring
    return {"uri": asked.source, "out": asked.out, "groups": list(asked.groups), "caller": asked.caller}


def _scoring_cron(stream: Stream) -> str | None:
    return stream.scoring.schedule if stream.scoring else None


def _wanted(
    stream: Stream,
    flow: Flow[..., Any],
    pool: str,
    parameters: dict[str, Any],
    cron: str | None = None,
    concurrency: int | None = None,
) -> Wanted:
    return Wanted(
        flow=flow,
        name=stream.name,
        entrypoint=f"{flow.fn.__module__}.{flow.fn.__name__}",
        pool=pool,
        description="\n\n".join(_paragraphs(stream, WHY[flow])),
        tags=("deciduous", tag_of(stream.name)),
        parameters=parameters,
        cron=cron,
        concurrency=concurrency,
    )


def _paragraphs(stream: Stream, why: str) -> Iterator[str]:
    yield f"**{stream.name}**: {why}"
    yield f"Owner: {stream.owner or 'nobody is named (`owner` in the stream file)'}"
    if stream.docs:
        yield f"Documentation: [{stream.docs}]({stream.docs})"


def _require_reachable(stream: Stream) -> None:
    """A worker runs in a folder of its own, so what a relative path names there is something else."""
    backbone = [stream.backbone] if Path(stream.backbone).is_dir() else []
    scoring = [stream.scoring.source, stream.scoring.out] if stream.scoring else []
    paths = [path for path in (stream.source, *scoring, *backbone) if not path.startswith("s3://")]
    relative = [path for path in paths if not Path(path).expanduser().is_absolute()]
    if relative:
        raise StateError(f"{', '.join(relative)}: a worker runs in another folder; give an absolute path or s3://")
