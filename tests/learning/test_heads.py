"""The exact head equals ridge on all rows at once, forgets exactly, and ignores the order of arrival."""

import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.learning import heads
from tasks.learning.heads import (
    CAUTION,
    SUMMED,
    VIEWS,
    ClassStatistics,
    class_statistics,
    expand,
    head_scores,
    solve_head,
)
from tasks.learning.tensors import NonFiniteError


@pytest.fixture(autouse=True)
def _few_random_features(monkeypatch: pytest.MonkeyPatch) -> None:
    heads._projection.cache_clear()
    monkeypatch.setattr(heads, "RANDOM_FEATURES", 10)


def shard(count: int, classes: str, seed: int) -> tuple[torch.Tensor, list[str]]:
    features_NF = torch.randn(count, 6, generator=torch.Generator().manual_seed(seed))
    return features_NF, [classes[i % len(classes)] for i in range(count)]


SHARDS = [shard(8, "ab", 1), shard(40, "cab", 2), shard(12, "d", 3), shard(17, "be", 4)]


FEATURES_NF = torch.cat([features for features, _ in SHARDS])
LABELS = [label for _, names in SHARDS for label in names]
TARGETS_NC = torch.tensor([[label == name for name in "abcde"] for label in LABELS], dtype=torch.float64)


def test_the_regression_equals_the_mean_of_the_views_ridges_on_all_rows_at_once() -> None:
    head = solve_head([class_statistics(*each) for each in SHARDS], prior_rows=7)
    expected_NC = TARGETS_NC.mean(0).expand(len(LABELS), -1).clone()
    for rows_NW in expand(FEATURES_NF).double().chunk(VIEWS, 1):
        centred_NW, centred_NC = rows_NW - rows_NW.mean(0), TARGETS_NC - TARGETS_NC.mean(0)
        covariance_WW = centred_NW.T @ centred_NW
        penalty_WW = 7 * centred_NW.var(0, unbiased=False).mean() * torch.eye(13)
        expected_NC += centred_NW @ torch.linalg.solve(covariance_WW + penalty_WW, centred_NW.T @ centred_NC) / VIEWS
    scores_NC = expand(FEATURES_NF) @ head.weight_CE.T + head.bias_C
    torch.testing.assert_close(scores_NC.double(), expected_NC, atol=1e-5, rtol=1e-4)


def test_the_discriminant_equals_the_mean_of_the_views_gaussians_on_all_rows_at_once() -> None:
    head = solve_head([class_statistics(*each) for each in SHARDS], prior_rows=7)
    assert head.discriminant_CE is not None
    assert head.offset_C is not None
    expected_NC = torch.zeros(len(LABELS), 5, dtype=torch.float64)
    for rows_NW in expand(FEATURES_NF).double().chunk(VIEWS, 1):
        means_CW = (TARGETS_NC.T @ rows_NW) / TARGETS_NC.sum(0)[:, None]
        apart_NW = rows_NW - TARGETS_NC @ means_CW
        penalty_WW = 7 * rows_NW.var(0, unbiased=False).mean() * torch.eye(13)
        covariance_WW = (apart_NW.T @ apart_NW + penalty_WW) / len(LABELS)
        gaussian = torch.distributions.MultivariateNormal(means_CW, covariance_WW)
        expected_NC += gaussian.log_prob(rows_NW[:, None]) / VIEWS / CAUTION
    odds_NC = (expand(FEATURES_NF) @ head.discriminant_CE.T + head.offset_C).double()
    torch.testing.assert_close(odds_NC.log_softmax(1), expected_NC.log_softmax(1), atol=1e-4, rtol=1e-4)


def test_a_score_is_the_mean_of_regression_and_posterior() -> None:
    head = solve_head([class_statistics(*each) for each in SHARDS])
    regression_NC = head_scores(replace(head, discriminant_CE=None), FEATURES_NF)
    posterior_NC = 2 * head_scores(head, FEATURES_NF) - regression_NC
    torch.testing.assert_close(regression_NC.sum(1), torch.ones(len(LABELS)))
    torch.testing.assert_close(posterior_NC.sum(1), torch.ones(len(LABELS)))
    assert bool((posterior_NC > -1e-6).all())


def test_a_rare_class_is_answered() -> None:
    """Least squares alone hardly do: its scores are as small as the class is rare."""
    generator = torch.Generator().manual_seed(0)
    names = ["common"] * 570 + ["rare"] * 30
    apart_NF = torch.tensor([[0.0 if name == "common" else 2.0] for name in names])
    features_NF = torch.randn(600, 6, generator=generator) + apart_NF
    head = solve_head([class_statistics(features_NF[::2], names[::2])])
    both, regression = (
        (head_scores(each, features_NF[571::2]).argmax(1) == 1).double().mean()
        for each in (head, replace(head, discriminant_CE=None))
    )
    assert both > 0.9
    assert regression < 0.6


@settings(max_examples=15, deadline=None)
@given(st.permutations(range(4)))
def test_the_order_of_arrival_changes_no_bit(order: list[int]) -> None:
    statistics = [class_statistics(*each) for each in SHARDS]
    head, other = solve_head(statistics), solve_head([statistics[i] for i in order])
    assert head.labels == other.labels
    assert torch.equal(head.weight_CE, other.weight_CE)
    assert torch.equal(head.bias_C, other.bias_C)


def test_few_rows_are_kept_as_rows_and_many_as_their_gram_matrix() -> None:
    few, many = class_statistics(*SHARDS[0]), class_statistics(*SHARDS[1])
    assert few.gram_VWW is None
    assert few.rows_NF is not None
    assert many.rows_NF is None
    assert many.gram_VWW is not None


def test_many_small_shards_make_the_head_of_all_their_rows_at_once() -> None:
    features_NF, labels = shard(SUMMED + 100, "abc", 5)
    pieces = [range(start, min(start + 9, len(labels))) for start in range(0, len(labels), 9)]
    small = [class_statistics(features_NF[piece], [labels[i] for i in piece]) for piece in pieces]
    assert all(each.rows_NF is not None for each in small)
    whole = solve_head([class_statistics(features_NF, labels)])
    torch.testing.assert_close(solve_head(small).weight_CE, whole.weight_CE, atol=1e-6, rtol=1e-5)


def test_a_shard_without_a_record_is_a_shard_that_never_had_it() -> None:
    features_NF, labels = SHARDS[1]
    without = class_statistics(torch.cat([features_NF[:5], features_NF[6:]]), labels[:5] + labels[6:])
    rest = [class_statistics(*each) for each in SHARDS[2:]]
    kept = [i for i in range(40) if i != 5]
    fresh = class_statistics(features_NF[kept], [labels[i] for i in kept])
    assert torch.equal(solve_head([without, *rest]).weight_CE, solve_head([*rest, fresh]).weight_CE)


@pytest.mark.parametrize("number", [0, 1])
def test_statistics_survive_their_tensors(number: int) -> None:
    statistics = class_statistics(*SHARDS[number])
    again = ClassStatistics.from_tensors(statistics.to_tensors())
    assert again.labels == statistics.labels
    assert torch.equal(solve_head([again]).weight_CE, solve_head([statistics]).weight_CE)


@pytest.mark.parametrize("rows", [1, 64, 300])
def test_rows_that_are_all_alike_make_a_head_of_their_shares(rows: int) -> None:
    features_NF = torch.randn(1, 32, generator=torch.Generator().manual_seed(0)).repeat(rows, 1)
    head = solve_head([class_statistics(features_NF, ["a"] * (rows - rows // 4) + ["b"] * (rows // 4))])
    regression_C = head_scores(replace(head, discriminant_CE=None), features_NF[:1])[0]
    assert regression_C[0] == pytest.approx((rows - rows // 4) / rows, abs=1e-3)
    assert bool(torch.isfinite(head_scores(head, features_NF[:1])).all())


MANY_CLASSES = """
import torch
from tasks.learning.heads import class_statistics, head_scores, solve_head

torch.set_num_threads(2)
names = [f"{n:03}" for n in range(200)] * 2
features_NF = torch.randn(200, 400, generator=torch.Generator().manual_seed(0)).repeat(2, 1)
head = solve_head([class_statistics(features_NF, names)])
found = head_scores(head, features_NF).argmax(1).tolist()
assert [head.labels[i] for i in found] == names
"""


def test_many_classes_are_told_apart_with_two_threads() -> None:
    """In a process of its own: what goes wrong there waits for ever in MKL."""
    subprocess.run([sys.executable, "-c", MANY_CLASSES], check=True, timeout=120)


def test_a_shard_without_a_label_makes_an_empty_head() -> None:
    assert solve_head([class_statistics(torch.zeros(0, 32), [])]).labels == ()


def test_errors_name_the_trouble() -> None:
    with pytest.raises(NonFiniteError):
        class_statistics(torch.full((2, 6), torch.inf), ["a", "b"])
    with pytest.raises(ValueError, match="at least one shard"):
        solve_head([])
