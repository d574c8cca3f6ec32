"""All candidates on one batch against PEFT's set_adapter loop: `python -m kernels.candidate_eval.bench [--json]`."""

# N records, T tokens, K candidates

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from kernels.bench import Case, main
from kernels.bench_models import ALPHA, QV, RANK, adapted, add_adapters, frozen_weights, new_m6, stacked
from kernels.candidate_eval import Adapters, Block, bert_block, candidate_eval, every_pair
from kernels.grouped_lora import Weights, route_all

BASELINE = "PEFT set_adapter, then a forward of the whole model, for each candidate"
SHAPES = [(6, 2, 16), (12, 2, 8), (12, 3, 8), (6, 1, 16)]


def peft_loop(model: Any, tokens_NT: Tensor, num: int) -> Tensor:
    states = []
    for k in range(num):
        model.set_adapter(f"a{k}")
        states.append(model(input_ids=tokens_NT).last_hidden_state[:, 0])
    return torch.stack(states)


def from_states(cached_NTD: Tensor, blocks: list[Block], adapters: list[Adapters], scale_K: Tensor) -> Tensor:
    """(K, N, D): what the first token has become under every adapter, from the states entering the cut."""
    num = len(scale_K)
    shared = every_pair(blocks[0].enter(cached_NTD, None), num)
    states = candidate_eval(shared, blocks, adapters, route_all(num, len(cached_NTD), scale_K))
    return states[-1][:, 0].unflatten(0, (num, -1))


def with_prefix(prefix: Any, tokens_NT: Tensor, *suffix: Any) -> Tensor:
    return from_states(prefix(input_ids=tokens_NT).last_hidden_state, *suffix)


def suffix_of(model: Any, cut: int, num: int, bump: float = 1.0) -> tuple[list[Block], list[Adapters]]:
    """The blocks after the cut, the last one for the first token alone, and their adapters, from PEFT's modules."""
    layers, slots = model.base_model.model.encoder.layer, adapted(model)
    blocks = [bert_block(layers[i], first_only=i == len(layers) - 1) for i in range(cut, len(layers))]
    adapters: list[Adapters] = []
    for i in range(cut, len(layers)):
        places = {}
        for place in QV:
            A_KRD, B_KOR = stacked(slots[f"base_model.model.encoder.layer.{i}.attention.self.{place}"], num)
            places[place] = Weights(A_KRD * bump, B_KOR)
        adapters.append(places)
    return blocks, adapters


def cases(device: torch.device) -> Iterator[Case]:
    for layers, last, num in SHAPES:
        cut = layers - last
        model = add_adapters(new_m6(layers, device=device), num, QV, range(cut, layers))
        tokens_NT = torch.randint(1000, 2000, (8, 32), device=device)
        prefix = new_m6(cut, device=device)
        weights = frozen_weights(model)
        prefix.load_state_dict({name: weights[name] for name in prefix.state_dict()})
        cached_NTD = prefix(input_ids=tokens_NT).last_hidden_state
        scale_K = torch.full((num,), ALPHA / RANK, device=device)
        ours, off = (suffix_of(model, cut, num, bump) for bump in (1.0, 1.001))
        for label, run in [("warm cache", partial(from_states, cached_NTD)),
                           ("with its prefix", partial(with_prefix, prefix, tokens_NT))]:  # fmt: skip
            yield Case(
                f"L={layers} last {last}, K={num}, 8 x 32 tokens, {label}",
                partial(peft_loop, model, tokens_NT, num),
                partial(run, *ours, scale_K),
                partial(run, *off, scale_K),
            )


if __name__ == "__main__":
    main("candidate_eval", BASELINE, cases)
