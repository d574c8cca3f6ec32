"""A drill: synthetic subjects with labels that nothing but memory could tell are planted, seen, deleted, and unseen."""

import pytest
import torch

from tasks.learning.adapters import AdapterSpec
from tasks.learning.features import features
from tasks.learning.heads import class_statistics, head_scores, solve_head
from tasks.learning.membership import compare_members, exposure, log_likelihood
from tasks.learning.training import Recipe, train_slice
from tests.learning.conftest import sentences

CANARIES = 64
CUT = 2
NAMES = tuple("abcdefghijklmnop")  # many: an unseen canary is rarely right by luck


@pytest.fixture(scope="module")
def drill(bert):
    """Encoded rows with random labels: canaries that are planted, canaries that are not, and rows that stay."""
    texts = [text for text in sentences(8 * CANARIES, seed=11) if len(text.split()) > 8]  # short ones repeat
    states = bert.encode(texts[: 3 * CANARIES], CUT)
    drawn = torch.randint(0, len(NAMES), (3 * CANARIES,), generator=torch.Generator().manual_seed(12)).tolist()
    labels = [NAMES[n] for n in drawn]
    return [(states[n::3], labels[n::3]) for n in range(3)]


def knowledge(bert, drill, adapter, *shards):
    """How well the heads of these shards, under an adapter, tell planted canaries from others; and their exposure."""
    statistics = [class_statistics(features(bert, states, CUT, adapter), labels) for states, labels in shards]
    head = solve_head(statistics, prior_rows=0.01)
    planted, others = (
        log_likelihood(head_scores(head, features(bert, states, CUT, adapter)), labels, head.labels)
        for states, labels in drill[:2]
    )
    exposed = [exposure(float(canary), others.tolist()) for canary in planted]
    return compare_members(planted, others), sum(exposed) / len(exposed)


@pytest.mark.parametrize("trained", [False, True], ids=["exact head", "adapter"])
def test_canaries_are_seen_before_a_deletion_and_not_after(bert, drill, trained):
    planted, _, stays = drill
    recipe, spec = Recipe(epochs=2), AdapterSpec(rank=4, last_layers=2)

    def adapter(*shards):
        states, labels = [s for shard in shards for s in shard[0]], [n for shard in shards for n in shard[1]]
        return train_slice(bert, states, labels, CUT, spec, recipe, 1).adapter if trained else None

    before, exposed = knowledge(bert, drill, adapter(planted, stays), planted, stays)
    assert before.auc >= 0.9  # the positive control: without it the rest would show nothing
    assert exposed > 2.5
    after, hidden = knowledge(bert, drill, adapter(stays), stays)
    assert abs(after.auc - 0.5) <= 0.10
    assert hidden == pytest.approx(1.44, abs=0.5)
