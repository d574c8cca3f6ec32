"""Keep a stream's adapters few: retire what nobody asks for, merge what has grown alike where accuracy holds."""

from prefect import flow

from registry.stream import Stream
from tasks.consolidation import MergeOutcome, measure_budget, merge_adapters, refuse_across
from tasks.exclusion import alone
from tasks.interrupted import interrupted_merges
from tasks.likeness import propose_merges
from tasks.promotion import promote_version
from tasks.registration import register_change
from tasks.reports import report_merge
from tasks.retirement import retire_adapter, retire_unused

ATTEMPTS = 3
"""Refused merges after one batch: each costs an evaluation, and the next batch tries the others."""


@flow(name="consolidate", flow_run_name="consolidate-{stream.name}")
def consolidate(stream: Stream, pair: tuple[str, str] | None = None, dry_run: bool = False) -> MergeOutcome | None:
    """Try the pair given; without one keep to the budget, and where nothing is over it try the closest pair.

    The last merge that was tried; None when no two adapters may be merged. Raises StateError for a stream whose
    adapters are never merged. A dry run leaves everything as it is, also what a killed run left.
    """
    refuse_across(stream, [])
    with alone(stream.name):
        finished = [] if dry_run else finish_interrupted(stream)
        if pair is not None:
            repeated = [outcome for outcome in finished if set(outcome.parent_ids) == set(pair)]
            return repeated[0] if repeated else _merge(stream, pair, dry_run)
        outcome = None if dry_run else keep_to_budget(stream)
        pairs = propose_merges(stream) if outcome is None else []
        return _merge(stream, pairs[0][0], dry_run) if pairs else outcome


def finish_interrupted(stream: Stream) -> list[MergeOutcome]:
    """Bring what a killed run had decided to its version. The caller holds the stream."""
    finished = interrupted_merges(stream)
    for outcome in finished:
        _register_merge(stream, outcome)
    return finished


def keep_to_budget(stream: Stream) -> MergeOutcome | None:
    """Retire what is no longer routed to, then merge the closest pairs of every group that is over budget.

    The caller holds the stream. Returns the last merge that was tried.
    """
    if retired := retire_unused(stream):
        _register(stream, f"retire:{'+'.join(retired)}", f"no longer routed to: {', '.join(retired)}", None)
    outcome, refused, done = None, 0, set[str]()
    while refused < ATTEMPTS and (excess := measure_budget(stream, done)):
        pairs = propose_merges(stream, excess)
        if pairs:
            outcome = _merge(stream, pairs[0][0], dry_run=False)
            refused += not outcome.accepted
        else:
            done.add(excess.group)
    return outcome


def _merge(stream: Stream, pair: tuple[str, str], dry_run: bool) -> MergeOutcome:
    outcome = merge_adapters(stream, pair, dry_run)
    if dry_run:
        return outcome
    if outcome.accepted:
        _register_merge(stream, outcome)
    else:
        report_merge(stream, outcome)
    return outcome


def _register_merge(stream: Stream, outcome: MergeOutcome) -> None:
    for parent in outcome.parent_ids:
        retire_adapter(parent, f"superseded by {outcome.adapter_id}")
    _register(stream, f"merge:{outcome.adapter_id}", outcome.reason, outcome.epoch)
    report_merge(stream, outcome)


def _register(stream: Stream, cause: str, reason: str, epoch: int | None) -> None:
    version = register_change(stream, cause, reason, epoch)
    if version is not None:
        promote_version(stream, version)
