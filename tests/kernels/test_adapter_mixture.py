import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels.adapter_mixture import adapter_mixture, reference


def draw(records, tokens, dim, hidden, num, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shapes = [(records, tokens, dim), (records, num), (num, hidden, dim), (num, hidden), (num, dim, hidden), (num, dim)]
    return [torch.randn(*s, generator=generator, dtype=torch.float64, requires_grad=True) for s in shapes]


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 4), st.integers(1, 5), st.integers(1, 9), st.integers(1, 5), st.integers(1, 6))
def test_two_products_match_the_loop(records, tokens, dim, hidden, num):
    arguments = draw(records, tokens, dim, hidden, num)
    torch.testing.assert_close(adapter_mixture(*arguments), reference.adapter_mixture(*arguments))


def test_gradients():
    assert torch.autograd.gradcheck(adapter_mixture, tuple(draw(2, 3, 4, 2, 3)))


def test_an_unused_adapter_does_not_matter():
    x, weight, *adapters = (t.detach() for t in draw(3, 2, 5, 2, 4))
    weight[:, 1] = 0
    expected = reference.adapter_mixture(x, weight, *adapters)
    for tensor in adapters:
        tensor[1] = float("nan")
    torch.testing.assert_close(adapter_mixture(x, weight, *adapters), expected)
    assert torch.equal(adapter_mixture(x, torch.zeros_like(weight), *adapters), torch.zeros_like(x))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_strides_and_types(dtype):
    arguments = [t.detach().to(dtype) for t in draw(3, 4, 6, 2, 3)]
    strided = [t.mT.contiguous().mT for t in arguments]
    expected = reference.adapter_mixture(*(t.double() for t in arguments))
    actual = adapter_mixture(*strided)
    assert actual.dtype == dtype
    torch.testing.assert_close(actual.double(), expected, rtol=0.05 if dtype == torch.bfloat16 else 1e-5, atol=0.1)
