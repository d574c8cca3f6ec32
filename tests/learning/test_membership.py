"""Monitors against their formulas, with positive and negative controls."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tasks.learning.membership import (
    compare_members,
    exposure,
    holm,
    log_likelihood,
    privacy_leak,
    residue,
    rmia_scores,
    same_distribution,
)


def normal(count: int, seed: int, shift: float = 0.0) -> torch.Tensor:
    return torch.randn(count, generator=torch.Generator().manual_seed(seed)) + shift


@given(st.lists(st.integers(0, 5), min_size=1, max_size=8), st.lists(st.integers(0, 5), min_size=1, max_size=8))
def test_the_area_counts_pairs_and_ties_half(forgotten, unseen):
    pairs = [1.0 if a > b else 0.5 if a == b else 0.0 for a in forgotten for b in unseen]
    found = compare_members(torch.tensor(forgotten).float(), torch.tensor(unseen).float())
    assert found.auc == pytest.approx(sum(pairs) / len(pairs))


@pytest.mark.parametrize(("n", "half_width"), [(10, 0.26), (50, 0.113), (200, 0.0567), (1000, 0.0253)])
def test_few_records_prove_nothing(n, half_width):
    assert compare_members(normal(n, 0), normal(n, 1)).half_width == pytest.approx(half_width, abs=0.005)


def test_members_show_and_strangers_do_not():
    assert compare_members(normal(200, 0, 2.0), normal(200, 1)).z > 10
    assert abs(compare_members(normal(200, 0), normal(200, 1)).z) < 4
    assert compare_members(normal(0, 0), normal(5, 1)).auc == 0.5


def test_the_backbone_as_reference_sharpens_the_test():
    """Records differ in how easy they are; a ratio to a model that never saw them says more than the loss."""

    def likelihoods(seed: int, raised: float):
        base = torch.sigmoid(1.5 * normal(400, seed))
        noise = 0.05 * normal(400, seed + 1)
        return (base ** (1 - raised)).clamp(1e-6, 1).log() + noise, base.log()

    member, member_reference = likelihoods(0, 0.6)
    stranger, stranger_reference = likelihoods(10, 0.0)
    population, population_reference = likelihoods(20, 0.0)
    loss = compare_members(member, stranger)
    ratio = compare_members(
        rmia_scores(member, member_reference, population, population_reference),
        rmia_scores(stranger, stranger_reference, population, population_reference),
    )
    assert 0.6 < loss.auc < ratio.auc


def test_a_label_the_model_does_not_know_is_the_least_likely():
    scores = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
    found = log_likelihood(scores, ["a", "a", "z"], ["a", "b"])
    assert found[0] > found[1]
    assert found[2] == found.min()


def test_privacy_leak_is_zero_for_a_retrained_model_and_negative_for_one_that_remembers():
    assert privacy_leak(0.52, 0.52) == 0
    assert privacy_leak(0.99, 0.50) < -90
    assert privacy_leak(0.20, 0.50) > 50


def test_holm_rejects_in_order_and_stops():
    assert holm({"a": 0.001, "b": 0.004, "c": 0.9}) == ["a", "b"]
    assert holm({"a": 0.004, "b": 0.004, "c": 0.9}) == []
    assert holm({}) == []


def test_a_hundred_clean_tickets_raise_no_alarm_and_a_leak_does():
    clean = {f"t{n}": same_distribution(normal(60, n), normal(60, 1000 + n)) for n in range(100)}
    assert holm(clean) == []
    assert holm({**clean, "leak": same_distribution(normal(60, 7, 1.5), normal(60, 8))}) == ["leak"]


def test_exposure_of_a_known_canary_is_all_its_bits():
    others = normal(1023, 0).tolist()
    assert exposure(10.0, others) == pytest.approx(10.0)
    typical = [exposure(float(x), others) for x in normal(400, 3)]
    assert sum(typical) / len(typical) == pytest.approx(1 / math.log(2), abs=0.3)


def adapter(seed: int, size: int = 300_000) -> dict[str, torch.Tensor]:
    return {"up": normal(size, seed)}


def test_a_parent_that_was_not_removed_shows_at_a_two_hundredth_of_the_weight():
    """An EMA (0.9) of fifty: the parent merged 29 steps before the end weighs 0.0047, and still shows."""
    parents = [adapter(seed) for seed in range(50)]
    share = 0.1 * 0.9**29
    assert share == pytest.approx(0.0047, abs=1e-4)
    removed = parents[20]

    def chain(members):
        merged = torch.zeros_like(removed["up"])
        for member in members:
            merged = 0.9 * merged + 0.1 * member["up"]
        return {"up": merged}

    clean = [chain([adapter(1000 + 50 * k + n) for n in range(49)]) for k in range(5)]
    left_in = residue(chain(parents), removed, clean)
    replayed = residue(chain([p for p in parents if p is not removed]), removed, clean)
    assert left_in > 6
    assert abs(replayed) < 4
