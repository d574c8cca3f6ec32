"""All candidates on one batch against PEFT's set_adapter loop: `python -m kernels.candidate_eval.bench [--json]`."""

# N records, T tokens, K candidates

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from kernels.bench import Case, main
from kernels.bench_models import ALPHA, QV, RANK, adapted, add_adapters, frozen_weights, new_m6, stacked
from kernels.candidate_eval import Adapters, Block, bert_block, candidate_eval
from kernels.grouped_lora import Weights

BASELINE = "PEFT set_adapter, then a forward of the whole model, for each candidate"
SHAPES = [(6, 2, 16), (12, 2, 8), (12, 3, 8), (6, 1, 16)]


def peft_loop(model: Any, tokens_NT: Tensor, num: int) -> Tensor:
    states = []
    for k in range(num):
        model.set_adapter(f"a{k}")
        states.append(model(input_ids=tokens_NT).last_hidden_state[:, 0])
    return torch.stack(states)


def with_prefix(prefix: Any, tokens_NT: Tensor, *suffix: Any) -> Tensor:
    return candidate_eval(prefix(input_ids=tokens_NT).last_hidden_state, *suffix)


def suffix_of(model: Any, cut: int, num: int, bump: float = 1.0) -> tuple[list[Block], list[Adapters]]:
    """The blocks after the cut and their adapters, from PEFT's modules."""
    layers, slots = model.base_model.model.encoder.layer, adapted(model)
    blocks: list[Block] = []
    adapters: list[Adapters] = []
    for i in range(cut, len(layers)):
        block, places = bert_block(layers[i]), {}
        for place in QV:
            A_KRD, B_KOR = stacked(slots[f"base_model.model.encoder.layer.{i}.attention.self.{place}"], num)
            places[place] = Weights(A_KRD * bump, B_KOR)
        blocks.append(block._replace(query=block.query.base_layer, value=block.value.base_layer))  # type: ignore[attr-defined]
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
        for label, run in [("warm cache", partial(candidate_eval, cached_NTD)),
                           ("with its prefix", partial(with_prefix, prefix, tokens_NT))]:  # fmt: skip
            yield Case(
                f"L={layers} last {last}, K={num}, 8 x 32 tokens, {label}",
                partial(peft_loop, model, tokens_NT, num),
                partial(run, *ours, scale_K),
                partial(run, *off, scale_K),
            )


if __name__ == "__main__":
    main("candidate_eval", BASELINE, cases)
