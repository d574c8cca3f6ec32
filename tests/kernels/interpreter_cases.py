"""Values of the Triton forms in Triton's interpreter; test_interpreter.py runs this file in a process of its own."""

import os

os.environ["TRITON_INTERPRET"] = "1"  # read when triton is first imported

import pytest
import torch

from kernels.adapter_mixture import reference as mixture_reference
from kernels.adapter_mixture import triton as mixture_triton
from kernels.descriptor_score import prepare, prepare_pca
from kernels.descriptor_score import reference as score_reference
from kernels.descriptor_score import triton as score_triton
from kernels.grouped_lora import Weights, cpu, route_records
from kernels.grouped_lora import triton as lora_triton
from kernels.ks_sketch import cpu as ks_cpu
from kernels.ks_sketch import fit_grid
from kernels.ks_sketch import triton as ks_triton
from kernels.merge_n import reference as merge_reference
from kernels.merge_n import triton as merge_triton
from kernels.mmd_perm import labelings
from kernels.mmd_perm import reference as mmd_reference
from kernels.mmd_perm import triton as mmd_triton
from kernels.pack1 import pack1
from kernels.pack1 import reference as pack_reference
from kernels.pack1 import triton as pack_triton
from kernels.ties import reference as ties_reference
from kernels.ties import triton as ties_triton


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed + sum(shape)))


def test_mmd_perm():
    z, member = draw(83, 37), labelings(40, 43, 66, seed=0)
    actual = mmd_triton.mmd_statistics(z, member, 0.02)
    torch.testing.assert_close(actual, mmd_reference.mmd_statistics(z, member, 0.02), rtol=0, atol=3e-6)


@pytest.mark.parametrize(("tokens", "dim", "hidden", "num"), [(70, 40, 5, 3), (3, 33, 70, 1)])
def test_descriptor_score(tokens, dim, hidden, num):
    weights = [draw(2, num, *shape) / 4 for shape in [(hidden, dim), (hidden,), (dim, hidden), (dim,)]]
    x = draw(2, tokens, dim)
    expected = score_reference.descriptor_score(x, *weights)
    torch.testing.assert_close(score_triton.descriptor_score(x, prepare(*weights)), expected, rtol=1e-4, atol=1e-5)


def test_descriptor_score_of_pca():
    basis, mean, x = torch.linalg.qr(draw(1, 2, 40, 6)).Q.mT.contiguous(), draw(1, 2, 40), draw(1, 70, 40)
    expected = score_reference.descriptor_score(x, basis, -(basis @ mean[..., None])[..., 0], basis.mT, mean)
    torch.testing.assert_close(score_triton.descriptor_score(x, prepare_pca(mean, basis)), expected)


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("rank", [3, 20])
def test_grouped_lora(relu, rank):
    records, tokens, dim, out, slots = 5, 9, 37, 70, 4
    biases = (draw(slots, rank), draw(slots, out)) if relu else (None, None)
    weights = Weights(draw(slots, rank, dim), draw(slots, out, rank), *biases)
    x, base, grad = draw(records, tokens, dim), draw(records, tokens, out), draw(records, tokens, out)
    route = route_records(torch.tensor([2, -1, 0, 2, 0]), torch.tensor([0.7, 1.0, 1.5, 9.0]))
    y, hidden = lora_triton.forward(x, weights, base, route, relu)
    expected_y, expected_hidden = cpu.forward(x, weights, base, route, relu)
    torch.testing.assert_close(y, expected_y, rtol=1e-4, atol=1e-4)
    gradients = lora_triton.backward(grad, x, weights, hidden, route, relu)
    for got, want in zip(gradients, cpu.backward(grad, x, weights, expected_hidden, route, relu), strict=True):
        if want is not None:
            torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-3)


def test_adapter_mixture():
    x, router = draw(3, 25, 37), draw(3, 7)
    adapters = [draw(7, *shape) / 4 for shape in [(11, 37), (11,), (37, 11), (37,)]]
    actual = mixture_triton.adapter_mixture(x, router, *adapters)
    torch.testing.assert_close(actual, mixture_reference.adapter_mixture(x, router, *adapters), rtol=1e-4, atol=1e-4)


def test_merge_n():
    stack, weight = draw(5, 30, 41), draw(5)
    torch.testing.assert_close(merge_triton.merge_n(stack, weight), merge_reference.merge_n(stack, weight))


def test_ties():
    stack, weight = draw(2, 5, 131), draw(5)
    expected = torch.stack([ties_reference.ties(layer, weight, 0.3) for layer in stack])
    torch.testing.assert_close(ties_triton.ties(stack, weight, 0.3), expected)


def test_ks_sketch():
    grid = fit_grid(draw(90, 70), 60)
    assert torch.equal(ks_triton.cell_counts(draw(91, 70), *grid), ks_cpu.cell_counts(draw(91, 70), *grid))


def test_pack1():
    packed = pack1(draw(3, 1031))
    torch.testing.assert_close(pack_triton.unpack1(*packed), pack_reference.unpack1(*packed))
