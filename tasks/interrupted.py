"""What a killed merge left: handed back to be finished where it was kept. Before that nothing of it has a name."""

from sqlalchemy.orm import Session

from infra import database
from registry import adapters as adapter_rows
from registry import catalog, decision_log, versions
from registry.records import Adapter, AdapterState, DecisionKind
from registry.stream import Stream
from registry.tables import DecisionRow
from tasks.alias_moves import mirror_aliases
from tasks.consolidation import MergeOutcome
from tasks.local_copies import follow_deletions
from tasks.retries import step

IN_USE = (AdapterState.SERVING, AdapterState.CANDIDATE)


@step("interrupted-{stream.name}")
def interrupted_merges(stream: Stream) -> list[MergeOutcome]:
    """Merges that were kept and whose version no alias ever named. The caller holds the stream."""
    follow_deletions(stream.name)
    with database.transaction() as session:
        merged = [a for a in adapter_rows.adapters(session, stream.name, IN_USE) if a.parent_ids]
        kept = [each for each in merged if not _was_promoted(session, each)]
        decisions = decision_log.decisions(session, stream.name) if kept else []
        told = {d.adapter_id: d for d in decisions if d.kind == DecisionKind.MERGE}
        epoch = catalog.stream_epoch(session, stream.name)
        found = [_outcome(adapter, told[adapter.adapter_id], epoch) for adapter in kept if adapter.adapter_id in told]
    if merged:
        mirror_aliases(stream.name)  # the kill may have come between the catalog and MLflow
    return found


def _was_promoted(session: Session, merged: Adapter) -> bool:
    version = versions.find_by_cause(session, merged.stream, f"merge:{merged.adapter_id}")
    return version is not None and versions.was_named(session, merged.stream, version.version)


def _outcome(merged: Adapter, told: DecisionRow, epoch: int) -> MergeOutcome:
    before, after = (told.numbers["alternatives"][when] for when in ("before", "after"))
    return MergeOutcome(True, merged.adapter_id, merged.parent_ids, before, after, told.reason, epoch)
