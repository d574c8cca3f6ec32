import torch

from registry.records import DecisionKind
from tasks import blobs, mixing, shift
from tasks.learning.sema import Scan, Shift
from tasks.policies.expansion import choose_growth
from tasks.shards import as_reference
from tests.flows.conftest import make_stream


def test_a_long_lived_adapter_is_compared_with_its_newest_rows_and_no_others_are_read(tmp_path, monkeypatch):
    read = []

    def load(shard_id: int) -> blobs.Tensors:
        read.append(shard_id)
        return as_reference(torch.full((2, 200, 3), float(shard_id)), [])

    monkeypatch.setattr(shift, "load_reference", load)
    reference = shift.reference_of(make_stream("long", tmp_path, tmp_path), range(100))
    assert read == [99, 98, 97]
    assert reference.rows_ND[:, 0].tolist() == [99.0] * 200 + [98.0] * 200 + [97.0] * 112


def test_a_layer_that_training_would_grow_is_not_rounded_down_to_one_that_knows_the_batch():
    found = mixing._told("mail-a1", Scan({3: Shift(1.00004, {"0": 1.0})}, ()))
    assert choose_growth(found, 40, 1.0, 20).kind == DecisionKind.EXPAND
