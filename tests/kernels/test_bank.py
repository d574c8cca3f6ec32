import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kernels.bank import clear_slot, gather, grown, new_bank, read_slot, write_slot
from tests.kernels.test_grouped_lora import CountOps


def new_adapter(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {"down.weight": torch.randn(2, 3, generator=generator), "up.weight": torch.randn(3, 2, generator=generator)}


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 99)), max_size=12))
def test_a_slot_holds_what_was_written_last(writes):
    bank = new_bank(new_adapter(), 5)
    for slot, seed in writes:
        write_slot(bank, slot, new_adapter(seed))
    for slot in range(5):
        seeds = [seed for written, seed in writes if written == slot]
        expected = new_adapter(seeds[-1]) if seeds else {n: torch.zeros_like(t) for n, t in new_adapter().items()}
        torch.testing.assert_close(read_slot(bank, slot), expected, rtol=0, atol=0)


def test_gather_takes_each_records_adapter():
    bank = new_bank(new_adapter(), 3)
    write_slot(bank, 2, new_adapter(7))
    gathered = gather(bank, torch.tensor([2, 0, 2]))
    assert torch.equal(gathered["down.weight"][0], new_adapter(7)["down.weight"])
    assert not gathered["down.weight"][1].any()


def test_clearing_a_slot_leaves_nothing_of_it_and_all_of_the_others():
    bank = new_bank(new_adapter(), 2)
    write_slot(bank, 0, new_adapter(1))
    write_slot(bank, 1, new_adapter(2))
    clear_slot(bank, 0)
    assert not any(tensor.any() for tensor in read_slot(bank, 0).values())
    torch.testing.assert_close(read_slot(bank, 1), new_adapter(2))


def test_growing_keeps_the_adapters():
    bank = new_bank(new_adapter(), 1)
    write_slot(bank, 0, new_adapter(1))
    larger = grown(bank, 4)
    torch.testing.assert_close(read_slot(larger, 0), new_adapter(1))
    assert not larger["up.weight"][1:].any()


def test_writing_costs_the_same_operations_in_any_bank():
    def ops(num_slots):
        bank = new_bank(new_adapter(), num_slots)
        with CountOps() as counted:
            write_slot(bank, num_slots - 1, new_adapter())
        return counted.ops

    assert ops(1) == ops(64)


@pytest.mark.parametrize("change", [{"down.weight": torch.zeros(3, 3)}, {"other": torch.zeros(1)}])
def test_a_strange_adapter_is_refused_before_anything_is_written(change):
    bank = new_bank(new_adapter(), 2)
    with pytest.raises(ValueError, match="slot 1: "):
        write_slot(bank, 1, new_adapter() | change)
    assert not bank["up.weight"].any()
