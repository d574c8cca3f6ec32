import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels.ema import ema
from kernels.ema import reference as ema_reference
from kernels.merge_n import merge_n
from kernels.merge_n import reference as merge_reference
from kernels.ties import reference as ties_reference
from kernels.ties import ties


def draw(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 6), st.lists(st.integers(1, 5), max_size=3), st.integers(0, 2**31))
def test_merge_n_matches_the_loop(num, shape, seed):
    stack, weight = draw(num, *shape, seed=seed), draw(num, seed=seed + 1)
    torch.testing.assert_close(merge_n(stack, weight), merge_reference.merge_n(stack, weight))


def test_merge_n_is_differentiable_and_takes_strides():
    stack, weight = draw(3, 4, 2).requires_grad_(), draw(3).requires_grad_()
    assert torch.autograd.gradcheck(lambda s, w: merge_n(s.mT, w), (stack, weight))


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 6), st.integers(1, 30), st.floats(0, 1), st.integers(0, 2**31))
def test_ties_matches_the_definition(num, values, density, seed):
    stack, weight = draw(num, values, seed=seed), draw(num, seed=seed + 1)
    torch.testing.assert_close(ties(stack, weight, density), ties_reference.ties(stack, weight, density))


def test_ties_of_stacked_tensors_trims_each_on_its_own():
    stack, weight = draw(5, 3, 8).mT.contiguous().mT, draw(3)
    expected = torch.stack([ties_reference.ties(layer, weight, 0.4) for layer in stack])
    torch.testing.assert_close(ties(stack, weight, 0.4), expected)


def test_ties_of_one_adapter_trims_it():
    value = torch.tensor([[3.0, -1.0, 0.5, -4.0]])
    assert ties(value, torch.ones(1), 0.5).tolist() == [3.0, 0.0, 0.0, -4.0]
    assert ties(value.to(torch.bfloat16), torch.ones(1), 0.5).tolist() == [3.0, 0.0, 0.0, -4.0]


def test_ties_refuses_an_impossible_density():
    with pytest.raises(ValueError, match=r"density 1\.5; choose the share of values to keep"):
        ties(torch.ones(1, 2), torch.ones(1), 1.5)


def test_ema_matches_the_loop_and_repeats_to_the_value():
    averages, values = [draw(3, 4), draw(2).expand(3, 2).T.clone().T], [draw(3, 4, seed=1), draw(3, 2, seed=1)]
    expected = [average.clone() for average in averages]
    for _ in range(3):
        ema(averages, values, 0.1)
        ema_reference.ema(expected, values, 0.1)
    torch.testing.assert_close(averages, expected)
    ema(averages, values, 1.0)
    torch.testing.assert_close(averages, values)


def test_ema_refuses_what_does_not_pair_up():
    with pytest.raises(ValueError, match="do not pair up"):
        ema([torch.ones(2)], [torch.ones(3)], 0.1)
