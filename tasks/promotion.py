"""Move the champion: through the gates, back to an earlier version, or away from what a ticket withdrew."""

from collections.abc import Sequence
from getpass import getuser

from sqlalchemy.orm import Session

from infra import database, tracking
from registry import catalog, models, versions
from registry.errors import StaleEpochError, StateError, SuppressedRecordError
from registry.records import Gate, ModelVersion, Request, Verdict, VersionState
from registry.stream import Stream
from registry.versions import CHALLENGER, CHAMPION, PREVIOUS
from tasks.approvals import with_word
from tasks.assembly import Manifest, load_json
from tasks.events import GATE_REFUSED, announce
from tasks.narration import say
from tasks.policies.approval import asks_person
from tasks.policies.promotion import version_clears_gates
from tasks.release import check_release
from tasks.retries import step


@step("promote-{version.version}")
def promote_version(stream: Stream, version: ModelVersion, gated: bool = True) -> Verdict:
    """Make the version champion when every gate passes; otherwise it waits as challenger.

    A deletion's version is not gated: what a ticket withdrew must not come back because it was more accurate.
    """
    with database.transaction() as session:
        champion = versions.alias_of(session, stream.name, CHAMPION)
        candidate = _accuracies(versions.accuracies(session, stream.name, version.version))
        held = _accuracies(versions.accuracies(session, stream.name, champion)) if champion is not None else {}
    if champion == version.version:
        mirror_aliases(stream.name)  # a crash may have left MLflow behind
        return Verdict(True, "it is the champion")
    gates = stream.gates
    verdict = version_clears_gates(candidate, held, gates.accuracy_drop, gates.forgetting)
    if not gated:
        verdict = Verdict(True, f"asked for by a deletion, not gated: {verdict.reason}")
    elif asks_person(gates.approval.promotion, not verdict.passed):
        verdict = with_word(stream, Gate.PROMOTION, f"{stream.name}/{version.version}", verdict)
    if not verdict.passed:
        refused = {"gate": "promotion", "what": f"{stream.name}/{version.version}", "reason": verdict.reason}
        announce(GATE_REFUSED, stream.name, "gate", f"promotion.{stream.name}.{version.version}", **refused)
    alias = CHAMPION if verdict.passed else CHALLENGER
    move_alias(stream.name, alias, version.version, "deciduous", verdict.reason)
    say(f"  version {version.version} is {alias}: {verdict.reason}")
    return verdict


@step("promote-{request.what}")
def promote_approved(request: Request) -> None:
    """Make the version champion in the approver's name, if it still is the challenger."""
    stream, _, version = request.what.partition("/")
    with database.transaction() as session:
        challenger = versions.alias_of(session, stream, CHALLENGER)
    if challenger != int(version):
        raise StateError(f"version {request.what} is challenger no more, {stream}/{challenger} is; nothing was moved")
    move_alias(stream, CHAMPION, int(version), request.approver, f"approved: {request.note or request.reason}")
    say(f"  version {version} is champion: approved by {request.approver}")


def _accuracies(cells: dict[str, tuple[float, float, int]]) -> dict[str, tuple[float, int]]:
    return {batch: (accuracy, rows) for batch, (accuracy, _, rows) in cells.items()}


def move_alias(stream: str, alias: str, version: int, by: str, reason: str) -> None:
    """Point an alias at a READY version, with history; the release gate is asked every time.

    The catalog moves first and decides; MLflow follows, and a repeated call brings it in line.
    """
    manifest = load_manifest(stream, version)
    with database.transaction() as session:
        found = versions.get_version(session, stream, version)
        if found.state != VersionState.READY:
            raise StateError(f"version {stream}/{version} is {found.state}; choose one that is ready")
        check_release(
            session, {**manifest, "epoch": catalog.stream_epoch(session, stream)}, f"version {stream}/{version}"
        )
        before = versions.alias_of(session, stream, alias)
        if before != version:
            versions.add_alias_event(session, stream, alias, version, by, reason)
        if alias == CHAMPION and before is not None and before != version:
            versions.add_alias_event(session, stream, PREVIOUS, before, by, f"version {version} became champion")
        if alias == CHAMPION and versions.alias_of(session, stream, CHALLENGER) == version:
            versions.add_alias_event(session, stream, CHALLENGER, None, by, "became champion")
    mirror_aliases(stream)


def mirror_aliases(stream: str) -> None:
    """Bring MLflow's aliases in line with the catalog's history."""
    client = tracking.prepare_tracking()
    with database.transaction() as session:
        moves = {a: versions.last_alias_event(session, stream, a) for a in (CHAMPION, CHALLENGER, PREVIOUS)}
        wanted = {
            alias: (move.version, f"since {move.at:%Y-%m-%d %H:%M} UTC by {move.by}: {move.reason}")
            for alias, move in moves.items()
            if move is not None
        }
    for alias in moves:
        version, note = wanted.get(alias, (None, ""))
        if version is None:
            models.drop_alias(client, stream, alias)
        elif models.find_alias(client, stream, alias) != version:
            models.set_alias(client, stream, alias, version)
            models.note_alias(client, stream, alias, version, note)


def withdraw_versions(session: Session, stream: str, tainted: Sequence[int], why: str) -> None:
    """Quarantine versions in the caller's transaction: at its end no alias names one of them. Then mirror the aliases.

    The newest clean version is champion meanwhile, or none."""
    for version in tainted:
        versions.set_state(session, stream, version, VersionState.QUARANTINED)
    clean = [v.version for v in versions.versions(session, stream, VersionState.READY)]
    for alias in (CHAMPION, CHALLENGER, PREVIOUS):
        if versions.alias_of(session, stream, alias) in tainted:
            fallback = clean[-1] if clean and alias == CHAMPION else None
            versions.add_alias_event(session, stream, alias, fallback, "deciduous", why)


def rollback_target(stream: str, version: int | None) -> int:
    """The version named, or the champion before this one."""
    with database.transaction() as session:
        target = version if version is not None else versions.alias_of(session, stream, PREVIOUS)
    if target is None:
        raise StateError(f"stream {stream!r} has no previous champion to roll back to; name a version")
    return target


@step("roll-back-{stream}")
def roll_back(stream: str, version: int | None, reason: str) -> int:
    """Move the champion back; returns the version it names now."""
    target = rollback_target(stream, version)
    move_alias(stream, CHAMPION, target, getuser(), reason)
    return target


def serves_clean(stream: Stream) -> bool:
    """Whether the release gate lets through what every alias names now."""
    with database.transaction() as session:
        named = {versions.alias_of(session, stream.name, alias) for alias in (CHAMPION, CHALLENGER, PREVIOUS)} - {None}
    try:
        manifests = {version: load_manifest(stream.name, version) for version in named if version is not None}
        with database.transaction() as session:
            epoch = catalog.stream_epoch(session, stream.name)
            for version, manifest in manifests.items():
                check_release(session, {**manifest, "epoch": epoch}, f"version {stream.name}/{version}")
    except (StateError, StaleEpochError, SuppressedRecordError):
        return False
    return True


def load_manifest(stream: str, version: int) -> Manifest:
    with database.transaction() as session:
        found = versions.get_version(session, stream, version)
        sha256 = versions.manifest_digest(session, stream, version)
    if found.state == VersionState.ERASED:
        raise StateError(f"version {stream}/{version} was erased by a deletion ticket; choose one that is ready")
    return load_json(found.manifest_key, sha256)
