"""What is stored is what serves: every form comes back as it was measured, for bottlenecks and for LoRA's factors."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from registry.artifacts import encode_tensors
from tasks.learning.adapters import AdapterWeights
from tasks.learning.compression import PRECISIONS, compress, decompress, num_units
from tasks.learning.merging import merge
from tests.learning.test_merging import lora, parent


def bottleneck(width: int, rank: int, layers: int) -> AdapterWeights:
    generator = torch.Generator().manual_seed(0)
    sizes = {"down.weight": (rank, width), "down.bias": (rank,), "up.weight": (width, rank), "up.bias": (width,)}
    return {f"blocks.{b}.{n}": torch.randn(s, generator=generator) for b in range(layers) for n, s in sizes.items()}


@pytest.mark.parametrize("make", [parent, lora])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_form_comes_back_with_every_name_and_shape(make, precision):
    weights = make(1)
    served = decompress(compress(weights, precision))
    assert {name: t.shape for name, t in served.items()} == {name: t.shape for name, t in weights.items()}
    assert all(t.dtype == torch.float32 and t.is_contiguous() for t in served.values())
    assert num_units(served) == 4


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 9), st.integers(0, 1000), st.sampled_from(PRECISIONS))
def test_the_error_is_what_the_precision_promises(rank, seed, precision):
    weights = parent(seed, rank)
    served = decompress(compress(weights, precision))
    for name, tensor in weights.items():
        error, largest = (served[name] - tensor).abs().max(), tensor.abs().max()
        if precision == "1bit" and tensor.dim() > 1:
            assert torch.equal(served[name] >= 0, tensor >= 0)
            units = 0 if ".down." in name else 1
            torch.testing.assert_close(served[name].abs().mean(1 - units), tensor.abs().mean(1 - units))
        else:
            assert error <= largest * {"fp32": 0, "bf16": 2**-8, "int8": 1 / 254, "1bit": 1 / 254}[precision] + 1e-7


def test_one_bit_is_twenty_times_smaller_as_a_blob():
    for layers in (2, 4):
        weights = bottleneck(384, 16, layers)
        whole, stored = (len(encode_tensors(compress(weights, precision))) for precision in ("fp32", "1bit"))
        assert whole / stored >= 20, (whole, stored)


def test_forms_lie_in_the_order_of_their_size():
    sizes = [len(encode_tensors(compress(bottleneck(384, 16, 2), precision))) for precision in PRECISIONS]
    assert sizes == sorted(sizes)


def test_units_laid_side_by_side_keep_their_scales():
    parents = [decompress(compress(parent(seed), "1bit")) for seed in (1, 2)]
    merged = merge({"operator": "cat", "shares": [0.5, 0.5]}, parents)
    served = decompress(compress(merged, "1bit"))
    for name, tensor in merged.items():
        if tensor.dim() > 1:
            torch.testing.assert_close(served[name], tensor)


def test_an_unknown_precision_is_refused():
    with pytest.raises(ValueError, match="'2bit': use 1bit, int8"):
        compress(parent(1), "2bit")
