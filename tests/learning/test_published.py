"""SEMA's mixtures and MOS's retrieval hold the properties that their papers promise."""

import numpy as np
import pytest
import torch

from tasks.learning.adapters import AdapterSpec, AdapterWeights, new_adapter
from tasks.learning.backbones import Backbone
from tasks.learning.loops import Descent
from tasks.learning.mos import Mos, MosOptions, answer, learn_batch, solve_mos_head
from tasks.learning.router import first_mixture
from tasks.learning.sema import Sema, SemaOptions, add_statistics, answer_sema, enter_suffix, learn_first, learn_next
from tests.learning.conftest import apply_adapter, pictures

SHORT = Descent(epochs=1, learning_rate=0.05, minibatch=4)
HELD_OUT = list(range(0, 16, 2))


def shard(backbone: Backbone, number: int, classes: str, cut: int) -> tuple[list[torch.Tensor], list[str]]:
    labels = [classes[i % 2] for i in range(16)]
    images = [
        image // (1 + 3 * (label == classes[0])) for image, label in zip(pictures(16, seed=number), labels, strict=True)
    ]
    return backbone.encode(images, cut), labels


def random_block(backbone: Backbone, seed: int) -> AdapterWeights:
    adapter = new_adapter(backbone, AdapterSpec(rank=4, last_layers=1), seed)
    return {name: torch.randn_like(tensor) for name, tensor in adapter.items()}


@pytest.fixture(scope="module")
def mos(vit: Backbone) -> Mos:
    made = Mos(2, AdapterSpec(rank=4, last_layers=2), MosOptions(descent=SHORT))
    for number, classes in enumerate(("ab", "cd", "ef")):
        learn_batch(made, vit, *shard(vit, number, classes, 2), seed=1)
    return made


def test_a_mixture_of_one_is_that_adapter(vit: Backbone) -> None:
    adapter, hidden_BTD = random_block(vit, 1), torch.randn(3, 5, 32)
    mixed_BTD = first_mixture(3, adapter, 32).mix(hidden_BTD)
    torch.testing.assert_close(mixed_BTD, apply_adapter(adapter, 3, hidden_BTD))


def test_growing_keeps_old_columns_and_mixes_by_their_softmax(vit: Backbone) -> None:
    one, two, hidden_BTD = random_block(vit, 1), random_block(vit, 2), torch.randn(3, 5, 32)
    first = first_mixture(3, one, 32)
    both = first.grown(two, torch.randn(32), torch.tensor(0.5))
    assert torch.equal(both.router_KD[:1], first.router_KD)
    share_B = torch.sigmoid(hidden_BTD.mean(1) @ both.router_KD[1] + 0.5)[:, None, None]
    expected_BTD = (1 - share_B) * apply_adapter(one, 3, hidden_BTD) + share_B * apply_adapter(two, 3, hidden_BTD)
    torch.testing.assert_close(both.mix(hidden_BTD), expected_BTD)


@pytest.mark.parametrize(("threshold", "grows"), [(-1e9, True), (1e9, False)])
def test_sema_grows_where_nothing_explains_a_block(vit: Backbone, threshold: float, grows: bool) -> None:
    sema = Sema(vit, SemaOptions(descent=SHORT, threshold=threshold, watched=2, rank=4, descriptor_rank=3))
    states, labels = shard(vit, 0, "ab", 0)
    assert learn_first(sema, states, labels, HELD_OUT, 1).expanded == (0, 1, 2, 3)
    old = sema.mixtures[3].adapters[0]
    later, names = shard(vit, 1, "cd", 0)
    suffix = enter_suffix(sema, later)
    assert learn_next(sema, suffix, names, HELD_OUT, 1).expanded == ((2, 3) if grows else ())
    assert [len(sema.mixtures[block].adapters) for block in range(4)] == ([1, 1, 2, 2] if grows else [1] * 4)
    assert sema.mixtures[3].adapters[0] is old
    head = add_statistics(sema, [(enter_suffix(sema, states), labels), (suffix, names)])
    assert set(answer_sema(sema, head, suffix)) <= set("abcd")


def test_the_published_head_leaves_older_classes_alone(vit: Backbone) -> None:
    options = SemaOptions(descent=SHORT, threshold=1e9, watched=2, rank=4, descriptor_rank=3, published_head=True)
    sema = Sema(vit, options)
    learn_first(sema, *shard(vit, 0, "ab", 0), HELD_OUT, 1)
    before = sema.head["a"]
    states, names = shard(vit, 1, "cd", 0)
    learn_next(sema, enter_suffix(sema, states), names, HELD_OUT, 1)
    assert sema.head["a"] is before
    assert sorted(sema.head) == list("abcd")


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
