"""MOS merges once per step, retrieves what a record visits, and evaluating it changes nothing."""

import numpy as np
import pytest
import torch
from torch.optim.optimizer import register_optimizer_step_pre_hook

from tasks.learning.adapters import AdapterSpec
from tasks.learning.backbones import Backbone
from tasks.learning.loops import Descent
from tasks.learning.mos import Mos, MosOptions, answer, learn_batch, moments_of, solve_mos_head
from tests.learning.conftest import pictures, shard

SHORT = Descent(epochs=1, learning_rate=0.05, minibatch=4)


@pytest.fixture(scope="module")
def mos(vit: Backbone) -> Mos:
    made = Mos(2, AdapterSpec(rank=4, last_layers=2), MosOptions(descent=SHORT))
    for number, classes in enumerate(("ab", "cd", "ef")):
        learn_batch(made, vit, *shard(vit, number, classes, 2), seed=1)
    return made


def test_evaluating_changes_no_weight_and_repeats_itself(vit: Backbone, mos: Mos) -> None:
    states, head = vit.encode(pictures(12, seed=9), 2), solve_mos_head(mos)
    weights = [{name: tensor.clone() for name, tensor in adapter.items()} for adapter in mos.adapters]
    first, second = answer(mos, head, vit, states), answer(mos, head, vit, states)
    assert torch.equal(first.scores_NC, second.scores_NC)
    for adapter, before in zip(mos.adapters, weights, strict=True):
        assert all(torch.equal(adapter[name], before[name]) for name in adapter)


def test_a_record_is_run_under_the_adapters_it_visits_only(vit: Backbone, mos: Mos) -> None:
    states, head = vit.encode(pictures(12, seed=9), 2), solve_mos_head(mos)
    both = answer(mos, head, vit, states)
    broken = {name: torch.full_like(tensor, torch.nan) for name, tensor in mos.adapters[2].items()}
    without = Mos(**{**vars(mos), "adapters": [*mos.adapters[:2], broken]})
    stay = [i for i, visits in enumerate(both.visits) if 2 not in visits]
    assert stay
    assert torch.equal(answer(without, head, vit, [states[i] for i in stay]).scores_NC, both.scores_NC[stay])


def test_a_class_that_returns_keeps_the_prototype_and_adapter_of_every_batch(vit: Backbone) -> None:
    returned = Mos(2, AdapterSpec(rank=4, last_layers=2), MosOptions(descent=SHORT, merge=0.0, ensemble=False))
    labels = ["a"] * 8 + ["b"] * 8
    dark = [image // 4 for image in pictures(16, seed=3)]
    looks = [vit.encode(images, 2) for images in (dark, [255 - image for image in dark])]
    for states in looks:
        learn_batch(returned, vit, states, labels, seed=1)
    head = solve_mos_head(returned)
    assert head.labels == ("a", "b")
    first, second = (answer(returned, head, vit, states).visits for states in looks)
    assert set(first) == {(0,)}
    assert set(second) == {(0, 1)}
    aligned = Mos(**{**vars(returned), "options": MosOptions(alignment="sgd")})
    assert solve_mos_head(aligned, seed=1).labels == ("a", "b")


def test_a_full_merge_pins_an_adapter_to_the_mean_of_the_earlier(vit: Backbone) -> None:
    pinned = Mos(2, AdapterSpec(rank=4, last_layers=2), MosOptions(descent=SHORT, merge=1.0))
    for number, classes in enumerate(("ab", "cd")):
        learn_batch(pinned, vit, *shard(vit, number, classes, 2), seed=1)
    for name, tensor in pinned.adapters[1].items():
        torch.testing.assert_close(tensor, pinned.adapters[0][name])


def test_without_merging_an_adapter_depends_on_its_own_shard_alone(vit: Backbone) -> None:
    options = MosOptions(descent=SHORT, merge=0.0, warm_start=False, orthogonality=0.0)
    alone, second = (Mos(2, AdapterSpec(rank=4, last_layers=2), options) for _ in range(2))
    learn_batch(second, vit, *shard(vit, 0, "ab", 2), seed=1)
    for made in (alone, second):
        learn_batch(made, vit, *shard(vit, 1, "cd", 2), seed=1)
    assert all(torch.equal(alone.adapters[0][name], second.adapters[1][name]) for name in alone.adapters[0])


@pytest.mark.parametrize("alignment", ["closed-form", "sgd"])
def test_either_alignment_tells_dark_from_bright(vit: Backbone, mos: Mos, alignment: str) -> None:
    aligned = Mos(**{**vars(mos), "options": MosOptions(alignment=alignment)})
    states, labels = shard(vit, 7, "ab", 2)
    answered = answer(aligned, solve_mos_head(aligned, seed=1), vit, states).labels
    assert np.mean([(a in "ace") == (b in "ace") for a, b in zip(answered, labels, strict=True)]) > 0.8


def test_alignment_is_one_descent_along_one_cosine_from_the_trained_head(mos: Mos) -> None:
    aligned = Mos(**{**vars(mos), "options": MosOptions(alignment="sgd")})
    steps: list[tuple[int, float, float]] = []

    def note(optimizer: torch.optim.Optimizer, *_: object) -> None:
        group = optimizer.param_groups[0]
        steps.append((id(optimizer), group["lr"], float(group["params"][0].detach().abs().max())))

    handle = register_optimizer_step_pre_hook(note)
    solve_mos_head(aligned, seed=1)
    handle.remove()
    assert len({number for number, _, _ in steps}) == 1
    rates = [0.005 * (1 + np.cos(np.pi * epoch / 30)) / 2 for epoch in range(30) for _ in "abcdef"]
    assert [rate for _, rate, _ in steps] == pytest.approx(rates)
    assert steps[0][2] == max(float(weight_F.abs().max()) for weight_F, _ in mos.head.values())


def test_one_batch_keeps_the_head_that_it_trained(vit: Backbone) -> None:
    first = Mos(2, AdapterSpec(rank=4, last_layers=2), MosOptions(descent=SHORT, alignment="sgd"))
    learn_batch(first, vit, *shard(vit, 0, "ab", 2), seed=1)
    head = solve_mos_head(first)
    width = len(first.head["a"][0])
    assert all(torch.equal(head.weight_CE[i, :width], first.head[name][0]) for i, name in enumerate("ab"))
    assert bool(head.weight_CE.any())


def test_a_step_merges_exactly_once(vit: Backbone) -> None:
    def one_step(merge: float) -> Mos:
        made = Mos(
            2, AdapterSpec(rank=4, last_layers=2), MosOptions(descent=Descent(1, 10.0, minibatch=16), merge=merge)
        )
        for number, classes in enumerate(("ab", "cd")):
            learn_batch(made, vit, *shard(vit, number, classes, 2), seed=1)
        return made

    plain, merged = one_step(0.0), one_step(0.1)
    moved = 0.0
    for name, first in plain.adapters[0].items():
        once = torch.lerp(plain.adapters[1][name], first, 0.1)
        moved = max(moved, float((torch.lerp(once, first, 0.1) - once).abs().max()))
        torch.testing.assert_close(merged.adapters[1][name], once, atol=1e-8, rtol=1e-5)
    assert moved > 1e-5  # a second merge would be seen


@pytest.mark.parametrize("count", [5, 40])
def test_the_factor_of_few_or_many_rows_holds_their_covariance(count: int) -> None:
    rows_NF = torch.randn(count, 12, generator=torch.Generator().manual_seed(count)) * torch.arange(1, 13)
    moments = moments_of(rows_NF)
    assert len(moments.factor_KF) == min(count, 12)
    covariance_FF = moments.factor_KF.mT @ moments.factor_KF / (count - 1)
    torch.testing.assert_close(covariance_FF, torch.cov(rows_NF.mT), atol=1e-3, rtol=1e-4)


def test_draws_have_the_published_mean_and_covariance() -> None:
    rows_NF = torch.randn(6, 4, generator=torch.Generator().manual_seed(1))
    drawn_NF = moments_of(rows_NF).draw(100_000, torch.Generator().manual_seed(2))
    torch.testing.assert_close(drawn_NF.mean(0), rows_NF.mean(0), atol=0.03, rtol=0)
    expected_FF = torch.cov(rows_NF.mT) + 1e-4 * torch.eye(4)
    torch.testing.assert_close(torch.cov(drawn_NF.mT), expected_FF, atol=0.05, rtol=0.05)
