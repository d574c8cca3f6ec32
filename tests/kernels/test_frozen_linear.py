import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from kernels.frozen_linear import FrozenLinear, cpu, freeze_linears, frozen_linear, reference

SIZES = st.integers(1, 24)


def layer(dim, out, seed=0, rows=(3, 5)):
    draw = torch.Generator().manual_seed(seed)
    return (torch.randn(*shape, generator=draw) for shape in [(*rows, dim), (out, dim), (out,)])


@pytest.fixture(params=[True, False], ids=["onednn", "mkl"])
def product(request, monkeypatch):
    """Both products, on whichever processor the test runs."""
    monkeypatch.setattr(cpu, "pays", lambda: request.param)


@pytest.fixture
def without_threshold(monkeypatch):
    monkeypatch.setattr("kernels.frozen_linear.SMALLEST", 0)


def test_this_build_carries_onednn():
    """Otherwise every test below would compare torch with itself."""
    assert cpu.is_available()


@settings(max_examples=60, deadline=None)
@given(rows=st.lists(st.integers(0, 9), min_size=0, max_size=3), dim=SIZES, out=SIZES, seed=st.integers(0, 2**31))
def test_outputs_and_gradients_are_the_definitions(rows, dim, out, seed):
    x, weight, bias = layer(dim, out, seed, rows)
    for number in (bias, None):
        ours, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
        found = cpu.Frozen.apply(ours, weight, number)
        expected = reference.frozen_linear(theirs, weight, number)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
        found.square().sum().backward()
        expected.square().sum().backward()
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-3, atol=1e-3)


@pytest.mark.usefixtures("product", "without_threshold")
def test_strides_do_not_matter():
    x, weight, bias = layer(6, 4, rows=(5, 3))
    expected = reference.frozen_linear(x.transpose(0, 1), weight, bias)
    torch.testing.assert_close(frozen_linear(x.transpose(0, 1), weight.T.contiguous().T, bias), expected)


@pytest.mark.usefixtures("product")
def test_a_row_has_the_same_bytes_in_any_company():
    """As long as their number stays: the pipeline fills every minibatch up."""
    x, weight, bias = layer(256, 256, rows=(8, 16))
    alone = torch.zeros_like(x)
    alone[3] = x[3]
    assert torch.equal(frozen_linear(x, weight, bias)[3], frozen_linear(alone, weight, bias)[3])


@pytest.mark.usefixtures("product")
def test_a_poisoned_row_stays_alone():
    x, weight, bias = layer(256, 256, rows=(8, 16))
    clean = frozen_linear(x, weight, bias)
    x[2] = torch.nan
    poisoned = frozen_linear(x, weight, bias)
    assert torch.isnan(poisoned[2]).all()
    assert torch.equal(torch.cat([poisoned[:2], poisoned[3:]]), torch.cat([clean[:2], clean[3:]]))


@pytest.mark.parametrize("why", ["float64", "trained", "trained bias", "small"])
def test_what_onednn_does_not_take_goes_to_torch(why, monkeypatch):
    monkeypatch.setattr(cpu, "pays", lambda: True)
    monkeypatch.setattr(cpu, "linear", lambda *_: pytest.fail("called oneDNN"))
    x, weight, bias = layer(256, 256) if why != "small" else layer(8, 8)
    if why == "float64":
        x, weight, bias = x.double(), weight.double(), bias.double()
    weight.requires_grad_(why == "trained")
    bias.requires_grad_(why == "trained bias")
    assert torch.equal(frozen_linear(x, weight, bias), nn.functional.linear(x, weight, bias))


@pytest.mark.usefixtures("product")
def test_layers_keep_names_weights_and_type():
    model = nn.Sequential(nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 256, bias=False)).requires_grad_(False)
    frozen = copy.deepcopy(model)
    freeze_linears(frozen)
    assert [type(module) for module in frozen] == [FrozenLinear, nn.ReLU, FrozenLinear]
    assert all(
        torch.equal(a, b) for a, b in zip(model.state_dict().values(), frozen.state_dict().values(), strict=True)
    )
    assert list(model.state_dict()) == list(frozen.state_dict())
    x = torch.randn(4, 256)
    torch.testing.assert_close(frozen(x), model(x), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(copy.deepcopy(frozen)(x), frozen(x), rtol=0, atol=0)
