"""Approximate unlearning against its formulas, and beside the exact way: it suppresses, it does not delete."""

import math

import pytest
import torch

from tasks.learning.adapters import AdapterSpec
from tasks.learning.membership import compare_members
from tasks.learning.training import Recipe, TrainState, train_slice
from tasks.learning.unlearning import (
    Rows,
    Suppression,
    accuracy,
    log_likelihoods,
    npo_loss,
    quantise,
    relearn,
    repulsion,
    suppress,
)
from tests.learning.conftest import sentences

SPEC = AdapterSpec(rank=16, last_layers=2)
CUT = 2


def test_npo_is_its_formula_and_flattens_where_gradient_ascent_runs_away():
    nll, reference = torch.tensor([1.0, 3.0], requires_grad=True), torch.tensor([1.0, 1.0])
    found = npo_loss(nll, reference)
    expected = [2 / 0.1 * math.log(1 + math.exp(-0.1 * (n - 1.0))) for n in (1.0, 3.0)]
    assert found.item() == pytest.approx(sum(expected) / 2, rel=1e-5)
    slopes = [
        torch.autograd.grad(npo_loss(x, torch.zeros(1)), x)[0].item()
        for x in (torch.zeros(1, requires_grad=True), torch.full((1,), 100.0, requires_grad=True))
    ]
    assert slopes[0] == pytest.approx(-1.0)
    assert abs(slopes[1]) < 1e-3


def test_repulsion_measures_updates_not_factors():
    def weights(scale: float) -> dict[str, torch.Tensor]:
        down, up = torch.ones(2, 4), torch.ones(4, 2)
        return {"blocks.0.down.weight": down * scale, "blocks.0.up.weight": up / scale}

    moved = {"blocks.0.down.weight": torch.ones(2, 4), "blocks.0.up.weight": torch.zeros(4, 2)}
    assert repulsion(weights(1), weights(1), moved).item() == pytest.approx(math.exp(-1))
    assert repulsion(weights(7), weights(1), moved).item() == pytest.approx(math.exp(-1))  # other factors, same update
    assert repulsion(moved, weights(1), moved).item() == pytest.approx(1.0)


@pytest.mark.parametrize(("bits", "worst"), [(8, 0.005), (4, 0.08), (1, 1.0)])
def test_quantised_weights_are_near_by_their_bits(bits, worst):
    weight = torch.randn(8, 32, generator=torch.Generator().manual_seed(0))
    found = quantise({"w": weight, "bias": torch.ones(3)}, bits)
    relative = (found["w"] - weight).abs().amax(1) / weight.abs().amax(1)
    assert relative.max() <= worst
    assert len(found["w"][0].unique()) <= 2**bits
    assert torch.equal(found["bias"], torch.ones(3))


@pytest.fixture(scope="module")
def learned(bert):
    """A state that has learned by heart the random labels of 24 rows to forget and 48 to keep; 24 were never seen."""
    rows = bert.encode(sentences(96, seed=3), CUT)
    draw = torch.randint(0, 3, (96,), generator=torch.Generator().manual_seed(4)).tolist()
    labels = ["abc"[n] for n in draw]
    parts = [Rows(rows[a:b], labels[a:b]) for a, b in ((0, 24), (24, 72), (72, 96))]
    recipe = Recipe(epochs=50, learning_rate=1e-2, head_learning_rate=1e-2)
    both = Rows(rows[:72], labels[:72])
    with_all = train_slice(bert, both.states, both.labels, CUT, SPEC, recipe, 1)
    without = train_slice(bert, parts[1].states, parts[1].labels, CUT, SPEC, recipe, 1)
    return with_all, without, *parts


def known(bert, state: TrainState, forget: Rows, unseen: Rows) -> float:
    return compare_members(log_likelihoods(bert, state, forget, CUT), log_likelihoods(bert, state, unseen, CUT)).auc


@pytest.mark.parametrize(
    "how", [Suppression(repulsion=0.0), Suppression(), Suppression(npo=0.0)], ids=["npo", "both", "repulsion"]
)
def test_it_suppresses_and_keeps_the_rest(bert, learned, how):
    with_all, without, forget, retain, unseen = learned
    assert known(bert, with_all, forget, unseen) > 0.85  # the positive control
    assert 0.25 < known(bert, without, forget, unseen) < 0.75  # the exact way is at chance
    left = suppress(bert, with_all, forget, retain, CUT, SPEC, how)
    assert log_likelihoods(bert, left, forget, CUT).mean() < log_likelihoods(bert, with_all, forget, CUT).mean()
    # labels learned by heart are the frailest there are: some of those to keep go as well, which is its price
    assert accuracy(bert, left, retain, CUT) >= accuracy(bert, with_all, retain, CUT) - 0.25


def test_a_little_relearning_brings_back_more_than_the_exact_way_ever_had(bert, learned):
    """Why it is labelled A: half of the forgotten rows bring the other half back, where retraining gives nothing."""
    with_all, without, forget, retain, _ = learned
    left = suppress(bert, with_all, forget, retain, CUT, SPEC, Suppression())
    half, other = Rows(forget.states[:12], forget.labels[:12]), Rows(forget.states[12:], forget.labels[12:])
    suppressed = log_likelihoods(bert, relearn(bert, left, half, CUT, SPEC, 3), other, CUT).mean()
    exact = log_likelihoods(bert, relearn(bert, without, half, CUT, SPEC, 3), other, CUT).mean()
    assert suppressed > exact
