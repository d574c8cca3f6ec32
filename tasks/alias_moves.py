"""Move an alias, with history, through the release gate. Neither Prefect nor torch is imported for it, nor MLflow:
whoever rolls back at night waits for none of them."""

from collections.abc import Container, Sequence

from sqlalchemy.orm import Session

from infra import alias_client, database
from infra.users import user_name
from registry import aliases, approvals, catalog, versions
from registry.errors import StaleEpochError, StateError, SuppressedRecordError
from registry.records import Gate, VersionState
from registry.stream import Stream
from registry.versions import CHALLENGER, CHAMPION, PREVIOUS
from tasks.manifests import Manifest, load_manifest
from tasks.release import check_release


def move_alias(stream: str, alias: str, version: int, by: str, reason: str) -> None:
    """Point an alias at a READY version, with history; the release gate is asked every time.

    The catalog moves first and decides; MLflow follows, and a repeated call brings it in line.
    """
    manifest = load_manifest(stream, version)
    with database.transaction() as session:
        _require_servable(session, stream, version, manifest)
        before = versions.alias_of(session, stream, alias)
        if before != version:
            versions.add_alias_event(session, stream, alias, version, by, reason)
        if alias == CHAMPION:
            _leave_behind(session, stream, version, before, by)
            _answer_request(session, f"{Gate.PROMOTION}:{stream}/{version}", by, reason)
        _end_requests(session, stream, range(version), f"version {version} is {alias}")
    mirror_aliases(stream)


def _answer_request(session: Session, request_id: str, by: str, reason: str) -> None:
    """Whoever makes a version champion that waits for a person's word has said it."""
    request = approvals.find(session, request_id)
    if request is not None and request.approved is None:
        approvals.answer(session, request_id, True, by, reason)


def _end_requests(session: Session, stream: str, numbers: Container[int], why: str) -> None:
    """Nobody is asked any more about versions that are overtaken or withdrawn."""
    approvals.end(session, stream, Gate.PROMOTION, lambda what: int(what.rpartition("/")[2]) in numbers, why)


def _leave_behind(session: Session, stream: str, champion: int, before: int | None, by: str) -> None:
    """The one before is `previous`, unless it only stood in during a deletion; an older challenger waits no longer."""
    why = f"version {champion} became champion"
    if before is not None and before != champion and not versions.is_interim(session, stream, before):
        versions.add_alias_event(session, stream, PREVIOUS, before, by, why)
    challenger = versions.alias_of(session, stream, CHALLENGER)
    if challenger is not None and challenger <= champion:
        versions.add_alias_event(session, stream, CHALLENGER, None, by, why)


def check_move(stream: str, version: int) -> None:
    """Raises what a move of the champion to this version would raise."""
    manifest = load_manifest(stream, version)
    with database.transaction() as session:
        _require_servable(session, stream, version, manifest)


def _require_servable(session: Session, stream: str, version: int, manifest: Manifest) -> None:
    found = versions.get_version(session, stream, version)
    if found.state != VersionState.READY:
        raise StateError(f"version {stream}/{version} is {found.state}; choose one that is ready")
    check_release(session, {**manifest, "epoch": catalog.stream_epoch(session, stream)}, f"version {stream}/{version}")


def mirror_aliases(stream: str) -> None:
    """Bring MLflow's aliases in line with the catalog's history, also where another process moves one meanwhile."""
    client = alias_client.open_client()
    told = None
    while (wanted := _wanted_aliases(stream)) != told:
        for alias in (CHAMPION, CHALLENGER, PREVIOUS):
            aliases.move_alias(client, stream, alias, *wanted.get(alias, (None, "")))
        told = wanted


def _wanted_aliases(stream: str) -> dict[str, tuple[int | None, str]]:
    """Alias -> its version, and the note for that version's page."""
    with database.transaction() as session:
        moves = {a: versions.last_alias_event(session, stream, a) for a in (CHAMPION, CHALLENGER, PREVIOUS)}
        return {
            alias: (move.version, f"since {move.at:%Y-%m-%d %H:%M} UTC by {move.by}: {move.reason}")
            for alias, move in moves.items()
            if move is not None
        }


def withdraw_versions(session: Session, stream: str, tainted: Sequence[int], why: str) -> None:
    """Quarantine versions in the caller's transaction: at its end no alias names one of them. Then mirror the aliases.

    The last clean champion serves meanwhile, or none: another version may have waited for a reason."""
    for version in tainted:
        versions.set_state(session, stream, version, VersionState.QUARANTINED)
    _end_requests(session, stream, tainted, why)
    clean = versions.last_champion(session, stream)
    gone: set[int | None] = {*tainted}
    for alias in (CHAMPION, CHALLENGER, PREVIOUS):
        if versions.alias_of(session, stream, alias) in gone:
            fallback = clean if alias == CHAMPION else None
            gone |= {fallback} - {None}  # the champion is not `previous` as well
            versions.add_alias_event(session, stream, alias, fallback, "deciduous", why)


def rollback_target(stream: str, version: int | None) -> int:
    """The version named, or the champion before this one."""
    with database.transaction() as session:
        catalog.stream_epoch(session, stream)  # raises for a stream that is none
        target = version if version is not None else versions.alias_of(session, stream, PREVIOUS)
    if target is None:
        raise StateError(f"stream {stream!r} has no previous champion to roll back to; name a version")
    return target


def move_champion(stream: str, version: int, reason: str) -> None:
    """By hand, in the name of whoever runs this."""
    move_alias(stream, CHAMPION, version, user_name(), reason)


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
