"""A version beside the champion on every held-out row that is known, where their accuracies alone would refuse it."""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

from infra import database
from registry import contents
from registry.records import Shard
from registry.stream import Stream
from tasks.assembly import load_model
from tasks.evaluation import answer, by_group
from tasks.learning.composition import Prediction, ServingModel
from tasks.manifests import load_manifest
from tasks.policies.promotion import Changes
from tasks.rows import held_out
from tasks.shards import load_rows


@dataclass(frozen=True, slots=True)
class _Answered:
    """What one version answers a shard's held-out rows of these labels, and the labels that it could answer."""

    truth: list[str | None]
    known: tuple[str, ...]
    found: Prediction

    def right(self, among: Collection[str]) -> list[bool]:
        """Row by row, where only these labels may be answered."""
        columns = [number for number, label in enumerate(self.known) if label in among]
        best = self.found.scores_NC[:, columns].argmax(1).tolist()
        return [self.known[columns[n]] == label for n, label in zip(best, self.truth, strict=True)]


def compare_rows(stream: Stream, candidate: int, champion: int) -> dict[str, Changes]:
    """Batch id -> what becomes of its held-out rows, as a caller of each shard's own group sees them."""
    with database.transaction() as session:
        shards = contents.shards(session, [s["shard_id"] for s in load_manifest(stream.name, candidate)["shards"]])
    before, now = (dict(_answers(stream, version, shards)) for version in (champion, candidate))
    changes: dict[str, Changes] = {}
    for shard in shards:
        if shard.shard_id in now:
            changed = _changes(before.get(shard.shard_id), now[shard.shard_id])
            changes[shard.batch_id] = changes.get(shard.batch_id, Changes()) + changed
    return changes


def _answers(stream: Stream, version: int, shards: Sequence[Shard]) -> Iterator[tuple[int, _Answered]]:
    model = load_model(load_manifest(stream.name, version))
    assert isinstance(model, ServingModel), "documents have no labels"
    for composed, members in by_group(model, [shard for shard in shards if shard.group in model.frozen]):
        for shard in members:
            if rows := held_out(load_rows(shard)):
                truth = [row.label for row in rows]
                yield shard.shard_id, _Answered(truth, composed.labels, answer(stream, composed, rows))


def _changes(before: _Answered | None, now: _Answered) -> Changes:
    """A group that is new to the champion has new labels only."""
    right = now.right(now.known)
    if before is None:
        return Changes(rows=len(right), newly_right=sum(right))
    was, among = before.right(before.known), now.right({*before.known} & {*now.known} or now.known)
    return Changes(
        rows=len(right),
        lost=sum(a and not b for a, b in zip(was, among, strict=True)),
        won=sum(b and not a for a, b in zip(was, among, strict=True)),
        to_new=sum(a and not b for a, b in zip(among, right, strict=True)),
        newly_right=sum(b and label not in before.known for b, label in zip(right, now.truth, strict=True)),
    )
