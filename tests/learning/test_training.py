"""Training learns, repeats itself to the bit, and resumes where a killed worker stopped."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.nn.functional import cross_entropy, linear

from tasks.learning.adapters import AdapterSpec, deltas_of, nested_ranks, new_adapter, truncate
from tasks.learning.backbones import Backbone, load_backbone
from tasks.learning.features import features, late_view, run_suffix, training_features, training_features_from
from tasks.learning.stored_states import pack, unpack
from tasks.learning.tensors import NonFiniteError
from tasks.learning.training import Recipe, TrainState, train_slice
from tests.learning.conftest import pictures, sentences

SPEC = AdapterSpec(rank=4, last_layers=2)
LABELS = ["a", "b", "c"] * 5


def assert_same(first: TrainState, second: TrainState) -> None:
    one, two = first.to_tensors(), second.to_tensors()
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)


@pytest.fixture(scope="module")
def states(vit: Backbone) -> list[torch.Tensor]:
    return vit.encode(pictures(15), 2)


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_the_loss_falls_and_the_bytes_repeat(vit: Backbone, states: list[torch.Tensor], optimizer: str) -> None:
    losses: list[float] = []
    recipe = Recipe(epochs=5, minibatch=4, optimizer=optimizer)
    first = train_slice(vit, states, LABELS, 2, SPEC, recipe, 1, on_epoch=lambda _, loss: losses.append(loss))
    assert losses[-1] < losses[0]
    assert_same(first, train_slice(vit, states, LABELS, 2, SPEC, recipe, 1))
    other = train_slice(vit, states, LABELS, 2, SPEC, recipe, 2)
    assert not torch.equal(first.adapter["blocks.3.up.weight"], other.adapter["blocks.3.up.weight"])


@pytest.mark.parametrize(("optimizer", "nested"), [("adamw", False), ("sgd", False), ("adamw", True)])
def test_a_killed_run_resumes_to_the_same_bytes(
    vit: Backbone, states: list[torch.Tensor], optimizer: str, nested: bool
) -> None:
    recipe = Recipe(epochs=4, minibatch=4, optimizer=optimizer, nested=nested)
    stored: list[dict[str, torch.Tensor]] = []
    whole = train_slice(vit, states, LABELS, 2, SPEC, recipe, 1, on_state=lambda s: stored.append(s.to_tensors()))
    middle = TrainState.from_tensors(stored[1])
    assert_same(whole, train_slice(vit, states, LABELS, 2, SPEC, recipe, 1, start=middle))


def test_a_nested_training_serves_every_smaller_rank(vit: Backbone, states: list[torch.Tensor]) -> None:
    """Cut to its first units, an adapter trained nested fits its rows better than one whose units share the work."""
    recipe = Recipe(epochs=12, minibatch=4, learning_rate=2e-2)

    def losses(nested: bool) -> list[float]:
        state = train_slice(vit, states, LABELS, 2, SPEC, replace(recipe, nested=nested), 1)
        targets = torch.tensor([state.labels.index(label) for label in LABELS])
        smaller = (truncate(state.adapter, rank) for rank in nested_ranks(SPEC.rank)[:-1])
        seen = (late_view(features(vit, states, 2, weights)) for weights in smaller)
        return [float(cross_entropy(linear(x, state.head["weight"], state.head["bias"]), targets)) for x in seen]

    assert nested_ranks(SPEC.rank) == [1, 2, 4]
    assert all(mine < theirs for mine, theirs in zip(losses(nested=True), losses(nested=False), strict=True))


def test_the_next_slice_goes_on_and_may_bring_classes(vit: Backbone, states: list[torch.Tensor]) -> None:
    recipe = Recipe(epochs=1, minibatch=4)
    first = train_slice(vit, states[:9], LABELS[:9], 2, SPEC, recipe, 1)
    second = train_slice(vit, states[9:], ["d"] * 6, 2, SPEC, recipe, 1, start=first)
    assert second.labels == ("a", "b", "c", "d")
    assert not torch.equal(first.adapter["blocks.2.down.weight"], second.adapter["blocks.2.down.weight"])


def test_texts_of_several_lengths_train(bert: Backbone) -> None:
    state = train_slice(bert, bert.encode(sentences(6), 2), list("ababab"), 2, SPEC, Recipe(epochs=1, minibatch=3), 1)
    assert all(torch.isfinite(t).all() for t in state.adapter.values())


def test_backward_passes_are_counted(vit: Backbone, states: list[torch.Tensor]) -> None:
    before = vit.work.backwards
    train_slice(vit, states, LABELS, 2, SPEC, Recipe(epochs=2), 1)
    assert vit.work.backwards - before == 2 * 2 * 15


@pytest.mark.parametrize("name", ["vit", "dinov2", "bert"])
def test_training_from_where_an_adapter_joins_is_training_from_the_states_before(
    folders: dict[str, Path], name: str
) -> None:
    backbone = load_backbone(str(folders[name]))
    states = backbone.encode(sentences(8) if name == "bert" else pictures(8, 28), 2)
    starts = run_suffix(backbone, states, 2, keep_starts=True).starts
    weights = new_adapter(backbone, SPEC, 1)
    gradients = []
    for rows, run in ((states, training_features), (starts, training_features_from)):
        live = {n: torch.randn(t.shape, generator=torch.Generator().manual_seed(1)) / 8 for n, t in weights.items()}
        before = backbone.work.backwards
        features_BF = run(backbone, rows, 2, deltas_of({n: t.requires_grad_() for n, t in live.items()}))
        features_BF.square().mean().backward()
        gradients.append((features_BF.detach(), {n: t.grad for n, t in live.items()}, backbone.work.backwards - before))
    (one_BF, one, all_blocks), (two_BF, two, fewer) = gradients
    torch.testing.assert_close(one_BF, two_BF)
    torch.testing.assert_close(one, two)
    assert (all_blocks, fewer) == (16, 8)


@pytest.mark.parametrize("name", ["bert", "vit"])
def test_gradients_from_cached_states_are_those_of_the_whole_pass_to_the_bit(
    folders: dict[str, Path], name: str
) -> None:
    """The states go through their stored form, unpadded; the whole pass starts at the embedding, padded alike."""
    backbone = load_backbone(str(folders[name]))
    records = [" ".join("abcdefghijklmn"[n:]) for n in (6, 0, 3, 1, 5, 2, 4, 0)] if name == "bert" else pictures(8)
    embedded = backbone.encode(records, 0)
    cached = [unpack(pack(state, "float32"), "float32", backbone.width) for state in backbone.encode(records, 2)]
    weights = {n: torch.randn_like(t) / 8 for n, t in new_adapter(backbone, SPEC, 1).items()}

    def gradients(states: list[torch.Tensor], cut: int) -> list[torch.Tensor]:
        live = {n: t.clone().requires_grad_() for n, t in weights.items()}
        late_BF = late_view(training_features(backbone, states, cut, deltas_of(live)))
        loss = cross_entropy(late_BF[:, -backbone.width :], torch.arange(8))
        return list(torch.autograd.grad(loss, list(live.values())))

    whole, from_cache = gradients(embedded, 0), gradients(cached, 2)
    assert all(torch.equal(a, b) and bool(a.any()) for a, b in zip(whole, from_cache, strict=True))
    rounded = [unpack(pack(state, "bfloat16"), "bfloat16", backbone.width) for state in cached]
    assert not any(torch.equal(a, b) for a, b in zip(whole, gradients(rounded, 2), strict=True))


def test_divergence_and_unknown_optimisers_are_errors(vit: Backbone, states: list[torch.Tensor]) -> None:
    with pytest.raises(NonFiniteError, match="training loss"):
        train_slice(vit, states, LABELS, 2, SPEC, Recipe(learning_rate=1e38, optimizer="sgd", minibatch=4), 1)
    with pytest.raises(ValueError, match="adamw"):
        train_slice(vit, states, LABELS, 2, SPEC, Recipe(optimizer="lion"), 1)
