"""The least salient weights go, by magnitude or by SNIP, and their zeros are not stored."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from registry.artifacts import encode_tensors
from tasks.learning.adapters import AdapterSpec
from tasks.learning.backbones import Backbone
from tasks.learning.compression import PRECISIONS, compress, decompress
from tasks.learning.merging import merge
from tasks.learning.pruning import head_gradients, magnitude, prune, snip
from tasks.learning.training import Recipe, train_slice
from tests.learning.conftest import pictures
from tests.learning.test_compression import bottleneck
from tests.learning.test_merging import parent

LABELS = ["a", "b", "c"] * 5
SPEC = AdapterSpec(rank=4, last_layers=2)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 9), st.integers(0, 1000), st.floats(0.05, 0.95), st.sampled_from(["fp32", "bf16", "int8"]))
def test_what_was_pruned_comes_back_as_zero_and_all_else_as_without_pruning(rank, seed, sparsity, precision):
    weights = parent(seed, rank)
    left = prune(weights, magnitude(weights), sparsity)
    served, whole = decompress(compress(left, precision, pruned=True)), decompress(compress(left, precision))
    for name, tensor in weights.items():
        torch.testing.assert_close(served[name], whole[name], rtol=0, atol=0)
        if tensor.dim() > 1:
            gone = left[name] == 0
            assert int(gone.sum()) == int(sparsity * tensor.numel())
            if gone.any() and not gone.all():
                assert tensor[gone].abs().max() <= tensor[~gone].abs().min()
        else:
            assert torch.equal(left[name], tensor)


@pytest.mark.parametrize(
    ("precision", "pruned"), [(p, z) for p in PRECISIONS for z in (False, True) if (p, z) != ("1bit", True)]
)
def test_a_blob_does_not_depend_on_the_order_of_names(precision, pruned):
    """What is read from storage comes in another order than what was trained; a deletion compares the bytes."""
    weights = parent(3, 4)
    left = prune(weights, magnitude(weights), 0.4)
    other = dict(reversed(left.items()))
    assert list(other) != list(left)
    assert encode_tensors(compress(other, precision, pruned)) == encode_tensors(compress(left, precision, pruned))


def test_pruned_adapters_are_smaller_as_blobs():
    weights = bottleneck(384, 16, 2)
    left = prune(weights, magnitude(weights), 0.4)
    for precision, least in (("fp32", 1.5), ("bf16", 1.45), ("int8", 1.3)):
        dense, sparse = (len(encode_tensors(compress(left, precision, pruned))) for pruned in (False, True))
        assert dense / sparse >= least, (precision, dense, sparse)


def test_units_laid_side_by_side_lose_nothing_more():
    parents = [prune(w, magnitude(w), 0.5) for w in (parent(1), parent(2))]
    merged = merge({"operator": "cat", "shares": [0.5, 0.5]}, parents)
    again = prune(merged, magnitude(merged), 0.5)
    assert all(torch.equal(again[name], tensor) for name, tensor in merged.items())


def test_snip_keeps_what_the_loss_hangs_on(vit: Backbone):
    """A weight's score is what the loss changes by, to first order, where the weight becomes zero."""
    states = vit.encode(pictures(15), 2)
    trained = train_slice(vit, states, LABELS, 2, SPEC, Recipe(epochs=4, minibatch=4, learning_rate=2e-2), 1).adapter
    gradients = head_gradients(vit, states, LABELS, 2, trained)
    scores = snip(trained, gradients)
    name = "blocks.3.up.weight"
    assert torch.equal(scores[name], (trained[name] * gradients[name]).abs())
    assert all(scores[n].max() > 0 for n in scores if n.endswith("weight"))
    again = head_gradients(vit, states, LABELS, 2, trained)
    assert all(torch.equal(gradients[n], again[n]) for n in gradients)
    masks = [prune(trained, each, 0.5)[name] != 0 for each in (scores, magnitude(trained))]
    assert not torch.equal(*masks)
    untrained = train_slice(vit, states, LABELS, 2, SPEC, Recipe(epochs=0), 1).adapter
    assert snip(untrained, head_gradients(vit, states, LABELS, 2, untrained))["blocks.3.down.weight"].max() == 0


def test_pruned_weights_in_one_bit_are_refused():
    with pytest.raises(ValueError, match="knows signs alone"):
        compress(parent(1), "1bit", pruned=True)
