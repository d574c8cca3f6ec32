"""Composition: entitlement first, adapters only where they are visited."""

from dataclasses import replace

import pytest
import torch

from tasks.learning.adapters import AdapterSpec, new_adapter
from tasks.learning.backbones import Backbone
from tasks.learning.composition import AdapterEntry, KnownLook, ServingModel, compose, predict, predict_each
from tasks.learning.descriptors import fit_descriptor
from tasks.learning.features import run_suffix
from tasks.learning.heads import class_statistics
from tests.learning.conftest import pictures

SPEC = AdapterSpec(rank=4, last_layers=2)


def entry(backbone: Backbone, number: int, group: str, classes: str) -> AdapterEntry:
    adapter = {k: torch.randn_like(v) / 8 for k, v in new_adapter(backbone, SPEC, number).items()}
    states = backbone.encode(pictures(12, seed=number), 2)
    signatures_LND = run_suffix(backbone, states, 2).signatures_LND
    adapted = run_suffix(backbone, states, 2, adapter)
    statistics = class_statistics(adapted.features_NF, [classes[i % len(classes)] for i in range(12)])
    descriptor = fit_descriptor(signatures_LND[:, :6], signatures_LND[:, 6:], rank=3)
    return AdapterEntry(f"adapter-{number}", group, adapter, descriptor, (statistics,))


@pytest.fixture(scope="module")
def model(vit: Backbone) -> ServingModel:
    frozen = {}
    for number, (group, classes) in enumerate((("red", "ab"), ("blue", "bc"))):
        features_NF = run_suffix(vit, vit.encode(pictures(12, seed=number), 2), 2).features_NF
        frozen[group] = (class_statistics(features_NF, [classes[i % 2] for i in range(12)]),)
    return ServingModel(2, SPEC, frozen, (entry(vit, 0, "red", "ab"), entry(vit, 1, "blue", "bc")))


def test_nothing_of_another_group_takes_part(vit: Backbone, model: ServingModel) -> None:
    alone = ServingModel(2, SPEC, {"red": model.frozen["red"]}, model.adapters[:1])
    states = vit.encode(pictures(9, seed=5), 2)
    mine, only = (predict(vit, compose(each, {"red"}), states) for each in (model, alone))
    assert torch.equal(mine.scores_NC, only.scores_NC)
    assert set(mine.labels) <= {"a", "b"}
    assert set(mine.adapter_ids) <= {"adapter-0", None}


def test_removing_an_adapter_leaves_records_that_do_not_visit_it(vit: Backbone, model: ServingModel) -> None:
    states = vit.encode(pictures(30, seed=6), 2)
    both = predict(vit, compose(model, {"red", "blue"}), states)
    less = ServingModel(2, SPEC, model.frozen, model.adapters[:1])
    one = predict(vit, compose(less, {"red", "blue"}), states)
    stay = [i for i, visited in enumerate(both.visits) if "adapter-1" not in visited]
    assert 0 < len(stay) < 30
    assert torch.equal(both.scores_NC[stay], one.scores_NC[stay])


def test_a_record_that_looks_like_a_waiting_adapters_shard_is_left_to_the_exact_head(
    vit: Backbone, model: ServingModel
) -> None:
    states = [state for seed in (0, 1, 6) for state in vit.encode(pictures(12, seed=seed), 2)]
    first, second = model.adapters
    waits = replace(model, adapters=(first,), waiting=(KnownLook("adapter-1", "blue", second.descriptor),))
    both, one = (predict(vit, compose(each, {"red", "blue"}), states) for each in (model, waits))
    exact = predict(vit, compose(model, {"red", "blue"}).alone(), states)
    theirs = [i for i, visited in enumerate(both.visits) if visited == ("adapter-1",)]
    mine = [i for i, visited in enumerate(both.visits) if visited == ("adapter-0",)]
    assert min(len(theirs), len(mine)) > 0
    assert torch.equal(one.scores_NC[theirs], exact.scores_NC[theirs])
    assert [one.visits[i] for i in theirs] == [()] * len(theirs)
    assert torch.equal(one.scores_NC[mine], both.scores_NC[mine])
    alone = predict(vit, compose(replace(waits, waiting=()), {"red"}), states)
    assert torch.equal(predict(vit, compose(waits, {"red"}), states).scores_NC, alone.scores_NC)


def test_only_visited_adapters_cost_blocks_and_heads(vit: Backbone, model: ServingModel) -> None:
    """A record runs the suffix once frozen; each visit runs it again but for the first block, which is shared."""
    states = vit.encode(pictures(30, seed=6), 2)
    signatures_LND = run_suffix(vit, states, 2).signatures_LND + 9
    nowhere = fit_descriptor(signatures_LND[:, :15], signatures_LND[:, 15:], rank=3)
    far = [replace(model.adapters[0], adapter_id=f"far-{n}", descriptor=nowhere) for n in range(20)]
    crowded = replace(model, adapters=(*model.adapters, *far))
    for each, groups in ((replace(model, adapters=()), "red"), (model, "red"), (model, "both"), (crowded, "both")):
        composed = compose(each, {"red", "blue"} if groups == "both" else {"red"})
        before = vit.work.forwards
        (found,) = predict_each(vit, [(composed, states)])
        visits = sum(map(len, found.visits))
        assert vit.work.forwards - before == 30 * SPEC.last_layers + visits * (SPEC.last_layers - 1)
        assert set(composed.solved) == {name for visited in found.visits for name in visited}
        assert (visits > 0) == bool(each.adapters)
        assert visits < 30 * 2


def test_callers_answered_together_get_what_each_gets_alone(vit: Backbone, model: ServingModel) -> None:
    callers = [compose(model, groups) for groups in ({"red"}, {"red", "blue"}, {"blue"})]
    requests = [(each, vit.encode(pictures(3 + 5 * n, seed=n), 2)) for n, each in enumerate(callers)]
    together = predict_each(vit, requests)
    for answer, (composed, states) in zip(together, requests, strict=True):
        alone = predict(vit, composed, states)
        assert torch.equal(answer.scores_NC, alone.scores_NC)
        assert answer.visits == alone.visits
        one = predict(vit, composed, states[-1:])
        assert torch.equal(answer.scores_NC[-1:], one.scores_NC)


def test_an_adapter_of_two_groups_needs_both_and_one_of_none_is_denied(model: ServingModel) -> None:
    shared = replace(model.adapters[0], adapter_id="shared", group="blue\x1fred")
    unknown = replace(model.adapters[1], adapter_id="unknown", group="")
    everything = replace(model, adapters=(*model.adapters, shared, unknown))
    for groups, expected in (({"red"}, ["adapter-0"]), ({"red", "blue"}, ["adapter-0", "adapter-1", "shared"])):
        assert [entry.adapter_id for entry in compose(everything, groups).adapters] == expected


def test_a_group_without_data_is_told_so(model: ServingModel) -> None:
    with pytest.raises(ValueError, match="green"):
        compose(model, {"green"})
