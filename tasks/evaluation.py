"""Measure a model on held-out rows, as a caller of each shard's own group would see it."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from registry.records import Shard
from registry.stream import Stream
from tasks.backbones import open_backbone
from tasks.learning.composition import Composed, ServingModel, compose, predict
from tasks.prefix_cache import states_of
from tasks.rows import Row, held_out
from tasks.shards import load_rows
from tasks.suffix_memory import REMEMBERED


@dataclass(frozen=True, slots=True)
class Score:
    """Correct answers among held-out rows, of the model and of the exact head alone."""

    rows: int
    correct: int
    exact_head: int

    @property
    def accuracy(self) -> float:
        return self.correct / self.rows if self.rows else 0.0

    @property
    def exact_accuracy(self) -> float:
        return self.exact_head / self.rows if self.rows else 0.0

    def __add__(self, other: "Score") -> "Score":
        return Score(self.rows + other.rows, self.correct + other.correct, self.exact_head + other.exact_head)


def score_shards(
    stream: Stream, model: ServingModel, shards: Sequence[Shard], holding: Collection[str] = ()
) -> dict[int, Score]:
    """Shard id -> score on its held-out rows, as a caller of the shard's group who holds these groups as well."""
    scores: dict[int, Score] = {}
    for group in sorted({shard.group for shard in shards}):
        members = [shard for shard in shards if shard.group == group]
        with_adapters = compose(model, {group, *holding} & set(model.frozen))
        alone = with_adapters.alone()
        for shard in members:
            rows = held_out(load_rows(shard))
            scores[shard.shard_id] = _score(stream, with_adapters, alone, rows)
    return scores


def _score(stream: Stream, model: Composed, alone: Composed, rows: Sequence[Row]) -> Score:
    if not rows:
        return Score(0, 0, 0)
    correct = _correct(stream, model, rows)
    return Score(len(rows), correct, correct if not model.adapters else _correct(stream, alone, rows))


def _correct(stream: Stream, model: Composed, rows: Sequence[Row]) -> int:
    answers = predict(open_backbone(stream), model, states_of(stream, rows), REMEMBERED).labels
    return sum(answer == row.label for answer, row in zip(answers, rows, strict=True))


def total(scores: Sequence[Score]) -> Score:
    return sum(scores, Score(0, 0, 0))
