"""Measure how a shard differs from what every adapter of its group has seen."""

import torch
from torch import Tensor

from infra import database
from registry import adapters as adapter_rows
from registry.records import Adapter, AdapterState, Shard, ShiftEvidence
from registry.stream import Stream
from tasks import blobs
from tasks.backbones import cut_of, open_backbone
from tasks.identity import seed_of
from tasks.learning.descriptors import Descriptor, z_scores
from tasks.learning.shift import mmd_test
from tasks.narration import say
from tasks.retries import step
from tasks.shards import load_rows, row_signatures

KNOWN = (AdapterState.SERVING, AdapterState.CANDIDATE)
MAX_ROWS = 512


@step("measure-shift-{shard.batch_id}-{shard.group}")
def measure_shift(stream: Stream, shard: Shard) -> list[ShiftEvidence]:
    """Permutation test and descriptor z-scores of the shard against each adapter's held-out rows.

    Adapters that only wait as candidates are tested as well: they mark a distribution that is known.
    """
    with database.transaction() as session:
        known = [a for a in adapter_rows.adapters(session, stream.name, KNOWN) if a.group == shard.group]
    rows_LND = row_signatures(stream, load_rows(shard)[:MAX_ROWS])
    evidence = [_against(stream, shard, adapter, rows_LND) for adapter in known]
    for found in evidence:
        say(f"  against {found.adapter_id}: p = {found.p_value:.3f}, MMD² = {found.statistic:.4f}")
    return evidence


def _against(stream: Stream, shard: Shard, adapter: Adapter, rows_LND: Tensor) -> ShiftEvidence:
    descriptor = Descriptor.from_tensors(blobs.load_tensors(adapter.node, "descriptor"))
    reference_LND = reference_of(adapter)
    seed = seed_of("shift", stream.name, shard.shard_id, adapter.adapter_id)
    test = mmd_test(as_sample(rows_LND), as_sample(reference_LND), stream.shift.permutations, seed)
    z_L = z_scores(descriptor, rows_LND).mean(1)
    first = cut_of(stream, open_backbone(stream))
    layers = {str(first + n): round(float(z), 4) for n, z in enumerate(z_L)}
    return ShiftEvidence(adapter.adapter_id, test.p_value, test.statistic, layers)


def reference_of(adapter: Adapter) -> Tensor:
    """(L, M, D) signatures of the held-out rows of every shard that the adapter serves, newest shards first."""
    parts = [blobs.load_tensors(f"shard:{shard_id}", "reference")["LND"] for shard_id in reversed(adapter.serves)]
    return torch.cat(parts, 1)[:, :MAX_ROWS]


def as_sample(signatures_LND: Tensor) -> Tensor:
    """(N, L D): one row per record, its layers side by side."""
    return signatures_LND.transpose(0, 1).flatten(1)
