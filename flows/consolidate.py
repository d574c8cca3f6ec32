"""Merge adapters that have grown alike, keep a merge only if it holds up, retire its parents."""

from prefect import flow

from registry.stream import Stream
from tasks.consolidation import MergeOutcome, merge_adapters, propose_merges, retire_adapter
from tasks.exclusion import alone
from tasks.promotion import promote_version
from tasks.registration import register_change
from tasks.reports import report_merge


@flow(name="consolidate", flow_run_name="consolidate-{stream.name}")
def consolidate(stream: Stream, pair: tuple[str, str] | None = None, dry_run: bool = False) -> MergeOutcome | None:
    """Try the closest pair, or the pair given; None when no two adapters may be merged."""
    with alone(stream.name):
        pairs = [pair] if pair is not None else propose_merges(stream)
        return _merge(stream, pairs[0], dry_run) if pairs else None


def _merge(stream: Stream, pair: tuple[str, str], dry_run: bool) -> MergeOutcome:
    outcome = merge_adapters(stream, pair, dry_run)
    if outcome.accepted and outcome.adapter_id is not None:
        for parent in outcome.parent_ids:
            retire_adapter(parent, f"superseded by {outcome.adapter_id}")
        version = register_change(stream, f"merge:{outcome.adapter_id}", outcome.reason, outcome.epoch)
        if version is not None:
            promote_version(stream, version)
    report_merge(stream, outcome)
    return outcome
