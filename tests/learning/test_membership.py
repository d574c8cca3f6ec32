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
    is_near,
    leaning,
    log_likelihood,
    pool,
    privacy_leak,
    residue,
    rmia_ratios,
    rmia_scores,
    same_distribution,
    trace_left,
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


def test_the_area_of_ratios_is_that_of_the_scores_over_any_population():
    forgotten, unseen, population = (normal(60, seed, 0.3).abs().neg() for seed in (0, 1, 2))
    references = [normal(60, seed).abs().neg() for seed in (3, 4, 5)]
    ratios = [rmia_ratios(each, ref) for each, ref in zip((forgotten, unseen), references, strict=False)]
    everything = torch.cat([*ratios, rmia_ratios(population, references[2])])
    scores = [(each[:, None] > everything[None]).double().mean(1) for each in ratios]
    assert compare_members(*ratios).auc == pytest.approx(compare_members(*scores).auc)


def test_small_tickets_are_heard_together():
    """Forty tickets of five records: none can say anything, together a leak shows and its absence does not."""

    def tickets(shift: float):
        return [compare_members(normal(5, n, shift), normal(60, 500 + n)) for n in range(40)]

    assert pool(tickets(0.0)).forgotten == 200
    assert abs(pool(tickets(0.0)).z) < 4 < pool(tickets(1.5)).z
    assert max(each.z for each in tickets(0.0)) < 4
    assert pool([]).z == 0


@pytest.mark.parametrize("shared", [True, False], ids=["the same strangers", "others each time"])
def test_chance_is_no_narrower_than_pooled_tickets_vary(shared):
    spread = []
    for trial in range(200):
        each = [
            compare_members(normal(8, 10_000 + 50 * trial + n), normal(40, 90_000 + 50 * trial + n * (not shared)))
            for n in range(20)
        ]
        spread.append(pool(each).z)
    assert torch.tensor(spread).std() < 1.15


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


def test_what_is_left_of_a_trace_is_a_share_of_it():
    clean, trace = adapter(0), adapter(1)
    removed = {"up": clean["up"] + 0.01 * trace["up"]}
    assert trace_left(clean, removed, clean) == (0.0, 0.0)
    assert trace_left(removed, removed, clean)[0] == pytest.approx(1)
    share, z = trace_left({"up": clean["up"] + 0.0047 * 0.01 * trace["up"]}, removed, clean)
    assert share == pytest.approx(0.0047, rel=0.05)
    assert z > 10
    assert trace_left({"up": clean["up"][:5]}, removed, clean) is None
    assert trace_left(removed, clean, clean) is None


def test_another_run_is_near_and_leans_nowhere_and_one_that_was_not_rebuilt_leans():
    middle = adapter(0)["up"]
    one, two, three, old = ({"up": middle + 0.01 * adapter(seed)["up"]} for seed in (1, 2, 3, 4))
    assert is_near(three, one, two)
    assert abs(leaning(three, old, one, two)) < 4 < leaning(old, old, one, two)
    assert not is_near({"up": middle + 0.1 * adapter(3)["up"]}, one, two)
    assert not is_near({"up": middle[:7]}, one, two)
    labels = torch.tensor([1, 2])
    assert not is_near(
        {"up": middle, "labels": labels + 1}, {"up": middle, "labels": labels}, {"up": middle, "labels": labels}
    )
