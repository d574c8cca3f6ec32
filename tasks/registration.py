"""Register a version: blobs, then the manifest, then MLflow, then the catalog. Each step can be repeated."""

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256

from sqlalchemy.orm import Session

from infra import database, tracking
from registry import contents, models, ownership, versions
from registry.records import Batch, Decision, DecisionKind, ModelVersion, Shard, Ticket, VersionState
from registry.stream import Stream
from registry.tables import AliasEventRow
from registry.versions import CHAMPION, MEANWHILE, STAND_IN
from tasks import blobs
from tasks.alias_moves import move_alias
from tasks.assembly import current_manifest, load_model
from tasks.evaluation import Score, score_shards, total
from tasks.exclusion import naming
from tasks.manifests import Manifest
from tasks.model_card import adapter_bytes, data_sets, describe_version, draw_figures, version_tags
from tasks.narration import say
from tasks.packaging import packed_model
from tasks.policies.guarantee import is_clean
from tasks.promotion import promote_version
from tasks.release import check_release, clean_part
from tasks.retries import step
from tasks.saga import Detail, once
from tasks.tickets import AUTOMATIC

SHOWN = 3
"""Decisions that a version's reason tells."""


@dataclass(frozen=True, slots=True)
class Change:
    """What a version is registered for."""

    cause: str
    """'batch:ID', 'merge:ID' or 'ticket:ID': a repeated run finds the version by it, where it would be the same one."""
    reason: str
    decisions: tuple[Decision, ...] = ()


@step("register-{batch.name}")
def register_batch(stream: Stream, batch: Batch, decisions: Sequence[Decision]) -> ModelVersion:
    """The version that a batch leads to. Raises StaleEpochError when a ticket came in since the batch was read."""
    taken = [s for s, d in zip(batch.shards, decisions, strict=True) if d.kind != DecisionKind.HOLD]
    manifest = current_manifest(stream, extra_shards=taken, epoch=batch.epoch)
    return register(stream, manifest, Change(batch.node, f"{batch.name}: {tell(decisions)}", tuple(decisions)))


def tell(decisions: Sequence[Decision]) -> str:
    """What a batch led to, in a line: of many groups the first ones, the batch's own page has all."""
    told = [f"{d.kind.value} {d.adapter_id or ''}".strip() + f": {d.reason}" for d in decisions[:SHOWN]]
    return "; ".join(told + [f"and {len(decisions) - SHOWN} groups more"] * (len(decisions) > SHOWN))


@step("register-{cause}")
def register_change(stream: Stream, cause: str, reason: str, epoch: int | None) -> ModelVersion | None:
    """The version after a merge or a retirement; None when no shard is left to answer from.

    Raises StaleEpochError when a ticket took effect since `epoch`; None is for a change that read no row."""
    manifest = current_manifest(stream, epoch=epoch)
    return register(stream, manifest, Change(cause, reason)) if manifest["shards"] else None


@step("register-ticket:{together[0].ticket_id}")
def register_rebuilt(stream: Stream, together: Sequence[Ticket], rebuilt: Detail, compared: Detail) -> Detail:
    """The version without the tickets' records, promoted; none when no shard is left to answer from.

    What a ticket that took effect meanwhile names is left out: it is worked next. Nothing is registered where an
    artifact differs from one made without the records. No accuracy gate: what was withdrawn must not come back because
    it was better. A champion that the tickets left alone is replaced by way of the gates alone, and where nothing was
    rebuilt by nothing. Once: tickets that are reopened from the purge on leave the champion of the day.
    """

    def work() -> Detail:
        if not all(map(is_clean, compared["compared"].values())):
            return {"version": None}
        chosen = _is_chosen(stream)
        if chosen and not rebuilt["actions"] and not compared["compared"]:
            return {"version": None}
        names = ", ".join(ticket.ticket_id for ticket in together)
        done = f"rebuilt without the records of {names}"
        if suppressed := rebuilt.get("suppressed"):
            done = f"an interim: {', '.join(suppressed)} suppressed, not deleted (guarantee A), for {names}"
        change = Change(f"ticket:{together[0].ticket_id}", done)
        version = _register_clean(stream, change, measured=True, gated=chosen)
        return {"version": version and version.version}

    return once(together, "register", work)


@step("stand-in-{ticket_id}")
def stand_in(stream: Stream, ticket_id: str) -> ModelVersion | None:
    """Where a ticket left no clean version: the exact head of the shards that it leaves alone, and their adapters. At
    once, for learning may hold the stream for long; not measured first, for nothing serves until it does."""
    if _champion(stream) is not None or _never_served(stream):
        return None
    change = Change(f"{STAND_IN}{ticket_id}", "what a ticket leaves alone serves until the rest is clean")
    with naming(stream.name):
        return _register_clean(stream, change, measured=False)


@step("meanwhile-{together[0].ticket_id}")
def serve_meanwhile(stream: Stream, together: Sequence[Ticket]) -> ModelVersion | None:
    """In place of nothing, or of what stands in: the same with the exact head of all shards, solved without the
    records. Once: a deletion that goes on after a crash finds it serving."""
    change = Change(f"{MEANWHILE}{together[0].ticket_id}", "serves while what a ticket reached is rebuilt")
    champion = _champion(stream)
    with database.transaction() as session:
        serves = champion is not None and champion == versions.find_by_cause(session, stream.name, change.cause)
    if serves or _never_served(stream) or (champion is not None and champion.accuracy is not None):
        return None
    return _register_clean(stream, change, measured=False)


def _champion(stream: Stream) -> ModelVersion | None:
    with database.transaction() as session:
        version = versions.alias_of(session, stream.name, CHAMPION)
        return None if version is None else versions.get_version(session, stream.name, version)


def _never_served(stream: Stream) -> bool:
    """Whether no version was champion yet: which is the first is left to the gates, or to the person that they ask."""
    with database.transaction() as session:
        return versions.last_alias_event(session, stream.name, CHAMPION) is None


def _is_chosen(stream: Stream) -> bool:
    """Whether gates or a person made the champion what it is, or have yet to choose the first: it neither stands in for
    one that a ticket withdrew, nor was fallen back to."""
    if _never_served(stream):
        return True
    champion = _champion(stream)
    with database.transaction() as session:
        move = versions.last_alias_event(session, stream.name, CHAMPION)
        fallen_back = move is not None and move.by == AUTOMATIC and _took_over(session, move)
    return champion is not None and champion.accuracy is not None and not fallen_back


def _took_over(session: Session, move: AliasEventRow) -> bool:
    """Whether an older version followed one that was withdrawn, as `withdraw_versions` has it."""
    before = move.previous and versions.get_version(session, move.stream, move.previous)
    return bool(before and before.state != VersionState.READY and before.version > (move.version or 0))


def _register_clean(stream: Stream, change: Change, measured: bool, gated: bool = False) -> ModelVersion | None:
    manifest = clean_part(current_manifest(stream))
    if not manifest["shards"]:
        return None
    version = register(stream, manifest, change, measured)
    if gated:
        promote_version.fn(stream, version)
        return version
    move_alias(stream.name, CHAMPION, version.version, AUTOMATIC, change.reason)
    say(f"  version {version.version} is champion: {change.reason}")
    return version


def register(stream: Stream, manifest: Manifest, change: Change, measured: bool = True) -> ModelVersion:
    with database.transaction() as session:
        known = versions.find_by_cause(session, stream.name, change.cause)
        check_release(session, manifest, f"the version for {change.cause}")
        shards = contents.shards(session, [shard["shard_id"] for shard in manifest["shards"]])
        if known is not None and known.state == VersionState.READY and _is_of(session, known, manifest):
            return known
    shards = shards if measured else []
    scores = score_shards(stream, load_model(manifest), shards)
    with tracking.asking():
        number, run_id = _publish(stream, manifest, change, shards, scores)
    stored = blobs.store(
        blobs.shared_prefix(stream.name), f"version:{stream.name}:{number}", "manifest", blobs.json_bytes(manifest)
    )
    version = ModelVersion(
        stream=stream.name,
        version=number,
        run_id=run_id,
        manifest_key=stored.key,
        epoch=manifest["epoch"],
        state=VersionState.READY,
        accuracy=total(scores.values()).accuracy if measured else None,
        reason=change.reason,
    )
    with database.transaction() as session:
        check_release(session, manifest, f"version {number}")
        versions.add_version(session, version, stored.sha256, change.cause)
        versions.add_accuracies(session, stream.name, number, _by_batch(shards, scores))
        ownership.put_object(session, stored)
    accuracy = "not measured" if version.accuracy is None else f"held-out accuracy {version.accuracy:.3f}"
    say(f"  version {number} of {stream.name} registered, {accuracy}")
    return version


def _is_of(session: Session, known: ModelVersion, manifest: Manifest) -> bool:
    """Whether the version's manifest is this one but for the epoch, which tickets for others raise."""
    digest = sha256(blobs.json_bytes({**manifest, "epoch": known.epoch})).hexdigest()
    return versions.manifest_digest(session, known.stream, known.version) == digest


def _publish(
    stream: Stream, manifest: Manifest, change: Change, shards: Sequence[Shard], scores: dict[int, Score]
) -> tuple[int, str]:
    """The MLflow run and version of this change; a run that a crash left behind is taken up, not doubled.

    Only where it holds this very manifest: one that rests on records which a ticket dropped since is left to the purge.
    """
    client = tracking.prepare_tracking()
    experiment = tracking.experiment(client, stream.name)
    card = describe_version(stream, manifest, change.cause, change.reason, shards, scores)
    shown = models.fitted(card)
    digest = sha256(blobs.json_bytes(manifest)).hexdigest()
    tags = {"cause": change.cause, "stream": stream.name, "epoch": manifest["epoch"], "manifest": digest}
    same = f"tags.`deciduous.cause` = '{change.cause}' and tags.`deciduous.manifest` = '{digest}'"
    runs = [run.info.run_id for run in client.search_runs([experiment], f"{same} and status = 'FINISHED'")]
    with database.transaction() as session:
        named = {version.run_id for version in versions.versions(session, stream.name)} if runs else set()
    left = [run_id for run_id in runs if run_id not in named]
    if left:
        run_id = left[0]
    else:
        with packed_model(stream, manifest) as folder:
            run_id = models.log_run(
                client,
                experiment,
                change.cause.replace(":", "-"),
                params={"backbone": stream.backbone, "cut": manifest["cut"], "epoch": manifest["epoch"]},
                metrics=_metrics(manifest, scores),
                tags={**tags, models.NOTE: shown},
                inputs=data_sets(manifest, shards),
                figures=draw_figures(stream, change.decisions, shards, scores) if scores else {},
                texts={"README.md": f"# {stream.name}\n\n{card}"},
                model_folder=folder,
            )
    tags = version_tags(manifest, change.cause, change.decisions, scores)
    return models.register_version(client, stream.name, run_id, models.model_source(run_id), tags, shown), run_id


def _metrics(manifest: Manifest, scores: dict[int, Score]) -> dict[str, float]:
    overall = total(scores.values())
    accuracies = {"accuracy": overall.accuracy, "accuracy_exact_head": overall.exact_accuracy} if scores else {}
    if overall.tokens:
        accuracies |= dict(zip(("perplexity", "perplexity_backbone"), overall.perplexities, strict=True))
    return {
        **accuracies,
        "held_out_rows": overall.rows,
        "adapters_serving": len(manifest["adapters"]),
        "adapter_bytes": adapter_bytes(manifest),
        "shards": len(manifest["shards"]),
    }


def _by_batch(shards: Sequence[Shard], scores: dict[int, Score]) -> list[tuple[str, float, float, int]]:
    of_batch: dict[str, list[Score]] = {}
    for shard in shards:
        of_batch.setdefault(shard.batch_id, []).append(scores[shard.shard_id])
    summed = {batch: total(found) for batch, found in of_batch.items()}
    return [(batch, score.accuracy, score.exact_accuracy, score.rows) for batch, score in summed.items()]
