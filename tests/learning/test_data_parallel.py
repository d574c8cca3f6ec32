"""Several processes train what one does, up to rounding; what one process trains keeps its bytes."""

from functools import partial

import pytest
import torch

from tasks.learning.adapters import AdapterSpec
from tasks.learning.backbones import load_backbone
from tasks.learning.data_parallel import Slice, train_together
from tasks.learning.training import Recipe, train_slice
from tests.learning.conftest import sentences

SPEC = AdapterSpec(rank=4, last_layers=2)


@pytest.mark.services  # two interpreters that import torch
@pytest.mark.parametrize(("optimizer", "rate"), [("adamw", 1e-2), ("sgd", 0.2)])
def test_two_processes_train_what_one_does_up_to_rounding(folders, bert, optimizer, rate):
    """13 rows in minibatches of 4: the last one is a single row, which leaves the second process without any."""
    recipe = Recipe(epochs=4, minibatch=4, optimizer=optimizer, learning_rate=rate, head_learning_rate=rate)
    states, labels = bert.encode(sentences(13), 2), list("abcabcabcabca")
    losses: dict[str, list[float]] = {"one": [], "two": []}
    first = train_slice(bert, states[:6], labels[:6], 2, SPEC, recipe, 1)
    work = Slice(states, labels, 2, SPEC, recipe, 2, first)
    one = train_slice(bert, states, labels, 2, SPEC, recipe, 2, first, on_epoch=lambda _, x: losses["one"].append(x))
    load = partial(load_backbone, str(folders["bert"]))
    two = train_together(load, work, 2, cuda=False, on_epoch=lambda _, x: losses["two"].append(x))
    assert (two.labels, two.epoch) == (one.labels, one.epoch)
    assert losses["two"] == pytest.approx(losses["one"], rel=1e-4)
    expected, found = one.to_tensors(), two.to_tensors()
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-5)
    moved = max((one.adapter[name] - first.adapter[name]).abs().max() for name in one.adapter)
    assert moved > 1e-3, "the weights went much further than the tolerance"


@pytest.mark.services
def test_an_error_of_one_process_is_told(folders, bert):
    recipe = Recipe(learning_rate=1e38, optimizer="sgd", minibatch=4)
    work = Slice(bert.encode(sentences(8), 2), list("abababab"), 2, SPEC, recipe, 1)
    with pytest.raises(Exception, match="training loss"):
        train_together(partial(load_backbone, str(folders["bert"])), work, 2, cuda=False)
