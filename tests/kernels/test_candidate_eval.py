import pytest
import torch
from torch import nn
from transformers import BertConfig, BertModel

from kernels.candidate_eval import Block, bert_block, candidate_eval, reference
from kernels.grouped_lora import Weights
from tests.kernels.test_grouped_lora import CountOps, scales

DIM, HIDDEN, RANK = 8, 12, 3
SIZES = {
    "query": (DIM, DIM), "key": (DIM, DIM), "value": (DIM, DIM), "attention_output": (DIM, DIM), "up": (DIM, HIDDEN),
    "down": (HIDDEN, DIM), "mlp": (DIM, DIM),
}  # fmt: skip


def new_block(pre_norm=False):
    linears = {name: nn.Linear(*size) for name, size in SIZES.items() if name != "mlp"}
    modules = nn.ModuleDict({**linears, "norm_1": nn.LayerNorm(DIM), "norm_2": nn.LayerNorm(DIM)})
    modules.double().requires_grad_(False)
    return Block(**modules, activation=nn.functional.gelu, heads=2, pre_norm=pre_norm)


def slots(num, *places):
    def weights(place):
        dim_in, dim_out = SIZES[place]
        factors = torch.randn(num, RANK, dim_in).double(), torch.randn(num, dim_out, RANK).double()
        biases = (torch.randn(num, RANK).double(), torch.randn(num, dim_out).double()) if place == "mlp" else ()
        return Weights(*factors, *biases)

    return {place: weights(place) for place in places}


PLACES = [[("query", "value")], [("query",), ("key", "down")], [(), ("mlp",), ("up", "attention_output")], [()]]


@pytest.mark.parametrize("first_only", [False, True])
@pytest.mark.parametrize("pre_norm", [False, True])
@pytest.mark.parametrize("num", [1, 3])
@pytest.mark.parametrize("places", PLACES)
def test_plan_matches_one_candidate_after_the_other(places, num, pre_norm, first_only):
    torch.manual_seed(0)
    blocks, adapters = [new_block(pre_norm) for _ in places], [slots(num, *names) for names in places]
    states = torch.randn(4, 5, DIM).double()
    mask = torch.arange(5) < torch.tensor([5, 1, 3, 2])[:, None]
    expected = reference.candidate_eval(states, mask, blocks, adapters, scales(num), first_only)
    actual = candidate_eval(states, blocks, adapters, scales(num), mask, first_only)
    torch.testing.assert_close(actual, expected)


def test_gradients_reach_each_candidate():
    torch.manual_seed(0)
    blocks, adapters = [new_block()], [slots(2, "query", "mlp")]
    states = torch.randn(2, 3, DIM).double()
    tensors = [t.requires_grad_() for weights in adapters[0].values() for t in weights if t is not None]
    run = lambda *_: candidate_eval(states, blocks, adapters, scales(2))  # noqa: E731
    assert torch.autograd.gradcheck(run, tuple(tensors), fast_mode=True)


def test_number_of_operations_does_not_depend_on_that_of_candidates():
    def ops(num):
        blocks, adapters = [new_block() for _ in range(2)], [slots(num, "query", "value") for _ in range(2)]
        with torch.no_grad(), CountOps() as counted:
            candidate_eval(torch.randn(2, 4, DIM).double(), blocks, adapters, scales(num))
        return counted.ops

    assert ops(2) == ops(9)


def test_blocks_and_adapters_have_to_pair_up():
    with pytest.raises(ValueError, match="0 blocks and adapters for 1"):
        candidate_eval(torch.zeros(1, 1, DIM), [], [{}], scales(1))


def test_a_bert_without_adapters_gives_its_own_states():
    config = BertConfig(
        hidden_size=DIM, num_hidden_layers=2, num_attention_heads=2, intermediate_size=HIDDEN, vocab_size=9
    )
    model = BertModel(config, add_pooling_layer=False).eval()
    states = model(input_ids=torch.arange(8).view(2, 4), output_hidden_states=True).hidden_states
    blocks = [bert_block(layer) for layer in model.encoder.layer]
    actual = candidate_eval(states[0], blocks, [{}, {}], torch.ones(1), first_only=False)
    torch.testing.assert_close(actual[0], states[2])
