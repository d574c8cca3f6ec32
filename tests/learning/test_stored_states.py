import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.learning.stored_states import BYTES_PER_VALUE, pack, rounded, unpack


def states(tokens, width, seed=0, scale=1.0):
    return torch.randn(tokens, width, generator=torch.Generator().manual_seed(seed)) * scale


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 20), st.integers(1, 40), st.integers(0, 999))
def test_float32_is_exact_and_the_others_stay_within_a_step(tokens, width, seed):
    state_TD = states(tokens, width, seed)
    assert torch.equal(unpack(pack(state_TD, "float32"), "float32", width), state_TD)
    assert torch.allclose(rounded(state_TD, "bfloat16"), state_TD, rtol=2**-8, atol=0)
    step_T1 = state_TD.abs().amax(1, keepdim=True) / 127
    assert bool(((rounded(state_TD, "int8") - state_TD).abs() <= step_T1 * 0.5001).all())


@pytest.mark.parametrize("dtype", BYTES_PER_VALUE)
def test_sizes_and_rounding_twice_is_rounding_once(dtype):
    state_TD = states(7, 16)
    data = pack(state_TD, dtype)
    assert len(data) == 7 * (16 * BYTES_PER_VALUE[dtype] + 4 * (dtype == "int8"))
    once = rounded(state_TD, dtype)
    torch.testing.assert_close(rounded(once, dtype), once, rtol=1e-6, atol=0)


def test_a_token_of_zeros_and_strides():
    assert not rounded(torch.zeros(2, 4), "int8").any()
    strided = states(8, 6).T
    assert torch.equal(rounded(strided, "float32"), strided)
    assert torch.equal(rounded(strided, "bfloat16"), strided.contiguous().bfloat16().float())


def test_a_type_that_is_not_known_is_refused():
    with pytest.raises(ValueError, match="use float32, bfloat16, int8"):
        pack(states(1, 1), "fp4")
