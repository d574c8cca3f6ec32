"""Measure how a shard differs from what every adapter of its group has seen."""

from collections.abc import Sequence

import torch
from torch import Tensor

from infra import database
from registry import adapters as adapter_rows
from registry.records import Adapter, AdapterState, MixtureScan, Shard, ShiftEvidence
from registry.sections import Composition
from registry.stream import Stream
from tasks import blobs, mixing
from tasks.backbones import cut_of, open_frozen
from tasks.identity import seed_of
from tasks.learning.descriptors import Descriptor, z_scores
from tasks.learning.shift import Sample, compare_samples, moved_dimensions
from tasks.learning.tensors import tensor_to_labels
from tasks.narration import say
from tasks.retries import step
from tasks.shards import load_reference, load_rows, row_signatures

KNOWN = (AdapterState.SERVING, AdapterState.CANDIDATE)
MAX_ROWS = 512


@step("measure-shift-{shard.batch_id}-{shard.group}")
def measure_shift(stream: Stream, shard: Shard) -> list[ShiftEvidence] | MixtureScan:
    """Permutation test and descriptor z-scores of the shard against each adapter's held-out rows; of a mixture what
    its own descriptors say, layer by layer.

    Adapters that only wait as candidates are tested as well: they mark a distribution that is known.
    """
    with database.transaction() as session:
        known = [a for a in adapter_rows.adapters(session, stream.name, KNOWN) if a.group == shard.group]
    if stream.composition == Composition.MIX:
        return mixing.scan(stream, shard, known)
    rows = load_rows(shard)[:MAX_ROWS]
    rows_LND = row_signatures(stream, rows)
    sample = as_sample(stream, rows_LND, [row.label or "" for row in rows])
    evidence = [_against(stream, shard, adapter, rows_LND, sample) for adapter in known]
    for found in evidence:
        told = f"p = {found.p_value:.3f}, MMD² = {found.statistic:.4f}" if found.compared else "too few rows to compare"
        say(f"  against {found.adapter_id}: {told}")
    return evidence


def _against(stream: Stream, shard: Shard, adapter: Adapter, rows_LND: Tensor, sample: Sample) -> ShiftEvidence:
    descriptor = Descriptor.from_tensors(blobs.load_tensors(adapter.node, "descriptor"))
    seed = seed_of("shift", stream.name, shard.shard_id, adapter.adapter_id)
    references = [reference_of(stream, look) for look in looks_of(adapter)]
    tests = [compare_samples(sample, reference, stream.shift.permutations, seed) for reference in references]
    nearest = min(
        range(len(tests)), key=lambda i: (not tests[i].compared, -tests[i].p_beyond_novelty, tests[i].statistic)
    )
    test = tests[nearest]
    breadth = moved_dimensions(sample.rows_ND, references[nearest].rows_ND, stream.shift.alpha)
    z_L = z_scores(descriptor, rows_LND).mean(1)
    first = cut_of(stream, open_frozen(stream))
    layers = {str(first + n): round(float(z), 4) for n, z in enumerate(z_L)}
    return ShiftEvidence(
        adapter.adapter_id, test.p_beyond_novelty, test.statistic, layers, test.novelty, breadth, test.compared
    )


def looks_of(adapter: Adapter) -> list[Sequence[int]]:
    """The shards that each look of an adapter is known by.

    A merged adapter has its parents' looks, each by itself: a batch that looks like one parent's shards differs from a
    mixture of all, and would expand again although the merged adapter was made for it.
    """
    with database.transaction() as session:
        parents = [adapter_rows.get_adapter(session, parent_id) for parent_id in adapter.parent_ids]
    looks = [look for parent in parents for look in looks_of(parent)]
    known = [[shard_id for shard_id in look if shard_id in adapter.serves] for look in looks]
    return [look for look in known if look] or [adapter.serves]


def reference_of(stream: Stream, shard_ids: Sequence[int]) -> Sample:
    """Signatures and labels of the held-out rows of these shards, newest shards first: no more are read than asked."""
    parts, rows = list[blobs.Tensors](), 0
    for shard_id in reversed(shard_ids):
        if rows >= MAX_ROWS:
            break
        parts.append(load_reference(shard_id))
        rows += parts[-1]["LND"].shape[1]
    labels = [label for part in parts for label in tensor_to_labels(part["labels"])]
    return as_sample(stream, torch.cat([part["LND"] for part in parts], 1)[:, :MAX_ROWS], labels[:MAX_ROWS])


def as_sample(stream: Stream, signatures_LND: Tensor, labels: Sequence[str]) -> Sample:
    """One row (L D) per record, its layers side by side.

    Labels are left out where a record has none, or where the stream takes new classes for shift.
    """
    known = all(labels) and stream.shift.new_classes == "reuse"
    return Sample(signatures_LND.transpose(0, 1).flatten(1), labels if known else None)
