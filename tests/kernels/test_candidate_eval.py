from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import BertConfig, BertModel

from kernels.candidate_eval import bert_block, candidate_eval, every_pair, reference
from kernels.grouped_lora import Weights, route_all, route_records
from tests.kernels.test_grouped_lora import CountOps, scales

DIM, HIDDEN, RANK = 8, 12, 3
SIZES = {
    "query": (DIM, DIM), "key": (DIM, DIM), "value": (DIM, DIM), "attention_output": (DIM, DIM), "up": (DIM, HIDDEN),
    "down": (HIDDEN, DIM), "mlp": (DIM, DIM),
}  # fmt: skip
PLACES = [[("query", "value")], [("query",), ("key", "down")], [(), ("mlp",), ("up", "attention_output")], [()]]


@pytest.fixture(scope="module")
def bert():
    config = BertConfig(
        hidden_size=DIM, num_hidden_layers=3, num_attention_heads=2, intermediate_size=HIDDEN, vocab_size=9
    )
    torch.manual_seed(0)
    return BertModel(config, add_pooling_layer=False).double().eval().requires_grad_(False)


def blocks_of(bert, num, first_only=False):
    return [bert_block(layer, first_only and n == num - 1) for n, layer in enumerate(bert.encoder.layer[:num])]


def slots(num, *places, rank=RANK):
    def weights(place):
        dim_in, dim_out = SIZES[place]
        factors = torch.randn(num, rank, dim_in).double(), torch.randn(num, dim_out, rank).double()
        biases = (torch.randn(num, rank).double(), torch.randn(num, dim_out).double()) if place == "mlp" else ()
        return Weights(*factors, *biases)

    return {place: weights(place) for place in places}


@pytest.mark.parametrize("first_only", [False, True])
@pytest.mark.parametrize("num", [1, 3])
@pytest.mark.parametrize("places", PLACES)
def test_plan_matches_one_pair_after_the_other(bert, places, num, first_only):
    torch.manual_seed(0)
    blocks, adapters = blocks_of(bert, len(places), first_only), [slots(num, *names) for names in places]
    mask = torch.arange(5) < torch.tensor([5, 1, 3, 2]).repeat(num)[:, None]
    shared = every_pair(blocks[0].enter(torch.randn(4, 5, DIM).double(), None), num)
    found, expected = (
        form(shared, blocks, adapters, route_all(num, 4, scales(num)), mask)
        for form in (candidate_eval, reference.candidate_eval)
    )
    assert len(found) == len(places)
    for got, want in zip(found, expected, strict=True):
        torch.testing.assert_close(got, want)


@settings(max_examples=25, deadline=None)
@given(
    pairs=st.lists(st.tuples(st.integers(0, 2), st.integers(-1, 6)), min_size=1, max_size=9),
    rank=st.sampled_from([1, 2, 3, 5, 8]), tokens=st.integers(1, 6), seed=st.integers(0, 2**31),
)  # fmt: skip
def test_any_mix_of_records_and_slots_matches_the_definition(bert, pairs, rank, tokens, seed):
    """Slots without a pair, backbone-only rows, odd ranks, ragged records and states that are not contiguous."""
    torch.manual_seed(seed)
    blocks, adapters = blocks_of(bert, 2), [slots(7, "mlp", rank=rank), slots(7, "query", "mlp", rank=rank)]
    records = torch.tensor([record for record, _ in pairs])
    mask = torch.arange(tokens) < torch.randint(1, tokens + 1, (3,))[records][:, None]
    states = torch.randn(3, DIM, tokens).double().mT
    shared = tuple(tensor[records] for tensor in blocks[0].enter(states, None))
    route = route_records(torch.tensor([slot for _, slot in pairs]), scales(7))
    for got, want in zip(
        candidate_eval(shared, blocks, adapters, route, mask),
        reference.candidate_eval(shared, blocks, adapters, route, mask),
        strict=True,
    ):
        torch.testing.assert_close(got, want)


def test_gradients_reach_each_candidate(bert):
    torch.manual_seed(0)
    blocks, adapters = blocks_of(bert, 1), [slots(2, "query", "mlp")]
    shared = every_pair(blocks[0].enter(torch.randn(2, 3, DIM).double(), None), 2)
    tensors = [t.requires_grad_() for weights in adapters[0].values() for t in weights if t is not None]
    run = lambda *_: candidate_eval(shared, blocks, adapters, route_all(2, 2, scales(2)))[0]  # noqa: E731
    assert torch.autograd.gradcheck(run, tuple(tensors), fast_mode=True)


def test_number_of_operations_does_not_depend_on_that_of_candidates(bert):
    def ops(num):
        blocks, adapters = blocks_of(bert, 2), [slots(num, "query", "value") for _ in range(2)]
        states, route = torch.randn(2, 4, DIM).double(), route_all(num, 2, scales(num))
        with torch.no_grad(), CountOps() as counted:
            candidate_eval(every_pair(blocks[0].enter(states, None), num), blocks, adapters, route)
        return counted.ops

    assert ops(2) == ops(9)


def test_blocks_and_adapters_have_to_pair_up(bert):
    evaluate = partial(candidate_eval, (torch.zeros(1, 1, DIM),), route=route_all(1, 1, scales(1)))
    with pytest.raises(ValueError, match="0 blocks and adapters for 1"):
        evaluate(blocks=[], adapters=[{}])
    with pytest.raises(ValueError, match="2 blocks and adapters for 1"):
        evaluate(blocks=blocks_of(bert, 2), adapters=[{}])


def test_a_bert_without_adapters_gives_its_own_states(bert):
    states = bert(input_ids=torch.arange(8).view(2, 4), output_hidden_states=True).hidden_states
    blocks = blocks_of(bert, 3)
    shared = every_pair(blocks[0].enter(states[0], None), 1)
    actual = candidate_eval(shared, blocks, [{}, {}, {}], route_all(1, 2, scales(1)))
    for got, want in zip(actual, states[1:], strict=True):
        torch.testing.assert_close(got, want)
