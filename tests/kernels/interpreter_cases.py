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


def test_mmd_perm_in_float16():
    z, member = draw(83, 37).half(), labelings(40, 43, 66, seed=0)
    expected = mmd_reference.mmd_statistics(z, member, 0.02)
    torch.testing.assert_close(mmd_triton.mmd_statistics(z, member.half(), 0.02), expected, rtol=0, atol=3e-6)


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


def test_descriptor_score_in_float16():
    x, *weights = halved(draw(2, 70, 40), *(draw(2, 3, *s) / 8 for s in [(5, 40), (5,), (40, 5), (40,)]))
    expected = score_reference.descriptor_score(x.float(), *(w.float() for w in weights))
    close_in_half(score_triton.descriptor_score(x, prepare(*weights)), expected, atol=0.02)


# slots of the records, their number in the bank, rank: mixed, one adapter, no record, nothing but the backbone
ROUTES = [([2, -1, 0, 2, 0], 4, 3), ([2, -1, 0, 2, 0], 4, 20), ([0, 0], 1, 5), ([], 2, 3), ([-1, -1], 2, 3)]


def lora_inputs(slots, num_slots, rank, relu, tokens=9, dim=37, out=70):
    records = len(slots)
    biases = (draw(num_slots, rank), draw(num_slots, out)) if relu else (None, None)
    weights = Weights(draw(num_slots, rank, dim), draw(num_slots, out, rank), *biases)
    x, base, grad = draw(records, tokens, dim), draw(records, tokens, out), draw(records, tokens, out)
    route = route_records(torch.tensor(slots, dtype=torch.long), torch.linspace(0.7, 1.5, num_slots))
    return x, weights, base, grad, route


def run_lora(form, x, weights, base, grad, route, relu):
    y, hidden = form.forward(x, weights, base, route, relu)
    return [y, *(each for each in form.backward(grad, x, weights, hidden, route, relu) if each is not None)]


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize(("slots", "num_slots", "rank"), ROUTES)
def test_grouped_lora(slots, num_slots, rank, relu):
    inputs = lora_inputs(slots, num_slots, rank, relu)
    for got, want in zip(run_lora(lora_triton, *inputs, relu), run_lora(cpu, *inputs, relu), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-3)


def test_grouped_lora_of_strided_inputs():
    x, weights, base, grad, route = lora_inputs([1, -1, 0], 2, 3, relu=True)
    strided = [t.mT.contiguous().mT for t in (x, base, grad, *weights[:2])]
    assert not any(t.is_contiguous() for t in strided)
    other = (strided[0], weights._replace(down_KRD=strided[3], up_KOR=strided[4]), strided[1], strided[2], route)
    found = run_lora(lora_triton, *other, relu=True)
    for got, want in zip(found, run_lora(lora_triton, x, weights, base, grad, route, relu=True), strict=True):
        assert torch.equal(got, want)


def halved(*tensors: torch.Tensor) -> list[torch.Tensor]:
    return [t.half() for t in tensors]


def close_in_half(actual, expected, atol=2e-3):
    """`expected` is computed in float32 from the same rounded inputs."""
    assert actual.dtype == torch.float16
    torch.testing.assert_close(actual.float(), expected, rtol=2e-3, atol=atol)


@pytest.mark.parametrize("relu", [False, True])
def test_grouped_lora_in_float16(relu):
    x, weights, base, grad, route = lora_inputs([2, -1, 0, 2, 0], 4, 3, relu)
    x, base, grad = halved(x, base, grad)
    weights = Weights(*(None if w is None else w.half() / 4 for w in weights))
    found = run_lora(lora_triton, x, weights, base, grad, route.typed(x), relu)
    wide = Weights(*(None if w is None else w.float() for w in weights))
    expected = run_lora(cpu, x.float(), wide, base.float(), grad.float(), route.typed(x).typed(base.float()), relu)
    for got, want in zip(found, expected, strict=True):
        close_in_half(got, want, atol=0.02)  # hidden states are rounded to float16 between the two products


def test_adapter_mixture():
    x, router = draw(3, 25, 37), draw(3, 7)
    adapters = [draw(7, *shape) / 4 for shape in [(11, 37), (11,), (37, 11), (37,)]]
    actual = mixture_triton.adapter_mixture(x, router, *adapters)
    torch.testing.assert_close(actual, mixture_reference.adapter_mixture(x, router, *adapters), rtol=1e-4, atol=1e-4)


def test_adapter_mixture_in_float16():
    x, router, *adapters = halved(
        draw(3, 25, 37), draw(3, 7), *(draw(7, *s) / 4 for s in [(11, 37), (11,), (37, 11), (37,)])
    )
    expected = mixture_reference.adapter_mixture(*(t.float() for t in (x, router, *adapters)))
    close_in_half(mixture_triton.adapter_mixture(x, router, *adapters), expected, atol=0.02)


def test_merge_n():
    stack, weight = draw(5, 30, 41), draw(5)
    torch.testing.assert_close(merge_triton.merge_n(stack, weight), merge_reference.merge_n(stack, weight))


def test_merge_n_in_float16():
    stack, weight = draw(5, 30, 41).half(), draw(5)
    close_in_half(merge_triton.merge_n(stack, weight), merge_reference.merge_n(stack.float(), weight))


def test_ties():
    stack, weight = draw(2, 5, 131), draw(5)
    expected = torch.stack([ties_reference.ties(layer, weight, 0.3) for layer in stack])
    torch.testing.assert_close(ties_triton.ties(stack, weight, 0.3), expected)


def test_ties_in_float16():
    stack, weight = ((draw(2, 5, 131).argsort(-1) - 65.25) / 32).half(), draw(5)  # no two magnitudes alike
    expected = torch.stack([ties_reference.ties(layer.float(), weight, 0.3) for layer in stack])
    close_in_half(ties_triton.ties(stack, weight, 0.3), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("num", [91, 0])
def test_ks_sketch(num, dtype):
    grid, x = fit_grid(draw(90, 70), 60), draw(num, 70).to(dtype)
    counts = ks_triton.cell_counts(x, *grid)
    assert torch.equal(counts, ks_cpu.cell_counts(x, *grid))
    assert int(counts.sum()) == num * 70


def test_ks_sketch_just_below_an_edge():
    x = torch.tensor([[-1e-12], [0.0], [0.99999994], [1.0], [2.9999998], [9.0]])
    assert ks_triton.cell_counts(x, torch.zeros(1), torch.ones(1), 5).tolist() == [[1, 2, 1, 1, 1]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_pack1(dtype):
    packed = pack1(draw(3, 1031).to(dtype))
    torch.testing.assert_close(pack_triton.unpack1(*packed), pack_reference.unpack1(*packed))


def test_pack1_of_strided_bits():
    bits, scale, num = pack1(draw(6, 1031))
    strided = bits.T.contiguous().T[::2], scale[::2], num
    assert not any(t.is_contiguous() for t in strided[:2])
    torch.testing.assert_close(pack_triton.unpack1(*strided), pack_reference.unpack1(bits[::2], scale[::2], num))


def test_memory_that_a_form_leaves_unwritten_is_poisoned_in_this_process():
    for like in (draw(3), draw(3).half()):
        assert bool(torch.empty_like(like).isnan().all())
        assert bool(like.new_empty(2, 4).isnan().all())
