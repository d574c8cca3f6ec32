from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from kernels.grouped_lora import (
    Weights,
    block_rows,
    grouped_bottleneck,
    grouped_lora,
    grouped_rows,
    reference,
    route_all,
    route_records,
)  # fmt: skip


class CountOps(TorchDispatchMode):
    """Counts the ATen operations that run inside it."""

    def __init__(self):
        super().__init__()
        self.ops = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.ops[str(func)] += 1
        return func(*args, **kwargs or {})


def draw(records, tokens, num_in, num_out, rank, slots, dtype=torch.float64, grad=False):
    generator = torch.Generator().manual_seed(records + 7 * tokens + 31 * slots)
    shapes = {
        "x": (records, tokens, num_in), "down": (slots, rank, num_in), "up": (slots, num_out, rank),
        "down_bias": (slots, rank), "up_bias": (slots, num_out), "base": (records, tokens, num_out),
    }  # fmt: skip
    drawn = {name: torch.randn(*shape, generator=generator, dtype=dtype) for name, shape in shapes.items()}
    return {name: tensor.requires_grad_(grad) for name, tensor in drawn.items()}


def scales(slots, dtype=torch.float64):
    return torch.linspace(0.7, 1.9, slots, dtype=dtype)


def weights_of(t):
    return Weights(t["down"], t["up"], t["down_bias"], t["up_bias"])


def run(t, slot, scale, relu, inplace=False):
    route = route_records(slot, scale)
    if relu:
        return grouped_bottleneck(t["x"], weights_of(t), route, t["base"], inplace)
    return grouped_lora(t["x"], t["down"], t["up"], route, t["base"], inplace)


def define(t, slot, scale, relu):
    if relu:
        return reference.grouped_bottleneck(
            t["x"], t["down"], t["down_bias"], t["up"], t["up_bias"], slot, scale, t["base"]
        )
    return reference.grouped_lora(t["x"], t["down"], t["up"], slot, scale, t["base"])


SHAPES = [
    ((1, 1, 1, 1, 1, 1), [0]), ((5, 3, 7, 4, 2, 3), [2, -1, 0, 2, -1]), ((4, 6, 5, 5, 3, 9), [8, 8, 8, 8]),
    ((3, 2, 4, 6, 1, 2), [-1, -1, -1]), ((0, 2, 4, 6, 1, 2), []),
]  # fmt: skip


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize(("shape", "slots"), SHAPES)
def test_outputs_and_gradients_match_the_definition(shape, slots, relu):
    t = draw(*shape, grad=True)
    slot, scale = torch.tensor(slots, dtype=torch.long), scales(shape[-1])
    actual, expected = run(t, slot, scale, relu), define(t, slot, scale, relu)
    torch.testing.assert_close(actual, expected)
    upstream = torch.randn(actual.shape, dtype=actual.dtype)
    options = {"allow_unused": True, "materialize_grads": True}
    for got, want in zip(
        torch.autograd.grad(actual, list(t.values()), upstream, **options),
        torch.autograd.grad(expected, list(t.values()), upstream, **options),
        strict=True,
    ):
        torch.testing.assert_close(got, want)


@pytest.mark.parametrize("relu", [False, True])
def test_gradcheck(relu):
    t = draw(3, 2, 4, 3, 2, 2, grad=True)
    slot, scale = torch.tensor([1, -1, 0]), scales(2)
    assert torch.autograd.gradcheck(lambda *v: run(dict(zip(t, v, strict=True)), slot, scale, relu), tuple(t.values()))


@settings(max_examples=40, deadline=None)
@given(slots=st.lists(st.integers(-1, 4), max_size=40), seed=st.integers(0, 2**31))
def test_rows_of_ragged_records_match_record_by_record(slots, seed):
    torch.manual_seed(seed)
    t = draw(len(slots), 1, 6, 5, 3, 5)
    slot, scale = torch.tensor(slots, dtype=torch.long), scales(5)
    rows = grouped_rows(t["x"][:, 0], weights_of(t), slot, scale, t["base"][:, 0], relu=True)
    torch.testing.assert_close(rows, define(t, slot, scale, relu=True)[:, 0])


@given(
    slots=st.lists(st.integers(-1, 3), max_size=60), block=st.integers(1, 8),
    dtype=st.sampled_from([torch.int64, torch.int32]),
)  # fmt: skip
def test_blocks_hold_every_row_once_and_one_slot_each(slots, block, dtype):
    slot = torch.tensor(slots, dtype=dtype)
    row, slot_of_block = block_rows(slot, block)
    assert sorted(row[row >= 0].tolist()) == list(range(len(slots)))
    for rows, own in zip(row, slot_of_block.tolist(), strict=True):
        assert {slots[i] for i in rows.tolist() if i >= 0} == {own}


def test_a_backbone_record_is_untouched_even_by_a_diverged_slot():
    t = draw(3, 2, 4, 5, 2, 2)
    t["down"][0], t["up"][0] = float("nan"), float("inf")
    output = run(t, torch.tensor([-1, 1, -1]), scales(2), relu=True)
    assert torch.equal(output[0], t["base"][0])
    assert torch.equal(output[2], t["base"][2])
    assert bool(output.isfinite().all())


@pytest.mark.parametrize("relu", [False, True])
def test_without_gradients_the_result_may_take_the_memory_of_its_base(relu):
    t = draw(4, 3, 6, 5, 2, 3)
    slot, scale = torch.tensor([0, 2, -1, 1]), scales(3)
    expected, kept = define(t, slot, scale, relu), t["base"].clone()
    with torch.no_grad():
        torch.testing.assert_close(run(t, slot, scale, relu), expected)
        assert torch.equal(t["base"], kept)
        torch.testing.assert_close(run(t, slot, scale, relu, inplace=True), expected)
    if not relu:  # a bias is added to a copy first
        torch.testing.assert_close(t["base"], expected)


def test_strides_do_not_matter():
    t = draw(4, 3, 6, 5, 2, 3)
    strided = {name: tensor.mT.contiguous().mT for name, tensor in t.items()}
    slot = torch.tensor([0, 2, 1, -1])
    torch.testing.assert_close(run(strided, slot, scales(3), relu=True), run(t, slot, scales(3), relu=True))


def test_expanded_gradients_are_taken():
    t = draw(2, 3, 4, 5, 2, 2, grad=True)
    run(t, torch.tensor([0, 1]), scales(2), relu=False).sum().backward()
    assert bool(t["x"].grad.isfinite().all())


@pytest.mark.parametrize("absent", [False, True])
def test_number_of_operations_does_not_depend_on_that_of_adapters(absent):
    def ops(slots):
        t = draw(64, 2, 8, 8, 4, slots, torch.float32)
        slot = torch.arange(64) % slots
        route = route_records(torch.where(slot == 0, -1, slot) if absent else slot, scales(slots, torch.float32))
        with torch.no_grad(), CountOps() as counted:
            grouped_lora(t["x"], t["down"], t["up"], route, t["base"])
        return counted.ops

    assert ops(2) == ops(16) == ops(64)
    computing = {op: n for op, n in ops(64).items() if "transpose" not in op}
    assert sum(computing.values()) == (7 if absent else 5)  # gather, product, scale, gather, product


@pytest.mark.parametrize("relu", [False, True])
def test_number_of_operations_of_a_backward_does_not_depend_on_that_of_adapters(relu):
    def ops(slots):
        t = draw(64, 2, 8, 8, 4, slots, torch.float32, grad=True)
        output = run(t, torch.arange(64) % slots, scales(slots, torch.float32), relu)
        with CountOps() as counted:
            torch.autograd.grad(output, list(t.values()), torch.ones_like(output), allow_unused=True)
        return counted.ops

    assert ops(2) == ops(16) == ops(64)


@settings(max_examples=25, deadline=None)
@given(
    slots=st.lists(st.integers(-1, 6), min_size=1, max_size=12), rank=st.sampled_from([1, 2, 3, 5, 8, 16]),
    num_in=st.integers(1, 9), tokens=st.integers(1, 5), seed=st.integers(0, 2**31),
)  # fmt: skip
def test_gradients_of_any_mix_of_slots_match_the_definition(slots, rank, num_in, tokens, seed):
    """Slots that no record uses get a gradient of exactly 0; ranks are odd as well as even."""
    torch.manual_seed(seed)
    t = draw(len(slots), tokens, num_in, 4, rank, 7, grad=True)
    slot, scale = torch.tensor(slots), scales(7)
    upstream = torch.randn(len(slots), 4, tokens, dtype=torch.float64).mT  # not contiguous
    found, expected = (
        torch.autograd.grad(
            f(t, slot, scale, True), list(t.values()), upstream, allow_unused=True, materialize_grads=True
        )
        for f in (run, define)
    )
    for got, want in zip(found, expected, strict=True):
        torch.testing.assert_close(got, want)
    unused = [k for k in range(7) if k not in slots]
    assert not found[1][unused].any()


def test_route_all_pairs_every_record_with_every_slot():
    assert route_all(2, 3, scales(2)).slot_N.tolist() == [0, 0, 0, 1, 1, 1]


@pytest.mark.parametrize("slot", [2, -2])
def test_a_slot_that_does_not_exist_is_refused(slot):
    with pytest.raises(IndexError, match="of a bank of 2"):
        route_records(torch.tensor([0, slot]), scales(2))
