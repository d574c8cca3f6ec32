import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels.pack1 import pack1, reference, unpack1


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 5), st.integers(1, 40), st.integers(0, 2**31))
def test_bytes_and_values_match_the_definition(rows, values, seed):
    weight = torch.randn(rows, values, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    packed = pack1(weight)
    bits, scale = reference.pack1(weight)
    assert torch.equal(packed.bits_KB, bits)
    torch.testing.assert_close(packed.scale_K, scale)
    torch.testing.assert_close(unpack1(packed), reference.unpack1(bits, scale, values))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_packing_what_was_unpacked_changes_nothing(dtype):
    once = unpack1(pack1(torch.randn(3, 21, generator=torch.Generator().manual_seed(0)).to(dtype)))
    assert once.dtype == dtype
    torch.testing.assert_close(unpack1(pack1(once)), once)


def test_the_scale_is_the_best_one():
    weight = torch.randn(4, 30, generator=torch.Generator().manual_seed(0))
    best = torch.linalg.norm(weight - unpack1(pack1(weight)))
    for factor in (0.9, 1.1):
        assert best < torch.linalg.norm(weight - factor * unpack1(pack1(weight)))


def test_a_row_takes_a_bit_a_value():
    assert pack1(torch.ones(2, 17)).bits_KB.shape == (2, 3)


@pytest.mark.parametrize("weight", [torch.full((1, 2), float("nan")), torch.ones(2, 0)])
def test_rows_without_a_scale_are_refused(weight):
    with pytest.raises(ValueError, match="have no scale to pack"):
        pack1(weight)
