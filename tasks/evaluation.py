"""Measure a model on held-out rows, as a caller of each shard's own group would see it."""

import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, fields
from operator import attrgetter

from registry.records import Shard, Verdict
from registry.stream import Stream
from tasks.backbones import open_backbone
from tasks.language import score_held_out
from tasks.learning.composition import Composed, Prediction, ServingModel, compose, predict
from tasks.learning.language.scoring import TokenScores
from tasks.learning.language.serving import LanguageModel
from tasks.policies.promotion import adapter_earns_its_place, adapter_lowers_perplexity
from tasks.prefix_cache import states_of
from tasks.rows import Row, held_out
from tasks.shards import load_rows
from tasks.suffix_memory import REMEMBERED


@dataclass(frozen=True, slots=True)
class Score:
    """Correct answers among held-out rows, of the model and of what it has to beat: the exact head, or the backbone.

    Of documents, `correct` adds up their completion accuracies, and the log likelihoods give the perplexities.
    """

    rows: int
    correct: float
    exact_head: float
    tokens: int = 0
    nll: float = 0.0
    nll_alone: float = 0.0

    @property
    def accuracy(self) -> float:
        return self.correct / self.rows if self.rows else 0.0

    @property
    def exact_accuracy(self) -> float:
        return self.exact_head / self.rows if self.rows else 0.0

    @property
    def perplexities(self) -> tuple[float, float]:
        """(of the model, of the frozen backbone alone)."""
        count = max(self.tokens, 1)
        return math.exp(min(self.nll / count, 700)), math.exp(min(self.nll_alone / count, 700))

    def earns_its_place(self) -> Verdict:
        """Whether the adapter that this was measured with may serve."""
        if self.tokens:
            return adapter_lowers_perplexity(*self.perplexities, self.rows)
        return adapter_earns_its_place(self.accuracy, self.exact_accuracy, self.rows)


def score_shards(
    stream: Stream, model: ServingModel | LanguageModel, shards: Sequence[Shard], holding: Collection[str] = ()
) -> dict[int, Score]:
    """Shard id -> score on its held-out rows, as a caller of the shard's group who holds these groups as well."""
    if isinstance(model, LanguageModel):
        read = score_held_out(stream, model, shards, holding)
        return {shard_id: _document_score(*found) for shard_id, found in read.items()}
    return {
        shard.shard_id: _score(stream, composed, held_out(load_rows(shard)))
        for composed, members in by_group(model, shards, holding)
        for shard in members
    }


def by_group(
    model: ServingModel, shards: Sequence[Shard], holding: Collection[str] = ()
) -> Iterator[tuple[Composed, list[Shard]]]:
    """The shards of each group, with what answers a caller of that group who holds these groups as well."""
    for group in sorted({shard.group for shard in shards}):
        members = [shard for shard in shards if shard.group == group]
        yield compose(model, {group, *holding} & set(model.frozen)), members


def _score(stream: Stream, model: Composed, rows: Sequence[Row]) -> Score:
    if not rows:
        return Score(0, 0, 0)
    correct = _correct(stream, model, rows)
    return Score(len(rows), correct, correct if not model.adapters else _correct(stream, model.alone(), rows))


def _correct(stream: Stream, model: Composed, rows: Sequence[Row]) -> int:
    return sum(found == row.label for found, row in zip(answer(stream, model, rows).labels, rows, strict=True))


def answer(stream: Stream, model: Composed, rows: Sequence[Row]) -> Prediction:
    """What a caller is answered; passes of rows that were asked before are remembered."""
    return predict(open_backbone(stream), model, states_of(stream, rows), REMEMBERED)


def _document_score(with_adapters: Sequence[TokenScores], alone: Sequence[TokenScores]) -> Score:
    right, right_alone = (sum(each.accuracy for each in scores) for scores in (with_adapters, alone))
    nll, nll_alone = (sum(float(each.nll_T.sum()) for each in scores) for scores in (with_adapters, alone))
    return Score(len(alone), right, right_alone, sum(len(each.nll_T) for each in alone), nll, nll_alone)


_VALUES = attrgetter(*(field.name for field in fields(Score)))


def total(scores: Collection[Score]) -> Score:
    return Score(*map(sum, zip(*map(_VALUES, scores), strict=True))) if scores else Score(0, 0, 0)
