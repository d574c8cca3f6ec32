"""SEMA grows where nothing explains a block, mixes as published, and leaves what is older alone."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.learning import sema as sema_module
from tasks.learning.adapters import AdapterSpec, AdapterWeights, new_adapter
from tasks.learning.backbones import Backbone
from tasks.learning.descriptors import z_scores
from tasks.learning.features import run_suffix
from tasks.learning.loops import Descent
from tasks.learning.router import first_mixture
from tasks.learning.sema import Sema, SemaOptions, add_statistics, answer_sema, enter_suffix, learn_first, learn_next
from tests.learning.conftest import apply_adapter, shard

SHORT = Descent(epochs=1, learning_rate=0.05, minibatch=4)
HELD_OUT = list(range(0, 16, 2))
OPTIONS = SemaOptions(descent=SHORT, watched=2, rank=4, descriptor_rank=3)


def random_block(backbone: Backbone, seed: int) -> AdapterWeights:
    adapter = new_adapter(backbone, AdapterSpec(rank=4, last_layers=1), seed)
    return {name: torch.randn_like(tensor) for name, tensor in adapter.items()}


def after_first(backbone: Backbone, options: SemaOptions) -> Sema:
    made = Sema(backbone, options)
    learn_first(made, *shard(backbone, 0, "ab", 0), HELD_OUT, 1)
    return made


def signature(sema: Sema, states: list[torch.Tensor], block: int) -> torch.Tensor:
    """(1, N, D): of one block under the mixtures as they are now."""
    deltas = {number: mixture.mix for number, mixture in sema.mixtures.items()}
    return run_suffix(sema.backbone, states, sema.cut, deltas=deltas).signatures_LND[block - sema.cut][None]


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 20), st.integers(0, 5), st.integers(1, 9), st.integers(0, 2**31))
def test_a_mixture_of_one_is_that_adapter(vit: Backbone, rank: int, rows: int, tokens: int, seed: int) -> None:
    """Whatever its router column holds."""
    torch.manual_seed(seed)
    new = new_adapter(vit, AdapterSpec(rank=rank, last_layers=1), seed)
    adapter, hidden_BTD = {name: torch.randn_like(t) / 4 for name, t in new.items()}, torch.randn(rows, tokens, 32)
    mixture = replace(first_mixture(3, adapter, 32), router_KD=torch.randn(1, 32), bias_K=torch.randn(1))
    torch.testing.assert_close(mixture.mix(hidden_BTD), apply_adapter(adapter, 3, hidden_BTD), atol=1e-4, rtol=1e-4)


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


def test_score_statistics_are_those_of_held_out_rows_under_the_final_descriptor(vit: Backbone) -> None:
    sema = after_first(vit, OPTIONS)
    suffix = enter_suffix(sema, shard(vit, 0, "ab", 0)[0])
    for block in (2, 3):
        z_N = z_scores(sema.descriptors[block][0], signature(sema, [suffix[i] for i in HELD_OUT], block))[0]
        assert float(z_N.mean()) == pytest.approx(0, abs=1e-4)
        assert float(z_N.std()) == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize(("two_sided", "grows"), [(False, ()), (True, (2, 3))])
def test_a_smaller_error_than_usual_grows_a_block_by_option_only(
    vit: Backbone, two_sided: bool, grows: tuple[int, ...]
) -> None:
    sema = after_first(vit, replace(OPTIONS, two_sided=two_sided, threshold=1.0))
    for block, (descriptor,) in sema.descriptors.items():
        sema.descriptors[block] = [replace(descriptor, score_mean_L=100 * descriptor.score_mean_L)]
    states, names = shard(vit, 1, "ab", 0)
    assert learn_next(sema, enter_suffix(sema, states), names, HELD_OUT, 1).expanded == grows


def test_a_ragged_minibatch_decides_nothing(vit: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sema_module, "DETECTION_ROWS", 8)
    sema = after_first(vit, replace(OPTIONS, threshold=3.0, two_sided=True))
    states, names = shard(vit, 0, "ab", 0)
    familiar = [states[i] for i in HELD_OUT]
    strange = vit.encode([np.full((3, 16, 16), 255 * (i % 2), np.uint8) for i in range(4)], 0)
    rows = enter_suffix(sema, familiar + strange + states[:4])
    assert learn_next(sema, rows, names, range(12), 1).expanded == ()
    assert learn_next(sema, rows[4:12] + rows[:4] + rows[12:], names, range(12), 1).expanded != ()


def test_a_deeper_block_is_judged_under_what_a_shallower_one_has_grown(vit: Backbone) -> None:
    sema = after_first(vit, replace(OPTIONS, threshold=-1e9))
    states, names = shard(vit, 1, "cd", 0)
    suffix = enter_suffix(sema, states)
    held_out = [suffix[i] for i in HELD_OUT]
    before_1ND, descriptor = signature(sema, held_out, 3), sema.descriptors[3][0]
    found = learn_next(sema, suffix, names, HELD_OUT, 1).z_scores[3]["0"]
    after_1ND = signature(sema, held_out, 3)
    assert found == pytest.approx(float(z_scores(descriptor, after_1ND).mean()), abs=1e-3)
    assert not torch.equal(before_1ND, after_1ND)


def test_growing_trains_nothing_that_is_older(vit: Backbone) -> None:
    sema = after_first(vit, replace(OPTIONS, threshold=-1e9))
    old = {block: {n: t.clone() for n, t in m.adapters[0].items()} for block, m in sema.mixtures.items()}
    columns = {block: mixture.router_KD.clone() for block, mixture in sema.mixtures.items()}
    states, names = shard(vit, 1, "cd", 0)
    learn_next(sema, enter_suffix(sema, states), names, HELD_OUT, 1)
    for block, mixture in sema.mixtures.items():
        assert all(torch.equal(mixture.adapters[0][name], old[block][name]) for name in old[block])
        assert torch.equal(mixture.router_KD[:1], columns[block])
    assert bool((sema.mixtures[3].adapters[1]["blocks.3.up.weight"] != 0).any())
