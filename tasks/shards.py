"""The stored rows of a shard, and the closed-form quantities fitted on them under the frozen backbone."""

import json
from collections.abc import Collection, Sequence
from dataclasses import asdict

from torch import Tensor

from registry.canonical import canonical_json
from registry.errors import SuppressedRecordError
from registry.records import Batch, BatchState, Shard, StoredObject
from registry.sections import TaskType
from registry.stream import Stream
from tasks import blobs
from tasks.backbones import cut_of, open_backbone
from tasks.learning.adapters import AdapterWeights
from tasks.learning.features import features, signatures
from tasks.learning.heads import ClassStatistics, class_statistics
from tasks.learning.language.retrieval import Moments, embeddings, moments_of
from tasks.learning.tensors import text_to_tensor
from tasks.prefix_cache import states_of
from tasks.reading import Quarantined
from tasks.rows import Row, from_parquet, held_out, to_parquet, trainable

REFERENCE_ROWS = 512


def store_rows(stream: Stream, shard: Shard, rows: Sequence[Row]) -> StoredObject:
    return blobs.store(blobs.prefix(stream.name, shard.group), shard.node, "rows", to_parquet(rows))


def store_quarantine(stream: Stream, batch: Batch, refused: Sequence[Quarantined]) -> StoredObject:
    """Which rows were refused and why, by row number and keyed hash: never their content."""
    listed = canonical_json([asdict(each) for each in refused])
    return blobs.store(blobs.shared_prefix(stream.name), batch.node, "quarantine", listed)


def load_rows(shard: Shard) -> list[Row]:
    return from_parquet(blobs.load_bytes(shard.node, "rows"))


def load_quarantine(batch: Batch) -> list[Quarantined]:
    return [Quarantined(**fields) for fields in json.loads(blobs.load_bytes(batch.node, "quarantine"))]


def is_refused(row: Quarantined, targets: Collection[tuple[str, str]]) -> bool:
    """Whether the targets name a refused row."""
    return ("subject", row.subject) in targets or ("record", row.record) in targets


def names_nobody(batch: Batch) -> bool:
    """Whether a row of it was refused of which nobody can say whose it is, or which record."""
    listed = load_quarantine(batch) if batch.quarantined and batch.state != BatchState.DISCARDED else []
    return any(row.subject is None or row.record is None for row in listed)


def fit_shard(stream: Stream, shard: Shard) -> None:
    """Store the shard's class statistics under the frozen backbone and the signatures of its held-out rows."""
    where, rows = blobs.prefix(stream.name, shard.group), load_rows(shard)
    blobs.save_tensors(where, shard.node, "statistics", statistics_of(stream, rows, None).to_tensors())
    kept = held_out(rows)[:REFERENCE_ROWS]
    blobs.save_tensors(where, shard.node, "reference", as_reference(row_signatures(stream, kept), kept))


def as_reference(signatures_LND: Tensor, rows: Sequence[Row]) -> dict[str, Tensor]:
    """What later batches are compared with: signatures of held-out rows and their labels, "" where there is none."""
    return {"LND": signatures_LND, "labels": text_to_tensor([row.label or "" for row in rows])}


def load_reference(shard_id: int) -> blobs.Tensors:
    """What `as_reference` made. Raises SuppressedRecordError while a ticket that took a shard's last rows has yet to
    rebuild what serves it."""
    node = f"shard:{shard_id}"
    if blobs.find(node, "reference") is None:
        raise SuppressedRecordError(
            f"a deletion ticket left {node} no row to compare with and is not done; finish the open tickets "
            "(`deciduous ls tickets`) first, then run again"
        )
    return blobs.load_tensors(node, "reference")


def statistics_of(
    stream: Stream, rows: Sequence[Row], adapter: AdapterWeights | None = None
) -> ClassStatistics | Moments:
    """Additive statistics of the trainable rows, under an adapter or under the frozen backbone alone."""
    used = trainable(rows)
    return fit_statistics(stream, used, states_of(stream, used), adapter)


def row_signatures(stream: Stream, rows: Sequence[Row]) -> Tensor:
    """(L, N, D) frozen signatures of rows."""
    return signatures_of(stream, states_of(stream, rows))


def fit_statistics(
    stream: Stream, rows: Sequence[Row], states: Sequence[Tensor], adapter: AdapterWeights | None
) -> ClassStatistics | Moments:
    """Class statistics of rows from their states; of documents, the moments that retrieval's Gaussians are made of."""
    if stream.task == TaskType.LANGUAGE:
        return moments_of(embeddings(states))
    backbone = open_backbone(stream)
    features_NF = features(backbone, states, cut_of(stream, backbone), adapter)
    return class_statistics(features_NF, [row.label or "" for row in rows])


def signatures_of(stream: Stream, states: Sequence[Tensor]) -> Tensor:
    """(L, N, D) of states; documents have one layer of them, the embeddings that retrieval sees."""
    if stream.task == TaskType.LANGUAGE:
        return embeddings(states)[None]
    backbone = open_backbone(stream)
    return signatures(backbone, states, cut_of(stream, backbone))
